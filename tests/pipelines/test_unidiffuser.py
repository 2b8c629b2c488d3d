"""The five modes of one model: against the conditionals of a Gaussian, by their clocks, saved; refusals."""

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from scipy.integrate import solve_ivp
from torch.testing import assert_close

import hfgen
from hfgen.models.unidiffuser import UniDiffuserModelOutput
from tests.helpers.text import tokenizer

MODES = ("joint", "image", "text", "text_to_image", "image_to_text")
RHO = 0.8


class Exact(ModelMixin, ConfigMixin):
    """The exact velocities of numbers x and z of variance 1 and covariance RHO, on the straight path, at any two
    times."""

    sample_shape, text_shape, latent_shape = (1, 1, 1), (1, 1), (1, 1)

    @register_to_config
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, sample, timestep, text, text_timestep):
        self.calls.append((sample, timestep, text, text_timestep))
        t, s = (time.double() / 1000 for time in (timestep, text_timestep))
        known = torch.stack([sample.flatten(), text.flatten()], 1).double()  # (B, 2)
        cross = RHO * (1 - t) * (1 - s)
        covariance = torch.tensor([[(1 - t) ** 2 + t**2, cross], [cross, (1 - s) ** 2 + s**2]])
        weights = torch.linalg.solve(covariance, known.T).T
        velocities = [
            weights @ torch.tensor([t - (1 - t), -RHO * (1 - s)], dtype=torch.float64),
            weights @ torch.tensor([-RHO * (1 - t), s - (1 - s)], dtype=torch.float64),
        ]
        made, said = (value.float() for value in velocities)
        return UniDiffuserModelOutput(sample=made.view(-1, 1, 1, 1), text=said.view(-1, 1, 1))


@pytest.fixture
def gaussian(monkeypatch):
    """A pipeline of that network, whose texts are their latents, and where the prompts are 1.5."""
    exact = Exact()
    model = hfgen.UniDiffuserPipeline(exact, hfgen.RectifiedFlowScheduler(), exact, tokenizer())
    monkeypatch.setattr(model, "decode_text", lambda latents: latents.flatten().tolist(), raising=False)
    monkeypatch.setattr(model, "encode_text", lambda prompts: torch.full((len(prompts), 1, 1), 1.5), raising=False)
    model.set_progress_bar_config(disable=True)
    return model


def draw(model, count=4000, **options):
    options |= {"num_inference_steps": 40, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    output = model(batch_size=count, scheduler="heun", **options)
    values = [None if each is None else torch.as_tensor(each).flatten() for each in (output.images, output.texts)]
    return [value for value in values if value is not None]


def test_both_together_have_the_joint_distribution(gaussian):
    x, z = draw(gaussian)
    covariance = torch.cov(torch.stack([x, z]))
    assert_close(covariance, torch.tensor([[1.0, RHO], [RHO, 1.0]]), atol=0.06, rtol=0)
    assert {float(t - s) for _, t, _, s in gaussian.denoiser.calls} == {0.0}


@pytest.mark.parametrize("mode", ["image", "text"])
def test_either_alone_has_its_marginal(gaussian, mode):
    (value,) = draw(gaussian, mode=mode)
    assert abs(value.mean()) < 0.05 and value.std() == pytest.approx(1, abs=0.04)
    other = 3 if mode == "image" else 1
    assert {float(call[other]) for call in gaussian.denoiser.calls} == {1000.0}
    hidden = [call[other - 1] for call in gaussian.denoiser.calls]
    assert all(torch.equal(each, hidden[0]) for each in hidden)  # the same noise in all steps


@pytest.mark.parametrize("mode", ["text_to_image", "image_to_text"])
def test_each_from_the_other_has_its_conditional(gaussian, mode):
    given = {"prompt": "a"} if mode == "text_to_image" else {"images": torch.full((1, 1, 1, 1), 1.5) / 2}
    value, known = draw(gaussian, mode=mode, **given)[0], 1.5 if mode == "text_to_image" else 0.75
    assert value.mean() == pytest.approx(RHO * known, abs=0.03)
    assert value.std() == pytest.approx((1 - RHO**2) ** 0.5, abs=0.03)
    other = 3 if mode == "text_to_image" else 1
    assert {float(call[other]) for call in gaussian.denoiser.calls} == {0.0}
    assert all((call[other - 1] == known).all() for call in gaussian.denoiser.calls)


def test_guidance_leads_from_the_marginal_to_the_conditional(gaussian):
    """The mean follows the velocity v + scale (w - v) of a marginal v and a conditional w, which are linear."""

    def slope(t, mean, scale, known=1.5):
        def velocity(middle, variance):
            spread = (1 - t) ** 2 * variance + t**2
            return (t - (1 - t) * variance) / spread * (mean - (1 - t) * middle) - middle

        v, w = velocity(0, 1), velocity(RHO * known, 1 - RHO**2)
        return v + scale * (w - v)

    for scale in (0.0, 1.0, 2.0):
        expected = solve_ivp(slope, (1, 0), [0.0], args=(scale,), rtol=1e-8).y[0, -1]
        (value,) = draw(gaussian, prompt="a", guidance_scale=scale)
        assert float(value.mean()) == pytest.approx(expected, abs=0.03)


# --- networks ---------------------------------------------------------------------------------------------------------


def pipeline(path="straight"):
    """A small pipeline, all of whose parameters are random."""
    words = tokenizer()
    network = hfgen.UniDiffuserModel(8, 1, 2, 4, 4, 8, 3, 2)
    texts = hfgen.TextAutoencoderModel(len(words), 6, 2, 4, 8, 1, 2)
    for part in (network, texts):
        for number, parameter in enumerate(part.parameters()):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(number))
    scheduler = hfgen.RectifiedFlowScheduler()
    if path != "straight":
        scheduler = hfgen.DDIMScheduler.from_config({"path": path, "prediction_type": "v_prediction"})
    model = hfgen.UniDiffuserPipeline(network, scheduler, texts, words)
    model.set_progress_bar_config(disable=True)
    return model


def given_of(mode, count=3):
    images = 2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(9)) - 1
    return {"text_to_image": {"prompt": ["a cat"] * count}, "image_to_text": {"images": images}}.get(mode, {})


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.mark.parametrize("path", ["straight", "cosine_vp", "ve"])
@pytest.mark.parametrize("mode", MODES)
def test_a_sample_is_the_same_alone_and_in_a_batch(mode, path):
    model, options = pipeline(path), {"num_inference_steps": 2, "output_type": "latent", "mode": mode}
    whole = model(batch_size=3, generator=seeds(1, 2, 3), **given_of(mode), **options)
    one = {name: value[1:2] for name, value in given_of(mode).items()}
    alone = model(batch_size=1, generator=seeds(2), **one, **options)
    assert (whole.images is None) is (mode in ("text", "image_to_text"))
    assert (whole.texts is None) is (mode in ("image", "text_to_image"))
    if whole.images is not None:
        assert_close(alone.images, whole.images[1:2], atol=1e-4, rtol=1e-4)
    if whole.texts is not None:
        assert len(whole.texts) == 3 and alone.texts == whole.texts[1:2]


def test_the_mode_follows_from_what_is_given():
    model, options = pipeline(), {"num_inference_steps": 1}
    assert model("a", **options).texts is None and len(model("a", batch_size=2, **options).images) == 2
    assert model(images=given_of("image_to_text")["images"], **options).images is None
    output = model(**options)
    assert output.images[0].size == (8, 8) and isinstance(output.texts[0], str)
    assert len(model(return_dict=False, **options)) == 2 and model("a", return_dict=False, **options)[1] is None


def test_a_saved_pipeline_has_the_same_bits(tmp_path):
    model, options = pipeline(), {"num_inference_steps": 2, "output_type": "latent"}
    model.save_pretrained(tmp_path)
    loaded = hfgen.HFGenPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    first, second = (each(batch_size=2, generator=seeds(1, 2), **options) for each in (model, loaded))
    assert torch.equal(first.images, second.images) and first.texts == second.texts
    assert torch.equal(model.encode_text(["a cat"]), loaded.encode_text(["a cat"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mode": "image", "prompt": "a"}, "mode='image' needs neither prompt nor images, and prompt was given"),
        ({"mode": "text_to_image"}, "mode='text_to_image' needs prompt, and nothing was given"),
        ({"prompt": "a", "images": torch.zeros(1, 1, 8, 8)}, "needs prompt, and prompt and images was given"),
        ({"mode": "other"}, "mode='other' is not known|mode='other' must be"),
        ({"guidance_scale": 2.0}, "mode='joint' is given nothing to lead to"),
        ({"prompt": ["a", "b"], "batch_size": 3}, "batch_size=3, and 2 were given"),
        ({"prompt": []}, r"prompt=\[\] must be a text"),
        ({"images": torch.zeros(1, 1, 4, 4)}, r"images have shape \(1, 1, 4, 4\)"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(**call)


def test_a_denoiser_of_other_latents_is_refused():
    model = pipeline()
    other = hfgen.TextAutoencoderModel(10, 6, 3, 4, 8, 1, 2)
    with pytest.raises(ValueError, match=r"models latents \(2, 4\), and those of the text_autoencoder are \(3, 4\)"):
        hfgen.UniDiffuserPipeline(model.denoiser, model.scheduler, other, model.tokenizer)
