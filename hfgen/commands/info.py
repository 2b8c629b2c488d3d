"""`hfgen info`: versions and hardware, to paste into a bug report."""

import os

from ..options import parse_words, parser


def main(argv: list[str] | None = None) -> None:
    """Print versions and hardware, a line each."""
    description = "Print versions and hardware, to paste into a bug report."
    parse_words(parser("hfgen info", description, "hfgen info", config=False), argv)
    import torch

    from ..saving.hub import versions

    facts = {**versions(), "CPU cores": os.cpu_count(), "threads": torch.get_num_threads()}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts |= {"CUDA": torch.version.cuda or "not built in", "GPUs": ", ".join(gpus) or "none"}
    facts["MPS"] = torch.backends.mps.is_available()
    for name, value in facts.items():
        print(f"{name + ':':16} {value}")
