"""Why processes or an accelerator could not be started, in one line. No torch here."""

import re

HINTS = {
    "mpirun": "Install MPI, or leave mpirun_hostfile out of the configuration of accelerate.",
    "address already in use": "Another training has this port: choose another main_process_port (accelerate), or "
    "--standalone (torchrun).",
    "eaddrinuse": "Another training has this port: choose another main_process_port (accelerate), or --standalone "
    "(torchrun).",
    "port": "Choose a free one: main_process_port in the configuration of accelerate, or --main_process_port N.",
    "mixed_precision": "Correct mixed_precision in the configuration of accelerate: no, bf16 or fp16.",
    "mixed precision": "Give --mixed_precision no, or correct it in the configuration of accelerate.",
    "deepspeed": "Install it, or choose another distributed_type: accelerate config.",
    "no module named": "Install it, or leave out what needs it.",
    "cuda": "There is no such GPU here: set CUDA_VISIBLE_DEVICES, or ACCELERATE_USE_CPU=true for the CPU.",
    "yaml": "Correct the configuration of accelerate, or make it anew: accelerate config.",
}
"""Words of an error of accelerate, torch or their launchers -> what to do."""


def in_a_line(error: BaseException) -> str:
    """Return what an error of accelerate or torch says, without line breaks, and what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    kind = f"{type(error).__module__} {type(error).__name__} {text}".lower()
    hint = next((hint for word, hint in HINTS.items() if re.search(rf"\b{word}\b", kind)), "See `accelerate config`.")
    return f"{text.rstrip('.')}. {hint}"
