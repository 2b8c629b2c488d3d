"""Comparison of families: budgets, recipes, Pareto front, a comparison from end to end, its page in a browser."""

import base64
import importlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

from hfgen import cli
from hfgen.commands import compare as command
from hfgen.commands.next_lines import after_comparison
from hfgen.compare import flops, formats, jobs, latency, pages, recipes, report, tables
from hfgen.compare.aggregate import aggregate
from hfgen.compare.budget import Budget
from hfgen.compare.evaluator import training_facts
from hfgen.compare.report_shape import check_report
from hfgen.compare.rows import frechet
from hfgen.metrics.features import load_features
from hfgen.options import DataArgs, as_dict, parse, parser
from hfgen.registry import FAMILIES, Family
from tests.helpers.kills import ForkedTraining, popen_of

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("90s", "seconds", 90),
        ("2m", "seconds", 120),
        ("1.5h", "seconds", 5400),
        ("500 images", "images", 500),
        ("200k images", "images", 200_000),
        ("3 M images", "images", 3e6),
        ("2e15 flops", "flops", 2e15),
        ("1e+9flops", "flops", 1e9),
    ],
)
def test_a_budget_is_read(text, kind, amount):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount) == (kind, amount)
    assert budget.steps(amount / 7) == 7
    assert budget.steps(10 * amount) == 1


@pytest.mark.parametrize("text", ["", "2", "0s", "-1m", "2 days", "k images", "m", "1e flops", "10s images"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="2e15 flops"):
        Budget.parse(text)


def test_the_estimate_states_trainings_and_time():
    text = command._estimate(18, Budget.parse("2m"))
    assert text == "18 trainings of 2m: 36 min in all, and each is measured afterwards"
    assert command._estimate(1, Budget.parse("500 images")) == "1 training of 500 images, each measured afterwards"


def test_operations_of_a_step_are_those_of_its_products(monkeypatch, capsys):
    """A linear layer costs 2 B n m forwards and as much for its weight's gradient; of two players the first moves
    thrice a step."""

    def main(words):
        assert words == ["--seed", "1", "--dry_run"]
        players = [torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(3, 2, bias=False)]
        optimisers = [torch.optim.AdamW(player.parameters()) for player in players]
        for _ in range(4):
            for player, optimiser, turns in zip(players, optimisers, (3, 1), strict=True):
                for _ in range(turns):
                    player(torch.ones(11, player.in_features)).sum().backward()
                    optimiser.step()

    monkeypatch.setitem(sys.modules, "hfgen.training.counted", types.SimpleNamespace(main=main))
    monkeypatch.setitem(FAMILIES, "counted", Family("hfgen.training.counted"))
    flops.main(["counted", "--num_processes", "1", "--seed", "1"])
    assert float(capsys.readouterr().out.splitlines()[-1]) == 2 * 2 * 11 * (3 * 5 * 7 + 3 * 2)


def test_operations_of_a_penalty_are_counted(monkeypatch, capsys):
    """The gradient at the input, and the gradient of its norm, through a module: as R1 and energies have them."""

    def main(words):
        player = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.Softplus())
        optimiser = torch.optim.AdamW(player.parameters())
        x = torch.ones(11, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(player(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        optimiser.step()

    monkeypatch.setitem(sys.modules, "hfgen.training.counted", types.SimpleNamespace(main=main))
    monkeypatch.setitem(FAMILIES, "counted", Family("hfgen.training.counted"))
    flops.main(["counted", "--num_processes", "1"])
    # Forwards; the gradient at x; then those at its two factors, and at the two of the first product.
    assert float(capsys.readouterr().out.splitlines()[-1]) == 6 * 2 * 11 * 5 * 7


# --- recipes ----------------------------------------------------------------------------------------------------------


def rows_of(side):
    """Return every row for images of this side, and the trainings that rows of two trainings begin with."""
    families = recipes.families(side)
    firsts = [row.first for row in families if row.first is not None]
    return [*families, *firsts, *(row for name in recipes.ABLATIONS for row in recipes.ablation(name, side))]


EVERY = [(side, row) for side in (8, 28) for row in rows_of(side)]


def job_of(row, home=Path("home"), **data):
    return jobs.Job(row, DataArgs(**{"dataset_split": "train[:1500]", **data}), "train[1500:]", 3, home)


@pytest.mark.parametrize(("side", "row"), EVERY, ids=[f"{side}-{row.study}-{row.name}" for side, row in EVERY])
def test_front_doors_take_every_recipe(side, row):
    door = importlib.import_module(FAMILIES[row.door].door)
    family, processes, one, *words = job_of(row, random_flip=True, resolution=side).arguments(50)
    assert (family, processes, one) == (row.door, "--num_processes", "1")
    options = as_dict(*parse(parser("x", "x", "x", *door.GROUPS), words, *door.GROUPS))
    expected = {**row.options, "max_train_steps": 50, "seed": 3, "resolution": side, "random_flip": True}
    expected |= {"lr_warmup_steps": 5, "dataset_split": "train[:1500]", "output_dir": f"home/{row.run}"}
    expected |= {name: "train[1500:]" for name, value in expected.items() if value == recipes.HELD_OUT}
    assert {name: options[name] for name in expected} == expected


def test_a_row_of_two_trainings_shares_its_budget():
    options = command.CompareOptions(output_dir="home", seed=3, train_budget="2m")
    row = next(row for row in recipes.families(28) if row.family == "vqvae")
    budget = Budget.parse("2m")
    (first, first_budget), (second, budget_of_second) = command._stages(row, options, DataArgs(), "test", budget, 4)
    assert (first.configuration.door, second.configuration.door) == ("vae", "ar")
    assert (first.seconds, second.seconds) == (pytest.approx(48), pytest.approx(72))
    assert first_budget.amount + budget_of_second.amount == pytest.approx(120)
    assert (str(first.folder), str(second.folder)) == ("home/vqvae-first-seed4", "home/vqvae-seed4")
    assert second.options["pipeline"] == "home/vqvae-first-seed4" and "pipeline" not in first.options
    command_text = command._identity([first, second], {"VQ-VAE": 7, "VQ-VAE and prior": 9})["command"]
    assert command_text.count("hfgen train") == 2 and "--max_train_steps 7" in command_text.split(" && ")[0]


def test_the_folder_of_a_comparison_may_have_another_name(tmp_path):
    """A relative path, an absolute one, or that of a moved folder: the plan of a second training is the same."""
    row = next(row for row in recipes.families(8) if row.family == "vqvae")
    for home in ("a", "b"):
        options = command.CompareOptions(output_dir=str(tmp_path / home), train_budget="640 images")
        _, (job, budget) = command._stages(row, options, DataArgs(), "test", Budget.parse("640 images"), 0)
        assert jobs.plan_steps(job, budget, print) == 6
        (tmp_path / home).rename(tmp_path / "b") if home == "a" else None


def test_facts_of_two_trainings_are_sums(tmp_path):
    for name, seconds, steps, fitting in (("a", 10.0, 5, None), ("b", 20.5, 7, 1.25)):
        (tmp_path / name).mkdir()
        facts = {"training_seconds": seconds, "steps": steps, "images_seen": 10 * steps, "peak_memory_mib": 100 * steps}
        facts |= {} if fitting is None else {"fitting_seconds": fitting}
        (tmp_path / name / "metrics.json").write_text(json.dumps(facts))
    facts = training_facts(tmp_path / "a", tmp_path / "b")
    assert facts == {"training_seconds": 31.75, "training_steps": 12, "images_seen": 120, "peak_memory_mib": 700}


@pytest.mark.parametrize("name", recipes.ABLATIONS)
def test_an_ablation_changes_one_thing(name):
    rows = recipes.ablation(name, 8)
    assert len({row.name for row in rows}) == len(rows) >= 3
    assert len({row.setting for row in rows}) * len({row.family for row in rows}) == len(rows)
    for family in {row.family for row in rows}:
        own = [{**row.options, "steps of sampling": row.steps} for row in rows if row.family == family]
        differing = [key for key in own[0] if len({options[key] for options in own}) > 1]
        assert len(differing) == 1, differing
    assert len({(row.run, row.steps) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--families", "vae,gann"], "gann"),
        (["--ablation", "kll"], "latent_size"),
        (["--num_inference_steps", "0"], "--num_inference_steps 0 must be whole numbers at least 1"),
        (["--batch_sizes", "1,x"], "--batch_sizes 1,x must be whole numbers"),
        (["--dtypes", "int8"], "float32"),
        (["--train_budget", "soon"], "90s"),
        (["--num_samples", "0"], "--num_samples 0 must be at least 1"),
        (["--num_samples", "30"], "num_samples"),
        (["--held_out_split", "validation"], "validation"),
        (["--held_out_split", "test"], "'train[80%:]' beside --dataset_split 'train[:80%]'"),
    ],
)
def test_wrong_options_are_one_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", *words, "--output_dir", str(tmp_path / "out"), "--reference_cache", str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "plans").exists()


def test_help_has_an_example_that_parses(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    assert command.EXAMPLE in capsys.readouterr().out
    options, data = parse(
        parser("x", "x", "x", command.CompareOptions, DataArgs),
        command.EXAMPLE.split()[2:],
        command.CompareOptions,
        DataArgs,
    )
    assert (options.train_budget, data.dataset) == ("2m", "digits")


# --- speed ------------------------------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_dominates():
    points = torch.randint(0, 6, (60, 3), generator=torch.Generator().manual_seed(0)).tolist()
    on_front = latency.pareto_front(points)

    def is_dominated(point):
        return any(all(o <= p for o, p in zip(other, point, strict=True)) and other != point for other in points)

    assert on_front == [not is_dominated(point) for point in points]
    assert 0 < sum(on_front) < len(points)
    assert latency.pareto_front([]) == []
    assert latency.pareto_front([(1, 1), (1, 1)]) == [True, True]


@pytest.mark.parametrize(
    ("takes", "seconds", "counted"),
    [
        (range(1, 200), sum(range(1, 101)), range(1, 101)),  # for so long
        ([3.0] * 9, 1.0, [3.0] * 4),  # 5 times, but not more than ten times the seconds
        ([0.3, 0.1, 0.1, 0.1, 0.4, 9.0], 0.5, [0.3, 0.1, 0.1, 0.1, 0.4]),
        ([50.0, 60.0, 9.0], 1.0, [50.0, 60.0]),
        ([*range(200), 9.0], 1e9, range(200)),
    ],
)
def test_latencies_are_percentiles_of_warm_calls(takes, seconds, counted, monkeypatch):
    durations, clock = iter([1000.0, *takes]), [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += next(durations)

    ends = torch.tensor(list(counted), dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))
    result = latency.latencies(call, seconds)
    assert result == {"p50": pytest.approx(ends[0].item()), "p95": pytest.approx(ends[1].item())}


# --- pages ------------------------------------------------------------------------------------------------------------


def figures(distance):
    """The metrics of a measured row."""
    about = {"deviation": None, "better": "lower"}
    return {
        "Frechet distance (digits-cnn, 0)": {
            "value": distance,
            "interval": [distance * 0.9, distance * 1.1],
            **about,
        },
        "kernel distance (digits-cnn, 0)": {"value": -0.0004, "interval": None, **about, "deviation": 0.002},
        "coverage, k = 5 (digits-cnn, 0)": {"value": 0.8, "interval": None, "deviation": None, "better": "higher"},
        "nearer to training images than held-out ones (digits-cnn, 0)": {
            **{"value": 0.52, "interval": None, "deviation": None, "better": "0.5"}
        },
    }


def example_row(family, name, distance, milliseconds, study="families", setting=None, run=None, scheduler=None):
    """A measured row; with a scheduler it has two settings, of which the second is better and slower."""
    speed = []
    for steps, factor in ((1, 3.0), (10, 1.0)) if scheduler else ((1, 1.0),):
        for batch in (1, 64):
            latency = milliseconds * steps * (1 if batch == 1 else 10)
            about = {"batch": batch, "dtype": "float32", "steps": steps, "scheduler": scheduler}
            times = {"latency_p50_ms": latency, "latency_p95_ms": 1.4 * latency}
            rate = {"images_per_second": 1000 * batch / latency, "frechet": distance * factor}
            speed.append({**about, **times, **rate, "default": factor == 1.0})
    cost = {"parameters": 421_000, "training_seconds": 119.6, "training_steps": 6000, "images_seen": 384_000}
    about = {"study": study, "family": family, "name": name, "setting": setting, "status": "measured", "notes": []}
    about |= {"command": f"hfgen train {family} --output_dir {run or family}", "folder": run or family}
    return {
        **about,
        **cost,
        "peak_memory_mib": 600,
        "figures": figures(distance),
        "speed": speed,
        "abilities": ["sampling"],
        "seeds": [0],
    }


def example_rows():
    """Rows of every status and study."""
    rows = [
        example_row("vae", "VAE", 12.0, 0.5),
        example_row("rectified_flow", "Rectified flow", 2.5, 3.0, scheduler="rectified_flow"),
    ]
    rows[0]["figures"]["bits per dimension"] = {
        "value": 3.5,
        "interval": [3.4, 3.6],
        "deviation": None,
        "better": "lower",
    }
    silent = {**example_row("vqgan", "VQ-GAN", 1.0, 1.0), "status": "no samples", "speed": [], "abilities": []}
    silent |= {"figures": {}, "notes": ["draws no images: a prior over codes is needed"]}
    unkind = "the discriminator won <script>alert(1)</script> & more"
    broken = {**example_row("gan", "GAN", 1.0, 1.0), **command.failure(unkind)}
    ablated = [example_row("vae", f"VAE, beta {b}", 9.0 + b, 0.5, "kl", b, f"kl-vae-{b}") for b in (0.0, 1.0, 4.0)]
    sizes = [example_row("vae", f"VAE, {n} latents", 30 / n, 0.5, "latent_size", n, f"size-{n}") for n in (2, 4, 8)]
    return [*rows, silent, broken, *ablated, *sizes]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with a report of `example_rows`, and the report."""
    home, rows = tmp_path_factory.mktemp("example"), example_rows()
    for row in rows:
        for kind in ("samples", "nearest"):
            (home / kind).mkdir(exist_ok=True)
            Image.new("L", (512, 320), 200).save(home / kind / pages.picture_name(row))
    facts = {"data": "digits", "size": "1 x 8 x 8", "trained on": "1,500 images", "generated images": 1500}
    facts |= {"compared with": "1,500 images of train", "features": "digits-cnn, 0", "budget of a training": "2m"}
    facts["trainings of a row"] = 1
    whole = report.assemble(home, rows, facts, "hfgen compare --dataset digits")
    report.write(home, whole)
    return home, whole


class Page(HTMLParser):
    """The cells, images, charts, addresses and buttons of a page."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.images, self.charts, self.addresses, self.buttons = [], [], [], [], 0
        self.open = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href", "xlink:href", "action") if values.get(name)]
        self.buttons += tag == "button"
        if tag in ("td", "th"):
            self.cells.append("")
            self.open = tag
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.charts.append(values)

    def handle_endtag(self, tag):
        self.open = None if tag == self.open else self.open

    def handle_data(self, data):
        if self.open:
            self.cells[-1] += data.strip()


def test_the_page_is_one_file(example):
    home, whole = example
    text = (home / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)|<link", text)
    measured = [row for row in whole["rows"] if row["status"] == "measured"]
    assert len(page.images) == 2 * len(measured) and all(image["alt"] for image in page.images)
    for image in page.images:
        Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).load()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert page.buttons == len({row["folder"] for row in whole["rows"]}) + 1
    assert len(page.charts) == 3 + 2  # quality and speed in two batch sizes of families; one of each ablation
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_charts_have_a_text_that_says_the_same(example):
    home, _ = example
    labels = [chart["aria-label"] for chart in Page((home / "report.html").read_text(encoding="utf-8")).charts]
    assert labels[0] == (
        "Bar chart. VAE: Frechet distance 12, 120 seconds of training; Rectified flow: Frechet distance 2.5, 120 "
        "seconds of training."
    )
    assert "Rectified flow, 10 steps, float32, batch 1: 2.5 in 30 ms" in labels[1]
    assert (
        "VAE, one pass, float32, batch 1: 12 in 0.5 ms; Rectified flow, 1 step, float32, batch 1: 7.5 in 3 ms"
        in labels[1]
    )


def test_marks_are_of_the_front(example):
    _, whole = example
    rows = {row["name"]: row["speed"] for row in whole["rows"]}
    assert all(entry["front"] for entry in rows["Rectified flow"])
    assert all(entry["front"] for entry in rows["VAE"])
    assert [entry["front"] for entry in rows["VAE, beta 4.0"]] == [False, False]  # as fast as beta 0, and worse


def test_every_row_has_every_key(example):
    home, whole = example
    stored = json.loads((home / "report.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(whole))
    documented = set(re.findall(r'^ {4}[{ ]"(\w+)":', report.__doc__.split("all of these keys:")[1], re.MULTILINE))
    for row in stored["rows"]:
        assert set(row) == documented - (set() if len(row["seeds"]) > 1 else {"trainings"})
    timed = {"batch", "dtype", "steps", "scheduler", "images_per_second", "latency_p50_ms", "latency_p95_ms"}
    assert set(stored["rows"][0]["speed"][0]) == {*timed, "frechet", "front", "default"}


def test_markdown_tables_have_equal_rows(example):
    home, _ = example
    text = (home / "report.md").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 3 + 2 * 2 + 1
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
    assert "**2.5** ± 0.25" in text
    assert "- GAN: training failed: the discriminator won" in text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (formats.number, 0.0, "0"),
        (formats.number, -0.0004, "-0.0004"),
        (formats.number, 12345.6, "12,346"),
        (formats.count, 1_070_000, "1.07 M"),
        (formats.count, 512, "512"),
        (formats.duration, 119.6, "120 s"),
        (formats.duration, 1500, "25 min"),
        (formats.duration, 7200, "2 h"),
        (formats.milliseconds, 0.52, "0.52 ms"),
        (formats.milliseconds, 2100, "2.1 s"),
    ],
)
def test_numbers_are_written_for_people(form, value, text):
    assert form(value) == text


def test_a_page_without_a_trained_row_says_why(tmp_path):
    row = {**example_row("gan", "GAN", 1.0, 1.0), **command.failure("no such thing")}
    facts = {"data": "x", "size": "x", "trained on": "x", "generated images": 1, "compared with": "x", "features": "x"}
    facts |= {"budget of a training": "1s", "trainings of a row": 1}
    report.write(tmp_path, report.assemble(tmp_path, [row], facts, "hfgen compare"))
    assert "training failed: no such thing" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "training failed: no such thing" in report.summary([row])


# --- several trainings of a row ---------------------------------------------------------------------------------------


def test_trainings_are_aggregated():
    """Means and sample deviations equal NumPy's; a metric or setting that one training lacks is left out."""
    distances, times = [3.0, 5.0, 10.0], [1.0, 1.5, 3.5]
    rows = {seed: example_row("vae", "VAE", d, t) for seed, (d, t) in enumerate(zip(distances, times, strict=True), 4)}
    rows[4]["figures"]["bits per dimension"] = rows[5]["figures"]["kernel distance (digits-cnn, 0)"]
    rows[5]["speed"] = rows[5]["speed"][:1]
    rows[5]["training_seconds"], rows[5]["abilities"] = 125.6, ["sampling", "likelihood"]
    rows[6]["notes"] = ["bits per dimension is inf"]
    whole = aggregate(rows)
    assert whole["seeds"] == [4, 5, 6] and whole["abilities"] == ["sampling"]
    assert whole["notes"] == ["bits per dimension is inf (seed 6)"]
    assert whole["training_seconds"] == pytest.approx(np.mean([119.6, 125.6, 119.6]))
    assert "bits per dimension" not in whole["figures"]
    distance = whole["figures"]["Frechet distance (digits-cnn, 0)"]
    assert distance["trainings"] == distances and distance["interval"] == [3.0, 10.0]
    assert (distance["value"], distance["deviation"]) == pytest.approx((np.mean(distances), np.std(distances, ddof=1)))
    (timed,) = whole["speed"]
    assert timed["latency_p50_ms"] == pytest.approx(np.mean(times)) and timed["default"] and timed["batch"] == 1
    assert timed["images_per_second"] == pytest.approx(np.mean([1000 / t for t in times]))
    cell = dict(zip(tables.quality([whole]).columns, tables.quality([whole]).rows[0][1], strict=True))["Frechet"]
    assert (cell.text, cell.error) == ("6", "± 3.6")


def test_trainings_that_fail_are_notes_and_not_averaged():
    broken = {**example_row("vae", "VAE", 1.0, 1.0), **command.failure("no luck")}
    alone = aggregate({0: broken, 1: example_row("vae", "VAE", 4.0, 1.0)})
    assert alone["status"] == "measured" and alone["seeds"] == [1]
    assert alone["notes"] == ["training failed: no luck (seed 0)"] and frechet(alone) == 4.0
    both = aggregate({0: broken, 1: broken})
    assert both["status"] == "failed" and both["notes"] == ["training failed: no luck"] and both["figures"] == {}


LOOK = """
<!doctype html><body style="margin:0"><pre id="result">nothing</pre>
<iframe id="frame" style="border:0;width:%dpx;height:900px"></iframe>
<script>
const frame = document.getElementById("frame");
frame.addEventListener("load", async () => {
  const page = frame.contentDocument, width = frame.clientWidth, all = [...page.body.querySelectorAll("*")];
  const describe = e => e.tagName + "." + e.getAttribute("class") + ": " + e.textContent.slice(0, 60);
  const right = e => e.getBoundingClientRect().right;
  const edge = e => Math.min(width, e.closest(".card") ? right(e.closest(".card")) : width);
  const beyond = all.filter(e => !e.closest("svg *") && right(e) > edge(e) + 1);
  const hidden = e => frame.contentWindow.getComputedStyle(e).position === "absolute" || e.closest("thead");
  const button = page.querySelector("pre button");
  button.click();
  await new Promise(done => setTimeout(done, 200));
  const result = {
    width: width,
    scroll: page.documentElement.scrollWidth,
    beyond: beyond.filter(e => !hidden(e)).map(describe),
    cells: page.querySelectorAll("td").length,
    empty: [...page.querySelectorAll("td")].filter(e => !e.textContent.trim()).length,
    images: page.images.length,
    unloaded: [...page.images].filter(e => !e.naturalWidth || !e.clientWidth).length,
    charts: [...page.querySelectorAll("svg[role=img]")].filter(e => e.getBoundingClientRect().height > 60).length,
    text: Math.min(...[...page.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height)),
    button: button.textContent,
  };
  document.getElementById("result").textContent = JSON.stringify(result);
});
frame.srcdoc = %s;
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(example, width, tmp_path):
    home, _ = example
    text = json.dumps((home / "report.html").read_text(encoding="utf-8")).replace("</", "<\\/")
    (tmp_path / "look.html").write_text(LOOK % (width, text), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--virtual-time-budget=5000"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "look.html").as_uri()]
    done = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120)
    dumped = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert dumped and dumped[1] != "nothing", done.stderr[-2000:]
    result = json.loads(dumped[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert result["width"] == width
    assert result["scroll"] <= width and not result["beyond"]
    assert result["cells"] > 50 and not result["empty"]
    assert result["images"] == 16 and not result["unloaded"]
    assert result["charts"] == 5
    assert result["text"] >= 8  # pixels that the smallest letters are high
    assert result["button"] in ("Copied", "Selected")


def ended(words):
    """Run a command, and return its exit status."""
    try:
        cli.main(words)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("failing", [[], ["GAN"]])
def test_a_comparison_with_a_row_that_was_not_trained_has_status_1(failing, tmp_path, monkeypatch, capsys):
    """And gives bars and warnings of diffusers back as they were."""
    measured = {"status": "measured", "figures": {}, "speed": [], "notes": [], "training_seconds": 1.0}

    def row(configuration, *_):
        assert not logging.is_progress_bar_enabled()
        status = {"status": "failed"} if configuration.name in failing else {}
        return {"name": configuration.name, **measured, **status}

    stub = types.SimpleNamespace(side=8, facts=dict)
    monkeypatch.setattr(command, "_evaluator", lambda *_: stub)
    monkeypatch.setattr(command, "_row", row)
    for name in ("assemble", "write", "summary"):
        monkeypatch.setattr(report, name, lambda *_: "")
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert ended(["compare", "--families", "vae,gan", "--output_dir", str(tmp_path / "out")]) == (1 if failing else 0)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    error = capsys.readouterr().err
    assert ("not trained: GAN. The notes in" in error) == bool(failing) and error.count("error: ") == len(failing)


# --- from end to end --------------------------------------------------------------------------------------------------

QUICK = (
    "--train_budget 1280images --num_samples 200 --num_likelihood 4 --bootstrap 2 --num_inference_steps 2 "
    "--batch_sizes 1,3 --dtypes float32"
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A comparison: a VAE, a rectified flow, an autoencoder that draws no samples, and one that fails to train.

    Trainings are forks of this process. In `test_a_stopped_training_goes_on_exactly` they are new processes.
    """
    home = tmp_path_factory.mktemp("comparison")
    rows = {name: recipes.RECIPES[name] for name in ("vae", "rectified_flow")}
    silent = {"objective": "vq", "model": "vq", "likelihood": "gaussian", "train_batch_size": 64}
    rows["silent"] = recipes.Recipe("Silent", "vae", silent, silent)
    wrong = {"train_batch_size": 64, "model_size": "xxl"}
    rows["wrong"] = recipes.Recipe("Wrong", "vae", wrong, wrong)
    words = ["compare", *QUICK.split(), "--latency_seconds", "0.01", "--output_dir", str(home / "out")]
    words += ["--reference_cache", str(home / "cache"), "--device", "cpu", "--seed", "3"]
    patch = pytest.MonkeyPatch()
    patch.setattr(recipes, "RECIPES", rows)
    patch.setattr(jobs, "subprocess", popen_of(ForkedTraining))
    assert ended(words) == 1  # one of the rows failed
    yield home / "out", words
    patch.undo()


def test_a_comparison_trains_and_measures_all(comparison):
    home, _ = comparison
    whole = json.loads((home / "report.json").read_text(encoding="utf-8"))
    rows = {row["family"]: row for row in whole["rows"]}
    assert {family: row["status"] for family, row in rows.items()} == {
        **dict.fromkeys(("vae", "rectified_flow"), "measured"),
        "silent": "no samples",
        "wrong": "failed",
    }
    assert all(rows[family]["training_steps"] == 20 for family in ("vae", "rectified_flow", "silent"))
    assert rows["vae"]["images_seen"] == 1280
    beginnings = [
        "Frechet",
        "kernel",
        "classifier",
        "precision",
        "recall",
        "density",
        "coverage",
        "distance to training",
    ]
    for family in ("vae", "rectified_flow"):
        names = [name for name in rows[family]["figures"] if "(digits-cnn" in name]
        assert all(any(name.startswith(beginning) for name in names) for beginning in beginnings)
        assert not any("FID" in name for name in rows[family]["figures"])
        assert "bits per dimension" in rows[family]["figures"]
    assert "reconstruction error, mse" in rows["silent"]["figures"]
    assert rows["vae"]["abilities"] == ["sampling", "likelihood", "reconstruction", "latent-edit"]
    abilities = ["sampling", "likelihood", "reconstruction", "latent-edit", "class-conditional"]
    assert rows["rectified_flow"]["abilities"] == abilities
    assert any("draws no images" in note for note in rows["silent"]["notes"])
    assert "xxl" in rows["wrong"]["notes"][0]
    assert whole["hardware"] and whole["versions"]["torch"] == torch.__version__
    page = Page((home / "report.html").read_text(encoding="utf-8"))
    assert all(page.cells) and len(page.images) == 4


def test_the_commands_after_a_comparison_run(comparison, capsys):
    home, _ = comparison
    rows = json.loads((home / "report.json").read_text(encoding="utf-8"))["rows"]
    lines = [shlex.split(line) for line in after_comparison(home, rows)]
    assert len(lines) == 2
    for line in lines:
        cli.main(line[1:])
    assert "Take " in capsys.readouterr().out
    assert not after_comparison(home, [row for row in rows if row["status"] != "measured"])


def test_speed_is_of_every_setting(comparison):
    home, _ = comparison
    rows = {row["family"]: row for row in json.loads((home / "report.json").read_text(encoding="utf-8"))["rows"]}
    settings = {(e["steps"], e["batch"]) for e in rows["rectified_flow"]["speed"]}
    default = next(e["steps"] for e in rows["rectified_flow"]["speed"] if e["default"])
    assert settings == {(steps, batch) for steps in (2, default) for batch in (1, 3)}
    for row in (rows["vae"], rows["rectified_flow"]):
        for entry in row["speed"]:
            assert entry["latency_p50_ms"] <= entry["latency_p95_ms"]
            assert entry["images_per_second"] == pytest.approx(1000 * entry["batch"] / entry["latency_p50_ms"])
        chosen = next(entry for entry in row["speed"] if entry["default"])
        assert chosen["frechet"] == pytest.approx(frechet(row), rel=1e-6)


def test_the_same_command_does_nothing_twice(comparison, capsys):
    home, words = comparison
    before = {path: path.stat().st_mtime_ns for path in home.glob("*/model_index.json")}
    rows = json.loads((home / "report.json").read_text(encoding="utf-8"))["rows"]
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    assert ended(words) == 1
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (bars, verbosity) and bars
    out, error = capsys.readouterr()
    assert error.splitlines()[-1].startswith("error: not trained: Wrong. The notes in")
    assert out.count("is trained already") == out.count("is measured already") == 3
    assert {path: path.stat().st_mtime_ns for path in home.glob("*/model_index.json")} == before
    assert json.loads((home / "report.json").read_text(encoding="utf-8"))["rows"] == rows


def test_another_budget_needs_another_folder(comparison, capsys):
    _, words = comparison
    with pytest.raises(SystemExit):
        cli.main([word if word != "1280images" else "1400images" for word in words])
    assert "another --output_dir" in capsys.readouterr().err


def test_a_stopped_training_goes_on_exactly(comparison, tmp_path, monkeypatch):
    home, _ = comparison
    job = job_of(recipes.families(8, ["rectified_flow"])[0], tmp_path)
    assert jobs.plan_steps(job, Budget.parse("1280images"), print) == 20
    monkeypatch.setattr(jobs, "subprocess", subprocess)
    lines = []

    def say(text):
        lines.append(text)
        if len(lines) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(jobs.StopRequest):
        jobs.train(job, 20, say)
    rows = (tmp_path / "rectified_flow" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[-1])["step"] < 20 and not job.is_complete(20)
    jobs.train(job, 20, lines.append)
    assert any(line.startswith("Resumed from") for line in lines)
    name = "rectified_flow/denoiser/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / name), load_file(home / name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_rows_are_trained_with_several_seeds(comparison, tmp_path):
    home, words = comparison
    again = shutil.copytree(home, tmp_path / "out")
    words = [str(again) if word == str(home) else word for word in words]
    cli.main([*words, "--families", "vae", "--num_seeds", "2"])
    (row,) = json.loads((again / "report.json").read_text(encoding="utf-8"))["rows"]
    assert row["seeds"] == [3, 4]
    trainings = [
        json.loads((again / name / "metrics.json").read_text(encoding="utf-8")) for name in ("vae", "vae-seed4")
    ]
    assert [metrics["steps"] for metrics in trainings] == [20, 20]
    values = row["figures"]["bits per dimension"]["trainings"]
    assert len(set(values)) == 2 and row["figures"]["bits per dimension"]["value"] == pytest.approx(np.mean(values))
    assert "means over 2 trainings" in (again / "report.md").read_text(encoding="utf-8")
    assert "means over 2 trainings" in (again / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_no_training_outlives_a_killed_comparison(tmp_path):
    code = """
import sys
from pathlib import Path
from hfgen.options import DataArgs
from hfgen.compare import jobs, recipes
row, data = recipes.families(8, ["vae"])[0], DataArgs(dataset_split="train[:1500]")
jobs.train(jobs.Job(row, data, "train[1500:]", 0, Path(sys.argv[1])), 10**6, print)
"""

    def appears(path, text):
        for _ in range(600):
            if path.is_file() and text in path.read_text(encoding="utf-8"):
                return True
            time.sleep(0.2)
        return False

    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    started = appears(tmp_path / "vae" / "metrics.jsonl", '"step"')
    process.kill()
    process.wait()
    assert started
    assert appears(tmp_path / "logs" / "vae-train.txt", "the same command goes on")
    assert list((tmp_path / "vae").glob("checkpoint-*"))


@pytest.mark.slow
def test_seconds_are_measured_by_a_short_run(tmp_path):
    job, lines = job_of(recipes.families(8, ["vae"])[0], tmp_path), []
    steps = jobs.plan_steps(job, Budget.parse("20s"), lines.append)
    plan = json.loads((tmp_path / "plans" / "vae.json").read_text(encoding="utf-8"))
    assert steps == plan["steps"] == max(1, round(20 / plan["a_step"])) and math.isfinite(plan["a_step"])
    assert not (tmp_path / "probes" / "vae").exists() and not (tmp_path / "vae").exists()
    assert jobs.plan_steps(job, Budget.parse("20s"), lines.append) == steps and len(lines) == 1


def test_a_budget_of_seconds_is_kept_on_the_way(tmp_path):
    row = recipes.families(8, ["vae"])[0]
    assert Budget.parse("2m").seconds == 120 and Budget.parse("10 images").seconds is None
    job = jobs.Job(row, DataArgs(dataset_split="train[:1500]"), "train[1500:]", 3, tmp_path, Budget.parse("2m").seconds)
    words = job.arguments(50)
    assert (
        words[words.index("--max_train_seconds") + 1] == "120.0" and words[words.index("--max_train_steps") + 1] == "50"
    )
    assert "--max_train_seconds" not in job.arguments(jobs.UNLIMITED)  # the run that measures the first guess
    assert "--max_train_seconds" not in job_of(row, tmp_path).arguments(50)
    job.folder.mkdir()
    (job.folder / "model_index.json").write_text("{}")

    def complete(**metrics):
        (job.folder / "metrics.json").write_text(json.dumps(metrics))
        return job.is_complete(50)

    assert complete(steps=61, plan={"seconds": 120.0, "plans": []})
    assert not complete(steps=50, plan={"seconds": 60.0, "plans": []})
    assert complete(steps=50) and not complete(steps=61)  # trained by steps, as older comparisons are
    cost = {"training_seconds": 118.2, "steps": 61, "images_seen": 61, "peak_memory_mib": 1}
    complete(**cost, fitting_seconds=1.63)
    assert training_facts(job.folder)["training_seconds"] == 119.8
    complete(**cost)
    assert training_facts(job.folder)["training_seconds"] == 118.2
    complete(**{**cost, "training_seconds": 0.004})  # of one step
    row = {"family": "gan", "training_seconds": training_facts(job.folder)["training_seconds"]}
    check_report({"rows": [row]}, job.folder)


# --- two feature networks ---------------------------------------------------------------------------------------------


def with_texture(row, distance):
    """The row as two networks measure it."""
    one, label = frechet(row), "digits-texture, 1"
    joint = math.sqrt(one * distance)
    about = {"interval": [0.9 * joint, 1.1 * joint], "deviation": None, "better": "lower"}
    row["figures"]["geometric mean of Frechet distances (digits-cnn, 0; digits-texture, 1)"] = {"value": joint, **about}
    row["figures"][f"Frechet distance ({label})"] = {**about, "value": distance}
    for entry in row["speed"]:
        second = entry["frechet"] * distance / one
        entry |= {
            "distances": {"digits-cnn, 0": entry["frechet"], label: second},
            "frechet": math.sqrt(entry["frechet"] * second),
        }
    return row


def test_every_table_names_both_networks_and_ranks_by_their_mean(example, tmp_path):
    home, whole = example
    soft, sharp = example_row("vae", "VAE", 1.0, 0.5), example_row("rectified_flow", "Flow", 4.0, 3.0, scheduler="ddim")
    rows = [with_texture(soft, 25.0), with_texture(sharp, 1.0)]
    table = tables.quality(rows)
    assert list(table.columns[:3]) == ["Rank by", "Frechet, digits-cnn", "Frechet, digits-texture"]
    assert "digits-texture, 1" in table.descriptions[2] and "geometric mean" in table.descriptions[0]
    cells = [[cell.text for cell in cells[:3]] for _, cells in table.rows]
    assert cells == [["5", "1", "25"], ["2", "4", "1"]]
    assert [[cell.best for cell in cells[:3]] for _, cells in table.rows] == [[0, 1, 0], [1, 0, 1]]
    assert pages.brief(soft).startswith(
        "VAE: 120 s of training, Frechet distance 5 (1 by digits-cnn, 0, 25 by digits-t"
    )
    facts = {**whole["protocol"], "features": "digits-cnn, 0; digits-texture, 1"}
    written = report.assemble(home, rows, facts, "hfgen compare")
    front = tables.pareto(written["rows"])
    assert list(front.columns) == ["Setting", "Frechet", "by digits-cnn", "by digits-texture", "Latency", "Images/s"]
    assert [cell.text for cell in front.rows[0][1][1:4]] == ["2", "4", "1"]
    for kind in ("samples", "nearest"):
        (tmp_path / kind).mkdir()
        for row in rows:
            Image.new("L", (8, 8)).save(tmp_path / kind / pages.picture_name(row))
    report.write(tmp_path, written)
    markdown, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    for text in (markdown, page):
        assert "digits-cnn, 0; digits-texture, 1" in text and "Frechet, digits-texture" in text
    assert "Frechet distance, geometric mean of 2 networks 2" in page  # the best samples are the flow's


def test_trainings_of_two_networks_are_aggregated():
    rows = {s: with_texture(example_row("vae", "VAE", d, 1.0), 2 * d) for s, d in enumerate((2.0, 4.0))}
    whole = aggregate(rows)
    assert frechet(whole) == pytest.approx(3 * math.sqrt(2))
    assert whole["speed"][0]["distances"] == {"digits-cnn, 0": 3.0, "digits-texture, 1": 6.0}
    rows[0]["speed"][0]["distances"] = rows[0]["speed"][0]["frechet"] = None
    assert aggregate(rows)["speed"][0]["distances"] is None


def test_a_comparison_measures_by_both_networks(comparison):
    home, _ = comparison
    whole = json.loads((home / "report.json").read_text(encoding="utf-8"))
    first, second = (load_features(name).label for name in ("digits", "digits-texture"))
    assert whole["protocol"]["features"] == f"{first}; {second}"
    for row in (row for row in whole["rows"] if row["status"] == "measured"):
        figures = {name: entry["value"] for name, entry in row["figures"].items()}
        each = [figures[f"Frechet distance ({label})"] for label in (first, second)]
        joint = figures[f"geometric mean of Frechet distances ({first}; {second})"]
        assert joint == pytest.approx(math.prod(each) ** 0.5)
        for entry in row["speed"]:
            assert list(entry["distances"]) == [first, second]
            assert entry["frechet"] == pytest.approx(math.prod(entry["distances"].values()) ** 0.5)
        own = next(entry for entry in row["speed"] if entry["default"])
        assert list(own["distances"].values()) == pytest.approx(each)
