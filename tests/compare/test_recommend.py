"""Recommendations: the choice, its reasons, the runner-up, what excludes other models, and the rules of thumb."""

import json

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom

from hfgen import cli
from hfgen.commands.recommend import RecommendOptions, main, parse_requirements
from hfgen.compare import recommend
from hfgen.compare.chance import MEAN, SPREAD, differ
from hfgen.compare.recommend import QUANTITIES, load_report
from hfgen.compare.rows import FRECHET, metric
from hfgen.compare.rules import RULES, check_rules

DISTANCE = "Frechet distance (digits-cnn, 1)"


def speed(frechet, p95, steps=1, scheduler=None, dtype="float32", batch=1, **more):
    rate = {"images_per_second": 1000 * batch / p95, "latency_p50_ms": 0.9 * p95, "latency_p95_ms": p95}
    return {"batch": batch, "dtype": dtype, "steps": steps, "scheduler": scheduler, "frechet": frechet, **rate, **more}


def row(family, frechet, interval, coverage, mse, seconds, memory, speeds, abilities, **more):
    figures = {
        DISTANCE: {"value": frechet, "interval": interval, "better": "lower"},
        "coverage, k = 5 (digits-cnn, 1)": {"value": coverage, "interval": None, "better": "higher"},
    }
    if mse is not None:
        figures["reconstruction error, mse"] = {"value": mse, "interval": None, "better": "lower"}
    size = {"parameters": 1_200_000, "images_seen": 60_000, "training_seconds": seconds, "peak_memory_mib": memory}
    names = {"family": family, "name": family.upper(), "command": f"hfgen train {family}", "folder": family}
    return {**names, **size, "figures": figures, "speed": speeds, "abilities": ["sampling", *abilities], **more}


@pytest.fixture
def report():
    flow = [
        speed(6.0, 40.0, 20, "dpmsolver++"),
        speed(8.0, 9.0, 4, "rectified_flow"),
        speed(8.5, 6.0, 4, "rectified_flow", "bfloat16"),
        speed(6.0, 900.0, 20, "dpmsolver++", batch=64),
    ]
    coding = ["likelihood", "reconstruction", "latent-edit"]
    rows = [
        row("vae", 30.0, [29, 31], 0.6, 0.02, 60, 300, [speed(30.0, 2.0)], coding),
        row("gan", 9.0, [8.7, 9.3], 0.7, 0.05, 600, 900, [speed(None, 2.5, default=True)], ["latent-edit"]),
        row("rectified_flow", 6.0, [5.8, 6.2], 0.9, None, 900, 1500, flow, ["likelihood"]),
    ]
    return {"protocol": {"data": "digits"}, "hardware": "2 cores", "versions": {}, "rows": rows}


def ask(report, tmp_path, capsys, *words):
    """Run `hfgen recommend --report ... words`: (exit status, standard output, error output)."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    status = 0
    try:
        cli.main(["recommend", "--report", str(path), *words])
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ([], "RECTIFIED_FLOW (rectified_flow, 1.2 M parameters), dpmsolver++ at 20 steps in float32"),
        (
            ["--latency", "20ms"],
            "RECTIFIED_FLOW (rectified_flow, 1.2 M parameters), rectified_flow at 4 steps in float32",
        ),
        (
            ["--latency", "0.007s"],
            "RECTIFIED_FLOW (rectified_flow, 1.2 M parameters), rectified_flow at 4 steps in bfloat16",
        ),
        (["--latency", "5ms"], "GAN (gan, 1.2 M parameters), one pass in float32"),
        (["--train-budget", "5m"], "VAE (vae, 1.2 M parameters), one pass in float32"),
        (["--memory=1GB"], "GAN (gan, 1.2 M parameters), one pass in float32"),
        (["--needs", "likelihood, latent-edit"], "VAE (vae, 1.2 M parameters), one pass in float32"),
    ],
)
def test_the_best_setting_that_meets_every_requirement_is_the_choice(report, tmp_path, capsys, words, choice):
    status, out, _ = ask(report, tmp_path, capsys, *words)
    assert status == 0 and out.startswith(f"Take {choice}.\n")


def test_the_choice_is_explained_and_compared_with_the_runner_up(report, tmp_path, capsys):
    _, out, _ = ask(report, tmp_path, capsys, "--latency", "20ms")
    assert (
        "  quality         Frechet distance 8, the best of 4 settings of 3 models that meet every requirement\n" in out
    )
    assert "  --latency 20ms  9 ms\n  train it        hfgen train rectified_flow\n" in out
    call = "--scheduler rectified_flow --num_inference_steps 4 --dtype float32"
    assert f"hfgen sample {tmp_path / 'rectified_flow'} {call}\n" in out
    runner_up = out[out.index("Runner-up") :].splitlines()
    assert runner_up[0] == "Runner-up: GAN (gan, 1.2 M parameters), one pass in float32."
    doubt = "(one training each: the next may reverse it)"
    assert runner_up[1] == f"  loses  Frechet distance 9 against 8 {doubt}, likelihood"
    assert runner_up[2].startswith(
        "  wins   latency 2.5 ms against 9 ms, training 10 min against 15 min, memory 900 MiB "
    )
    assert runner_up[2].endswith(", latent-edit")


def test_a_runner_up_within_chance_is_marked(report, tmp_path, capsys):
    add_trainings(report, frechet=(0.02, 0.02, 0.02))
    assert "Frechet distance 9 against 6, likelihood" in ask(report, tmp_path, capsys)[1]
    add_trainings(report, frechet=(0.02, 0.3, 0.3))
    _, out, _ = ask(report, tmp_path, capsys)
    assert "Frechet distance 9 against 6 (within chance, of 3 trainings each)" in out


@pytest.mark.parametrize(("budget", "longest"), [("30m", "15 min"), ("14 m", "10 min"), ("2m", "60 s")])
def test_a_budget_beyond_all_trainings_within_it_is_said(report, tmp_path, capsys, budget, longest):
    _, out, _ = ask(report, tmp_path, capsys, "--train_budget", budget)
    said = (
        f"--train-budget {budget} allows more than this report knows: within it, the longest training took {longest}."
    )
    assert said in out and f"hfgen compare --train_budget {budget.replace(' ', '')}." in out


@pytest.mark.parametrize("words", [[], ["--train_budget", "16m"], ["--train_budget", "61s"], ["--train_budget", "1s"]])
def test_a_budget_that_trainings_used_is_no_extrapolation(report, tmp_path, capsys, words):
    assert "allows more" not in ask(report, tmp_path, capsys, *words)[1]


def test_an_answer_says_what_it_was_measured_on(report, tmp_path, capsys):
    report["protocol"]["size"] = "1 x 8 x 8"
    for words in ([], ["--latency", "1ms"]):
        _, out, _ = ask(report, tmp_path, capsys, *words)
        assert "Measured on digits, 1 x 8 x 8, 2 cores: latency of one image at a time, memory at the batch size" in out


def test_an_excluded_model_names_the_requirement(report, tmp_path, capsys):
    _, out, _ = ask(report, tmp_path, capsys, "--needs", "latent-edit", "--train-budget", "5m")
    assert "Excluded: GAN (gan, 1.2 M parameters), one pass in float32: --train-budget 5m (10 min)." in out
    assert "No other model meets every requirement." in out
    (flow,) = [line for line in out.splitlines() if line.startswith("Excluded: RECTIFIED_FLOW")]
    assert "--needs latent-edit (offers sampling, likelihood)" in flow and "--train-budget 5m (15 min)" in flow


def test_without_a_match_the_nearest_setting_is_printed_with_what_it_misses(report, tmp_path, capsys):
    status, out, _ = ask(report, tmp_path, capsys, "--latency", "1.9ms", "--needs", "likelihood")
    assert status == 1
    assert out.startswith(
        "No setting meets every requirement.\n"
        "The nearest is VAE (vae, 1.2 M parameters), one pass in float32, Frechet distance 30;\n"
        "it misses --latency 1.9ms (2 ms).\n"
    )
    assert "No model of the report meets --latency 1.9ms, even without the other requirements." in out
    assert "Without --latency 1.9ms it would be the recommendation." in out


def test_an_ability_that_no_model_has_excludes_all(report, tmp_path, capsys):
    status, out, _ = ask(report, tmp_path, capsys, "--needs", "class-conditional")
    assert status == 1 and "it misses --needs class-conditional (offers sampling, likelihood)." in out
    assert "No model of the report meets --needs class-conditional, even without the other requirements." in out


def test_a_limit_is_met_exactly_at_the_limit(report, tmp_path, capsys):
    assert ask(report, tmp_path, capsys, "--latency", "2ms")[0] == 0
    assert ask(report, tmp_path, capsys, "--latency", "1.999ms")[0] == 1


def test_what_was_not_measured_is_not_the_choice(report, tmp_path, capsys):
    report["rows"][0]["peak_memory_mib"] = None
    status, out, _ = ask(report, tmp_path, capsys, "--memory", "500MiB")
    assert status == 1 and "VAE" not in out.split("Without")[0].split(";")[0]
    report["rows"][2]["status"] = "failed"
    _, out, _ = ask(report, tmp_path, capsys)
    assert out.startswith("Take GAN") and "RECTIFIED_FLOW" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--latency", "20"], "--latency 20 must be a positive number and a unit: 20ms, 20s."),
        (["--train-budget", "0m"], "--train_budget 0m must be a positive number"),
        (["--needs", "teleport"], "--needs 'teleport': 'teleport' is not known. Choose from sampling, likelihood, "),
        (["--needs", "likelihood,"], "--needs 'likelihood,': '' is not known"),
        (["--rules", "--latency", "20ms"], "--rules checks the whole report; it takes no --latency."),
        (["--latencies", "20ms"], "did you mean --latency?"),
    ],
)
def test_refusals_name_value_and_fix(report, tmp_path, capsys, words, message):
    status, _, err = ask(report, tmp_path, capsys, *words)
    assert status == 2 and message in err


def test_files_that_are_no_reports_are_refused(report, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"There is no report missing\.json; hfgen compare makes one"):
        load_report("missing.json")
    for text, message in {"[]": "is no report", "{": "is no report", '{"rows": []}': "it has no rows"}.items():
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_report(str(tmp_path / "report.json"))
    del report["rows"][1]["speed"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="its rows lack speed"):
        load_report(str(tmp_path / "report.json"))


def test_without_a_report_the_shipped_one_is_used_and_named(report, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recommend, "SHIPPED", tmp_path / "mnist.json")
    with pytest.raises(ValueError, match=r"without measurements. Give --report report.json"):
        main([])
    (tmp_path / "mnist.json").write_text(json.dumps(report))
    main([])
    out = capsys.readouterr().out
    assert out.startswith("Without --report, these are the measurements on MNIST that come with hfgen.")
    assert "hfgen sample FOLDER_OF_THE_TRAINING" in out


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("1.5s", "latency", 1500.0),
        ("2h", "train_budget", 7200.0),
        ("2GiB", "memory", 2048.0),
        ("2 gb", "memory", 2e9 / 2**20),
    ],
)
def test_quantities(text, name, value):
    assert QUANTITIES[name].amounts.parse(text) == pytest.approx(value, rel=1e-12)


def test_both_spellings_of_a_flag_are_accepted(report, tmp_path, capsys):
    assert ask(report, tmp_path, capsys, "--train_budget", "5m") == ask(
        report, tmp_path, capsys, "--train-budget", "5m"
    )


# --- rules of thumb ---------------------------------------------------------------------------------------------------


def verdicts(report):
    return {finding.rule.split(":")[0]: finding.verdict for finding in check_rules(report)}


def spread(mean, deviation):
    """Three values with this mean and this relative sample deviation."""
    return [mean * (1 + deviation * step) for step in (-1, 0, 1)]


def add_trainings(report, frechet=(0.02, 0.3, 0.001), other=0.01):
    """Make each row the mean of three trainings, with these relative deviations of distances and of all else."""
    for row, deviation in zip(report["rows"], frechet, strict=True):
        for name, figure in row["figures"].items():
            figure["trainings"] = spread(figure["value"], deviation if name == DISTANCE else other)
        row["trainings"] = {
            "training_seconds": spread(row["training_seconds"], other),
            "images_seen": [row["images_seen"]] * 3,
            "peak_memory_mib": spread(row["peak_memory_mib"], other),
        }


def test_rules_hold_if_the_metrics_agree(report):
    add_trainings(report)
    report["rows"][1]["figures"][DISTANCE]["trainings"] = spread(9.0, 0.03)
    assert verdicts(report) == {**dict.fromkeys(verdicts(report), "held"), "stability": "held"}


def test_single_trainings_decide_nothing(report, tmp_path, capsys):
    assert set(verdicts(report).values()) == {"undecided", "unknown"}
    assert verdicts(report)["stability"] == "unknown"
    assert "hfgen compare --seeds 3" in ask(report, tmp_path, capsys, "--rules")[1]
    add_trainings(report)
    assert "--seeds" not in ask(report, tmp_path, capsys, "--rules")[1]


def test_each_rule_fails_if_its_own_metric_is_reversed(report):
    add_trainings(report)
    report["rows"][1]["figures"][DISTANCE]["trainings"] = spread(9.0, 0.03)
    vae, gan, flow = report["rows"]

    def change(figure, value, deviation=0.01):
        figure.update(value=value, trainings=spread(value, deviation))

    reversals = {
        "prototype": lambda: vae.update(images_seen=10, trainings={**vae["trainings"], "images_seen": [10] * 3}),
        "quality": lambda: change(vae["figures"][DISTANCE], 1.0, 0.02),
        "coverage": lambda: change(flow["figures"]["coverage, k = 5 (digits-cnn, 1)"], 0.1),
        "latent edits": lambda: change(gan["figures"]["reconstruction error, mse"], 0.001),
        "stability": lambda: change(gan["figures"][DISTANCE], 9.0, 1e-5),
        "few resources": lambda: flow.update(
            peak_memory_mib=100, trainings={**flow["trainings"], "peak_memory_mib": spread(100, 0.01)}
        ),
    }
    for rule, reverse in reversals.items():
        before = verdicts(report)
        reverse()
        assert verdicts(report) == {**before, rule: "failed"}


def test_a_rule_is_undecided_within_chance_or_tolerance(report):
    add_trainings(report, other=1e-6)
    report["rows"][0]["trainings"]["images_seen"] = [6_100] * 3  # 102 a second against the GAN's 100
    report["rows"][0]["images_seen"] = 6_100
    assert verdicts(report)["prototype"] == "undecided"
    add_trainings(report, frechet=(0.9, 0.9, 0.9))
    assert verdicts(report)["quality"] == "undecided"


# --- what chance allows -----------------------------------------------------------------------------------------------


def several(draw, seeds, centres=(1.0, 1.0, 1.0, 1.0)):
    """A report of four families whose numbers are all drawn as `draw(seeds)`, times the family's centre."""
    rows = []
    for family, centre in zip(("vae", "gan", "diffusion", "rectified_flow"), centres, strict=True):
        frechet, mse, seconds, memory = (centre * draw(seeds) for _ in range(4))
        figures = {DISTANCE: frechet, "coverage": 1 / (centre * draw(seeds)), "reconstruction error, mse": mse}
        each = {"training_seconds": seconds, "images_seen": np.full(seeds, 1e4), "peak_memory_mib": memory}
        rows.append({"family": family, "name": family, "abilities": ["latent-edit"]})
        rows[-1] |= {name: float(values.mean()) for name, values in each.items()}
        rows[-1]["figures"] = {
            # a bootstrap's interval, which holds nothing of the spread between trainings
            name: {"value": float(v.mean()), "interval": [0.99 * v.mean(), 1.01 * v.mean()], "better": "lower"}
            for name, v in figures.items()
        }
        if seeds > 1:
            rows[-1]["trainings"] = {name: values.tolist() for name, values in each.items()}
            for name, values in figures.items():
                rows[-1]["figures"][name]["trainings"] = values.tolist()
    return {"rows": rows}


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", ["normal", "lognormal"])
def test_identical_families_are_decided_in_a_twentieth_of_trials_at_most(seeds, shape):
    random, trials = np.random.default_rng(seeds), 300
    draws = {"normal": lambda n: random.normal(1, 0.1, n), "lognormal": lambda n: np.exp(0.3 * random.normal(size=n))}
    findings = [check_rules(several(draws[shape], seeds)) for _ in range(trials)]
    for number, rule in enumerate(RULES):
        decided = sum(found[number].verdict in ("held", "failed") for found in findings)
        assert decided <= binom.ppf(0.999, trials, 0.05), rule.name
        assert seeds > 1 or decided == 0


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_clearly_different_families_are_decided(seeds):
    random = np.random.default_rng(seeds)
    trials = [several(lambda n: random.normal(1, 0.01, n), seeds, (1, 2, 4, 8)) for _ in range(20)]
    found = [verdicts(trial) for trial in trials]
    for rule, verdict in {
        "quality": "failed",
        "coverage": "failed",
        "few resources": "held",
        "prototype": "held",
    }.items():
        assert sum(verdict == each[rule] for each in found) >= 18, rule


def test_statistics_are_those_of_scipy():
    first, second = [1.0, 1.3, 0.9, 1.4], [1.6, 1.2, 2.5]
    welch = stats.ttest_ind(first, second, equal_var=False, alternative="less")
    assert MEAN.p_below(first, second) == pytest.approx(welch.pvalue, rel=1e-12)
    assert MEAN.interval(first) == pytest.approx(stats.ttest_1samp(first, 0).confidence_interval(0.95), rel=1e-12)
    ratio = (np.std(first, ddof=1) / np.mean(first)) ** 2 / (np.std(second, ddof=1) / np.mean(second)) ** 2
    assert SPREAD.p_below(first, second) == pytest.approx(stats.f(3, 2).cdf(ratio), rel=1e-12)
    low, high = SPREAD.interval(first)
    tails = [stats.chi2(3).sf(3 * (np.std(first, ddof=1) / np.mean(first) / end) ** 2) for end in (low, high)]
    assert tails == pytest.approx([0.025, 0.975], rel=1e-9)
    assert MEAN.p_below([1, 1], [2, 2]) == 0 and MEAN.p_below([2, 2], [2, 2]) == 1 == SPREAD.p_below([2, 2], [1, 3])
    assert differ([1.0], [5.0, 6.0]) is None and differ([1, 1.1, 0.9], [2, 2.1, 1.9]) is True
    assert differ(first, first) is False


def test_a_rule_is_unknown_without_both_sides(report):
    report["rows"] = report["rows"][:1]
    assert set(verdicts(report).values()) == {"unknown"}


def test_the_only_model_with_latent_edits_is_the_best_at_them(report):  # whatever its number is
    report["rows"][1]["abilities"].remove("latent-edit")
    (finding,) = [finding for finding in check_rules(report) if finding.rule.startswith("latent")]
    assert finding.verdict == "held" and finding.why.endswith(
        "VAE 0.02 (no spread known), GAN none, RECTIFIED_FLOW none"
    )


def test_an_ability_that_no_model_has_decides_nothing(report):
    for row in report["rows"]:
        row["abilities"] = ["sampling"]
    assert verdicts(report)["latent edits"] == "unknown"


def test_ablations_take_no_part_in_the_rules(report):
    add_trainings(report)
    faster = {**report["rows"][0], "study": "kl", "name": "beta 9", "images_seen": 10**9}
    report["rows"][0] |= {"images_seen": 10, "trainings": {**faster["trainings"], "images_seen": [10] * 3}}
    report["rows"].append({**faster, "trainings": {**faster["trainings"], "images_seen": [10**9] * 3}})
    assert verdicts(report)["prototype"] == "failed"


def test_the_rules_are_printed(report, tmp_path, capsys):
    add_trainings(report)
    status, out, _ = ask(report, tmp_path, capsys, "--rules")
    assert status == 0
    assert "held       coverage: diffusion              coverage: RECTIFIED_FLOW 0.9 (0.8776 to 0.9224), GAN 0.7" in out


def test_metrics_are_found_by_the_names_that_measures_give_them():
    from hfgen.metrics.features import load_features

    network = load_features("digits")
    for name, beginning in {"Frechet distance": FRECHET, "coverage, k = 5": "coverage"}.items():
        row = {"figures": {network.metric_name(name): {"value": 1.0}}}
        assert metric(row, beginning) == {"value": 1.0}


def test_there_is_no_requirement_by_default():
    assert parse_requirements(RecommendOptions()) == []


# --- two feature networks ---------------------------------------------------------------------------------------------

TEXTURE = "digits-texture, 2"


def with_texture(report, texture):
    """Add the distances of a second network, by family, and the geometric means."""
    for row in report["rows"]:
        first, second = row["figures"][DISTANCE], texture[row["family"]]
        label = DISTANCE.removeprefix("Frechet distance (").removesuffix(")")
        row["figures"][f"Frechet distance ({TEXTURE})"] = {"value": second, "interval": None, "better": "lower"}
        joint = {"value": (first["value"] * second) ** 0.5, "interval": None, "better": "lower"}
        row["figures"][f"geometric mean of Frechet distances ({label}; {TEXTURE})"] = joint
        for entry in row["speed"]:
            one = first["value"] if entry["frechet"] is None else entry["frechet"]
            entry["distances"] = {label: one, TEXTURE: second * one / first["value"]}
            entry["frechet"] = (one * entry["distances"][TEXTURE]) ** 0.5
    return report


def test_two_networks_rank_by_the_geometric_mean_of_their_distances(report, tmp_path, capsys):
    """A soft VAE that the classifier likes best does not win against sharp samples."""
    for row, value in zip(report["rows"], (0.9, 9.0, 3.8), strict=True):
        row["figures"][DISTANCE]["value"] = value
        row["speed"] = [entry | {"frechet": value} for entry in row["speed"][:1]]
    assert ask(report, tmp_path, capsys)[1].startswith("Take VAE")
    _, out, _ = ask(with_texture(report, {"vae": 40.0, "gan": 16.0, "rectified_flow": 2.0}), tmp_path, capsys)
    assert out.startswith("Take RECTIFIED_FLOW")
    assert "Frechet distance 2.757 (3.8 by digits-cnn, 2 by digits-texture), the best of 3 settings" in out
    assert "loses  Frechet distance 6 (0.9 by digits-cnn, 40 by digits-texture) against 2.757" in out
    rule = "Ranked by the geometric mean of the Frechet distances of digits-cnn, 1 and digits-texture, 2."
    assert rule in out and "carries no second one" not in out


@pytest.mark.parametrize("network", [0, 1])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_choice_does_not_depend_on_the_scale_of_a_network(report, tmp_path, capsys, network, scale):
    texture = {"vae": 3.0, "gan": 2.5, "rectified_flow": 8.0}
    before = ask(with_texture(report, texture), tmp_path, capsys)[1].splitlines()[0]
    for row in report["rows"]:
        for entry in row["speed"]:
            label = list(entry["distances"])[network]
            entry["distances"][label] *= scale
            entry["frechet"] = np.prod(list(entry["distances"].values())) ** 0.5
    assert ask(report, tmp_path, capsys)[1].splitlines()[0] == before


def test_a_report_of_one_network_says_that_it_carries_one(report, tmp_path, capsys):
    for words in ([], ["--latency", "1ms"]):
        _, out, _ = ask(report, tmp_path, capsys, *words)
        assert "Ranked by one feature network, digits-cnn, 1: this report carries no second one." in out
    main([])
    assert "one feature network" not in capsys.readouterr().out  # the shipped report has both


def test_the_rule_of_quality_is_about_the_mean_of_both_networks(report):
    add_trainings(with_texture(report, {"vae": 1e-3, "gan": 2.5, "rectified_flow": 8.0}), other=1e-6)
    joint = next(name for name in report["rows"][0]["figures"] if name.startswith("geometric"))
    for row in report["rows"]:
        entry = row["figures"][joint]
        entry["trainings"] = [entry["value"] * factor for factor in (0.99, 1.0, 1.01)]
    assert verdicts(report)["quality"] == "failed"  # the VAE's mean is the lowest


@pytest.mark.parametrize("distances", ["x", [1.0], {"a": "b"}, {"a": float("inf")}, 3])
def test_damaged_distances_are_refused(report, tmp_path, capsys, distances):
    report["rows"][0]["speed"][0]["distances"] = distances
    status, _, err = ask(report, tmp_path, capsys)
    assert status == 2 and "row 1 has speed=" in err
