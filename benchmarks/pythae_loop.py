"""The trainer of pythae for benchmarks/vae_throughput.py. It runs in an environment of its own, without hfgen.

    python pythae_loop.py data.safetensors output.safetensors report.json --epochs 10 --batch_size 128

Trains the VAE of pythae with the encoder 784-400-20 and a mirrored decoder on the binary images in the file. All
options except learning rate and batch size are the defaults of pythae (Adam). pythae has mixed precision for GPUs
alone; with `--bf16` its trainer is given the same context for the CPU. Writes the weights under the names of hfgen, and
the seconds of each epoch.
"""

import argparse
import itertools
import json
import tempfile
import time

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from safetensors.torch import load_file, save_file
from torch import nn


class Encoder(BaseEncoder):
    """The encoder 784-400-2 x 20."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))

    def forward(self, x: torch.Tensor) -> ModelOutput:
        mean, log_variance = self.layers(x.flatten(1)).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """The decoder 20-400-784."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layers(z).sigmoid().unflatten(1, (1, 28, 28)))


class Stamps(TrainingCallback):
    """Records the time at the end of each epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch_end(self, training_config: object, **kwargs: object) -> None:
        self.times.append(time.perf_counter())


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help='safetensors with "images" uint8 (N, 1, 28, 28), 0 and 1')
    parser.add_argument("weights", help="safetensors to write")
    parser.add_argument("report", help="JSON to write")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    images = load_file(args.data)["images"].float()
    torch.manual_seed(0)
    model = VAE(
        VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce"), encoder=Encoder(), decoder=Decoder()
    )
    stamps = Stamps()
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            no_cuda=True,
        )
        data = BaseDataset(images, torch.ones(len(images)))
        trainer = BaseTrainer(model, data, training_config=config, callbacks=[stamps])
        if args.bf16:
            trainer.amp_context = torch.autocast("cpu", torch.bfloat16)
        start = time.perf_counter()
        trainer.train()
    ends = [start, *stamps.times]
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    parts = {"encoder": model.encoder.layers, "decoder": model.decoder.layers}
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    first = weights["encoder.0.weight"]  # for pixels 0 and 1; those of hfgen are -1 and 1
    weights |= {"encoder.0.weight": first / 2, "encoder.0.bias": weights["encoder.0.bias"] + first.sum(1) / 2}
    save_file(weights, args.weights)
    with open(args.report, "w") as file:
        json.dump({"seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}, file)


if __name__ == "__main__":
    main()
