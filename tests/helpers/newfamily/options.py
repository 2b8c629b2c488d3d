"""Options of tones. No torch here: `--help` reads this file."""

import dataclasses

from hfgen.options import NEVER, POSITIVE, SolverArgs, TrainArgs, option, variant


@dataclasses.dataclass
class ToneArgs:
    """Data and network"""

    num_sequences: int = option(1024, "sequences to train on")
    length: int = option(16, "time steps of a sequence, at least twice the frequencies")
    num_frequencies: int = option(4, "frequencies that a token may name")
    noise_level: float = option(0.05, "standard deviation of the noise in the sequences")
    hidden_size: int = option(128, "width of the network")


@dataclasses.dataclass
class RehearsalArgs:
    """Objective"""

    prompt_dropout: float = option(0.1, "share of sequences trained on without their prompt, for guidance")
    replay_share: float = option(0.25, "share of each batch that is replayed from earlier steps; 0: none", off=0.0)
    replay_size: int = option(512, "sequences in the replay buffer", only_with={"replay_share": POSITIVE})


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
