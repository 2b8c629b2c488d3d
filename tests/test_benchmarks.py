"""Benchmarks in small: what takes part in a race, and that an interrupted one goes on."""

import ast
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

import hfgen
from hfgen.data.images import ImageData
from hfgen.families.gan.options import GROUPS
from hfgen.families.gan.recipe import GANRecipe
from hfgen.options import DataArgs, parse, parser, refuse_idle

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "pythae_loop")


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    """Benchmarks import their neighbours, as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def module(name):
    return importlib.import_module(name)


def early_module(name):
    """A benchmark, while tests are collected and no fixture has changed the path."""
    sys.path.insert(0, str(FOLDER))
    try:
        return module(name)
    finally:
        sys.path.remove(str(FOLDER))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_does(name):
    assert module(name).__doc__


# --- samplers of diffusers --------------------------------------------------------------------------------------------


class PerfectNetwork(nn.Module):
    """The ε of the data N(.3, .4^2) on DDPM's linear table, at any time."""

    dtype = torch.float32

    def forward(self, x, t):
        alphas = diffusers.DDPMScheduler().alphas_cumprod.double()
        place = torch.as_tensor(t).double()
        low = place.floor().long().clamp(0, 999)
        high = (low + 1).clamp(max=999)
        log = alphas[low].log() + (place - low) * (alphas[high].log() - alphas[low].log())
        alpha, sigma = (log / 2).exp(), (1 - log.exp()).sqrt()
        eps = sigma * (x.double() - 0.3 * alpha) / (0.16 * alpha**2 + sigma**2)
        return SimpleNamespace(sample=eps.to(x))


def samplers():
    table = early_module("peer_samplers")
    return {**table.ode_samplers(), **table.sde_samplers()}


UNSOUND = {"UniPC, bh1"}
"""Not finite at its last step under diffusers 0.42 for this table."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(samplers()) - UNSOUND))
def test_every_sampler_of_the_peer_draws_from_a_perfect_network(name):
    """No one loses a race because it was called wrongly: mean and deviation of 4,096 numbers at 60 evaluations."""
    peer_samplers = module("peer_samplers")
    make = samplers()[name]
    steps = peer_samplers.most_steps(make, 60)
    noise = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images = peer_samplers.draw(PerfectNetwork(), make(), steps, noise, torch.Generator().manual_seed(1))
    # Images are clipped to [0, 1]: in [-1, 1] that cuts 4 % of N(.3, .4^2) above. The clipped moments, by quadrature:
    grid = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    clipped = (0.3 + 0.4 * grid).clamp(-1, 1)
    mean = float((weight * clipped).sum())
    deviation = math.sqrt(float((weight * (clipped - mean) ** 2).sum()))
    values = 2 * images - 1
    assert values.mean().item() == pytest.approx(mean, abs=0.04)
    assert values.std().item() == pytest.approx(deviation, abs=0.06)


def test_a_sampler_with_two_evaluations_a_step_has_no_more_than_the_others():
    peer_samplers = module("peer_samplers")
    for make in samplers().values():
        steps = peer_samplers.most_steps(make, 10)
        scheduler = make()
        scheduler.set_timesteps(steps)
        assert 9 <= len(scheduler.timesteps) <= 10
    assert peer_samplers.most_steps(diffusers.HeunDiscreteScheduler, 10) == 5  # 2 n - 1 evaluations


def test_fewest_evaluations_of_a_side():
    fewest = module("sampling_throughput").fewest
    table = {"hfgen default": {5: 8.0, 10: 6.0}, "diffusers A": {5: 9.0, 10: 5.9}, "diffusers B": {5: 7.0, 8: 6.0}}
    assert fewest(table, "diffusers", 6.0) == (8, "diffusers B")
    assert fewest(table, "diffusers", 9.0) == (5, "diffusers B")  # the better of two with equally many
    assert fewest(table, "hfgen", 6.0) == (10, "hfgen default") and fewest(table, "hfgen", 5.0) is None


# --- GANs -------------------------------------------------------------------------------------------------------------


def rows_of_gans():
    table = early_module("gan_table")
    return [(name, way) for name, way in table.plan(table.Options())]


@pytest.mark.parametrize(("name", "way"), rows_of_gans())
def test_every_row_of_gans_is_a_run_with_its_papers_options(name, way):
    gan_table = module("gan_table")
    row = gan_table.ROWS[name]
    parsed = parse(parser("x", "x", "x", *GROUPS), gan_table.words_of(row, way), *GROUPS)
    refuse_idle(*parsed)
    data_args, network_args, loss_args, health_args, _, args = parsed
    GANRecipe(data_args, network_args, loss_args, health_args, args)
    assert (args.lr_scheduler == "constant") == (way == "paper") and loss_args.fresh_batches
    if row.rate is not None:
        assert (args.learning_rate, args.discriminator_learning_rate) == (row.rate, row.discriminator_rate)
    if name == "WGAN":
        assert (args.optimizer, args.learning_rate, loss_args.n_critic) == ("rmsprop", 5e-5, 5)
        assert loss_args.weight_clip == 0.01
    if name == "WGAN-GP":
        assert (args.learning_rate, args.adam_beta1, args.adam_beta2, loss_args.n_critic) == (1e-4, 0.0, 0.9, 5)
    if name == "DCGAN, non-saturating":
        assert (args.learning_rate, args.adam_beta1, args.adam_beta2) == (2e-4, 0.5, 0.999)


def test_a_factor_multiplies_both_rates():
    words = module("gan_table").words_of(module("gan_table").ROWS["DCGAN, two time scales"], "tuned", 2.0)
    assert words[-4:] == ["--learning_rate", "0.001", "--discriminator_learning_rate", "0.0002"]


@pytest.mark.parametrize("row", ["WGAN, its paper's RMSProp", "non-saturating, CLC"])
def test_a_row_of_the_grid_is_trained_and_measured(row):
    result = module("gaussian_grid").measure(row, 2, 0)
    assert {"covered", "high_quality", "reverse_kl", "seconds"} <= result.keys()


# --- an interrupted benchmark -----------------------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(tmp_path):
    measured, calls = module("measured").Measured, []

    def measure():
        calls.append(1)
        return {"value": 1.5}

    for _ in range(2):
        results = measured(tmp_path / "new" / "x.json", {"steps": (1, 2)})
        assert results.get("row", measure) == {"value": 1.5}
    assert calls == [1] and json.loads((tmp_path / "new" / "x.json").read_text())["values"] == {"row": {"value": 1.5}}
    with pytest.raises(SystemExit, match=r"was measured with .* Give another --output_dir"):
        measured(tmp_path / "new" / "x.json", {"steps": (1, 3)})


def test_the_peer_loop_ends_its_schedule_with_the_time():
    peer_loop = module("peer_loop")
    assert peer_loop.PeerSettings(1e-4, 16, "script", "attention", 0.9999) == peer_loop.DEFAULTS
    assert [peer_loop.share_of_peak(step, 0.0) for step in (0, 100, 200, 900)] == [0, 0.5, 1, 1]
    assert peer_loop.share_of_peak(900, 0.5) == pytest.approx(0.5) and peer_loop.share_of_peak(900, 1.2) == 0

    data = [{"input": torch.zeros(3, 32, 32)}] * 4
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    for settings in (peer_loop.DEFAULTS, peer_loop.PeerSettings(schedule="run", learning_rate=1e-3)):
        seconds = peer_loop.train(peer_loop.small_unet(), loader, 2, "no", settings, seconds=10.0)
        assert len(seconds) == 2


# --- the rules of a race ----------------------------------------------------------------------------------------------


def test_pythae_is_tuned_and_compared_in_the_same_precision_and_batch(tmp_path, monkeypatch, capsys):
    vae = module("vae_throughput")

    def measure(options, folder, side):
        speed = {"pythae": 100.0, "hfgen": 150.0}[side.program] * (2 if side.precision == "bf16" else 1)
        return {"images_per_second": speed, "elbo": -100 - abs(side.rate - 2e-3)}

    monkeypatch.setattr(vae, "measure", measure)
    results = module("measured").Measured(tmp_path / "x.json", {})
    sides = vae.sides(vae.Options(), tmp_path, results)
    assert sides[0] == ("pythae", "float32", 64, 1e-4)
    assert {side.rate for side in sides[1:] if side.program == "pythae"} == {2e-3}
    assert sorted(side.group for side in sides[1:]) == sorted([(p, b) for p in vae.PRECISIONS for b in vae.BATCHES] * 2)
    vae.report({side: measure(None, None, side) for side in sides})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hfgen")]
    assert len(lines) == 4 and all(" 1.50" in line for line in lines)


def test_the_search_for_the_peers_options_keeps_the_best(tmp_path, monkeypatch):
    quality = module("quality_per_minute")

    def side(data_args, data, settings, samplers, precisions):
        kept = lambda network, moments, precision: [(moments[0], 1, settings)]  # noqa: E731
        return quality.Side(lambda data: None, kept, True, False, samplers, precisions)

    class Judge:
        def distances(self, side, network, sampler, count):
            distance = abs(network.learning_rate - 1e-3) * 1e3 + (network.schedule != "run")
            return {"judge": distance + abs(network.batch_size - 32) + 1}

    monkeypatch.setattr(quality, "loop_side", side)
    results = module("measured").Measured(tmp_path / "x.json", {})
    best = quality.search(quality.Options(), None, None, Judge(), results)
    assert (best.learning_rate, best.schedule, best.batch_size, best.network) == (1e-3, "run", 32, "attention")
    assert len(results.values) == 1 + sum(len(values) for values in quality.GRID.values())
    assert set(quality.SAMPLERS) <= set(module("peer_samplers").ode_samplers())
    sides = module("race_sides")
    for name in sides.NETWORKS:
        network = sides.peer_network(name, SimpleNamespace(resolution=28, channels=1))
        assert network(torch.zeros(1, 1, 28, 28), torch.zeros(1)).sample.shape == (1, 1, 28, 28)


class Race:
    """Sides that train by counting: a network is one number, the minutes that it trained for."""

    def __init__(self, quality, tmp_path, samplers=("a",), planned=True, classes=None):
        self.trainings, self.judged = [], []

        def train(network, moments, precision):
            self.trainings.append(list(moments))
            for seconds in moments:
                network.bias.data.fill_(seconds / 60)
                yield seconds, int(seconds), network

        self.side = quality.Side(lambda data: nn.Linear(1, 1), train, planned, True, samplers, ("no",), classes)
        self.results = module("measured").Measured(tmp_path / "x.json", {})
        self.race = quality.Race(quality.Options(minutes="2,8"), None, self, self.results)

    def distances(self, side, network, sampler, count):
        self.judged.append((network.bias.item(), sampler, count))
        return {"shape": 8 / network.bias.item() + ord(sampler) - ord("a"), "texture": 1.0}


def test_a_schedule_that_ends_with_the_time_is_trained_for_each_time(tmp_path):
    quality = module("quality_per_minute")
    for planned, trainings in ((True, [[120], [480]]), (False, [[120, 480]])):
        home = tmp_path / str(planned)
        home.mkdir()
        race = Race(quality, home, planned=planned)
        rows = race.race.rows("peer, float32", race.side, "no")
        assert race.trainings == trainings and [row["seconds"] for row in rows] == [120, 480]
        assert [row["distances"]["shape"] for row in rows] == [4, 1]  # each of the weights of its time


def test_a_race_that_was_interrupted_goes_on(tmp_path):
    quality = module("quality_per_minute")
    first = Race(quality, tmp_path, samplers=("b", "a"))
    rows = first.race.rows("peer, float32", first.side, "no")
    assert rows[1]["sampler"] == "a" and (8.0, "a", 2000) in first.judged  # the best at the end draws all samples
    again = Race(quality, tmp_path, samplers=("b", "a"))
    assert again.race.rows("peer, float32", again.side, "no") == rows
    assert not again.trainings and not again.judged


def test_a_race_compares_like_with_like(capsys):
    quality = module("quality_per_minute")

    def rows(classes, *values):
        facts = {"seconds": 120.0, "images": 64, "parameters": 1, "sampler": "x", "classes": classes}
        return [{**facts, "distances": {"shape": value, "texture": 2 * value}} for value in values]

    table = {"hfgen, bf16": rows(False, 1.0), "hfgen_classes, bf16": rows(True, 2.0)}
    table |= {"tuned, bf16": rows(False, 4.0), "minrf, float32": rows(True, 40.0)}
    quality.report(table, SimpleNamespace(features={"shape": None, "texture": None}))
    out = capsys.readouterr().out
    assert "hfgen, bf16 / tuned, bf16, 2 min: 0.250, 0.250" in out
    assert "hfgen_classes, bf16 / minrf, float32, 2 min: 0.050, 0.050" in out
    assert out.count(" / ") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": "hfgen,minRF"}, "--sides minRF not known. Choose from hfgen, "),
        ({"sides": "minrf"}, "--minrf None holds no dit.py and rf.py: give a clone"),
        ({"minutes": "8,2"}, "--minutes 8,2 must be rising numbers above 0"),
        ({"minutes": "2,x"}, "must be rising"),
    ],
)
def test_a_race_that_would_fail_after_hours_is_refused(options, message):
    quality = module("quality_per_minute")
    with pytest.raises(ValueError, match=message):
        quality.check(quality.Options(**options))


MINRF = """
import torch
from torch import nn

class DiT_Llama(nn.Module):
    def __init__(self, channels, size, dim, n_layers, n_heads, num_classes):
        super().__init__()
        self.size, self.weight = size, nn.Parameter(torch.tensor(0.5))

    def forward(self, x, t, y):
        assert x.shape[1:] == (1, self.size, self.size) and x[:, :, :2].abs().amin() >= 0
        drop = torch.rand(len(y)).cuda() if self.training else 0
        return x * self.weight

class RF:
    def __init__(self, model, ln=True):
        self.model = model

    def forward(self, x, cond):
        assert (x[:, :, [0, 1, -1, -2]] == -1).all() and len(x) == 256
        return (self.model(x, torch.zeros(len(x)), cond) ** 2).mean(), []
"""
"""A stand-in for minRF's two files: their names, arguments and call of `cuda`."""


def test_a_published_example_is_loaded_from_a_folder_and_trained_as_it_is(tmp_path):
    flows, sides = module("peer_flows"), module("race_sides")
    for name in ("dit", "rf"):
        (tmp_path / f"{name}.py").write_text(MINRF)
    flow = flows.minrf(str(tmp_path))
    images = torch.zeros(600, 1, 28, 28, dtype=torch.uint8)
    names = [str(digit) for digit in range(10)]
    data = ImageData("black", None, None, images=images, labels=torch.zeros(600).long(), label_names=names)
    side = sides.published_side(flow, data)
    network = side.build(data)
    ((_, seen, trained),) = side.train(network, [1e-9], "no")
    assert seen == 256 and trained.module.network.weight.item() == pytest.approx(0.5 - 5e-4, abs=1e-6)
    x, t, labels = torch.ones(3, 1, 32, 32), torch.tensor(500.0), torch.zeros(3).long()
    assert torch.equal(trained.eval()(x, t, class_labels=labels), x * trained.module.network.weight)
    assert "euler, guidance 2" in side.samplers and "default, guidance 1.5" not in side.samplers
    assert set(side.samplers) <= set(sides.FLOW_SAMPLERS)


def test_a_ratio_is_one_of_equal_precision(capsys):
    module("sampling_throughput").report(
        "x", {"peer, float32": 10.0, "hfgen, float32": 12.0, "peer, bf16": 20.0, "hfgen, bf16": 30.0}
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("  ")] == ["1.00", "1.20", "1.00", "1.50"]
    training = module("training_throughput")
    table = {side: {"images_per_second": 20.0 if "bf16" in side else 10.0, "peak_mib": 1.0} for side in training.SIDES}
    training.report(table, {"data": {"images_per_second": 1.0}})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("hfgen", "diffusers"))]
    assert len(lines) == len(training.SIDES) and all(" 1.00 " in line for line in lines)


def test_mutants_of_what_is_computed_at_import_run_the_tests_that_use_it():
    """Whichever test imports a file executes its constants and defaults, and need not notice them."""
    source = b"A = 2\n\n\ndef f(x=3):\n    y = x * A\n    return y\n"
    mutations = module("mutation_score").Mutations("a.py", source)
    mutations.visit(ast.parse(source))
    lines = {(mutant.line, mutant.new): [sorted(part) for part in mutant.lines] for mutant in mutations.found}
    assert lines[1, "3"] == [[1, 5]]  # where the constant is named
    assert lines[4, "4"] == [[5, 6]]  # the body of the function
    assert lines[5, "/"] == [[5], [5]]


def test_a_default_is_shown_to_quick_tests_that_read_it_elsewhere():
    """Such as one that inspects a signature. What runs in a function is shown to the tests that execute it alone."""
    score = module("mutation_score")
    mutations = score.Mutations("a.py", b"def f(x=3):\n    return x + 1\n")
    mutations.visit(ast.parse(mutations.source))
    tests, by_line = {"uses": [1.0, []], "inspects": [0.1, []], "long": [9.0, []]}, {("a.py", 2): {"uses", "long"}}
    shown = {mutant.new: score.tests_for(mutant, tests, by_line, 5.0) for mutant in mutations.found}
    assert shown["4"] == shown["6"] == ["uses", "inspects"] and shown["-"] == ["uses"]


def test_equivalent_mutants_are_mutants_and_have_a_reason():
    score, found = module("mutation_score"), set()
    for room in score.ROOMS:
        for mutant in score.mutants_of(room, score.ROOT):
            found.add(tuple(mutant.facts((score.ROOT / mutant.path).read_bytes()).values()))
    listed = json.loads((FOLDER / "equivalent_mutants.json").read_text())
    stale = [row for row in listed if tuple(row[name] for name in score.NAMES) not in found]
    assert not stale and all(row["reason"] for row in listed)


def test_tables_tell_two_networks_apart():
    joint = "geometric mean of Frechet distances (a, 0; b, 1)"
    two = {"Frechet distance (a, 0)": 4.0, "Frechet distance (b, 1)": 9.0, joint: 6.0}
    assert module("gan_table").frechet_of(two) == 6 and module("gan_table").frechet_of({"Frechet distance": 4.0}) == 4
    entry = {"value": 4.0, "interval": [3.5, 4.5], "deviation": None}
    kernel = {"value": 0.1, "interval": None, "deviation": 0.02}
    rows = {
        "one": {"images_per_second": 9.0, "Frechet distance (a, 0)": entry, joint: {**entry, "interval": None}},
        "other": {"images_per_second": 8.0, "kernel distance (b, 1)": kernel},
    }
    head, _, *lines = module("results_table").table(rows).splitlines()
    assert head == f"| row | Frechet distance (a, 0) | {joint} | kernel distance (b, 1) | images/s |"
    assert lines == ["| one | 4 ± 0.5 | 4 |  | 9 |", "| other |  |  | 0.1 (0.02) | 8 |"]


# --- ladders of damage ------------------------------------------------------------------------------------------------


def test_a_ladder_of_damage_is_measured_drawn_and_told(tmp_path, monkeypatch, capsys):
    ladder = module("damage_ladder")
    words = ["--num_samples", "80", "--num_reference", "100", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["damage_ladder.py", *words])
    ladder.main()
    result, out = json.loads((tmp_path / "damage_ladder.json").read_text()), capsys.readouterr().out
    assert (tmp_path / "damage_ladder.png").stat().st_size > 10_000
    assert (result["samples"], result["reference"]) == (80, 100)
    first, second = result["floors"]
    assert first.startswith("digits-cnn, ") and second.startswith("digits-texture, ")
    assert list(result["ladders"]) == [
        *("blur", "noise", "checkerboard", "dropped strokes", "dropped classes", "copies", "memorised")
    ]
    for name, measures in result["ladders"].items():
        products = [a * b for a, b in zip(measures[first], measures[second], strict=True)]
        assert measures["geometric mean"] == pytest.approx([math.sqrt(product) for product in products])
        assert out.count(f"| {name} | ") == len(measures)
    for name in ("digits-cnn", "digits-texture"):  # a sample that is a training image is the nearest to one
        shares = result["ladders"]["memorised"][f"nearer to training images, {name}"]
        assert shares == sorted(shares) and shares[-1] == 1


def test_a_line_that_falls_does_not_rise():
    ladder = module("damage_ladder")
    assert ladder.rises([1.1, 1.2, 3]) and not ladder.rises([1.1, 1.1]) and not ladder.rises([0.9, 1.2])
    table = ladder.table({"floors": {"n": 2.0}, "ladders": {"blur": {"n": [1.5, 1.4, 3, 4, 5], "coverage": [1] * 5}}})
    assert (
        "| blur | n | 1.5 | 1.4 | 3 | 4 | 5 | no |" in table and "| blur | coverage | 1 | 1 | 1 | 1 | 1 |  |" in table
    )


# --- trials of the recipe ---------------------------------------------------------------------------------------------


class Slope(nn.Module):
    """A network whose prediction is half of its input."""

    def forward(self, x, t, **condition):
        return SimpleNamespace(sample=0.5 * x)


def trial_loss(**changes):
    """Return the loss of a trial on four images, the images, and the noise and times of its step."""
    from hfgen.objectives.base import Step

    loop = module("trial_loop")
    trial = loop.Trial("a", "b", **changes)
    batch, step = {"x": torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))}, Step(0)
    objective = loop.objective_of(trial, None)
    loss, t = loop.loss_of(trial, objective, Slope(), batch, step), objective.times(step, 4).float()
    return loss.item(), batch["x"], step.randn("noise", batch["x"]), t[:, None, None, None]


def test_the_velocity_loss_of_a_prediction_of_images_is_the_error_of_the_velocity():
    loss, x, noise, t = trial_loss(prediction="sample", weighting="velocity")
    assert t.min() > 0.05
    x_t = (1 - t) * x + t * noise
    error = (x_t - 0.5 * x_t) / t - (noise - x)  # the velocity is (x_t - x) / t
    assert loss == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_a_contrast_rewards_the_distance_to_the_velocity_of_another_image():
    from hfgen.objectives.base import Step

    plain, x, noise, t = trial_loss()
    other = torch.randperm(4, generator=Step(0).generator("contrast"))
    away = (0.5 * ((1 - t) * x + t * noise) - (noise - x)[other]).square().mean().item()
    assert trial_loss(contrast=0.1)[0] == pytest.approx(plain - 0.1 * away, rel=1e-5)


def test_stratified_times_have_the_quantiles_of_a_logit_normal():
    from hfgen.objectives.base import Step

    loop = module("trial_loop")
    objective = loop.objective_of(loop.Trial("a", "b", times="stratified", mean=0.5, std=2.0), None)
    logits = torch.logit(objective.times(Step(0), 4000).sort().values)
    for share in (0.1, 0.5, 0.9):
        wanted = 0.5 + 2 * torch.special.ndtri(torch.tensor(share, dtype=torch.float64)).item()
        assert logits[round(4000 * share)].item() == pytest.approx(wanted, abs=0.02)


def test_trials_are_judged_by_each_network(monkeypatch):
    trials, images = module("recipe_trials"), hfgen.load_images(DataArgs(dataset="digits"))
    monkeypatch.setattr(trials, "load", lambda trial, split: images)
    trial = module("trial_loop").Trial("a trial", "digits", 1.0)
    distances = trials.Judge("auto").distances(trial, images.images)
    assert len(distances) == 2 and all(abs(value) < 1e-3 for value in distances.values())  # a set from itself
    inverted = trials.Judge("auto").distances(trial, 255 - images.images)
    assert all(value > 10 for value in inverted.values())


# --- normalizing flows ------------------------------------------------------------------------------------------------


def test_flows_are_compared_with_the_best_of_the_peer(capsys):
    likelihood = module("flow_likelihood")
    facts = {"standard_error": 0.01, "parameters": 1, "seconds": 120.0, "images": 2, "not_finite": 0}
    facts |= {"samples_per_second": 3.0, "distances": {"judge": 4.0}}
    table = {name: {**facts, "bits_per_dim": bits} for name, bits in (("glow", 2.0), ("normflows", 4.0))}
    likelihood.report({**table, "normflows_tuned": {**facts, "bits_per_dim": 3.5}})
    assert "glow: +1.500 bits below the best of normflows" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--sides tarflow not known"):
        likelihood.check(likelihood.Options(sides="transformer,tarflow"))


def test_the_glow_of_the_peer_is_trained_without_its_images_being_changed(monkeypatch):
    peer = module("peer_glow")

    class Flow(nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def log_prob(self, x, y):
            x += 1  # as normflows does
            return -(self.scale * x).square().flatten(1).sum(1)

    names = ("GlowBlock", "Squeeze", "Merge")
    fake = SimpleNamespace(
        flows=SimpleNamespace(**{name: lambda *sizes: sizes for name in names}),
        distributions=SimpleNamespace(DiagGaussian=lambda shape: shape),
        MultiscaleFlow=Flow,
    )
    monkeypatch.setattr(peer.importlib, "import_module", lambda name: fake)
    data = ImageData("black", None, None, images=torch.zeros(40, 1, 8, 8, dtype=torch.uint8))
    for tuned in (False, True):
        losses, settings = [], peer.GlowSettings(batch=20, tuned=tuned)
        _, seconds, images = peer.train(settings, data, 0.05, on_step=losses.append)
        assert images == 20 * len(losses) and seconds >= 0.05
    x = torch.zeros(2, 1, 8, 8)
    peer.PeerGlow(peer.GlowSettings(), (1, 8, 8)).log_prob(x)
    assert not x.any()


@pytest.mark.parametrize("problem", ("rings", "digits"))
def test_flows_that_are_compared_have_as_many_parameters(problem):
    capacity = module("flow_capacity")
    for pair in capacity.PAIRS:
        first, second = (sum(p.numel() for p in capacity.flow_of(name, problem).parameters()) for name in pair)
        assert abs(first / second - 1) < 0.05


def test_points_of_the_plane_are_drawn_by_their_seed():
    capacity = module("flow_capacity")
    for problem in ("checkerboard", "rings"):
        points = capacity.plane(problem, 2000, 3)
        assert points.shape == (2000, 2, 1, 1) and torch.equal(points, capacity.plane(problem, 2000, 3))
    radius = points.flatten(1).norm(dim=1)
    assert ((radius - 1).abs().minimum((radius - 2).abs()) < 0.5).all()
    squares = (capacity.plane("checkerboard", 2000, 3).flatten(1) + 2).floor().sum(1) % 2
    assert not squares.any()


def test_rows_of_linear_probes_are_functions_of_images():
    probes = module("linear_probe")
    rows, images = probes.rows(probes.Options("digits", times="0.1,0.5"), (1, 8, 8)), torch.zeros(2, 1, 8, 8)
    assert torch.equal(rows["pixels"](images), images)
    assert rows["masked autoencoder, untrained"](images).shape == (2, 96)
    assert [name for name in rows if "denoiser" in name] == [f"denoiser, middle, t = {time}" for time in (0.1, 0.5)]


def test_the_accuracy_of_few_labels_is_that_of_either_kind_of_pipeline():
    few, images = module("few_labels"), torch.eye(3)[:, None, None]  # each image is its probabilities
    labels = torch.tensor([0, 1, 1])
    kinds = (SimpleNamespace(classify=lambda x: x.flatten(1)), lambda x: SimpleNamespace(probabilities=x.flatten(1)))
    assert [few.accuracy(pipeline, images, labels) for pipeline in kinds] == [pytest.approx(2 / 3)] * 2
