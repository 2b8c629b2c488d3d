"""Fidelity to prompts: train on scenes of two digits, and count how often both digits and their order are right.

    python examples/two_digit_scenes.py --output_dir outputs/scenes
    python benchmarks/text_fidelity.py outputs/scenes --seconds 600

Prompts that the training has seen and combinations that were held out are judged apart. The judge is hfgen's
classifier of MNIST, on each half of a scene by itself; what it says of real scenes of held-out digits is the ceiling.
Further options are those of `hfgen train text_to_image`, such as `--model uvit`.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARGIN = 3
"""Pixels that examples/two_digit_scenes.py cuts off at each edge of a digit."""

CAPTION = re.compile(r"a (\d) (left of|above) a (\d)")


def halves(images: Any, relations: Sequence[str]) -> Any:
    """Return the two digits of scenes (B, 1, 2 S, 2 S) in [-1, 1], (B, 2, 1, S, S): each is cut out around the centre
    of its half's brightness, in the direction in which it may lie anywhere."""
    import torch

    side = images.shape[-1] // 2
    upright = torch.stack(
        [x.transpose(-1, -2) if relation == "above" else x for x, relation in zip(images, relations, strict=True)]
    )
    parts = torch.stack(upright.split(side, -1), 1)  # (B, 2, 1, 2 S, S): of "above", transposed
    light = (parts[:, :, 0] + 1).clamp(min=0).sum(-1)  # (B, 2, 2 S)
    middle = (light * torch.arange(2 * side)).sum(-1) / light.sum(-1).clamp(min=1e-6)
    first = (middle - (side - 1) / 2).round().long().clamp(0, side)
    rows = first[..., None] + torch.arange(side)  # (B, 2, S)
    cut = parts.gather(3, rows[:, :, None, :, None].expand(-1, -1, 1, -1, side))
    turn = torch.tensor([relation == "above" for relation in relations])[:, None, None, None, None]
    return torch.where(turn, cut.transpose(-1, -2), cut)


def fidelity(images: Any, captions: Sequence[str]) -> float:
    """Return the share of scenes (B, 1, H, W) in [-1, 1] whose two digits are those of their captions, in order."""
    import torch
    import torch.nn.functional as F

    from hfgen.metrics.features import load_features

    said = [CAPTION.fullmatch(caption) for caption in captions]
    digits = halves(images, [match[2] for match in said]).flatten(0, 1)
    judge = load_features("mnist")
    inner = F.interpolate(digits, (28 - 2 * MARGIN, 28 - 2 * MARGIN), mode="bicubic").clamp(-1, 1)
    large = F.pad(inner, (MARGIN,) * 4, value=-1.0)
    scores = torch.cat([judge.logits_and_features(part)[0] for part in large.split(500)])
    wanted = torch.tensor([[int(match[1]), int(match[3])] for match in said])
    return float((scores.argmax(-1).unflatten(0, (-1, 2)) == wanted).all(-1).double().mean())


def drawn(pipeline: Any, prompts: Sequence[str], each: int, scale: float, steps: int) -> tuple[Any, list[str]]:
    """Draw `each` images of each prompt; return them (N, 1, H, W) in [-1, 1], and the prompt of each."""
    import torch

    from hfgen.utils.seeds import sample_generators

    pipeline.set_progress_bar_config(disable=True)
    parts = [
        pipeline(
            list(prompts[start : start + 20]),
            num_images_per_prompt=each,
            guidance_scale=scale,
            num_inference_steps=steps,
            generator=sample_generators(0, range(start * each, min(start + 20, len(prompts)) * each)),
            output_type="latent",
        ).images
        for start in range(0, len(prompts), 20)
    ]
    return torch.cat(parts).clamp(-1, 1), [prompt for prompt in prompts for _ in range(each)]


def real(folder: Path) -> tuple[Any, list[str]]:
    """Return the scenes of the split `test` with their captions."""
    import hfgen
    from hfgen.options import CaptionDataArgs
    from hfgen.utils.pixels import from_levels

    data = hfgen.load_images(CaptionDataArgs(dataset=str(folder / "test")))
    return from_levels(data.images), [data.caption_texts[number] for number in data.captions.tolist()]


def main() -> None:
    """Train, draw, judge; print a line of JSON for each guidance scale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", type=Path, help="folder that examples/two_digit_scenes.py made")
    parser.add_argument("--output_dir", default="outputs/text_fidelity")
    parser.add_argument("--seconds", type=float, help="of training; default: the steps of the recipe")
    parser.add_argument("--judge_only", action="store_true", help="judge the pipeline in output_dir, and train none")
    parser.add_argument("--images", type=int, default=600, help="of each kind of prompts, at least")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scales", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    options, more = parser.parse_known_args()

    import hfgen
    from hfgen.training import train_text_to_image

    if not options.judge_only:
        words = ["--config", "scenes", "--dataset", str(options.scenes / "train"), "--output_dir", options.output_dir]
        words += [] if options.seconds is None else ["--max_train_seconds", str(options.seconds)]
        train_text_to_image.main([*words, *more])
    print(json.dumps({"real scenes of held-out digits": round(fidelity(*real(options.scenes)), 4)}), flush=True)
    pipeline = hfgen.HFGenPipeline.from_pretrained(options.output_dir)
    for scale in options.scales:
        row = {"guidance_scale": scale, "steps": options.steps}
        for kind in ("seen", "held_out"):
            prompts = (options.scenes / f"prompts_{kind}.txt").read_text(encoding="utf-8").splitlines()
            row[kind] = round(
                fidelity(*drawn(pipeline, prompts, -(-options.images // len(prompts)), scale, options.steps)), 4
            )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
