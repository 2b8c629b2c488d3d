"""The metric: do the sequences have the frequencies that their prompts name?"""

import itertools
from typing import Any

import torch
from torch import Tensor

from hfgen.metrics import report, sampling
from hfgen.metrics.measures import mean_measurement


def prompt_agreement(sequences: Tensor, prompts: Tensor, num_frequencies: int) -> Tensor:
    """Return for each sequence the share of its tones whose strongest frequency is the named one, (B,) in [0, 1].

    Sequences of the data have 1; sequences that do not depend on the prompt have 1 / `num_frequencies` on average.

    Args:
        sequences (B, T, D): the sequences.
        prompts (B, D): their prompts, token k for frequency k + 1.
        num_frequencies: number of tokens.
    """
    spectrum = torch.fft.rfft(sequences.double(), dim=1).abs()  # (B, T // 2 + 1, D)
    strongest = spectrum[:, 1 : num_frequencies + 1].argmax(1)  # (B, D)
    return (strongest == prompts).double().mean(1)


def evaluate(pipeline: Any, repeats: int, seed: int, **options: Any) -> list[dict[str, Any]]:
    """Draw sequences for every prompt, and return their mean agreement as entries of metrics.json.

    Args:
        pipeline: a `TonePipeline`.
        repeats: sequences for each prompt.
        seed: of the first sequence.
        options: further arguments of the pipeline's call, such as `guidance_scale`.
    """
    tokens, channels = pipeline.denoiser.config.num_tokens, pipeline.sample_shape[1]
    prompts = torch.tensor(list(itertools.product(range(tokens), repeat=channels)) * repeats)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    pipeline.set_progress_bar_config(disable=True)
    sequences = pipeline(prompts, generator=generators, **options).sequences.cpu()
    agreement = mean_measurement("prompt agreement", prompt_agreement(sequences, prompts, tokens), "higher")
    protocol = {"generated sequences": len(prompts), **sampling.sampler_facts(pipeline), **options, "seed": seed}
    return report.entries([agreement], protocol)
