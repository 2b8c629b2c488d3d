"""Anomaly detection: the threshold keeps its false-alarm rate, scores are what they say, a folder judges as it did."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from hfgen.pipelines.anomaly import SCORES, density_features
from PIL import Image
from scipy.stats import beta, binom
from sklearn.metrics import roc_auc_score

import hfgen
from hfgen import HFGenPipeline, cli
from hfgen.data.images import load_images
from hfgen.families.anomaly import recipe
from hfgen.families.anomaly.fit import fit as fit_detector
from hfgen.families.anomaly.fit import fit_density
from hfgen.families.anomaly.options import AnomalyArgs
from hfgen.metrics.detection import auroc
from hfgen.models.calibration import CalibrationModel, max_alarms, min_calibration_images
from hfgen.options import DataArgs
from hfgen.training import train_anomaly as anomaly
from hfgen.utils import heatmap as heat
from tests.saving.test_portable import network

SHAPE = (1, 8, 8)


def calibrated(scores):
    """A calibration on these scores."""
    model = CalibrationModel(len(scores))
    model.scores.copy_(torch.as_tensor(scores, dtype=torch.float32).sort().values)
    return model


def vae(likelihood="gaussian", **options):
    """A VAEPipeline whose weights are random, and whose prior is not the standard normal."""
    channels = 2 if likelihood == "gaussian_learned" else 1
    prior = hfgen.GaussianMixturePriorModel((3, 1, 1), 2)
    prior.means.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)))
    model = network("MLPAutoencoderModel", out_channels=channels, hidden_dims=(16,), latent_channels=3)
    return hfgen.VAEPipeline(model, prior, likelihood, 0.3, **options)


def images(count, seed=0):
    """Random images in [-1, 1]."""
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def detector(score="density", **options):
    """A calibrated pipeline."""
    return fit_detector(vae(), images(200), images(99, 1), score, 0.05, **options)


# --- the threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (99, 0.05), (250, 0.1), (999, 0.001)])
def test_fresh_normal_images_are_called_anomalous_at_the_rate(count, rate):
    generator = torch.Generator().manual_seed(0)
    repeats, fresh, m = 400, 2000, max_alarms(count, rate)
    shares = []
    for _ in range(repeats):
        model = calibrated(torch.randn(count, generator=generator).exp())  # any continuous distribution
        new = torch.randn(fresh, generator=generator).exp()
        shares.append(float((new > model.threshold(rate)).double().mean()))
    law = beta(m, count + 1 - m)  # of the share, given the calibration
    spread = (law.var() + (law.mean() - law.var() - law.mean() ** 2) / fresh) ** 0.5
    assert abs(np.mean(shares) - m / (count + 1)) < 4 * spread / repeats**0.5
    assert m / (count + 1) <= rate + 1e-12


def test_alarms_on_fresh_normals_are_binomial_where_the_scores_law_is_known():
    count, rate, fresh = 9999, 0.01, 20_000
    generator = torch.Generator().manual_seed(0)
    threshold = calibrated(torch.rand(count, generator=generator)).threshold(rate)
    found = int((torch.rand(fresh, generator=generator) > threshold).sum())
    low, high = binom(fresh, 1 - threshold).ppf([1e-4, 1 - 1e-4])  # uniform scores: 1 - threshold is the true rate
    assert low <= found <= high


def test_p_values_count_scores_that_are_as_high():
    model = calibrated([3.0, 1.0, 2.0, 2.0])
    found = model(torch.tensor([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]))
    torch.testing.assert_close(found, torch.tensor([5, 5, 4, 4, 2, 2, 1]) / 5)
    for rate in (0.2, 0.4, 0.5, 0.6, 0.8):
        new = torch.linspace(0, 4, 41)
        assert torch.equal(new > model.threshold(rate), model(new) <= rate + 1e-6)


def test_p_values_of_exchangeable_scores_are_uniform():
    generator = torch.Generator().manual_seed(0)
    found = torch.cat([calibrated(draw[:9])(draw[9:]) for draw in torch.randn(5000, 10, generator=generator)])
    counts = torch.bincount((found * 10).round().long(), minlength=11)[1:]
    assert float(((counts - 500.0) ** 2 / 500).sum()) < 33.7  # chi-squared, 9 degrees of freedom, 1e-4


def test_a_rate_that_the_images_can_not_support_is_refused():
    assert (
        min_calibration_images(0.001) == 999 and min_calibration_images(0.05) == 19 and min_calibration_images(0.3) == 3
    )
    for rate in (0.001, 0.003, 0.01, 0.05, 1 / 3, 0.9):
        assert max_alarms(min_calibration_images(rate), rate) >= 1
        if min_calibration_images(rate) > 1:
            with pytest.raises(ValueError, match="normal images"):
                max_alarms(min_calibration_images(rate) - 1, rate)
    with pytest.raises(ValueError, match=r"0.001 needs at least 999 normal images.*there are 998.*0.001 or more"):
        calibrated(torch.rand(998)).threshold(0.001)
    for rate in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            max_alarms(100, rate)
    with pytest.raises(ValueError, match="not calibrated"):
        CalibrationModel().threshold(0.1)


# --- AUROC ------------------------------------------------------------------------------------------------------------


def test_auroc_is_sklearns_with_ties_too():
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 10_000):
        normal = torch.randint(levels, (301,), generator=generator).double()
        odd = torch.randint(levels, (77,), generator=generator) + levels / 5
        truth = roc_auc_score([0] * 301 + [1] * 77, torch.cat([normal, odd]))
        assert auroc(normal, odd) == pytest.approx(truth, abs=1e-12)
    assert auroc(torch.zeros(3), torch.ones(2)) == 1 and auroc(torch.ones(3), torch.ones(2)) == 0.5
    with pytest.raises(ValueError, match="both sides need one or more"):
        auroc(torch.zeros(0), torch.ones(2))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_heat_maps_sum_to_the_reconstruction_score():
    found, x = detector("reconstruction"), images(5, 3)
    judged = found(x)
    torch.testing.assert_close(judged.heat_maps.sum((1, 2)), judged.scores)
    torch.testing.assert_close(judged.heat_maps, (x - found.reconstruct(x)).square().sum(1))
    assert torch.equal(judged.scores, found.anomaly_score(x))


def test_heat_maps_sum_over_colours():
    model = hfgen.MLPAutoencoderModel(8, 3, 3, (8,), 3)
    prior = hfgen.GaussianMixturePriorModel((3, 1, 1))
    found = hfgen.AnomalyPipeline(model, prior, CalibrationModel(), "reconstruction")
    x = torch.rand(150, 3, 8, 8) * 2 - 1
    found.calibrate(x[:99], 0.01)
    torch.testing.assert_close(found(x).heat_maps, (x - found.reconstruct(x)).square().sum(1))


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_learned", "bernoulli"])
def test_bounds_are_those_of_the_likelihood_pipeline(likelihood):
    trained, x = vae(likelihood), images(4, 5).sign()  # binary images are their own binarisation
    names = ("likelihood", "likelihood_sigma", "likelihood_components", "variational")
    options = {name: trained.config[name] for name in names}
    scores = {}
    for score in ("elbo", "likelihood"):
        made = hfgen.AnomalyPipeline(
            trained.autoencoder, trained.prior, CalibrationModel(), score, num_samples=4000, **options
        )
        scores[score] = made.anomaly_score(x).double()
    generator = torch.Generator().manual_seed(2)
    assert (scores["likelihood"] <= scores["elbo"]).all()
    torch.testing.assert_close(-scores["elbo"], trained.elbo(x, 4000, generator).double(), rtol=0.02, atol=2.0)
    torch.testing.assert_close(
        -scores["likelihood"], trained.log_likelihood(x, 4000, generator).double(), rtol=0.02, atol=2.0
    )


def test_density_is_the_mixtures_of_latent_log_error_and_its_share():
    found, x = detector(num_components=2), images(6, 4)
    rounding = (2 / 255) ** 2 / 12
    error = (x - found.reconstruct(x)).square().flatten(1).mean(1) + rounding
    share = error / (x.flatten(1).var(1, unbiased=False) + rounding)
    rows = torch.cat([found.encode(x).flatten(1), torch.stack([error, share], 1).log()], 1).double()  # (6, 5)
    prior, parts = found.prior, []
    for weight, mean, scale in zip(prior.weights, prior.means, prior.scale_tril, strict=True):
        normal = torch.distributions.MultivariateNormal(mean.double(), scale_tril=scale.double())
        parts.append(weight.double().log() + normal.log_prob(rows))
    torch.testing.assert_close(found.anomaly_score(x).double(), -torch.stack(parts).logsumexp(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.describe(x).flatten(1).double(), rows, rtol=1e-4, atol=1e-4)


def test_the_density_is_fitted_in_units_of_each_column():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, 1, 1, generator=generator)
    rows[:2000] += 4
    scale = torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    here, there = (fit_density(x, 2) for x in (rows, rows * scale + 5))
    volume = scale.log().sum()
    torch.testing.assert_close(there.log_prob(rows * scale + 5) + volume, here.log_prob(rows), rtol=1e-2, atol=2e-2)
    assert fit_density(rows).config.num_components == 64
    assert fit_density(rows[:100]).config.num_components == 3


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_a_function_of_the_image_alone(score):
    found, x = detector(score, num_components=2), images(7, 6)
    whole = found.anomaly_score(x)
    torch.manual_seed(5)
    single = torch.cat([found.anomaly_score(part) for part in x.split(1)])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.anomaly_score(x), whole)


def test_what_can_not_be_scored_is_refused():
    plain = vae(variational=False)
    with pytest.raises(ValueError, match="score='elbo' needs an autoencoder trained with"):
        fit_detector(plain, images(50), images(99), "elbo")
    with pytest.raises(ValueError, match="score='distance' is not known"):
        fit_detector(vae(), images(50), images(99), "distance")
    found = detector("reconstruction")
    with pytest.raises(ValueError, match=r"needs \(B, 1, 8, 8\)"):
        found(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ValueError, match="finite"):
        found(torch.full((2, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"0\.001 needs at least 999"):
        found(images(2), false_alarm_rate=0.001)
    with pytest.raises(ValueError, match="needs at least 999"):
        found.calibrate(images(50), 0.001)
    loose = found(images(200, 9), false_alarm_rate=0.5)
    assert loose.decisions.sum() > found(images(200, 9)).decisions.sum()


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_a_saved_pipeline_judges_bit_identically(tmp_path, score):
    found, x = detector(score, num_components=2), images(20, 8)
    found.save_pretrained(tmp_path)
    again = HFGenPipeline.from_pretrained(tmp_path)
    assert type(again) is hfgen.AnomalyPipeline and again.threshold == found.threshold
    assert again.config.false_alarm_rate == 0.05 and again.config.heat_scale == found.config.heat_scale
    for here, there in zip(found(x, return_dict=False), again(x, return_dict=False), strict=True):
        assert torch.equal(here, there)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_an_overlay_is_grey_where_it_is_cold_and_hot_at_the_scale():
    image, map_ = Image.new("RGB", (3, 2), (200, 200, 200)), torch.zeros(2, 3)
    map_[0, 1], map_[1, 2] = 4.0, 1.0
    pixels = np.asarray(heat.overlay(image, map_, 2.0))
    assert pixels.shape == (2, 3, 3) and pixels[0, 0].tolist() == [100] * 3
    assert tuple(pixels[0, 1]) == heat.HOT and pixels[1, 2].tolist() == [178, 66, 50]
    with pytest.raises(ValueError, match="does not fit"):
        heat.overlay(image, torch.zeros(3, 2), 1.0)


# --- data -------------------------------------------------------------------------------------------------------------


def test_held_out_images_are_normal_and_never_trained_on():
    data = load_images(DataArgs())
    args = AnomalyArgs(leave_out="3, 7", false_alarm_rate=0.01, num_calibration=150)
    kept, held_out = recipe.split(data, args, 0)
    assert len(held_out) == 150 and len(kept) + 150 == int(((data.labels != 3) & (data.labels != 7)).sum())
    assert not {3, 7} & set(kept.labels.tolist())
    rows = {tuple(row) for row in ((held_out + 1) * 127.5).round().flatten(1).tolist()}
    assert not rows & {tuple(row) for row in kept.images.float().flatten(1).tolist()}
    again = recipe.split(load_images(DataArgs()), args, 0)
    assert torch.equal(again[1], held_out) and again[0].fingerprint == kept.fingerprint != data.fingerprint
    assert recipe.split(data, args, 1)[0].fingerprint != kept.fingerprint


def test_data_that_are_decoded_when_needed_are_split_alike():
    args = AnomalyArgs(false_alarm_rate=0.01)
    (cached, first), (lazy, second) = (
        recipe.split(load_images(DataArgs(cache_budget=budget)), args, 0) for budget in (4.0, 0.0)
    )
    assert lazy.images is None and torch.equal(first, second)
    chosen = torch.tensor([5, 0, 900])
    assert torch.equal(cached.pixels(chosen)[0], lazy.pixels(chosen)[0])
    assert torch.equal(cached.pixels(chosen)[1], lazy.pixels(chosen)[1])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"leave_out": "eleven"}, "the classes are 0, 1"),
        ({"num_calibration": 1797}, "none left to train on"),
        ({"num_calibration": 500}, "0.001 needs at least 999 normal images"),
        ({"false_alarm_rate": 0.0001}, "needs 9,999"),
    ],
)
def test_impossible_splits_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        recipe.split(load_images(DataArgs()), AnomalyArgs(**options), 0)


# --- the command ------------------------------------------------------------------------------------------------------

QUICK = ["--false_alarm_rate", "0.02", "--max_train_steps", "30", "--latent_channels", "4", "--report_to", "none"]


def fit(capsys, monkeypatch, *words):
    """`hfgen anomaly fit` in this process: (exit status, what it printed, what it complained of)."""
    monkeypatch.setattr("sys.argv", ["training/train_anomaly.py"])
    try:
        anomaly.main(list(map(str, words)))
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    out = capsys.readouterr()
    return status, out.out, out.err + (status if isinstance(status, str) else "")


def score(capsys, *words):
    """`hfgen anomaly score` in this process."""
    try:
        cli.main(["anomaly", "score", *map(str, words)])
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder that the command wrote, by itself, in seconds."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    words = ["--dataset", "digits", "--leave_out", "3", *QUICK, "--max_train_steps", "150", "--output_dir", str(folder)]
    command = [sys.executable, "-m", "hfgen.cli", "anomaly", "fit", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_fit_leaves_a_calibrated_pipeline_with_picture_figures_and_card(fitted):
    folder, out = fitted
    assert "1,453 normal images to learn from, 161 others to calibrate on" in out and "at most 0.02" in out
    found = HFGenPipeline.from_pretrained(folder)
    assert type(found) is hfgen.AnomalyPipeline and found.config.false_alarm_rate == 0.02
    assert found.calibration.config.num_images == 161 and found.config.heat_scale > 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["leave_out"] == "3"
    assert (folder / "anomalies.png").is_file() and "density" in (folder / "README.md").read_text()
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["steps"] == 150 and "95 %" in figures["measured"]["false-alarm rate"]


def test_score_writes_what_python_says_of_a_data_set(fitted, capsys, tmp_path):
    folder, _ = fitted
    names = {name: tmp_path / "new" / name for name in ("scores.csv", "scores.json", "heat")}
    words = ["--csv", names["scores.csv"], "--json", names["scores.json"], "--heat_maps", names["heat"]]
    status, out, said = score(capsys, folder, "digits", *words, "--false_alarm_rate", "0.1", "--batch_size", "100")
    assert status == 0, said
    data = load_images(DataArgs())
    found = HFGenPipeline.from_pretrained(folder)(data.images / 127.5 - 1, 0.1)
    with open(names["scores.csv"], newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    torch.testing.assert_close(torch.tensor([float(line["score"]) for line in lines]), found.scores)
    assert [line["anomalous"] == "True" for line in lines] == found.decisions.tolist()
    assert [int(line["row"]) for line in lines] == list(range(1797))
    whole = json.loads(names["scores.json"].read_text())
    count = int(found.decisions.sum())
    assert whole["anomalous"] == count == len(list(names["heat"].glob("*.png"))) and whole["false_alarm_rate"] == 0.1
    assert whole["images"] == 1797 and [line["score"] for line in whole["scores"]] == [
        pytest.approx(float(line["score"])) for line in lines
    ]
    rate = float(out.split("images per second:")[1].split()[0].replace(",", ""))
    assert rate > 100, "the issue asks for more than 100 images/s"
    assert "1,797" in out and str(names["scores.csv"]) in out


def test_score_takes_a_folder_of_images_of_any_size_and_mode(fitted, capsys, tmp_path):
    folder, _ = fitted
    pictures = tmp_path / "images" / "some"
    pictures.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in {"grey.png": (30, 20), "colour.jpg": (9, 60, 3), "clear.png": (40, 40, 4)}.items():
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(pictures / name)
    (pictures / "broken.png").write_bytes(b"no image")
    words = [folder, tmp_path / "images", "--json", tmp_path / "s.json", "--heat_maps", tmp_path / "heat"]
    status, _, said = score(capsys, *words)
    assert status == 2 and "broken.png" in said and "--skip_corrupt" in said
    status, _, said = score(capsys, *words, "--skip_corrupt", "--all_heat_maps")
    assert status == 0, said
    whole = json.loads((tmp_path / "s.json").read_text())
    files = [line["file"] for line in whole["scores"]]
    assert sorted(files) == ["some/clear.png", "some/colour.jpg", "some/grey.png"] and whole["left_out"] == 1
    shown = [path.name for path in sorted((tmp_path / "heat").iterdir())]
    assert shown == [
        f"{line['row']:06d}-{name.split('/')[1].split('.')[0]}.png"
        for line, name in zip(whole["scores"], files, strict=True)
    ]
    with Image.open(tmp_path / "heat" / shown[0]) as picture:
        assert picture.width > 2 * picture.height * 0.9


def test_score_refuses_what_it_can_not_do(fitted, capsys, tmp_path):
    folder, _ = fitted
    trained = vae()
    trained.save_pretrained(tmp_path / "vae")
    for words, why in {
        (tmp_path / "vae", "digits"): "hfgen anomaly fit --pipeline",
        (folder, tmp_path / "nowhere"): "does not exist",
        (folder, "digits", "--false_alarm_rate", "0.001"): "needs at least 999 normal images",
        (folder, "digits", "--batch_size", "0"): "--batch_size 0 must be at least 1",
        (folder, "digits", "--all_heat_maps"): "has no effect without --heat_maps",
        (tmp_path / "none", "digits"): "neither a folder",
    }.items():
        status, _, said = score(capsys, *words)
        assert status == 2 and why in said, said


def test_fit_uses_a_trained_autoencoder(fitted, capsys, monkeypatch, tmp_path):
    trained = vae()
    trained.save_pretrained(tmp_path / "vae")
    words = ["--pipeline", tmp_path / "vae", "--score", "likelihood", "--false_alarm_rate", "0.02"]
    status, out, said = fit(capsys, monkeypatch, *words, "--output_dir", tmp_path / "run")
    assert status == 0, said
    found = HFGenPipeline.from_pretrained(tmp_path / "run")
    assert found.config.score == "likelihood" and found.config.likelihood_sigma == 0.3
    for name, value in trained.autoencoder.state_dict().items():
        assert torch.equal(found.autoencoder.state_dict()[name], value)
    assert torch.equal(found.prior.means, trained.prior.means)
    assert (tmp_path / "run" / "anomalies.png").is_file() and "hfgen anomaly score" in out


def test_fit_estimates_and_resumes(capsys, monkeypatch, tmp_path):
    status, out, said = fit(capsys, monkeypatch, *QUICK, "--dry_run", "--output_dir", tmp_path / "dry")
    assert status == 0 and "autoencoder parameters" in out and not (tmp_path / "dry").exists(), said
    through, parts = tmp_path / "through", tmp_path / "parts"
    few = [*QUICK, "--score", "reconstruction", "--lr_scheduler", "constant"]
    assert fit(capsys, monkeypatch, *few, "--output_dir", through)[0] == 0
    assert fit(capsys, monkeypatch, *few, "--output_dir", parts, "--max_train_steps", "12")[0] == 0
    status, out, said = fit(capsys, monkeypatch, *few, "--output_dir", parts)
    assert status == 0 and "Resumed from" in out, said
    here, there = (HFGenPipeline.from_pretrained(folder) for folder in (through, parts))
    assert here.threshold == there.threshold and torch.equal(here.calibration.scores, there.calibration.scores)
    status, _, said = fit(capsys, monkeypatch, *few, "--output_dir", parts, "--num_calibration", "300")
    assert status != 0 and "num_calibration" in said + str(status)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--objective", "vq", "--model", "vq"], "--objective vq"),
        (["--objective", "ae", "--score", "elbo"], "--score elbo needs an autoencoder trained with"),
        (["--score", "elbo", "--density_components", "4"], "does nothing with --score elbo"),
        (["--score_samples", "4"], "does nothing with --score density"),
        (["--false_alarm_rate", "2"], "between 0 and 1"),
        (["--streaming"], "Drop --streaming"),
        (["--leave_out", "none"], "the classes are 0, 1"),
        (["--pipeline", "x", "--output_dir", "x"], "would be overwritten"),
        (
            ["--pipeline", "x", "--beta", "2"],
            "--beta 2.0 does nothing with --pipeline x, only without it. Leave it out",
        ),
        (["--pipeline", "x", "--push_to_hub"], "--push_to_hub True does nothing with --pipeline x"),
        (["--num_epochs", "3"], "--num_epochs 3.0 does nothing with --max_train_steps 3000, only with null"),
    ],
)
def test_fit_refuses_what_does_not_go_together(capsys, monkeypatch, words, why):
    status, _, said = fit(capsys, monkeypatch, *words)
    assert status == 2 and why in said, said


def test_density_features_are_the_latent_the_error_and_its_share_of_the_variance():
    from hfgen.pipelines.anomaly import ROUNDING, Encoding

    torch.manual_seed(0)
    x, latents, errors = torch.rand(3, 2, 4, 5) * 2 - 1, torch.randn(3, 3, 1, 1), torch.rand(3, 4, 5)
    x[2] = 0.5  # flat, and perfectly redone
    errors[2] = 0
    found = density_features(Encoding(x, latents, errors)).squeeze()
    error = errors.double().numpy().reshape(3, -1).sum(1) / 40 + ROUNDING
    variance = x.double().numpy().reshape(3, 2, -1).var(2).mean(1) + ROUNDING
    wanted = np.concatenate([latents.numpy().reshape(3, -1), np.log([error, error / variance]).T], 1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert found[2, 4] == 0
