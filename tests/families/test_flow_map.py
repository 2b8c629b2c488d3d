"""The front door of flow maps: from a trained flow and anew, resumed, measured, and refusals in one line."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hfgen import DDPMScheduler, DenoisingPipeline, DiTModel, HFGenPipeline, RectifiedFlowScheduler, build_denoiser
from hfgen.data.images import load_images
from hfgen.data.training_data import record_of
from hfgen.families.flow_map import recipe
from hfgen.families.flow_map.options import FlowMapArgs
from hfgen.families.teacher_gap import TEACHER_STEPS, TeacherGap
from hfgen.families.trained_data import check_classes
from hfgen.options import DataArgs
from hfgen.training import train_flow_map
from tests.helpers.doors import run_door
from tests.models.test_denoisers import perturb

FEW = ["--max_train_steps", "3", "--train_batch_size", "8", "--eval_batch_size", "4", "--sample_steps", "0"]


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flow") / "digits"
    sizes = {"patch_size": 4, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "num_class_embeds": 11}
    network = perturb(DiTModel(sample_size=8, in_channels=1, out_channels=1, **sizes))
    pipeline = DenoisingPipeline(network, RectifiedFlowScheduler(), 10, [str(i) for i in range(10)])
    pipeline.training_data = record_of(DataArgs(), load_images(DataArgs()))
    pipeline.save_pretrained(folder)
    return folder


def run(capsys, *words):
    return run_door(train_flow_map.main, capsys, "--report_to", "none", *words)


def test_a_run_from_a_flow_saves_a_flow_map_with_its_teacher_and_measurements(capsys, tmp_path, flow):
    words = ["--pipeline", flow, "--output_dir", tmp_path / "run", "--num_samples", "70", "--gap_steps", "2", *FEW]
    status, out, errors = run(capsys, *words, "--learned_guidance_scale", "1.5")
    assert status == 0, errors
    pipeline = HFGenPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.two_times and pipeline.scheduler.config.solver == "flow_map" and pipeline.config.num_classes == 10
    pipeline.set_progress_bar_config(disable=True)
    draw = {"class_labels": [1, 2], "generator": [torch.Generator().manual_seed(n) for n in (0, 1)]}
    for steps in (1, 2, 4, 8):
        assert pipeline(**draw, num_inference_steps=steps, output_type="latent").images.isfinite().all()
    pipeline(class_labels=[3])
    assert pipeline.num_timesteps == 4  # the default
    metrics, card = (json.loads((tmp_path / "run/metrics.json").read_text()), (tmp_path / "run/README.md").read_text())
    names = [name for name in metrics["measured"] if "Frechet" in name]
    steps = ["1 step", "2 steps", "4 steps", "8 steps"]  # by each of the two feature networks
    assert sorted(name.split(", ")[2] for name in names) == sorted(2 * steps)
    assert (
        f"| flow | {flow.name}, teacher |" in card
        and str(flow.parent) not in card
        and "| guidance inside | 1.5 |" in card
        and "one a step" in card
    )
    assert all(f"| {name} | {value} |" in card for name, value in metrics["measured"].items())
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"error", "flow_error", "du_dt"} <= set(rows[-1]), rows[-1]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["method"] == "improved_mean_flow"
    gaps = [json.loads(line) for line in (tmp_path / "run/gap.jsonl").read_text().splitlines()]
    assert [row["step"] for row in gaps] == [2, 3] and "of the teacher, same noise | " in card
    longer = ["--max_train_steps", "4", "--features", "none"]
    status, out, errors = run(capsys, *words, "--learned_guidance_scale", "1.5", *longer)
    assert status == 0 and "Resumed from" in out, errors
    status, _, errors = run(capsys, *words, "--learned_guidance_scale", "2.5", *longer)
    assert status != 0 and "learned_guidance_scale" in errors


def test_the_networks_of_a_run(capsys, tmp_path, flow, monkeypatch):
    given = {}
    monkeypatch.setattr("hfgen.families.run.Run.train", lambda self, **parts: given.update(parts))
    status, _, errors = run(capsys, "--pipeline", flow, "--output_dir", tmp_path / "run", "--num_samples", "70", *FEW)
    assert status == 0, errors
    weights = load_file(flow / "denoiser" / "diffusion_pytorch_model.safetensors")
    student, teacher = (given["networks"][name] for name in ("denoiser", "teacher"))
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in weights.items())
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 900.0]), torch.tensor([3, 10])
    assert torch.equal(student.eval()(x, t, labels, r_timestep=0).sample, teacher.eval()(x, t, labels).sample)
    assert given["objective"].teacher == "teacher" and given["objective"].condition.num_classes == 10
    status, _, errors = run(capsys, "--pipeline", flow, "--no_teacher", "--output_dir", tmp_path / "run", *FEW)
    assert status == 0, errors
    assert set(given["networks"]) == {"denoiser"} and given["objective"].teacher is None


def test_a_run_from_data_alone(capsys, tmp_path):
    words = ["--model", "dit", "--model_size", "xs", "--features", "none", "--num_samples", "8", "--tangent", "jvp"]
    words += ["--method", "consistency", "--curriculum_steps", "2"]
    status, _, errors = run(capsys, "--output_dir", tmp_path / "run", *words, *FEW)
    assert status == 0, errors
    card = (tmp_path / "run/README.md").read_text()
    assert "| flow | none: a new network |" in card and "straightness, after" in card
    assert HFGenPipeline.from_pretrained(tmp_path / "run").two_times


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline", "nowhere"], "There is no folder nowhere"),
        (["--pipeline", "FLOW", "--model", "dit"], "--model dit does nothing with --pipeline"),
        (["--no_teacher"], "--teacher False does nothing without --pipeline"),
        (["--method", "shortcut", "--tangent", "jvp"], "shortcut takes steps"),
        (["--tangent", "jvp", "--step_share", "0.1"], "--step_share 0.1 does nothing with --tangent jvp"),
        (["--method", "flow_matching", "--curriculum_steps", "9"], "--curriculum_steps 9 does nothing with --method"),
        (["--gap_steps", "5"], "--gap_steps 5 does nothing without --pipeline"),
        (["--flow_share", "0"], "--flow_share 0.0 must be above 0"),
        (
            ["--learned_guidance_scale", "2"],
            "--learned_guidance_scale 2 needs a network that knows classes (--class_conditional)",
        ),
        (["--scheduler", "magic"], "scheduler='magic' is not known"),
        (["--pipeline", "FLOW", "--resolution", "4"], "images of shape (1, 8, 8)"),
        (["--pipeline", "FLOW", "--label_column", "none"], "The teacher knows 10 classes, and digits has no labels"),
        (
            ["--pipeline", "LETTERS"],
            "Class 0 is 'a' for the teacher and '0' in digits. Give the data that it was trained on",
        ),
        (["--pipeline", "DDPM"], "A rectified flow is needed here: train one with --path straight"),
        (["--pipeline", "CLEAN"], "predicts sample, and a flow map is made of velocities"),
        (["--pipeline", "FLOW", "--output_dir", "FLOW"], "would be overwritten"),
    ],
)
def test_impossible_options_are_refused_in_one_line(capsys, tmp_path, flow, words, message):
    network = build_denoiser("dit", "xs", 8, 1)
    made = {"DDPM": DDPMScheduler(), "CLEAN": RectifiedFlowScheduler(prediction_type="sample")}
    for name in made.keys() & set(words):
        DenoisingPipeline(network, made[name]).save_pretrained(tmp_path / name)
    if "LETTERS" in words:
        letters = DenoisingPipeline(
            build_denoiser("dit", "xs", 8, 1, 10), RectifiedFlowScheduler(), 10, list("abcdefghij")
        )
        letters.training_data = record_of(DataArgs(), load_images(DataArgs()))
        letters.save_pretrained(tmp_path / "LETTERS")
    words = [
        str(flow) if word == "FLOW" else str(tmp_path / word) if word in {*made, "LETTERS"} else word for word in words
    ]
    status, _, errors = run(capsys, "--output_dir", tmp_path / "run", *FEW, *words)
    assert status == 2 and errors.splitlines()[-1].startswith("error: ") and message in errors, errors
    assert not (tmp_path / "run").exists()


def test_a_flow_without_a_null_label_is_trained_without_dropout():
    network = build_denoiser("dit", "xs", 8, 1, 3, null_class=False)
    flow = DenoisingPipeline(network, RectifiedFlowScheduler(), 3)
    args = FlowMapArgs(pipeline="somewhere")
    start = recipe.Start({"denoiser": network}, flow, 3, None)
    assert recipe.objective(args, start).label_dropout == 0
    with pytest.raises(ValueError, match="label_dropout above 0"):
        recipe.objective(FlowMapArgs(pipeline="somewhere", learned_guidance_scale=2.0), start)


def test_the_gap_is_the_distance_from_the_teachers_samples_of_the_same_noise(tmp_path, flow):
    """0 for the teacher in its own steps; and as far as one Euler step is from them for an untrained flow map."""
    teacher = HFGenPipeline.from_pretrained(flow)
    gap = TeacherGap(2, teacher, lambda networks: networks["pipeline"], tmp_path)
    twin = HFGenPipeline.from_pretrained(flow)
    for step in (2, 4, 2):  # taken up again after step 2
        gap({"pipeline": twin}, step)
    rows = [json.loads(line) for line in (tmp_path / "gap.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2]
    one, many = gap._draw(teacher, 1), gap._draw(teacher, TEACHER_STEPS)
    assert rows[0]["gap"] == pytest.approx((one - many).square().mean().sqrt().item(), rel=1e-5)
    other = TeacherGap(2, teacher, lambda networks: networks["pipeline"], tmp_path / "other")
    other._ends = one
    (tmp_path / "other").mkdir()
    other({"pipeline": twin}, 2)
    assert json.loads((tmp_path / "other/gap.jsonl").read_text())["gap"] == 0
    assert list(other.facts()) == [f"gap between one step and {TEACHER_STEPS} of the teacher, same noise"]


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [
        (3, ["a", "b", "c"], None),
        (2, ["a", "b"], None),  # the first of the teacher's classes
        (3, None, None),
        (3, ["a", "c", "b"], "Class 1 is 'b' for the teacher and 'c' in here"),
        (2, ["b", "c"], "Class 0 is 'a' for the teacher and 'b' in here"),
        (4, None, "The teacher knows 3 classes, and here has 4 classes"),
        (None, None, "The teacher knows 3 classes, and here has no labels"),
    ],
)
def test_classes_of_data_are_those_of_the_teacher_by_number_and_name(count, names, message):
    data = SimpleNamespace(num_classes=count, label_names=names, name="here")
    teacher = SimpleNamespace(config=SimpleNamespace(num_classes=3, label_names=["a", "b", "c"]))
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_classes(data, teacher)
    with nullcontext() if count is None or message is None else pytest.raises(ValueError, match=message):
        check_classes(data, teacher, needed=False)
    teacher.config.num_classes = None
    check_classes(data, teacher)
