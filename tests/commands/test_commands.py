"""Commands as modules: a `main` each, which Python may call; launches in processes of their own."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfgen.cli import COMMANDS
from hfgen.commands import launch

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "diffusers", "transformers", "datasets", "accelerate", "numpy", "PIL", "huggingface_hub"}


@pytest.fixture
def executions(monkeypatch):
    """The argument lists of `os.execve`, which stops the process instead."""
    calls = []

    def execve(program, arguments, environment):
        assert program == arguments[0] == sys.executable
        calls.append(arguments[1:])
        raise SystemExit(0)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return calls


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_module_with_a_main(name):
    description, module = COMMANDS[name]
    assert description[0].islower()
    (argv,) = inspect.signature(importlib.import_module(module).main).parameters.values()
    assert argv.default is None


def test_all_commands_are_imported_without_torch():
    modules = [module for _, module in COMMANDS.values()]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("train", ["difusion"], "no family 'difusion'; did you mean diffusion?"),
        ("anomaly", ["train"], "no step of anomaly 'train'; there are: fit, score."),
        ("sample", ["nowhere", "--num_samples", "0"], "--num_samples 0 must be at least 1"),
        ("recommend", ["--latency", "20"], "must be a positive number and a unit"),
        ("evaluate", ["nowhere", "--num_processes", "0"], "--num_processes needs a positive number, not '0'"),
    ],
)
def test_from_python_a_mistake_is_a_value_error(name, argv, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        importlib.import_module(COMMANDS[name][1]).main(argv)


def test_an_evaluation_by_several_processes_is_a_launch_of_its_module(executions):
    argv = ["folder", "--num_processes", "2", "--seed", "1"]
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS["evaluate"][1]).main(argv)
    ((*_, dash, module, target, flag, seed),) = executions
    assert (dash, module, target, flag, seed) == ("-m", "hfgen.commands.evaluate", "folder", "--seed", "1")
    assert executions[0][:2] == ["-m", "hfgen.commands.launcher"]
    assert argv == ["folder", "--num_processes", "2", "--seed", "1"]  # the caller's list stays


def test_fitting_a_detector_is_training_its_family(executions):
    with pytest.raises(SystemExit):
        importlib.import_module(COMMANDS["anomaly"][1]).main(["fit", "--num_processes", "1", "--seed", "1"])
    assert executions == [["-m", "hfgen.training.train_anomaly", "--seed", "1"]]


def test_an_option_is_found_in_both_spellings():
    assert launch.has_option(["a", "--num_processes=2"], "--num_processes")
    assert launch.has_option(["--num_processes", "2"], "--num_processes")
    assert not launch.has_option(["--num_processes_per_node", "2"], "--num_processes")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "nothing", "--grid", "picture"], "--grid picture is no file of a picture"),
        (["sample", "nothing", "--grid", "picture.xyz"], "--grid picture.xyz is no file of a picture"),
        (["sample", "nothing", "--output_dir", "taken.txt"], "--output_dir taken.txt is a file"),
        (["sample", "nothing", "--num_samples", str(10**23)], "must be at most 2147483647"),
        (["attention", "nothing", "--output", "picture"], "--output picture is no file of a picture"),
        (["evaluate", "nothing", "--output", "taken.txt"], "taken.txt holds no JSON object"),
        (["evaluate", "nothing", "--output", "."], "is a folder, and results are added to a file"),
    ],
)
def test_a_file_that_can_not_be_written_is_refused_before_the_work(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken.txt").write_text("text")
    with pytest.raises(ValueError, match=message):
        importlib.import_module(COMMANDS[argv[0]][1]).main(argv[1:])


def test_a_pipeline_that_draws_nothing_has_no_metrics_of_samples():
    from hfgen.evaluation.options import EvaluateOptions
    from hfgen.evaluation.samples import PipelineSamples
    from hfgen.registry import resolve

    anomaly = object.__new__(resolve("AnomalyPipeline"))
    with pytest.raises(ValueError, match="AnomalyPipeline draws no samples"):
        PipelineSamples(anomaly, EvaluateOptions("x"), None).check()


@pytest.mark.parametrize("option", ["resolution", "train_batch_size"])
def test_sizes_that_fit_no_memory_are_refused(option):
    from hfgen.options import DataArgs, TrainArgs

    group = DataArgs if option == "resolution" else TrainArgs
    with pytest.raises(ValueError, match=f"--{option} 10+ must be from 1 to "):
        group(**{option: 10**23})
