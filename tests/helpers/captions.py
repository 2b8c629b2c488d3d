"""Small images with captions in lines of JSON."""

import json

import numpy as np
from PIL import Image


def write_captioned(folder, texts, count=12):
    """Write images of 8 x 8 pixels, whose brightness says which of the texts they have."""
    lines = []
    for number in range(count):
        kind = number % len(texts)
        pixels = np.random.default_rng(number).integers(0, 30, (8, 8)) + 60 * kind
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": texts[kind]}))
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder
