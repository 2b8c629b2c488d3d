"""Random streams: the source is walked for every use of random numbers, and no two streams share a seed."""

import ast
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hfgen.data.batches import Batches
from hfgen.data.tensors import EndlessData, TensorData
from hfgen.families.few_steps import outputs_of
from hfgen.families.reflow.pairs import Source
from hfgen.metrics import sampling
from hfgen.objectives.base import Step
from hfgen.trainer.checkpoint import _seal
from hfgen.utils.seeds import LIMIT, STREAMS, check_seed, generator_of, sample_generators, seed_of
from tests.helpers.toys import run

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for room in ("hfgen", "pipelines", "training", "benchmarks") for path in (ROOT / room).rglob("*.py")]
SEEDS = ROOT / "hfgen" / "utils" / "seeds.py"

SEEDED = {"Generator", "manual_seed", "manual_seed_all", "set_seed", "seed_everything", "default_rng", "RandomState"}
DRAWS = {"randn", "rand", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson", "randn_tensor"}
DRAWS |= {"randn_like", "rand_like", "randint_like"}

WITHOUT_STREAM = {
    "pipelines/anomaly.py": "the seed of the pipeline's configuration: old detectors keep their scores",
    "hfgen/models/augmented_flow.py": "the noise beside the images that initialise the flow",
    "hfgen/models/masked_autoregressive.py": "the orders are a part of the configuration",
    "benchmarks/cache_throughput.py": "inputs of a timed call",
    "benchmarks/flow_capacity.py": "points, weights and batches of a comparison that draws no samples",
    "benchmarks/flow_likelihood.py": "latents of a timed call",
    "benchmarks/peer_energy.py": "another library's loop, in an environment without hfgen",
    "benchmarks/peer_glow.py": "another library's loop as its users run it",
    "benchmarks/solver_accuracy.py": "draws a problem that nothing is trained on",
    "benchmarks/peer_loop.py": "another library's loop as its users run it",
    "benchmarks/pythae_loop.py": "another library's loop, in an environment without hfgen",
}
WITHOUT_GENERATOR = {
    "hfgen/models/flow_layers.py": "weights of a new network",
    "hfgen/models/autoregressive_transformer.py": "weights of a new network",
    "hfgen/models/continuous_transformer.py": "weights of a new network",
    "hfgen/models/masked_autoregressive.py": "weights of a new network",
    "benchmarks/cache_throughput.py": "inputs of a timed call",
    "benchmarks/peer_glow.py": "another library's loop as its users run it",
    "hfgen/models/stylegan.py": "weights of a new network",
    "hfgen/models/style_layers.py": "weights of a new network",
    "hfgen/models/transformer_flow.py": "weights of a new network",
    "hfgen/models/vq.py": "weights of a new network",
    "hfgen/models/priors.py": "weights of a new network",
    "benchmarks/scheduler_overhead.py": "inputs of a timed call",
    "benchmarks/training_throughput.py": "inputs of a timed call",
    "benchmarks/peer_flows.py": "other projects' loops as their users run them",
    "benchmarks/peer_loop.py": "another library's loop as its users run it",
}
"""File -> why its random numbers have no stream or no generator of their own."""


def named(path):
    return path.relative_to(ROOT).as_posix()


def calls_of(path):
    """Yield (name of the called function, call) of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            function = node.func
            yield function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""), node


def test_every_generator_has_a_stream():
    found = set()
    for path in FILES:
        for name, call in calls_of(path):
            argument = getattr(call.args[0], "func", None) if call.args else None
            if path != SEEDS and name in SEEDED and getattr(argument, "id", "") != "seed_of":
                found.add(named(path))
    assert found == set(WITHOUT_STREAM)


def test_every_draw_has_a_generator():
    found = set()
    for path in FILES:
        for name, call in calls_of(path):
            if name in DRAWS and isinstance(call.func, ast.Attribute):
                owner = getattr(call.func.value, "id", "")
                if owner == "torch" and "generator" not in {keyword.arg for keyword in call.keywords}:
                    found.add(named(path))
            if name == "shuffle":
                assert any(keyword.arg == "seed" for keyword in call.keywords), named(path)
            for keyword in call.keywords:
                if keyword.arg == "random_state":
                    assert "seed_of" in path.read_text(encoding="utf-8"), named(path)
    assert found == set(WITHOUT_GENERATOR)


def test_no_other_source_of_random_numbers():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"random", "numpy.random", "secrets"}, named(path)
            if isinstance(node, ast.ImportFrom):
                own = node.level > 0  # hfgen.saving.secrets finds tokens
                assert own or node.module not in ("random", "numpy.random", "secrets"), named(path)
            if isinstance(node, ast.Attribute) and node.attr == "random":
                assert getattr(node.value, "id", "") not in ("np", "numpy"), named(path)


def test_streams_are_named_and_used():
    used = set()
    for path in FILES:
        for name, call in calls_of(path):
            streams = [keyword.value for keyword in call.keywords if keyword.arg == "stream"]
            if name in ("seed_of", "generator_of") and path != SEEDS and not isinstance(call.func, ast.Attribute):
                streams.append(call.args[0])
            if path == SEEDS and name == "seed_of" and isinstance(call.args[0], ast.Constant):
                streams.append(call.args[0])
            used |= {stream.value for stream in streams if isinstance(stream, ast.Constant)}
    user_named = {"points", "grid"}  # names of endless data, places in the stream "items"
    assert used - user_named == set(STREAMS)
    with pytest.raises(ValueError, match=r"no random stream 'noise'.*STREAMS"):
        seed_of("noise", 0)


def test_no_two_places_share_a_seed():
    places = [(seed, i) for seed in range(20) for i in range(60)]
    places += [(seed, step, turn, name) for seed in range(5) for step in range(20) for turn in (0, 1) for name in "ab"]
    places += [(), (0,), (1,), ("0",), ("0/1",), (0, "1"), ("0", 1), (0, 0, "network", 1), (0, 0, "network/1")]
    places = list(dict.fromkeys(json.dumps(place) for place in places))
    seeds = [seed_of(stream, *json.loads(place)) for stream, place in itertools.product(STREAMS, places)]
    assert len(set(seeds)) == len(seeds) > 40_000
    assert all(seed % 2**32 >= LIMIT for seed in seeds) and max(seeds) < 2**63


def test_a_cpu_generator_uses_32_bits_so_that_seeds_of_samples_are_below_the_limit():
    def draw(seed):
        return torch.randn(4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(5), draw(5 + 2**32))  # why the law is one of the lower 32 bits
    assert sample_generators(7, [0, 3])[1].initial_seed() == 10  # the convention: sample i has seed + i
    for seed in (-1, LIMIT, 2**32):
        with pytest.raises(ValueError, match=f"seed {seed} of a sample"):
            check_seed(seed)
    with pytest.raises(ValueError, match=f"seed {LIMIT} of a sample"):
        sampling.draw(None, 10, seed=LIMIT - 9)


class Echo:
    """A pipeline whose samples are its noise."""

    config = SimpleNamespace(num_classes=None)

    def __init__(self):
        self.noise = []

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, batch_size, generator, **_):
        noise = torch.stack([torch.randn(1, 2, 2, generator=one) for one in generator])
        self.noise += list(noise)
        return SimpleNamespace(images=noise.sigmoid())


def noise_of(draw, *arguments, **options):
    """Return the noise that a function gives to its pipeline, as a set of bytes."""
    echo = Echo()
    out = draw(echo, *arguments, **options)
    list(out if out is not None else ())
    return {noise.numpy().tobytes() for noise in echo.noise}


def test_nothing_is_measured_on_noise_that_it_was_trained_on():
    """Noise of four seeds of each: couplings, training, samples that users draw, that are measured and that choose."""
    like = torch.empty(64, 1, 2, 2)
    seeds, sets = range(4), {}
    sets["samples"] = set().union(*(noise_of(sampling.draw, 100, 100 * seed) for seed in seeds))
    for stream in ("validation", "health"):
        sets[stream] = set().union(*(noise_of(sampling.draw, 100, seed, stream=stream) for seed in seeds))
    sets["few steps"] = noise_of(outputs_of, 100, labels=None, batch_size=50, num_inference_steps=4)
    sources = [Source(lambda noise, labels: noise, (1, 2, 2), None, seed, 100, {}) for seed in seeds]
    sets["pairs"] = {row.numpy().tobytes() for source in sources for row in source.shard(0)["noise"]}
    steps = [Step(number, seed) for seed in seeds for number in range(10)]
    sets["training"] = {row.numpy().tobytes() for step in steps for row in step.randn("noise", like)}
    counts = {name: len(rows) for name, rows in sets.items()}
    assert counts == {
        "few steps": 100,
        "training": 2560,
        **dict.fromkeys(("samples", "validation", "health", "pairs"), 400),
    }
    for first, second in itertools.combinations(sets, 2):
        assert not sets[first] & sets[second], (first, second)


def test_names_of_endless_data_do_not_reach_other_streams():
    def rows(stream):
        data = EndlessData(
            lambda count, generator: {"x": torch.rand(count, 1, generator=generator)}, (1,), stream=stream
        )
        return next(Batches(data, 4, 0).iterate(0))["x"]

    order = torch.rand(4, 1, generator=generator_of("order", 0, 0))
    assert not torch.equal(rows("order"), order) and not torch.equal(rows("a"), rows("b"))
    assert torch.equal(rows("a"), rows("a"))
    data = TensorData({"x": torch.arange(8.0)[:, None]})
    assert sorted(next(Batches(data, 8, 3).iterate(0))["x"].flatten().tolist()) == list(range(8))


def test_a_checkpoint_of_other_streams_continues_and_says_so(tmp_path, capsys):
    run(tmp_path, max_train_steps=4)
    run(tmp_path, max_train_steps=5)
    assert "other random numbers" not in capsys.readouterr().out
    folder = tmp_path / "checkpoint-5"
    state = json.loads((folder / "state.json").read_text())
    assert state["config"].pop("random_streams") == 2
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").unlink()
    _seal(folder)
    run(tmp_path, max_train_steps=6)
    out = capsys.readouterr().out
    assert "Resumed from" in out and "draws other random numbers: noise and the order of the data are not those" in out
