"""Anomaly detection: thresholds and false-alarm rates, scores by hand, saved detectors, and the commands."""

import csv
import json
import subprocess
import sys
from fractions import Fraction

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
from hfgen.data.training_data import record_of
from hfgen.families.anomaly import recipe
from hfgen.families.anomaly.fit import fit as fit_detector
from hfgen.families.anomaly.fit import fit_density, fit_energy
from hfgen.families.anomaly.options import AnomalyArgs
from hfgen.metrics.detection import auroc
from hfgen.models.calibration import CalibrationModel, max_alarms, min_calibration_images
from hfgen.options import DataArgs
from hfgen.training import train_anomaly
from hfgen.utils import heatmap
from hfgen.utils.seeds import seed_of
from tests.helpers.doors import run_door
from tests.saving.test_portable import network

SHAPE = (1, 8, 8)


def calibration_of(scores):
    """Return a calibration with these scores."""
    model = CalibrationModel(len(scores))
    model.scores.copy_(torch.as_tensor(scores, dtype=torch.float32).sort().values)
    return model


def vae(likelihood="gaussian", **options):
    """Return a VAEPipeline with random weights and a prior that is not the standard normal."""
    channels = 2 if likelihood == "gaussian_learned" else 1
    prior = hfgen.GaussianMixturePriorModel((3, 1, 1), 2)
    prior.means.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)))
    model = network("MLPAutoencoderModel", out_channels=channels, hidden_dims=(16,), latent_channels=3)
    return hfgen.VAEPipeline(model, prior, likelihood, 0.3, **options)


def images(count, seed=0):
    """Return random images in [-1, 1]."""
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def detector(score="density", **options):
    """Return a calibrated pipeline."""
    return fit_detector(vae(), images(200), images(99, 1), score, 0.05, **options)


# --- the threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (99, 0.05), (250, 0.1), (999, 0.001)])
def test_new_normal_images_are_classified_as_anomalous_at_the_rate(count, rate):
    generator = torch.Generator().manual_seed(0)
    repeats, new_count, m = 400, 2000, max_alarms(count, rate)
    shares = []
    for _ in range(repeats):
        model = calibration_of(torch.randn(count, generator=generator).exp())  # any continuous distribution
        new = torch.randn(new_count, generator=generator).exp()
        shares.append(float((new > model.threshold(rate)).double().mean()))
    law = beta(m, count + 1 - m)  # of the share, given the calibration
    deviation = (law.var() + (law.mean() - law.var() - law.mean() ** 2) / new_count) ** 0.5
    assert abs(np.mean(shares) - m / (count + 1)) < 4 * deviation / repeats**0.5
    assert m / (count + 1) <= rate + 1e-12


def test_alarms_on_new_normal_images_are_binomial_for_uniform_scores():
    count, rate, new_count = 9999, 0.01, 20_000
    generator = torch.Generator().manual_seed(0)
    threshold = calibration_of(torch.rand(count, generator=generator)).threshold(rate)
    alarms = int((torch.rand(new_count, generator=generator) > threshold).sum())
    low, high = binom(new_count, 1 - threshold).ppf([1e-4, 1 - 1e-4])  # the true rate is 1 - threshold
    assert low <= alarms <= high


def test_p_values_count_scores_that_are_at_least_as_high():
    model = calibration_of([3.0, 1.0, 2.0, 2.0])
    p_values = model(torch.tensor([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]))
    torch.testing.assert_close(p_values, torch.tensor([5, 5, 4, 4, 2, 2, 1]).double() / 5)
    for rate in (0.2, 0.4, 0.5, 0.6, 0.8):
        new = torch.linspace(0, 4, 41)
        assert torch.equal(new > model.threshold(rate), model(new) <= rate)


@pytest.mark.parametrize("rate", [0.001, 0.003, 0.01, 0.07, 0.1 + 0.2, 1 - 0.9, 1 / 3, 1 / 49, 0.29])
def test_a_decision_is_a_p_value_at_most_the_rate_at_ties_and_on_the_boundary(rate):
    """Integers as scores: most are ties. The rule is counted in fractions."""
    for count in (min_calibration_images(rate), 99, 199, 999):
        if count < min_calibration_images(rate):
            continue
        model, new = calibration_of(torch.arange(count) // 3), torch.arange(count // 3 + 2).float()
        p_values = model(new)
        exact = [Fraction(1 + sum(i // 3 >= s for i in range(count)), count + 1) for s in range(count // 3 + 2)]
        assert p_values.tolist() == [float(p) for p in exact]
        assert (new > model.threshold(rate)).tolist() == [p <= rate for p in p_values.tolist()]


def test_nan_scores_are_refused_by_name():
    model = calibration_of([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="1 of 3 anomaly scores are NaN, the first of image 1"):
        model(torch.tensor([0.0, torch.nan, 9.0]))
    assert model(torch.tensor([torch.inf, -torch.inf])).tolist() == [0.25, 1.0]
    model.scores[2] = torch.nan
    for call in (lambda: model(torch.zeros(1)), lambda: model.threshold(0.5)):
        with pytest.raises(ValueError, match="anomaly scores are NaN"):
            call()


@pytest.mark.parametrize("score", hfgen.pipelines.anomaly.SCORES)
def test_a_network_with_nan_gives_no_verdict(score):
    pipeline = detector(score)
    next(pipeline.autoencoder.parameters()).data.fill_(torch.nan)
    for call in (pipeline, pipeline.anomaly_score, lambda x: pipeline.calibrate(x, 0.1)):
        with pytest.raises(ValueError, match=r"autoencoder has .* weights that are not finite"):
            call(images(20))


def test_p_values_of_exchangeable_scores_are_uniform():
    generator = torch.Generator().manual_seed(0)
    p_values = torch.cat([calibration_of(x[:9])(x[9:]) for x in torch.randn(5000, 10, generator=generator)])
    counts = torch.bincount((p_values * 10).round().long(), minlength=11)[1:]
    assert float(((counts - 500.0) ** 2 / 500).sum()) < 33.7  # chi-squared, 9 degrees of freedom, 1e-4


def test_a_rate_that_is_too_low_for_the_number_of_images_is_refused():
    assert (
        min_calibration_images(0.001) == 999 and min_calibration_images(0.05) == 19 and min_calibration_images(0.3) == 3
    )
    for rate in (0.001, 0.003, 0.01, 0.05, 1 / 3, 0.9):
        assert max_alarms(min_calibration_images(rate), rate) >= 1
        if min_calibration_images(rate) > 1:
            with pytest.raises(ValueError, match="normal images"):
                max_alarms(min_calibration_images(rate) - 1, rate)
    with pytest.raises(ValueError, match=r"1e-310 needs at least 9,007,199,254,740,99\d normal images"):
        max_alarms(10, 1e-310)  # whose inverse no float holds
    with pytest.raises(ValueError, match=r"0.001 needs at least 999 normal images.*there are 998.*0.001 or more"):
        calibration_of(torch.rand(998)).threshold(0.001)
    for rate in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            max_alarms(100, rate)
    with pytest.raises(ValueError, match="not calibrated"):
        CalibrationModel().threshold(0.1)


# --- AUROC ------------------------------------------------------------------------------------------------------------


def test_auroc_is_that_of_scikit_learn_also_with_ties():
    generator = torch.Generator().manual_seed(0)
    for levels in (3, 10_000):
        normal = torch.randint(levels, (301,), generator=generator).double()
        anomalous = torch.randint(levels, (77,), generator=generator) + levels / 5
        expected = roc_auc_score([0] * 301 + [1] * 77, torch.cat([normal, anomalous]))
        assert auroc(normal, anomalous) == pytest.approx(expected, abs=1e-12)
    assert auroc(torch.zeros(3), torch.ones(2)) == 1 and auroc(torch.ones(3), torch.ones(2)) == 0.5
    with pytest.raises(ValueError, match="both sides need one or more"):
        auroc(torch.zeros(0), torch.ones(2))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_heat_maps_sum_to_the_reconstruction_score():
    pipeline, x = detector("reconstruction"), images(5, 3)
    output = pipeline(x)
    torch.testing.assert_close(output.heat_maps.sum((1, 2)), output.scores)
    torch.testing.assert_close(output.heat_maps, (x - pipeline.reconstruct(x)).square().sum(1))
    assert torch.equal(output.scores, pipeline.anomaly_score(x))


def test_heat_maps_sum_over_colours():
    model = hfgen.MLPAutoencoderModel(8, 3, 3, (8,), 3)
    prior = hfgen.GaussianMixturePriorModel((3, 1, 1))
    pipeline = hfgen.AnomalyPipeline(model, prior, CalibrationModel(), "reconstruction")
    x = torch.rand(150, 3, 8, 8) * 2 - 1
    pipeline.calibrate(x[:99], 0.01)
    torch.testing.assert_close(pipeline(x).heat_maps, (x - pipeline.reconstruct(x)).square().sum(1))


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_learned", "bernoulli"])
def test_bounds_are_those_of_the_likelihood_pipeline(likelihood):
    pipeline, x = vae(likelihood), images(4, 5).sign()  # binary images are their own binarisation
    names = ("likelihood", "likelihood_sigma", "likelihood_components", "variational")
    options = {name: pipeline.config[name] for name in names}
    scores = {}
    for score in ("elbo", "likelihood"):
        parts = pipeline.autoencoder, pipeline.prior, CalibrationModel()
        scores[score] = hfgen.AnomalyPipeline(*parts, score, num_samples=4000, **options).anomaly_score(x).double()
    generator = torch.Generator().manual_seed(2)
    assert (scores["likelihood"] <= scores["elbo"]).all()
    torch.testing.assert_close(-scores["elbo"], pipeline.elbo(x, 4000, generator).double(), rtol=0.02, atol=2.0)
    log_likelihood = pipeline.log_likelihood(x, 4000, generator).double()
    torch.testing.assert_close(-scores["likelihood"], log_likelihood, rtol=0.02, atol=2.0)


def test_density_is_the_likelihood_of_latent_log_error_and_log_share_under_the_mixture():
    pipeline, x = detector(num_components=2), images(6, 4)
    rounding = (2 / 255) ** 2 / 12
    error = (x - pipeline.reconstruct(x)).square().flatten(1).mean(1) + rounding
    share = error / (x.flatten(1).var(1, unbiased=False) + rounding)
    rows = torch.cat([pipeline.encode(x).flatten(1), torch.stack([error, share], 1).log()], 1).double()  # (6, 5)
    prior, parts = pipeline.prior, []
    for weight, mean, scale in zip(prior.weights, prior.means, prior.scale_tril, strict=True):
        normal = torch.distributions.MultivariateNormal(mean.double(), scale_tril=scale.double())
        parts.append(weight.double().log() + normal.log_prob(rows))
    expected = -torch.stack(parts).logsumexp(0)
    torch.testing.assert_close(pipeline.anomaly_score(x).double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pipeline.describe(x).flatten(1).double(), rows, rtol=1e-4, atol=1e-4)


def test_the_density_does_not_depend_on_the_units_of_its_columns():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, 1, 1, generator=generator)
    rows[:2000] += 4
    scale = torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    scaled = rows * scale + 5
    log_prob, scaled_log_prob = (fit_density(x, 2).log_prob(x) for x in (rows, scaled))
    torch.testing.assert_close(scaled_log_prob + scale.log().sum(), log_prob, rtol=1e-2, atol=2e-2)
    assert fit_density(rows).config.num_components == 64
    assert fit_density(rows[:100]).config.num_components == 3


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_a_function_of_the_image_alone(score):
    pipeline, x = detector(score, num_components=2), images(7, 6)
    scores = pipeline.anomaly_score(x)
    torch.manual_seed(5)
    single = torch.cat([pipeline.anomaly_score(part) for part in x.split(1)])
    torch.testing.assert_close(single, scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(pipeline.anomaly_score(x), scores)


def test_a_new_detector_has_latents_of_a_stream_and_an_old_one_keeps_its_own():
    new = detector("elbo")
    assert new.config.noise_seed == seed_of("anomaly score")
    parts = {name: getattr(new, name) for name in ("autoencoder", "prior", "calibration")}
    options = {name: new.config[name] for name in ("score", "num_samples", "likelihood", "likelihood_sigma")}
    old, x = hfgen.AnomalyPipeline(**parts, **options), images(4, 6)  # as saved before: without the entry
    assert old.config.noise_seed == 0 and not torch.equal(old.anomaly_score(x), new.anomaly_score(x))


def test_impossible_scores_and_images_are_refused():
    plain = vae(variational=False)
    with pytest.raises(ValueError, match="score='elbo' needs an autoencoder trained with"):
        fit_detector(plain, images(50), images(99), "elbo")
    with pytest.raises(ValueError, match="score='distance' is not known"):
        fit_detector(vae(), images(50), images(99), "distance")
    pipeline = detector("reconstruction")
    with pytest.raises(ValueError, match=r"needs \(B, 1, 8, 8\)"):
        pipeline(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ValueError, match="finite"):
        pipeline(torch.full((2, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"0\.001 needs at least 999"):
        pipeline(images(2), false_alarm_rate=0.001)
    with pytest.raises(ValueError, match="needs at least 999"):
        pipeline.calibrate(images(50), 0.001)
    decisions = pipeline(images(200, 9), false_alarm_rate=0.5).decisions
    assert decisions.sum() > pipeline(images(200, 9)).decisions.sum()


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_a_saved_pipeline_has_the_same_outputs_bit_for_bit(tmp_path, score):
    pipeline, x = detector(score, num_components=2), images(20, 8)
    pipeline.save_pretrained(tmp_path)
    loaded = HFGenPipeline.from_pretrained(tmp_path)
    assert type(loaded) is hfgen.AnomalyPipeline and loaded.threshold == pipeline.threshold
    assert loaded.config.false_alarm_rate == 0.05 and loaded.config.heat_scale == pipeline.config.heat_scale
    for a, b in zip(pipeline(x, return_dict=False), loaded(x, return_dict=False), strict=True):
        assert torch.equal(a, b)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_an_overlay_is_grey_at_0_and_hot_at_the_scale():
    image, map_ = Image.new("RGB", (3, 2), (200, 200, 200)), torch.zeros(2, 3)
    map_[0, 1], map_[1, 2] = 4.0, 1.0
    pixels = np.asarray(heatmap.overlay(image, map_, 2.0))
    assert pixels.shape == (2, 3, 3) and pixels[0, 0].tolist() == [100] * 3
    assert tuple(pixels[0, 1]) == heatmap.HOT and pixels[1, 2].tolist() == [178, 66, 50]
    with pytest.raises(ValueError, match="does not fit"):
        heatmap.overlay(image, torch.zeros(3, 2), 1.0)


# --- data -------------------------------------------------------------------------------------------------------------


def test_held_out_images_are_normal_and_never_trained_on():
    data = load_images(DataArgs())
    args = AnomalyArgs(leave_out="3, 7", false_alarm_rate=0.01, num_calibration=150)
    training, held_out = recipe.split(data, args, 0)
    assert len(held_out) == 150 and len(training) + 150 == int(((data.labels != 3) & (data.labels != 7)).sum())
    assert not {3, 7} & set(training.labels.tolist())
    rows = {tuple(row) for row in ((held_out + 1) * 127.5).round().flatten(1).tolist()}
    assert not rows & {tuple(row) for row in training.images.float().flatten(1).tolist()}
    same_training, same_held_out = recipe.split(load_images(DataArgs()), args, 0)
    assert torch.equal(same_held_out, held_out)
    assert same_training.fingerprint == training.fingerprint != data.fingerprint
    assert recipe.split(data, args, 1)[0].fingerprint != training.fingerprint


def test_data_without_a_cache_are_split_in_the_same_way():
    args = AnomalyArgs(false_alarm_rate=0.01)
    (cached, first), (uncached, second) = (
        recipe.split(load_images(DataArgs(cache_budget=budget)), args, 0) for budget in (4.0, 0.0)
    )
    assert uncached.images is None and torch.equal(first, second)
    rows = torch.tensor([5, 0, 900])
    assert torch.equal(cached.pixels(rows)[0], uncached.pixels(rows)[0])
    assert torch.equal(cached.pixels(rows)[1], uncached.pixels(rows)[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_out": "eleven"}, "--leave_out eleven is not known: the classes are 0, 1"),
        ({"num_calibration": 1797}, "none left to train on"),
        ({"num_calibration": 500}, "0.001 needs at least 999 normal images"),
        ({"false_alarm_rate": 0.0001}, "needs 9,999"),
    ],
)
def test_impossible_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recipe.split(load_images(DataArgs()), AnomalyArgs(**options), 0)


# --- the command ------------------------------------------------------------------------------------------------------

QUICK = ["--false_alarm_rate", "0.02", "--max_train_steps", "30", "--latent_channels", "4", "--report_to", "none"]


def fit(capsys, *words):
    """Run `hfgen anomaly fit` in this process; return exit status, stdout and error output."""
    return run_door(train_anomaly.main, capsys, *words)


def score(capsys, *words):
    """Run `hfgen anomaly score` in this process; return exit status, stdout and error output."""
    return run_door(cli.main, capsys, "anomaly", "score", *words)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Run `hfgen anomaly fit` in a process of its own; return the folder and stdout."""
    folder = tmp_path_factory.mktemp("fitted") / "run"
    words = ["--dataset", "digits", "--leave_out", "3", *QUICK, "--max_train_steps", "150", "--output_dir", str(folder)]
    command = [sys.executable, "-m", "hfgen.cli", "anomaly", "fit", *words]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout


def test_fit_saves_a_calibrated_pipeline_with_picture_metrics_and_card(fitted):
    folder, out = fitted
    assert "1,453 normal images to train on, 161 to calibrate on" in out and "at most 0.02" in out
    pipeline = HFGenPipeline.from_pretrained(folder)
    assert type(pipeline) is hfgen.AnomalyPipeline and pipeline.config.false_alarm_rate == 0.02
    assert pipeline.calibration.config.num_images == 161 and pipeline.config.heat_scale > 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["leave_out"] == "3"
    assert (folder / "anomalies.png").is_file() and "density" in (folder / "README.md").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 150 and "95 %" in metrics["measured"]["false-alarm rate"]


def test_score_writes_the_outputs_of_the_pipeline_for_a_data_set(fitted, capsys, tmp_path):
    folder, _ = fitted
    names = {name: tmp_path / "new" / name for name in ("scores.csv", "scores.json", "heat")}
    words = ["--csv", names["scores.csv"], "--json", names["scores.json"], "--heat_maps", names["heat"]]
    status, out, errors = score(capsys, folder, "digits", *words, "--false_alarm_rate", "0.1", "--batch_size", "100")
    assert status == 0, errors
    data = load_images(DataArgs())
    output = HFGenPipeline.from_pretrained(folder)(data.images / 127.5 - 1, 0.1)
    with open(names["scores.csv"], newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    torch.testing.assert_close(torch.tensor([float(line["score"]) for line in lines]), output.scores)
    assert [line["anomalous"] == "True" for line in lines] == output.decisions.tolist()
    assert [int(line["row"]) for line in lines] == list(range(1797))
    summary = json.loads(names["scores.json"].read_text())
    count = int(output.decisions.sum())
    assert summary["anomalous"] == count == len(list(names["heat"].glob("*.png")))
    assert summary["images"] == 1797 and summary["false_alarm_rate"] == 0.1
    scores = [float(line["score"]) for line in lines]
    assert [line["score"] for line in summary["scores"]] == pytest.approx(scores)
    rate = float(out.split("images per second:")[1].split()[0].replace(",", ""))
    assert rate > 100, "at least 100 images/s are required"
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
    status, _, errors = score(capsys, *words)
    assert status == 2 and "broken.png" in errors and "--skip_corrupt" in errors
    status, _, errors = score(capsys, *words, "--skip_corrupt", "--all_heat_maps")
    assert status == 0, errors
    summary = json.loads((tmp_path / "s.json").read_text())
    files = [line["file"] for line in summary["scores"]]
    assert sorted(files) == ["some/clear.png", "some/colour.jpg", "some/grey.png"] and summary["left_out"] == 1
    heat_maps = [path.name for path in sorted((tmp_path / "heat").iterdir())]
    assert heat_maps == [
        f"{line['row']:06d}-{name.split('/')[1].split('.')[0]}.png"
        for line, name in zip(summary["scores"], files, strict=True)
    ]
    with Image.open(tmp_path / "heat" / heat_maps[0]) as picture:
        assert picture.width > 2 * picture.height * 0.9


def test_score_refuses_impossible_options(fitted, capsys, tmp_path):
    folder, _ = fitted
    vae().save_pretrained(tmp_path / "vae")
    for words, message in {
        (tmp_path / "vae", "digits"): "hfgen anomaly fit --pipeline",
        (folder, tmp_path / "nowhere"): "does not exist",
        (folder, "digits", "--false_alarm_rate", "0.001"): "needs at least 999 normal images",
        (folder, "digits", "--batch_size", "0"): "--batch_size 0 must be at least 1",
        (folder, "digits", "--all_heat_maps"): "has no effect without --heat_maps",
        (tmp_path / "none", "digits"): "neither a folder",
    }.items():
        status, _, errors = score(capsys, *words)
        assert status == 2 and message in errors, errors


def test_score_reads_grey_images_of_16_bits_as_the_training_did(capsys, tmp_path):
    """A folder of 12 bits has the scores of the same folder in 8 bits, rounded by hand."""
    values = np.random.default_rng(0).integers(0, 4096, (50, 8, 8))
    for name, pixels in (("deep", values.astype(np.uint16)), ("plain", np.rint(values / 4095 * 255).astype(np.uint8))):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / name / f"{number:02d}.png")
    few = [*QUICK, "--false_alarm_rate", "0.1", "--max_train_steps", "1", "--num_calibration", "20"]
    status, _, errors = fit(
        capsys, "--dataset", tmp_path / "deep", "--levels", "4095", *few, "--output_dir", tmp_path / "run"
    )
    assert status == 0, errors
    found = []
    for name in ("deep", "plain"):
        status, _, errors = score(capsys, tmp_path / "run", tmp_path / name, "--json", tmp_path / "s.json")
        assert status == 0 and "16-bit value 4095 as white" in errors, errors
        found.append([row["score"] for row in json.loads((tmp_path / "s.json").read_text())["scores"]])
    assert found[0] == found[1] and len(set(found[0])) > 1
    assert "stay as they are" in errors


def test_fit_uses_a_trained_autoencoder(fitted, capsys, tmp_path):
    pipeline = vae()
    pipeline.save_pretrained(tmp_path / "vae")
    words = ["--pipeline", tmp_path / "vae", "--score", "likelihood", "--false_alarm_rate", "0.02"]
    status, out, errors = fit(capsys, *words, "--output_dir", tmp_path / "run")
    assert status == 2 and "does not say what data it comes from. Name the data set: --dataset" in errors
    pipeline.training_data = record_of(DataArgs(), load_images(DataArgs()))
    pipeline.save_pretrained(tmp_path / "vae")
    status, out, errors = fit(capsys, *words, "--output_dir", tmp_path / "run")
    assert status == 0, errors
    assert f"data as {tmp_path / 'vae'} was trained on, by its record: dataset digits" in errors
    saved = HFGenPipeline.from_pretrained(tmp_path / "run")
    assert saved.config.score == "likelihood" and saved.config.likelihood_sigma == 0.3
    for name, value in pipeline.autoencoder.state_dict().items():
        assert torch.equal(saved.autoencoder.state_dict()[name], value)
    assert torch.equal(saved.prior.means, pipeline.prior.means)
    assert (tmp_path / "run" / "anomalies.png").is_file() and "hfgen anomaly score" in out


def energy(classes=None, form="dot", **options):
    """Return an EnergyPipeline of digits with random weights."""
    torch.manual_seed(3)
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "patch_size": 2, "num_layers": 1}
    model = hfgen.EnergyModel("DiTModel", {**sizes, "hidden_size": 8, "num_attention_heads": 1}, form, classes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    made = hfgen.EnergyPipeline(model, hfgen.GradientDescentScheduler(), **options)
    made.set_progress_bar_config(disable=True)
    return made


def test_the_score_of_an_energy_is_the_energy_and_its_heat_the_squared_gradient(tmp_path):
    pipeline, x = energy(4, num_classes=3), images(30)
    found = fit_energy(pipeline, images(99, 1), 0.05)
    output = found(x)
    torch.testing.assert_close(output.scores, pipeline.energy(x).float())
    torch.testing.assert_close(output.heat_maps, pipeline.score(x).square().sum(1))
    threshold = pipeline.energy(images(99, 1)).float().sort().values[-5]  # the fifth of 100 alarms at most
    assert found.threshold == pytest.approx(float(threshold)) and found.config.num_classes == 3
    assert torch.equal(output.decisions, output.scores >= threshold)
    assert torch.equal(found.anomaly_score(x), output.scores) and found.score_name == "energy"
    found.save_pretrained(tmp_path)
    loaded = HFGenPipeline.from_pretrained(tmp_path)
    assert type(loaded) is hfgen.EnergyAnomalyPipeline
    for a, b in zip(found(x, return_dict=False), loaded(x, return_dict=False), strict=True):
        assert torch.equal(a, b)


def test_energies_without_scores_of_images_are_refused():
    calibration = CalibrationModel()
    for made, message in (
        (energy(form="field"), "anomaly scores need the energy itself"),
        (energy(3, num_classes=3), "The energy needs a class"),
    ):
        with pytest.raises(ValueError, match=message):
            hfgen.EnergyAnomalyPipeline(made.energy_model, calibration, num_classes=made.config.num_classes)
    flat = hfgen.TorchModel(torch.nn.Linear(2, 1), (2,))
    with pytest.raises(ValueError, match=r"items \(2,\), and anomalies are found in images"):
        hfgen.EnergyAnomalyPipeline(flat, calibration)
    found = fit_energy(energy(), images(99, 1), 0.05)
    next(found.energy_model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="weights that are not finite"):
        found(images(2))


def test_fit_and_score_take_a_trained_energy(capsys, tmp_path):
    pipeline = energy()
    pipeline.training_data = record_of(DataArgs(), load_images(DataArgs()))
    pipeline.save_pretrained(tmp_path / "energy")
    words = ["--pipeline", tmp_path / "energy", "--false_alarm_rate", "0.02", "--output_dir", tmp_path / "run"]
    status, out, errors = fit(capsys, *words)
    assert status == 0, errors
    assert "of the score, energy" in out and (tmp_path / "run" / "anomalies.png").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "energy" in card and "elbo" not in card and "mlp" not in card
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["score"] == "energy"
    files = {name: tmp_path / name for name in ("scores.csv", "scores.json", "heat")}
    given = [tmp_path / "run", "digits", "--csv", files["scores.csv"], "--json", files["scores.json"]]
    status, out, errors = score(capsys, *given, "--heat_maps", files["heat"], "--num_samples", "200")
    assert status == 0, errors
    saved, data = HFGenPipeline.from_pretrained(tmp_path / "run"), load_images(DataArgs(max_train_samples=200))
    output = saved(data.images)
    summary = json.loads(files["scores.json"].read_text())
    assert summary["score"] == "energy" and summary["anomalous"] == int(output.decisions.sum())
    assert [row["score"] for row in summary["scores"]] == pytest.approx(output.scores.tolist(), rel=1e-4, abs=1e-4)
    assert len(list(files["heat"].glob("*.png"))) == summary["anomalous"]
    status, _, errors = score(capsys, tmp_path / "energy", "digits")
    assert status == 2 and "hfgen anomaly fit --pipeline" in errors
    for more, message in (
        (["--score", "density"], "--score density is for autoencoders"),
        (["--density_components", "3"], "--density_components is for autoencoders"),
    ):
        status, _, errors = fit(capsys, *words[:-1], tmp_path / "other", *more)
        assert status == 2 and message in errors, errors


def test_fit_estimates_and_resumes(capsys, tmp_path):
    status, out, errors = fit(capsys, *QUICK, "--dry_run", "--output_dir", tmp_path / "dry")
    assert status == 0 and "autoencoder parameters" in out and not (tmp_path / "dry").exists(), errors
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    few = [*QUICK, "--score", "reconstruction", "--lr_scheduler", "constant"]
    assert fit(capsys, *few, "--output_dir", whole)[0] == 0
    assert fit(capsys, *few, "--output_dir", cut, "--max_train_steps", "12")[0] == 0
    status, out, errors = fit(capsys, *few, "--output_dir", cut)
    assert status == 0 and "Resumed from" in out, errors
    a, b = (HFGenPipeline.from_pretrained(folder) for folder in (whole, cut))
    assert a.threshold == b.threshold and torch.equal(a.calibration.scores, b.calibration.scores)
    status, _, errors = fit(capsys, *few, "--output_dir", cut, "--num_calibration", "300")
    assert status != 0 and "num_calibration" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "vq", "--model", "vq"], "--objective vq"),
        (["--objective", "ae", "--score", "elbo"], "--score elbo needs an autoencoder trained with"),
        (["--score", "elbo", "--density_components", "4"], "does nothing with --score elbo"),
        (["--score_samples", "4"], "does nothing without --score, only with elbo"),
        (["--score", "energy"], "--score energy needs a trained energy"),
        (["--false_alarm_rate", "2"], "above 0 and below 1"),
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
def test_fit_refuses_options_that_do_not_go_together(capsys, words, message):
    status, _, errors = fit(capsys, *words)
    assert status == 2 and message in errors, errors


def test_density_features_are_the_latent_the_error_and_its_share_of_the_variance():
    from hfgen.pipelines.anomaly import ROUNDING, Encoding

    torch.manual_seed(0)
    x, latents, errors = torch.rand(3, 2, 4, 5) * 2 - 1, torch.randn(3, 3, 1, 1), torch.rand(3, 4, 5)
    x[2] = 0.5  # a flat image with a perfect reconstruction
    errors[2] = 0
    features = density_features(Encoding(x, latents, errors)).squeeze()
    error = errors.double().numpy().reshape(3, -1).sum(1) / 40 + ROUNDING
    variance = x.double().numpy().reshape(3, 2, -1).var(2).mean(1) + ROUNDING
    expected = np.concatenate([latents.numpy().reshape(3, -1), np.log([error, error / variance]).T], 1)
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)
    assert features[2, 4] == 0
