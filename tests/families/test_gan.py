"""The front door of adversarial training: what it leaves, what it refuses, and what it does about a collapse."""

import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from PIL import Image

import hfgen
from hfgen import GANPipeline, HFGenPipeline
from hfgen.data.batches import Batches
from hfgen.data.images import load_images
from hfgen.families.callbacks import Callback, Callbacks
from hfgen.families.gan import collapse as health
from hfgen.families.gan.options import AdversarialArgs, GANArgs, GANTrainArgs, HealthArgs
from hfgen.families.gan.recipe import GANRecipe
from hfgen.metrics.features import load_features
from hfgen.options import DataArgs
from hfgen.saving import hub
from hfgen.trainer.checkpoint import checkpoints
from hfgen.training import train_gan
from tests.helpers.doors import check_refusal, check_saved_grid, check_stops, run_door
from tests.helpers.processes import launch
from tests.helpers.toys import rows

QUICK = ["--dataset_split", "train[:96]", "--train_batch_size", "8", "--model", "mlp", "--model_size", "xs"]
FEW = ["--max_train_steps", "2", "--lr_warmup_steps", "1", "--eval_batch_size", "6", "--report_to", "none"]
FEW += ["--latent_channels", "4", "--logging_steps", "1"]
WATCHED = ["--health_samples", "30"]


@pytest.fixture(autouse=True)
def script(monkeypatch):
    """The name that cards repeat."""
    monkeypatch.setattr("sys.argv", ["training/train_gan.py"])


def run(capsys, *words):
    """The front door in this process: (exit status, what it printed, what it complained of)."""
    return run_door(train_gan.main, capsys, *words)


def trained(capsys, folder, *words):
    """What a run of two steps prints."""
    watched = [] if "--health_steps" in words else ["--health_steps", "0"]
    status, out, said = run(capsys, *QUICK, *FEW, *watched, "--output_dir", folder, *words)
    assert status == 0, said
    return out


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [False, True])
def test_a_run_leaves_a_pipeline_with_pictures_figures_and_a_card(capsys, tmp_path, classes):
    folder, words = (
        tmp_path / "run",
        ["--sample_steps", "1", "--health_steps", "1", *WATCHED, "--on_collapse", "continue"],
    )
    out = trained(capsys, folder, *words, *(["--class_conditional", "--eval_batch_size", "20"] if classes else []))
    assert {path.name for path in folder.glob("*.png")} == {"samples.png", "loss.png", "health.png"}
    assert [path.name for path in (folder / "samples").iterdir()] == ["step-0000001.png"]
    with Image.open(folder / "interpolation.gif") as film:
        assert film.n_frames >= 30
    pipeline = HFGenPipeline.from_pretrained(folder, discriminator=True)
    assert type(pipeline) is GANPipeline and pipeline.config.num_classes == (10 if classes else None)
    labels = torch.zeros(2, dtype=torch.long) if classes else None
    assert pipeline.discriminator(torch.zeros(2, 1, 8, 8), labels).logits.shape == (2,)
    options = yaml.safe_load((folder / "config.yaml").read_text())
    assert (options["loss"], options["model"], options["health_steps"]) == ("non_saturating", "mlp", 1)

    kept = [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept] == [1, 2] and out.count("recall") >= 2
    figures = {entry["metric"]: entry for entry in json.loads((folder / "metrics.json").read_text())["evaluation"]}
    card = (folder / "README.md").read_text()
    assert len(figures) == 4
    for name, entry in figures.items():
        assert f"| {name} | {entry['value']:.4g}" in card
        assert (entry["protocol"]["real images"], entry["protocol"]["generated images"]) == (30, 30)
    assert figures[next(name for name in figures if name.startswith("diversity"))]["value"] == kept[1]["diversity"]
    for name in ("samples.png", "interpolation.gif", "health.png", "loss.png"):
        assert f"]({name})" in card
    assert "hfgen train gan --config config.yaml" in card and str(tmp_path) not in card
    assert "| penalties | r1 1 every 4 steps |" in card and "| health | measured 2" in card
    names = set(hub.files_to_push(folder))
    assert {"README.md", "health.png", "generator/config.json", "discriminator/config.json"} <= names
    assert not [name for name in names if "checkpoint" in name]


def test_its_samples_are_what_was_shown_and_what_sample_draws(capsys, tmp_path):
    trained(capsys, tmp_path / "run")
    check_saved_grid(tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--r1", "0", "--model", "dcgan"],
        ["--loss", "wasserstein", "--weight_clip", "0.01", "--n_critic", "2", "--model", "dcgan", "--no_use_ema"],
        ["--loss", "wasserstein", "--gradient_penalty", "10", "--penalty_every", "2", "--model", "dcgan"],
        ["--loss", "hinge", "--spectral_norm", "--model", "resnet", "--consistency", "1", "--class_conditional"],
        ["--loss", "least_squares", "--control", "0.1", "--memory_size", "40", "--augment", "color,translation"],
        ["--model", "residual", "--loss", "relativistic", "--r2", "1", "--mixed_precision", "bf16"],
        ["--mode_seeking", "0.1", "--class_conditional", "--max_grad_norm", "null"],
    ],
    ids=lambda words: "-".join(word.strip("-") for word in words[:4]),
)
def test_the_gans_of_the_literature_are_choices_of_options(capsys, tmp_path, words):
    trained(capsys, tmp_path / "run", *words)
    row = rows(tmp_path / "run")[-1]
    assert {"discriminator/loss", "generator/loss", "discriminator/accuracy_real", "generator/diversity"} <= set(row)
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run", discriminator=True)
    assert pipeline.generator.dtype == torch.float32 and not (tmp_path / "run" / "health.jsonl").exists()
    if "dcgan" in words:  # no batch norm where the gradient at single images is penalised
        assert pipeline.discriminator.config.norm == ("none" if "--gradient_penalty" in words else "batch")
    if "--weight_clip" in words:
        assert max(p.abs().max() for p in pipeline.discriminator.parameters()) <= 0.01 + 1e-7


def test_measuring_while_training_keeps_the_best(capsys, tmp_path):
    words = ["--eval_steps", "1", "--eval_num_samples", "70"]
    trained(capsys, tmp_path / "run", *words)
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert best["evaluation"][0]["metric"].startswith("Frechet distance")
    assert type(HFGenPipeline.from_pretrained(tmp_path / "run" / "best")) is GANPipeline


def test_an_interrupted_run_leaves_what_the_whole_one_does(capsys, tmp_path, monkeypatch):
    """With a memory, health and previews across the stops."""
    long = ["--max_train_steps", "5", "--sample_steps", "2", "--checkpointing_steps", "2", "--health_steps", "2"]
    long += [
        "--control",
        "0.1",
        "--memory_size",
        "32",
        "--gradient_accumulation_steps",
        "2",
        "--on_collapse",
        "continue",
    ]
    words = [*QUICK, *FEW, *long]
    whole, cut = check_stops(train_gan.main, capsys, monkeypatch, tmp_path, words, {1: 1, 5: 3})
    assert whole["health.jsonl"] == cut["health.jsonl"]


def test_a_dry_run_estimates_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, said = run(capsys, *QUICK, *FEW, "--max_train_steps", "1000", "--output_dir", "x", "--dry_run")
    assert status == 0, said
    assert "generator parameters" in out and "discriminator parameters" in out and not list(tmp_path.rglob("*"))


# --- health -----------------------------------------------------------------------------------------------------------


class Fake:
    """A pipeline that draws real images: of all digits, of one digit, or one image over and over."""

    device = torch.device("cpu")

    def __init__(self, images, classes=None):
        self.images, self.config = images, type("Config", (), {"num_classes": classes})

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, batch_size, generator, output_type, class_labels=None):
        rows = [torch.randint(len(self.images), (), generator=each).item() for each in generator]
        return type("Out", (), {"images": self.images[rows].float() / 255})


def watch(folder, **options):
    folder.mkdir(exist_ok=True)
    return health.CollapseMonitor(
        HealthArgs(**{"health_samples": 400, **options}), "auto", 0, load_images(DataArgs()), folder
    )


def test_one_look_at_a_collapsed_generator_raises_the_alarm(tmp_path, capsys):
    digits = load_images(DataArgs())
    one_image, one_class = digits.images[:1], digits.images[digits.labels == 3]
    stop = watch(tmp_path / "image")
    assert stop.measure(Fake(one_image), 500) and "differ 0 times as much as real ones, below 0.2" in stop.alarm
    stop = watch(tmp_path / "class")
    assert not stop.measure(Fake(digits.images), 500)
    assert stop.measure(Fake(one_class), 1000) and "less than half of" in stop.alarm
    noisy = one_image.repeat(50, 1, 1, 1) ^ torch.randint(0, 16, (50, 1, 8, 8), dtype=torch.uint8)
    assert watch(tmp_path / "noise").measure(Fake(noisy), 500)  # pixels differ, images do not
    assert "warning: at step 1000 the generator has collapsed" in capsys.readouterr().err


def test_a_generator_that_has_hardly_begun_has_not_collapsed(tmp_path):
    one_image = Fake(load_images(DataArgs()).images[:1])
    begun = watch(tmp_path / "run")
    assert not begun.measure(one_image, 20) and begun.alarm is None
    assert begun.measure(one_image, 500) and watch(tmp_path / "other").measure(one_image, 500)

    def said(*diversities, step=50):
        looks = [{"step": step * n, "diversity": d, "coverage": 0.0} for n, d in enumerate(diversities, 1)]
        return health.alarm_of(looks[-1], looks[:-1])

    assert said(0.1) is said(0.05, 0.09, 0.14) is said(0.01, 0.02, step=2000) is None
    assert all("below 0.2" in found for found in (said(0.1, 0.1), said(0.3, 0.19), said(0.1, 0.15, 0.12)))


def test_what_is_paid_is_said_as_it_is():
    def said(**options):
        parts = (DataArgs(), GANArgs(), AdversarialArgs(**options), HealthArgs(), GANTrainArgs())
        return GANRecipe(*parts).penalty_summary

    assert said() == "r1 1 every 4 steps" and said(r1=0.0) == "none" and said(spectral_norm=True) == "spectral norm 1"
    assert said(weight_clip=0.01) == "weight clip 0.01"
    assert said(gradient_penalty=10.0, penalty_every=1, consistency=2.0) == "gradient penalty 10, consistency 2"


def test_ten_looks_at_a_healthy_generator_raise_none(tmp_path):
    digits, calm = load_images(DataArgs()), watch(tmp_path / "run")
    for step in range(1, 11):  # what it draws changes from look to look
        half = torch.randperm(len(digits), generator=torch.Generator().manual_seed(step))[:600]
        assert not calm.measure(Fake(digits.images[half]), step) and calm.alarm is None
    assert len(calm.rows) == 10 and calm.rows[-1]["classes_covered"] == 10


def test_a_real_training_is_healthy_in_ten_looks_and_collapsed_in_one(capsys, tmp_path):
    """From its very beginning, when images hardly differ, to a game in balance; then its generator is replaced."""
    folder, words = tmp_path / "run", ["--model", "mlp", "--model_size", "xs", "--train_batch_size", "32"]
    words += ["--max_train_steps", "300", "--health_steps", "30", "--health_samples", "300", "--sample_steps", "0"]
    status, _, said = run(capsys, *words, "--report_to", "none", "--output_dir", folder)
    assert status == 0, said
    seen = watch(folder, health_samples=300)
    seen.begin()
    assert [row["step"] for row in seen.rows] == list(range(30, 301, 30))
    assert not [row for row in seen.rows if row["alarm"] is not None]
    assert seen.rows[0]["diversity"] < health.LEAST_DIVERSITY < 0.5 < seen.rows[-1]["diversity"]
    assert seen.rows[-1]["coverage"] > health.LEAST_COVERAGE and seen.rows[-1]["classes_covered"] == 10

    pipeline = HFGenPipeline.from_pretrained(folder)
    assert not seen.measure(pipeline, 310)
    z = torch.randn(4, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    four = ((pipeline.decode(z).clamp(-1, 1) + 1) * 127.5).round().byte()
    assert seen.measure(Fake(four), 320) and "it covers" in seen.alarm
    with torch.no_grad():
        next(pipeline.generator.parameters()).mul_(0.02)  # latents no longer matter
    assert seen.measure(pipeline, 330) and "differ" in seen.alarm


def test_looks_by_other_features_or_samples_are_not_compared(tmp_path, monkeypatch):
    """Coverage is another with more samples, and in another space."""
    digits, folder = load_images(DataArgs()), tmp_path / "run"
    one_class = Fake(digits.images[digits.labels == 3])
    first = watch(folder)
    assert not first.measure(Fake(digits.images), 500)
    (folder / "checkpoint-500").mkdir()
    before = (folder / "health.jsonl").read_text()

    def look(**options):
        (folder / "health.jsonl").write_text(before)
        again = watch(folder, **options)
        assert again.begin() == 0 and [row["step"] for row in again.rows] == [500]
        return again.measure(one_class, 1000)

    assert look() and not look(health_samples=300)
    pixels = health.features_of("auto", load_images(DataArgs(resolution=12, max_train_samples=20)))
    monkeypatch.setattr(health, "features_of", lambda *_: pixels)
    assert not look()
    monkeypatch.undo()
    before = json.dumps({key: value for key, value in first.rows[0].items() if key not in ("features", "samples")})
    assert not look()  # of before rows said what they were made by


def test_figures_are_those_of_the_metrics(tmp_path):
    from hfgen.evaluation.reference import reference_rows
    from hfgen.metrics import neighbours

    digits = load_images(DataArgs())
    seen, drawn = watch(tmp_path / "run", health_samples=60), digits.images[200:260]
    seen.measure(Fake(drawn), 1)
    network = load_features("digits")
    picked = [torch.randint(60, (), generator=torch.Generator().manual_seed(i)).item() for i in range(60)]
    real, fake = (
        network.describe(images).features for images in (digits.images[reference_rows(digits, 60)], drawn[picked])
    )
    expected = neighbours.prdc(real, fake)
    (row,) = seen.rows
    assert row["recall"] == expected["recall"] and row["coverage"] == expected["coverage"]
    assert row["diversity"] == pytest.approx(neighbours.diversity(fake) / neighbours.diversity(real))


def test_images_that_no_network_suits_are_compared_by_coarse_pixels(tmp_path):
    data = load_images(DataArgs(resolution=12, max_train_samples=100))
    network = health.features_of("auto", data)
    assert network.name == "8 x 8 pixels" and network.describe(data.images).features.shape == (100, 64)
    seen = health.CollapseMonitor(HealthArgs(health_samples=30), "auto", 0, data, tmp_path)
    assert not seen.measure(Fake(data.images), 5) and "classes" not in seen.rows[0]


# --- collapse ---------------------------------------------------------------------------------------------------------

COLLAPSE = ["--max_train_steps", "8", "--checkpointing_steps", "1", "--health_steps", "2", "--sample_steps", "0"]
COLLAPSE += ["--checkpoints_total_limit", "4", *WATCHED]


def collapsing(monkeypatch, *steps):
    """Measurements find a collapse at these steps, each once."""
    left, seen = list(steps), []

    def alarm(row, before):
        seen.append(row["step"])
        return f"it was told to, {left.pop(0)}" if left[:1] == [row["step"]] else None

    monkeypatch.setattr(health, "alarm_of", alarm)
    return seen


def test_stop_says_where_it_was_healthy_and_leaves_that_newest(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 6)
    status, _, said = run(capsys, *QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run")
    assert status == 1 and said.splitlines()[-1].startswith("error: At step 6 the generator had collapsed: it was told")
    assert f"The last healthy one is {tmp_path / 'run' / 'checkpoint-4'}" in said and "--learning_rate" in said
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"checkpoint-4", "collapsed-5", "collapsed-6"} <= names and "README.md" not in names
    status, out, _ = run(capsys, *QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--learning_rate", "1e-4")
    assert status == 0 and "checkpoint-4 at step 4" in out and (tmp_path / "run" / "README.md").is_file()
    assert [row["step"] for row in map(json.loads, (tmp_path / "run" / "health.jsonl").open())] == [2, 4, 6, 8]


def test_continue_says_so_and_goes_on(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 4)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "continue"]
    status, _, said = run(capsys, *words)
    assert status == 0 and "warning: at step 4 the generator has collapsed: it was told to, 4." in said
    assert "collapsed at step 4; 0 rollbacks" in (tmp_path / "run" / "README.md").read_text()


def test_rollback_goes_on_from_where_it_was_healthy_with_half_the_rate(capsys, tmp_path, monkeypatch):
    seen = collapsing(monkeypatch, 4, 6)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--learning_rate", "0.001", "--lr_warmup_steps", "0"]
    status, out, said = run(capsys, *words)
    assert status == 0, said
    assert seen == [2, 4, 4, 6, 6, 8] and out.count("It does so now, with half the learning rate") == 2
    rates = {row["step"]: row["generator/lr"] for row in rows(tmp_path / "run")}
    assert rates == {1: 1e-3, 2: 1e-3, 3: 5e-4, 4: 5e-4, **dict.fromkeys((5, 6, 7, 8), 2.5e-4)}
    names = sorted(path.name for path in (tmp_path / "run").glob("*-[0-9]*"))
    assert names == ["checkpoint-5", "checkpoint-6", "checkpoint-7", "checkpoint-8"] + [
        f"collapsed-{n}" for n in (3, 4, 5, 6)
    ]
    kept = [json.loads(line) for line in (tmp_path / "run" / "health.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("rolled_back_to")) for row in kept] == [
        (2, None),
        (4, 2),
        (4, None),
        (6, 4),
        (6, None),
        (8, None),
    ]
    assert "2 rollbacks" in (tmp_path / "run" / "README.md").read_text()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["learning_rate"] == 1e-3


def test_a_resumed_run_knows_that_it_has_gone_back(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 4)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0"]
    finish = Batches._finish

    def stopping(self, number, *micro):
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, number, *micro)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "_finish", stopping)
        assert run(capsys, *words)[0] == 0
    assert not (tmp_path / "run" / "README.md").exists()
    status, out, _ = run(capsys, *words)
    assert status == 0 and "LR 0.001," in out and rows(tmp_path / "run")[-1]["generator/lr"] == 1e-3


def test_a_signal_in_the_step_of_an_alarm_ends_the_run_gone_back(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 4)
    look = health.CollapseMonitor.measure

    def interrupted(self, pipeline, step):
        if step == 4 and self.rollbacks == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(self, pipeline, step)

    monkeypatch.setattr(health.CollapseMonitor, "measure", interrupted)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0"]
    status, out, said = run(capsys, *words)
    assert status == 0 and "It does so the next time, with half the learning rate." in out, said
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-1", "checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    status, out, _ = run(capsys, *words)
    assert status == 0 and "checkpoint-2 at step 2" in out and (tmp_path / "run" / "README.md").is_file()
    assert rows(tmp_path / "run")[-1]["generator/lr"] == 1e-3


@pytest.mark.parametrize("left", [0, 3])
def test_going_back_to_what_was_removed_counts_no_more(capsys, tmp_path, monkeypatch, left):
    """Rolled back from 6 to 4, on to 8; then somebody removes checkpoints: a run that never got there."""
    collapsing(monkeypatch, 6)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    words += ["--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--checkpoints_total_limit", "null"]
    assert run(capsys, *words)[0] == 0
    for folder in checkpoints(tmp_path / "run")[left:]:
        shutil.rmtree(folder)
    collapsing(monkeypatch, 4)
    status, _, said = run(capsys, *words)
    assert status == 0, said
    rates = {row["step"]: row["generator/lr"] for row in rows(tmp_path / "run")}
    assert rates == {**dict.fromkeys((1, 2), 2e-3), **dict.fromkeys(range(3, 9), 1e-3)}
    kept = [json.loads(line) for line in (tmp_path / "run" / "health.jsonl").read_text().splitlines()]
    assert [(row["step"], row.get("rolled_back_to")) for row in kept] == [
        (2, None),
        (4, 2),
        (4, None),
        (6, None),
        (8, None),
    ]
    assert "1 rollbacks" in (tmp_path / "run" / "README.md").read_text()


def test_three_rollbacks_are_enough(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 4, 4, 4, 4)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    status, out, said = run(capsys, *words)
    assert status == 1 and out.count("half the learning rate") == 3 and "rolled back 3 times" in said
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"checkpoint-2", "collapsed-4", "collapsed-4-2", "collapsed-4-3", "collapsed-4-4"} <= names


def test_without_a_healthy_checkpoint_there_is_nothing_to_go_back_to(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 2)
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse", "rollback"]
    status, _, said = run(capsys, *words)
    assert status == 1 and "There is no healthy one." in said and not checkpoints(tmp_path / "run")


def test_a_collapse_at_the_end_is_one_as_well(capsys, tmp_path, monkeypatch):
    collapsing(monkeypatch, 8)
    status, _, said = run(capsys, *QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run")
    assert status == 1 and "At step 8" in said and not (tmp_path / "run" / "README.md").exists()
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-6"


TWO = """
import os, signal, sys
from hfgen.trainer.log import Log
from hfgen.families.gan import collapse as health
from hfgen.training import train_gan
found = [4]
health.alarm_of = lambda row, before: "it was told to" if found and row["step"] == found[0] and found.pop() else None
step = Log.step
def signalled(self, number, lr):
    if number == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    step(self, number, lr)
if sys.argv.pop(1) == "signal":
    Log.step = signalled
sys.argv[0] = "train_gan.py"
train_gan.main(sys.argv[1:])
"""


@pytest.mark.parametrize("action", ["stop", "rollback", "signal"])
def test_two_processes_act_as_one(tmp_path, action):
    """The main process measures; nobody waits for ever. Signalled is the other, in the step of an alarm."""
    words = [*QUICK, *FEW, *COLLAPSE, "--output_dir", tmp_path / "run", "--on_collapse"]
    words.append("rollback" if action == "signal" else action)
    done = launch(TWO, tmp_path, action, *words)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"collapsed-3", "collapsed-4"} <= names, done.stderr[-3000:]
    if action == "stop":
        assert done.returncode != 0 and "At step 4 the generator had collapsed: it was told to" in done.stderr
        assert "README.md" not in names
    elif action == "signal":
        assert done.returncode == 0, done.stderr[-3000:]
        assert "README.md" not in names and "It does so the next time" in done.stdout
        assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-2"
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert {"README.md", "checkpoint-8"} <= names and done.stdout.count("half the learning rate") == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory_size", "99"], "--memory_size 99 does nothing with --control 0.0, only with a number above 0"),
        (
            ["--health_steps", "0", "--on_collapse", "rollback"],
            "--on_collapse rollback does nothing with --health_steps",
        ),
        (["--r1", "0", "--penalty_every", "2"], "--penalty_every 2 does nothing without --r1"),
        (["--penalty_every", "0"], "every of at least 1"),
        (["--r1", "-1"], "r1=-1.0 must not be negative"),
        (["--weight_clip", "-0.1"], "weight_clip=-0.1 must not be negative"),
        (["--loss", "wasserstein", "--r1", "0"], "--loss wasserstein needs a critic of bounded slope"),
        (["--weight_clip", "0.01", "--spectral_norm"], "--weight_clip bounds nothing once --spectral_norm"),
        (["--n_critic", "0"], "n_critic=0"),
        (["--mode_seeking", "-1"], "mode_seeking=-1.0 not negative"),
        (["--augment", "colour"], "augmentation 'colour' is not known. Choose some of: color, translation, cutout"),
        (["--control", "1", "--class_conditional"], "Control stores items without labels"),
        (["--latent_channels", "0"], "latent_channels=0 must be at least 1"),
        (["--model", "dcgan", "--resolution", "3"], "can't make 3 x 3 images"),
        (["--health_samples", "5"], "health_samples=5 at least 20"),
        (["--health_steps", "-1"], "health_steps=-1 must not be negative"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "0"], "--checkpointing_steps 0 saves none"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "100"], "keeps none. Raise it to 6"),
        (["--on_collapse", "rollback", "--checkpointing_steps", "300"], "keeps none. Raise it to 4"),
        (["--gradient_checkpointing"], "--gradient_checkpointing is not for --model dcgan"),
        (["--eval_batch_size", "0"], "eval_batch_size=0 must be at least 1"),
        (["--guidance_scale", "2"], "unrecognized arguments: --guidance_scale"),
    ],
)
def test_impossible_options_are_refused_before_data_are_read(capsys, tmp_path, monkeypatch, words, message):
    check_refusal(train_gan.main, capsys, monkeypatch, tmp_path / "run", words, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class_conditional", "--label_column", "none"], "has no labels for --class_conditional"),
        (["--control", "1", "--memory_size", "15"], "--memory_size 15 must be at least 16, twice the images of a step"),
        (["--dataset_split", "train[:10]"], "has 10 images, too few for --health_steps"),
        (["--max_train_steps", "0"], "max_train_steps=0 must be at least 1"),
    ],
)
def test_what_the_data_can_not_give_is_refused_before_training(capsys, tmp_path, words, message):
    status, _, said = run(capsys, *QUICK, *FEW, "--output_dir", tmp_path / "run", *words)
    assert status == 2 and message in said and said.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_r1_is_paid_by_default_unless_something_else_holds_the_discriminator():
    def paid(**options):
        parts = (DataArgs(), GANArgs(), AdversarialArgs(**options), HealthArgs(), GANTrainArgs())
        return GANRecipe(*parts).penalties()

    assert paid() == [hfgen.R1(1.0, 4)] and paid(loss="hinge", spectral_norm=True) == paid(r1=0.0) == []
    assert paid(loss="relativistic", r2=2.0, penalty_every=1) == [hfgen.R1(1.0), hfgen.R2(2.0)]
    assert paid(loss="wasserstein", gradient_penalty=5.0, penalty_every=1) == [hfgen.GradientPenalty(5.0)]
    assert paid(loss="wasserstein", weight_clip=0.1) == [hfgen.WeightClipping(0.1)]
    assert paid(control=1.0, r1=0.5) == [hfgen.R1(0.5, 4), hfgen.Control(1.0)]


def test_callbacks_are_called_when_due_and_stop_a_run_only_if_one_asks_for_it():
    calls = []
    every_two = Callback(2, lambda networks, step: calls.append(step))
    callbacks = Callbacks([every_two, Callback(0, lambda *_: True), Callback(6, lambda networks, step: step == 12)])
    assert callbacks.every == 2
    assert [callbacks({}, step) for step in (1, 2, 4, 6, 12)] == [False, False, False, False, True]
    assert calls == [2, 4, 6, 12] and Callbacks([]).every == 0
    with pytest.raises(ValueError, match="called every -1 steps"):
        Callback(-1, lambda *_: None)
