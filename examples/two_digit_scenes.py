"""Make scenes of two digits with captions whose truth is known: "a 3 left of a 7", "a 3 above a 7".

    python examples/two_digit_scenes.py --output_dir outputs/scenes
    hfgen train text_to_image --config scenes

Digits are the images of MNIST that come with hfgen: those of its split `train` in `train`, of `test` in `test`. Some
combinations are held out: no scene of `train` shows them. `prompts_seen.txt` and `prompts_held_out.txt` list the
captions of both kinds.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 28
"""Pixels of a side of a scene; a digit has half of it."""

MARGIN = 3
"""Pixels at each edge of an image of MNIST, which are hardly ever written on, and are cut off."""

RELATIONS = ("left of", "above")
SPREAD = 3
"""Pixels that a digit is away, at most, from the middle of its half in the direction in which there is room."""


class Scene(NamedTuple):
    """What a scene shows.

    Attributes:
        first, second: digits.
        relation: of the first one to the second.
    """

    first: int
    second: int
    relation: str

    @property
    def caption(self) -> str:
        """The sentence that is true of the scene."""
        return f"a {self.first} {self.relation} a {self.second}"

    @property
    def is_held_out(self) -> bool:
        """Whether no scene of the training shows it: one of ten. Each digit is held out once as first and second."""
        return (self.second - self.first) % 10 == 3 + 4 * RELATIONS.index(self.relation)


SCENES = [Scene(first, second, relation) for relation in RELATIONS for first in range(10) for second in range(10)]


def digits(split: str) -> dict[int, np.ndarray]:
    """Return the digits of a split of MNIST in hfgen, uint8 (N, 14, 14) for each class: without the margin, reduced."""
    import hfgen
    from hfgen.options import DataArgs

    data, half = hfgen.load_images(DataArgs(dataset="mnist5k", dataset_split=split)), SIDE // 2
    inner = (MARGIN, MARGIN, SIDE - MARGIN, SIDE - MARGIN)
    whole = [Image.fromarray(pixels[0]).crop(inner) for pixels in data.images.numpy()]
    small = np.stack([np.asarray(image.resize((half, half), Image.Resampling.BICUBIC)) for image in whole])
    return {digit: small[data.labels.numpy() == digit] for digit in range(10)}


def draw(scene: Scene, known: dict[int, np.ndarray], source: random.Random) -> np.ndarray:
    """Draw a scene, uint8 (28, 28), of digits that are taken at random."""
    half, canvas = SIDE // 2, np.zeros((SIDE, SIDE), np.uint8)
    for place, digit in enumerate((scene.first, scene.second)):
        pixels = source.choice(known[digit])
        along, across = place * half, half // 2 + source.randint(-SPREAD, SPREAD)
        row, column = (across, along) if scene.relation == "left of" else (along, across)
        canvas[row : row + half, column : column + half] = pixels
    return canvas


def scenes(count: int, seed: int, held_out: bool) -> Iterator[Scene]:
    """Yield scenes, all alike often: those to train on, or those that are held out."""
    kinds = [scene for scene in SCENES if scene.is_held_out == held_out]
    source = random.Random(f"order {seed}")
    for start in range(0, count, len(kinds)):
        yield from source.sample(kinds, len(kinds))[: count - start]


def write(folder: Path, split: str, count: int, seed: int) -> None:
    """Write images and their captions: of `train` those to train on, of `test` all."""
    known, source = digits(split), random.Random(f"{split} {seed}")
    part = folder / split
    part.mkdir(parents=True, exist_ok=True)
    shown = [*scenes(count, seed, False), *([] if split == "train" else scenes(count // 9, seed, True))]
    lines = []
    for number, scene in enumerate(shown):
        name = f"{number:06d}.png"
        Image.fromarray(draw(scene, known, source)).save(part / name)
        lines.append(json.dumps({"file_name": name, "text": scene.caption}))
    (part / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write the data set and the lists of captions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/scenes"))
    parser.add_argument("--num_train", type=int, default=18000, help="scenes to train on")
    parser.add_argument("--num_test", type=int, default=1800, help="scenes of digits that no scene of train has")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.output_dir, "train", options.num_train, options.seed)
    write(options.output_dir, "test", options.num_test, options.seed)
    for name, held_out in (("seen", False), ("held_out", True)):
        prompts = [scene.caption for scene in SCENES if scene.is_held_out == held_out]
        (options.output_dir / f"prompts_{name}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    print(f"{options.num_train:,} scenes in {options.output_dir}/train, and more in {options.output_dir}/test")


if __name__ == "__main__":
    main()
