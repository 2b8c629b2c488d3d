"""Options of tones. No torch here: `--help` reads this file."""

import dataclasses

from hfgen.options import NEVER, POSITIVE, Options, SolverArgs, TrainArgs, option, variant
from hfgen.utils.ranges import AT_LEAST_0, COUNT, PROBABILITY, TWO_OR_MORE


@dataclasses.dataclass
class ToneArgs(Options):
    """Data and network"""

    num_sequences: int = option(1024, "sequences to train on", range=COUNT)
    length: int = option(16, "time steps of a sequence, at least twice the frequencies", range=TWO_OR_MORE)
    num_frequencies: int = option(4, "frequencies that a token may name", range=COUNT)
    noise_level: float = option(0.05, "standard deviation of the noise in the sequences", range=AT_LEAST_0)
    hidden_size: int = option(128, "width of the network", range=COUNT)


@dataclasses.dataclass
class RehearsalArgs(Options):
    """Objective"""

    prompt_dropout: float = option(
        0.1, "share of sequences trained on without their prompt, for guidance", range=PROBABILITY
    )
    replay_share: float = option(
        0.25, "share of each batch that is replayed from earlier steps; 0: none", off=0.0, range=PROBABILITY
    )
    replay_size: int = option(512, "sequences in the replay buffer", only_with={"replay_share": POSITIVE}, range=COUNT)


@dataclasses.dataclass
class ToneSolverArgs(SolverArgs):
    """Sampling by steps"""

    num_inference_steps: int | None = variant(SolverArgs, "num_inference_steps", 10)
    guidance_scale: float = variant(
        SolverArgs,
        "guidance_scale",
        1.0,
        "classifier-free guidance by prompt; 1: none",
        only_with={"prompt_dropout": POSITIVE},
    )


@dataclasses.dataclass
class ToneTrainArgs(TrainArgs):
    """Training"""

    max_train_steps: int | None = variant(TrainArgs, "max_train_steps", 300)
    train_batch_size: int = variant(TrainArgs, "train_batch_size", 64, "sequences per process and micro-step")
    learning_rate: float = variant(TrainArgs, "learning_rate", 3e-3)
    gradient_checkpointing: bool = variant(TrainArgs, "gradient_checkpointing", False, only_with=NEVER)


DESCRIPTION = "Train a model of sequences whose channels are tones, under a prompt that names their frequencies."
EXAMPLE = "hfgen train tones --max_train_steps 300 --output_dir outputs/tones"
GROUPS = (ToneArgs, RehearsalArgs, ToneSolverArgs, ToneTrainArgs)
