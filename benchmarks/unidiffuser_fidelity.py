"""Fidelity of a model of images and texts: train on scenes of two digits, and judge both directions and both at once.

    python examples/two_digit_scenes.py --output_dir outputs/scenes
    python benchmarks/unidiffuser_fidelity.py outputs/scenes --seconds 600

Images of prompts, seen and held out, are judged as in benchmarks/text_fidelity.py. Texts of real scenes, of digits that
the training has in no scene, must be their captions, word by word. A joint pair is right if the judge reads in the
image what the text says. Further options are those of `hfgen train unidiffuser`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from text_fidelity import CAPTION, fidelity, real

SCALES = (1.0, 2.0, 4.0)
"""Guidance of both conditionals."""


def drawn(pipeline: Any, mode: str, given: list[Any], scale: float, steps: int) -> tuple[Any, Any]:
    """Return images (N, 1, H, W) in [-1, 1] and texts that a mode draws, None where it draws none, by batches of 50.

    `given` holds the prompts or the images; of the joint mode as many nothings.
    """
    import torch

    from hfgen.utils.seeds import sample_generators

    name = {"text_to_image": "prompt", "image_to_text": "images"}.get(mode)
    images, texts = [], []
    for start in range(0, len(given), 50):
        part = given[start : start + 50]
        call = {} if name is None else {name: torch.stack(part) if name == "images" else part}
        generator = sample_generators(0, range(start, start + len(part)))
        options = {"num_inference_steps": steps, "output_type": "latent", "generator": generator}
        if name is not None:
            options["guidance_scale"] = scale
        found = pipeline(**call, mode=mode, batch_size=len(part), **options)
        images += [] if found.images is None else [found.images]
        texts += found.texts or []
    return torch.cat(images).clamp(-1, 1) if images else None, texts


def judged(images: Any, texts: list[str]) -> dict[str, float]:
    """Return the share of texts that are captions, and the share of all pairs whose image shows what the text says."""
    import torch

    sound = [i for i, text in enumerate(texts) if CAPTION.fullmatch(text)]
    right = fidelity(images[torch.tensor(sound)], [texts[i] for i in sound]) * len(sound) if sound else 0.0
    return {"captions": round(len(sound) / len(texts), 4), "pairs": round(right / len(texts), 4)}


def main() -> None:
    """Train, draw, judge; print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes", type=Path, help="folder that examples/two_digit_scenes.py made")
    parser.add_argument("--output_dir", default="outputs/unidiffuser_fidelity")
    parser.add_argument("--seconds", type=float, default=600, help="of training")
    parser.add_argument("--judge_only", action="store_true", help="judge the pipeline in output_dir, and train none")
    parser.add_argument("--images", type=int, default=600, help="of each kind")
    parser.add_argument("--steps", type=int, default=10)
    options, more = parser.parse_known_args()

    import hfgen
    from hfgen.training import train_unidiffuser

    if not options.judge_only:
        words = ["--dataset", str(options.scenes / "train"), "--output_dir", options.output_dir]
        train_unidiffuser.main([*words, "--max_train_seconds", str(options.seconds), *more])
    pipeline = hfgen.HFGenPipeline.from_pretrained(options.output_dir)
    pipeline.set_progress_bar_config(disable=True)
    scenes, captions = real(options.scenes)
    scenes, captions = list(scenes[: options.images]), captions[: options.images]
    for scale in SCALES:
        row: dict[str, Any] = {"guidance_scale": scale, "steps": options.steps}
        for kind in ("seen", "held_out"):
            prompts = (options.scenes / f"prompts_{kind}.txt").read_text(encoding="utf-8").splitlines()
            asked = [prompts[i % len(prompts)] for i in range(options.images)]
            row[kind] = round(fidelity(drawn(pipeline, "text_to_image", asked, scale, options.steps)[0], asked), 4)
        said = drawn(pipeline, "image_to_text", scenes, scale, options.steps)[1]
        right = [text == caption for text, caption in zip(said, captions, strict=True)]
        row["texts of images"] = round(sum(right) / len(right), 4)
        print(json.dumps(row), flush=True)
    print(json.dumps(judged(*drawn(pipeline, "joint", [None] * options.images, 1.0, options.steps))), flush=True)


if __name__ == "__main__":
    main()
