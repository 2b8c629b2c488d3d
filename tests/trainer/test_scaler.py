"""Half precision with a loss scaler, which a CPU has as well: clipping and the log see the gradients themselves."""

import pytest
import torch
from accelerate import Accelerator

from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.objectives.denoising import Denoising
from hfgen.options import DataArgs, TrainArgs
from hfgen.paths import StraightPath
from hfgen.trainer.loop import train
from tests.helpers.toys import denoiser_networks, rows, weights

SCALE = 2.0**10


class ScalingAccelerator(Accelerator):
    """Scales losses as fp16 does on a GPU, and computes in float32."""

    def __init__(self):
        super().__init__(cpu=True, mixed_precision="no")
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)

    def unscale_gradients(self, optimizer=None):
        """Divide the gradients by the scale, as accelerate does under fp16."""
        self.scaler.unscale_(optimizer.optimizer)


def trained(folder, accelerator, max_grad_norm):
    options = {"max_train_steps": 6, "train_batch_size": 8, "lr_warmup_steps": 0, "logging_steps": 1}
    quiet = {"report_to": "none", "sample_steps": 0, "checkpointing_steps": 0, "use_ema": False}
    # With a large epsilon the steps of Adam depend on the size of the gradients, which clipping changes.
    args = TrainArgs(output_dir=str(folder), max_grad_norm=max_grad_norm, adam_epsilon=1.0, **options, **quiet)
    networks = denoiser_networks(norm=False, dropout=0.0)
    batches = Batches(load_images(DataArgs(max_train_samples=24)), 8, 0)
    train(networks, Denoising(StraightPath()), batches, args, accelerator)
    return weights(networks), [row["grad_norm"] for row in rows(folder)]


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
def test_clipping_sees_unscaled_gradients(tmp_path, max_grad_norm):
    plain, norms = trained(tmp_path / "plain", Accelerator(cpu=True), max_grad_norm)
    scaling = ScalingAccelerator()
    scaled, same = trained(tmp_path / "scaled", scaling, max_grad_norm)
    assert scaling.scaler.get_scale() == SCALE  # it has scaled every loss
    assert min(norms) > 0.05 and same == pytest.approx(norms, rel=1e-4)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-6)
