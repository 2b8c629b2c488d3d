"""The sides of the race in benchmarks/quality_per_minute.py: how each builds its network, trains and may be sampled."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hfgen.options import DataArgs, parse, parser

TUNED = {"learning_rate": 1e-3, "schedule": "run", "batch_size": 64, "ema_max_decay": 0.999}
"""Options of the side tuned: what somebody sets who knows the loop. It trains in bf16."""

NETWORKS: dict[str, dict[str, Any]] = {
    "attention": {"block_out_channels": (32, 48, 48), "attention": True},
    "narrow": {"block_out_channels": (16, 32, 48), "attention": True},
    "convolutions": {"block_out_channels": (32, 48, 48), "attention": False},
}
"""Networks of the peer: widths, and whether the lowest level has attention. The first has a third more parameters than
ours."""

SAMPLERS = (
    "DPMSolverMultistep, order 2",
    "DPMSolverMultistep, order 3",
    "UniPC, order 2",
    "UniPC, order 3",
    "DEIS, order 2",
    "Heun, default",
    "DDIM, trailing",
    "DDIM without clipping, trailing",
)
"""Samplers of diffusers that take part, by their names in benchmarks/peer_samplers.py."""

FLOW_SAMPLERS = {
    "euler": ("euler", 1, 1.0),
    "heun": ("heun", 2, 1.0),
    "midpoint": ("midpoint", 2, 1.0),
    "adams_bashforth2": ("adams_bashforth2", 1, 1.0),
    "default": ("rectified_flow", 1, 1.0),
    "default, guidance 1.5": ("rectified_flow", 2, 1.5),
    "euler, guidance 2": ("euler", 2, 2.0),
}
"""Samplers of flows: a scheduler of hfgen, evaluations of a step, guidance (mnist.yaml's and minRF's)."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A side of the race.

    Attributes:
        build: data -> its network with new weights.
        train: network, moments in seconds, precision -> (seconds, images seen, averaged network) at each moment.
        planned: whether its schedule ends with the last moment.
        flow: whether the network predicts velocities, and not ε on DDPM's table.
        samplers: names of the samplers that may draw; of several the best is chosen.
        precisions: in which it trains.
        classes: number of classes that the network embeds; None: none.
    """

    build: Callable[[Any], Any]
    train: Callable[[Any, Sequence[float], str], Iterator[tuple[float, int, Any]]]
    planned: bool
    flow: bool
    samplers: tuple[str, ...]
    precisions: tuple[str, ...]
    classes: int | None = None


def our_side(data_args: DataArgs, data: Any, classes: bool, precisions: tuple[str, ...]) -> Side:
    """Return the recipe of mnist.yaml as a side."""
    import hfgen
    from hfgen.families.diffusion import recipe
    from hfgen.families.diffusion.options import GROUPS
    from hfgen.utils.seeds import seed_initialisation

    command = parser("hfgen train diffusion", "", "", *GROUPS)
    words = ["--config", "mnist", "--class_conditional", str(classes).lower(), "--guidance_scale", "1"]
    parsed = parse(command, words, *GROUPS)
    network_args, noise_args, args = parsed[1], parsed[2], parsed[-1]
    number = data.num_classes if classes else None

    def build(data: Any) -> Any:
        seed_initialisation(0)
        return hfgen.build_denoiser(network_args.model, network_args.model_size, data.resolution, data.channels, number)

    def train(network: Any, moments: Sequence[float], precision: str) -> Iterator[tuple[float, int, Any]]:
        own = dataclasses.replace(args, mixed_precision=precision, sample_steps=0, checkpointing_steps=0)
        objective, (seconds,) = recipe.objective(noise_args, number), moments
        warm = our_training(copy.deepcopy(network), objective, data, dataclasses.replace(own, max_train_steps=60))
        guess = max(3, int(0.9 * seconds * warm.items_per_second / own.train_batch_size))  # a long run is slower
        own = dataclasses.replace(own, max_train_steps=guess, max_train_seconds=seconds)
        result = our_training(network, objective, data, own)
        yield result.seconds, result.items_seen, result.networks["denoiser"]

    samplers = ("default", "default, guidance 1.5") if classes else ("default",)
    return Side(build, train, True, True, samplers, precisions, number and number + 1)


def our_training(network: Any, objective: Any, data: Any, args: Any) -> Any:
    """Train a network, the only player, by hfgen's loop, without pictures and checkpoints; return the `Result`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from hfgen.data.batches import Batches
    from hfgen.trainer.loop import train

    AcceleratorState._reset_state()  # an earlier run of this process may have used another precision
    with tempfile.TemporaryDirectory() as folder:
        args = dataclasses.replace(args, output_dir=folder)
        batches = Batches(data, args.train_batch_size, seed=0)
        networks = {objective.players[0]: network}
        return train(networks, objective, batches, args, Accelerator(mixed_precision=args.mixed_precision))


def loop_side(data_args: DataArgs, data: Any, settings: Any, samplers: tuple[str, ...], precisions: Any) -> Side:
    """Return the loop of diffusers with `PeerSettings` as a side."""
    import peer_loop

    from hfgen.data.columns import find_columns
    from hfgen.data.sources import open_rows

    rows = open_rows(data_args)
    column, _ = find_columns(rows.features, data_args)

    def train(network: Any, moments: Sequence[float], precision: str) -> Iterator[tuple[float, int, Any]]:
        kept: list[tuple[float, int, Any]] = []

        def note(step: int, seconds: float, average: Any) -> bool:
            if seconds >= moments[len(kept)]:
                network_now = copy.deepcopy(network)
                average.copy_to(network_now.parameters())
                kept.append((seconds, step * settings.batch_size, network_now))
            return len(kept) == len(moments)

        loader = peer_loop.loader_of(rows, column, data.resolution, data.channels, settings.batch_size)
        peer_loop.train(network, loader, None, precision, settings, moments[-1], note)
        yield from kept

    return Side(
        lambda data: peer_network(settings.network, data),
        train,
        settings.schedule == "run",
        False,
        samplers,
        precisions,
    )


def peer_network(name: str, data: Any) -> Any:
    """Return a network of diffusers, a row of NETWORKS."""
    import diffusers

    from hfgen.utils.seeds import seed_initialisation

    seed_initialisation(0)
    lowest = "Attn" if NETWORKS[name]["attention"] else ""
    return diffusers.UNet2DModel(
        sample_size=data.resolution,
        in_channels=data.channels,
        out_channels=data.channels,
        block_out_channels=NETWORKS[name]["block_out_channels"],
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", f"{lowest}DownBlock2D"),
        up_block_types=(f"{lowest}UpBlock2D", "UpBlock2D", "UpBlock2D"),
        add_attention=bool(lowest),
    )


def published_side(flow: Any, data: Any) -> Side:
    """Return a published example, a `PublishedFlow`, as a side."""
    import peer_flows

    import hfgen
    from hfgen.utils.seeds import seed_initialisation

    def build(data: Any) -> Any:
        seed_initialisation(0)
        shape = (data.channels, flow.size, flow.size)
        return hfgen.TorchModel(peer_flows.VelocityNetwork(flow), shape, flow.num_class_embeds)

    def train(network: Any, moments: Sequence[float], precision: str) -> Iterator[tuple[float, int, Any]]:
        kept: list[tuple[float, int, Any]] = []

        def note(step: int, seconds: float) -> bool:
            if seconds >= moments[len(kept)]:
                kept.append((seconds, step * flow.batch_size, copy.deepcopy(network)))
            return len(kept) == len(moments)

        peer_flows.train(flow, network.module, data, note)
        yield from kept

    unguided = [name for name, (_, _, guidance) in FLOW_SAMPLERS.items() if guidance == 1]
    guided = ["euler, guidance 2"] if flow.num_class_embeds > data.num_classes else []
    return Side(build, train, False, True, (*unguided, *guided), ("no",), flow.num_class_embeds)
