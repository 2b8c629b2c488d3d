"""`hfgen evaluate`: drawing that no number of processes changes, protocol, card, cache; measuring while training."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from hfgen import DenoisingPipeline, DiTModel, RectifiedFlowScheduler, cli
from hfgen.data.images import load_images
from hfgen.evaluation import evaluate as evaluate_module
from hfgen.evaluation.evaluate import metric_names
from hfgen.evaluation.options import FORMER_METRICS, METRICS, PIPELINE_METRICS
from hfgen.evaluation.reference import reference_rows, reference_set
from hfgen.metrics import report, sampling
from hfgen.metrics.features import load_features
from hfgen.metrics.measures import Measurement
from hfgen.options import DataArgs
from hfgen.saving import card
from hfgen.training import train_diffusion
from tests.helpers.full_disk import FailingDisk

ROOT = Path(__file__).resolve().parents[2]
FEW = [
    "--num_samples",
    "96",
    "--kid_subset_size",
    "50",
    "--num_inference_steps",
    "2",
    "--bootstrap",
    "3",
    "--device",
    "cpu",
]


def small_pipeline() -> DenoisingPipeline:
    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "hidden_size": 32, "num_layers": 1}
    denoiser = DiTModel(**size, num_attention_heads=2, num_class_embeds=11)
    return DenoisingPipeline(denoiser, RectifiedFlowScheduler(), 10, [str(i) for i in range(10)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with a card and the figures of a run."""
    folder = tmp_path_factory.mktemp("saved")
    small_pipeline().save_pretrained(folder)
    card.write_card(folder, "A model", "A summary.", "batch_size=4", {"data": "digits"}, "hfgen train", [], "digits")
    (folder / "metrics.json").write_text(json.dumps({"steps": 4}))
    return folder


@pytest.fixture(scope="module")
def entries(saved: Path) -> list[dict]:
    """The entries of one evaluation of it."""
    words = ["--metrics", "frechet,kid,prdc,spectrum", "--reference_cache", str(saved.parent / "cache")]
    cli.main(["evaluate", str(saved), "--dataset", "digits", *FEW, *words])
    return json.loads((saved / "metrics.json").read_text())["evaluation"]


def test_metrics_have_their_protocol(saved: Path, entries: list[dict]) -> None:
    networks, data = [load_features(name) for name in ("digits", "digits-texture")], load_images(DataArgs())
    values = {entry["metric"]: entry["value"] for entry in entries}
    kinds = ["Frechet distance", "kernel distance"]
    kinds += [f"{name}, k = 5" for name in ("precision", "recall", "density", "coverage")]
    by_network = [[network.metric_name(kind) for kind in kinds] for network in networks]
    joint = f"geometric mean of Frechet distances ({networks[0].label}; {networks[1].label})"
    assert [*values] == [
        *(names[0] for names in by_network),
        joint,
        *(names[1] for names in by_network),
        *(name for names in by_network for name in names[2:]),
        "spectrum distance, dB",
    ]
    assert values[joint] == pytest.approx(math.prod(values[names[0]] for names in by_network) ** 0.5)
    for entry in entries:
        protocol = entry["protocol"]
        own = [network for network in networks if network.label in entry["metric"]] or networks[:1]
        assert protocol["features"] == "; ".join(network.name for network in own)
        assert protocol["revision"] == "; ".join(network.revision for network in own)
        assert (protocol["real images"], protocol["generated images"], protocol["seed"]) == (96, 96, 0)
        assert (protocol["data"], protocol["split"]) == ("digits", "train")
        assert protocol["data fingerprint"] == data.fingerprint
        assert (protocol["sampler"], protocol["evaluations"]) == ("RectifiedFlowScheduler", 2)
    low, high = entries[0]["interval"]
    assert low < entries[0]["value"] < high
    assert json.loads((saved / "metrics.json").read_text())["steps"] == 4  # what the run left stays


def test_metrics_that_compare_no_features_need_none(saved: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.json"
    words = ["evaluate", str(saved), "--dataset", "digits", *FEW, "--output", str(path), "--num_likelihood", "2"]
    cli.main([*words, "--metrics", "spectrum,bits_per_dimension", "--features", "none"])
    entries = json.loads(path.read_text())["evaluation"]
    assert [entry["metric"] for entry in entries] == ["spectrum distance, dB", "bits per dimension"]
    assert entries[0]["protocol"]["features"] == "none"
    cli.main([*words, "--metrics", "spectrum", "--features", "mnist"])  # which takes other images
    assert "--features mnist has no effect: spectrum use none." in capsys.readouterr().err
    assert json.loads(path.read_text())["evaluation"] == [entries[1], entries[0]]
    with pytest.raises(SystemExit):
        cli.main([*words, "--metrics", "frechet,spectrum", "--features", "none"])
    assert (
        "--features none: frechet compare features. Name some, or leave these metrics out." in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["metrics.json", "README.md"])
def test_nothing_is_written_through_a_link_in_the_folder(saved: Path, tmp_path: Path, capsys, name: str) -> None:
    folder, mine = tmp_path / "stranger", tmp_path / "mine.json"
    shutil.copytree(saved, folder)
    mine.write_text("{}")
    (folder / name).unlink()
    (folder / name).symlink_to(mine)
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(folder), "--dataset", "digits", *FEW, "--metrics", "spectrum"])
    assert f"{name} is a link to {mine}, which lies outside of the folder" in capsys.readouterr().err
    assert mine.read_text() == "{}"


def test_networks_may_draw_in_bfloat16_and_not_measure_likelihoods(saved: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(saved), "--dataset", "digits", *FEW, "--output", str(tmp_path / "metrics.json")]
    cli.main([*words, "--metrics", "frechet", "--dtype", "bfloat16"])
    entries = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]
    assert [entry["protocol"]["dtype"] for entry in entries] == ["bfloat16"] * 3  # two networks, and their mean
    with pytest.raises(SystemExit):
        cli.main([*words, "--metrics", "bpd", "--dtype", "bfloat16"])


def test_the_card_shows_them_and_its_metadata_is_valid(saved: Path, entries: list[dict]) -> None:
    from huggingface_hub import ModelCard

    for _ in range(2):  # the section is replaced, not repeated
        card.add_results(saved)
    page = ModelCard.load(saved / "README.md", ignore_metadata_errors=False)
    assert [result.metric_value for result in page.data.eval_results] == [e["value"] for e in entries]
    assert page.data.model_name == "A model" and page.data.library_name == "diffusers"
    assert page.text.count("## Results") == page.text.count("## Use and limits") == 1
    assert f"| {entries[0]['metric']} | {entries[0]['value']:.4g} (" in page.text


def test_a_repeated_evaluation_replaces_its_metrics_and_another_adds_its_own(tmp_path: Path) -> None:
    path, figure = tmp_path / "metrics.json", Measurement("m", 1.0, "lower")
    for value, seed in ((1.0, 0), (2.0, 0), (3.0, 1)):
        report.write(path, report.entries([Measurement("m", value, "lower")], {"seed": seed}))
    assert [entry["value"] for entry in json.loads(path.read_text())["evaluation"]] == [2.0, 3.0]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        report.write(path, report.entries([figure], {}))


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({}, [2.0]),
        ({"seed": 1}, [1.0, 2.0]),
        ({"split": "train"}, [1.0, 2.0]),
        ({"real images": 64}, [1.0, 2.0]),
        ({"computed by": "Pipeline.bits_per_dim(num_samples=5)"}, [1.0, 2.0]),
        ({"computed by": None, "likelihood": "gaussian"}, [2.0]),  # says other things, none that contradicts
        ({"computed by": None, "features": "mnist-cnn", "generated images": 2000, "real images": 2000}, [2.0]),
        ({"computed by": None, "generated images": 2000, "split": "train"}, [1.0, 2.0]),
    ],
)
def test_an_entry_goes_where_a_newer_one_measures_the_same(tmp_path: Path, changes: dict, values: list[float]) -> None:
    """The last two are bits per dimension as they were once kept, with the protocol of samples."""
    path, metric = tmp_path / "metrics.json", "bits per dimension"
    protocol = {
        "data": "digits",
        "split": "test",
        "real images": 32,
        "computed by": "Pipeline.bits_per_dim()",
        "seed": 0,
    }
    old = {name: value for name, value in {**protocol, **changes}.items() if value is not None}
    path.write_text(json.dumps({"evaluation": [{"metric": metric, "value": 1.0, "protocol": old}]}))
    report.write(path, report.entries([Measurement("another", 3.0, "lower")], protocol))
    report.write(path, report.entries([Measurement(metric, 2.0, "lower")], protocol))
    stored = json.loads(path.read_text())["evaluation"]
    assert [entry["value"] for entry in stored if entry["metric"] == metric] == values
    assert [entry["value"] for entry in stored if entry["metric"] == "another"] == [3.0]


def test_drawing_does_not_depend_on_the_batch_size() -> None:
    pipeline, labels = small_pipeline(), [i % 10 for i in range(10)]
    whole = sampling.draw(pipeline, 10, 5, 10, labels, {"num_inference_steps": 2})
    parts = sampling.draw(pipeline, 10, 5, 3, labels, {"num_inference_steps": 2})
    assert whole.shape == (10, 1, 8, 8) and whole.dtype == torch.uint8
    assert (whole.int() - parts.int()).abs().max() <= 1
    later = sampling.draw(pipeline, 4, 11, 4, labels[6:], {"num_inference_steps": 2})
    assert (whole[6:].int() - later.int()).abs().max() <= 1  # image 6 of seed 5 is image 0 of seed 11


@pytest.mark.slow
def test_two_processes_measure_the_same(saved: Path, entries: list[dict], tmp_path: Path) -> None:
    words = ["--metrics", "frechet,kid,prdc,spectrum", "--reference_cache", str(saved.parent / "cache")]
    output = tmp_path / "two.json"
    run = [sys.executable, "-m", "hfgen.cli", "evaluate", str(saved), "--dataset", "digits", *FEW, *words]
    run += ["--num_processes", "2", "--batch_size", "40", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    cli.main([*run[3:-6], "--batch_size", "40", "--output", str(tmp_path / "one.json")])
    one, two = (json.loads((tmp_path / f"{n}.json").read_text())["evaluation"] for n in ("one", "two"))
    assert one == two
    assert done.stdout.count("Frechet distance (") == 2  # one table, of two networks


def test_reference_features_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, network = load_images(DataArgs(max_train_samples=80)), load_features("digits")
    first = reference_set(data, 80, network, str(tmp_path))
    (file,) = tmp_path.iterdir()
    rows = reference_rows(data, 80)
    assert rows.sort().values.tolist() == list(range(80)) and rows.tolist() != list(range(80))
    assert re.fullmatch(rf"{data.fingerprint}-{network.revision}-80-[0-9a-f]{{16}}\.safetensors", file.name)
    monkeypatch.setattr(type(network), "describe", None)  # not needed any more
    again = reference_set(data, 80, network, str(tmp_path))
    assert torch.equal(first.features, again.features) and torch.equal(first.logits, again.logits)
    assert torch.equal(first.images, again.images) and again.network == network.label
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        reference_set(data, 80, network, str(tmp_path))


@pytest.fixture(scope="module")
def folder_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(load_images(DataArgs()).images[:100]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03d}.png")
    return folder


def test_a_folder_of_images_is_measured(folder_of_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--num_samples", "100", "--metrics", "frechet,prdc,is", "--reference_cache", str(tmp_path)]
    output = tmp_path / "metrics.json"
    cli.main(["evaluate", str(folder_of_digits), "--dataset", "digits", "--max_train_samples", "100", *words,
              "--output", str(output)])  # fmt: skip
    values = {entry["metric"].split(" (")[0]: entry["value"] for entry in json.loads(output.read_text())["evaluation"]}
    assert values["Frechet distance"] == pytest.approx(0, abs=1e-6)  # the same images, through PNG and another order
    assert values["precision, k = 5"] == values["coverage, k = 5"] == 1
    assert "95 % interval" in capsys.readouterr().out
    assert not (folder_of_digits / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--metrics", "frechet,fdi"], "fdi not known"),
        (["--metrics", "frechet", "--num_samples", "64"], "needs 65 images"),
        (["--features", "mnist"], "--resolution 28"),
        (["--features", "mnist", "--resolution", "28"], "not 1 channel(s) and 8 x 8"),
        (["--num_inference_steps", "0"], "--num_inference_steps 0 must be at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused(saved: Path, words: list[str], complaint: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(saved), "--dataset", "digits", *FEW, *words])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_metric_that_a_pipeline_lacks_is_refused(saved: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(PIPELINE_METRICS, "reconstruction", "no_such_method")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(saved), "--dataset", "digits", *FEW, "--metrics", "reconstruction"])
    assert "A DenoisingPipeline has no no_such_method" in capsys.readouterr().err


def test_metrics_have_plain_words_and_former_names_are_read(capsys: pytest.CaptureFixture) -> None:
    assert metric_names("kid, is,prdc,modes,bpd,frechet,kernel_distance") == [
        *("kernel_distance", "classifier_score", "precision_recall", "class_coverage", "bits_per_dimension", "frechet")
    ]
    assert "--metrics kid is now kernel_distance." in capsys.readouterr().err
    assert not set(METRICS) & set(FORMER_METRICS) and set(FORMER_METRICS.values()) <= set(METRICS)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Frechet distance (digits-cnn, f19612e28cdf)", "frechet_distance"),
        ("FID", "fid"),
        ("precision, k = 5 (mnist-cnn, 0a)", "precision"),
        ("fitted prior: log-likelihood, K = 100, nats", "fitted_prior_log_likelihood"),
        ("<b>|`", "b"),
        ("...", "metric"),
    ],
)
def test_ids_of_metrics_on_cards_are_plain_words(name: str, words: str) -> None:
    assert card.metric_id(name) == words


PLANTED = {
    "a folder": lambda path: path.mkdir(),
    "no JSON": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[]"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "another schema": lambda path: path.write_text('{"evaluation": {"frechet": 3}}'),
    "odd entries": lambda path: path.write_text('{"evaluation": [3]}'),
    "odd protocol": lambda path: path.write_text('{"evaluation": [{"metric": "a", "protocol": "b"}]}'),
    "read-only": lambda path: (path.write_text("{}"), path.chmod(0o444)),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("where", ["the pipeline's", "--output"])
@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_file_is_refused_before_anything_is_measured(kind, where, tmp_path, saved, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_module, "measure", lambda *_: pytest.fail("it was measured"))
    folder = shutil.copytree(saved, tmp_path / "pipeline")
    (folder / "metrics.json").unlink()
    path = folder / "metrics.json" if where != "--output" else tmp_path / "mine.json"
    PLANTED[kind](path)
    words = [] if where != "--output" else ["--output", str(path)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(folder), "--dataset", "digits", *FEW, *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and str(path) in error


def test_a_damaged_card_is_refused_before_anything_is_measured(tmp_path, saved, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_module, "measure", lambda *_: pytest.fail("it was measured"))
    folder = shutil.copytree(saved, tmp_path / "pipeline")
    text = (folder / "README.md").read_text()
    for content in (text.replace("library_name:", "library_name: ["), None):
        (folder / "README.md").unlink()
        (folder / "README.md").mkdir() if content is None else (folder / "README.md").write_text(content)
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", str(folder), "--dataset", "digits", *FEW])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and "README.md" in error


def test_figures_that_can_not_be_saved_are_printed_and_a_card_is_not_worth_them(tmp_path, saved, capsys, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "pipeline")
    entry = {"metric": "m", "value": 1.0, "better": "lower", "protocol": {"data": "digits"}}
    result = evaluate_module.EvaluationResult([], [entry], [], data_args=DataArgs())
    before = (folder / "metrics.json").read_bytes()

    def fill_the_disk(*_):
        disk.__enter__()
        return result

    monkeypatch.setattr(evaluate_module, "measure", fill_the_disk)
    disk = FailingDisk(folder, 1)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", str(folder), "--dataset", "digits", *FEW])
    disk.__exit__()
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and "metrics.json can't be written: No space left" in error
    assert json.loads(out.splitlines()[-1]) == {"evaluation": [entry]}
    assert (folder / "metrics.json").read_bytes() == before
    disk = FailingDisk(folder, 0)  # counts
    cli.main(["evaluate", str(folder), "--dataset", "digits", *FEW])
    disk.__exit__()
    (folder / "metrics.json").write_bytes(before)
    disk = FailingDisk(folder, next(i for i, place in enumerate(disk.places, 1) if "README" in str(place)))
    cli.main(["evaluate", str(folder), "--dataset", "digits", *FEW])
    disk.__exit__()
    assert "the results in the model card can't be written" in capsys.readouterr().err
    assert entry in json.loads((folder / "metrics.json").read_text())["evaluation"]


def test_help_has_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "hfgen evaluate outputs/mnist" in capsys.readouterr().out


def test_memorisation_detects_copies_and_saves_a_panel(tmp_path: Path) -> None:
    images = load_images(DataArgs()).images[:, 0].numpy()
    for split, rows in {"train": range(150), "test": range(150, 300), "copies": range(0, 150, 2)}.items():
        home = tmp_path / ("data" if split != "copies" else "") / split
        home.mkdir(parents=True)
        for i in rows:
            Image.fromarray(images[i]).save(home / f"{i:03d}.png")
    output = tmp_path / "metrics.json"
    words = ["--dataset", tmp_path / "data", "--metrics", "memorisation", "--reference_cache", tmp_path / "cache"]
    cli.main([str(word) for word in ["evaluate", tmp_path / "copies", *words, "--output", output]])
    assert [entry["value"] for entry in json.loads(output.read_text())["evaluation"]] == [0, 1] * 2  # networks
    with Image.open(tmp_path / "nearest.png") as panel:
        assert panel.width / panel.height == pytest.approx(6 / 10, abs=0.02)
    with pytest.raises(SystemExit):
        cli.main([str(word) for word in ["evaluate", tmp_path / "copies", *words, "--held_out_split", "train"]])


def test_training_measures_and_keeps_the_best(tmp_path: Path) -> None:
    words = ["--max_train_samples", "80", "--train_batch_size", "8", "--model_size", "xs", "--lr_warmup_steps", "1"]
    words += ["--max_train_steps", "4", "--num_inference_steps", "2"]
    words += ["--eval_batch_size", "4", "--sample_steps", "3", "--report_to", "none", "--class_conditional"]
    plain, tmp_path = tmp_path / "plain", tmp_path / "measured"
    train_diffusion.main([*words, "--output_dir", str(plain)])
    train_diffusion.main([*words, "--eval_steps", "2", "--eval_num_samples", "70", "--output_dir", str(tmp_path)])
    weights = "denoiser/diffusion_pytorch_model.safetensors"
    assert (plain / weights).read_bytes() == (tmp_path / weights).read_bytes()  # measuring changes nothing
    assert not (plain / "best").exists()
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0000003.png"]
    best = json.loads((tmp_path / "best" / "metrics.json").read_text())
    chosen = min(rows, key=lambda row: row["value"])
    values = {entry["metric"]: entry["value"] for entry in best["evaluation"]}
    assert (best["step"], values) == (chosen["step"], chosen["values"])
    *each, joint = values.values()
    assert len(each) == 2 and joint == chosen["value"] == pytest.approx(math.sqrt(each[0] * each[1]))
    assert {entry["protocol"]["features"] for entry in best["evaluation"]} == {
        "digits-cnn",
        "digits-texture",
        "digits-cnn; digits-texture",
    }
    assert best["evaluation"][0]["protocol"]["generated images"] == 70
    pipeline = DenoisingPipeline.from_pretrained(tmp_path / "best")
    assert pipeline(class_labels=[1], num_inference_steps=1).images[0].size == (8, 8)


def test_training_refuses_an_impossible_evaluation(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    words = ["--eval_steps", "2", "--eval_num_samples", "64", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        train_diffusion.main(words)
    assert stop.value.code == 2 and "needs 65 images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
