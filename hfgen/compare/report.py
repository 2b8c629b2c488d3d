"""What a comparison leaves: report.json, report.md, and report.html, which is one file.

report.json, which `hfgen recommend` reads, is one object:

    {"protocol": {str: str or number},            # data, splits, counts, features, budget: what all rows share
     "hardware": str,
     "versions": {package: version},
     "command": str,                              # repeats the comparison
     "rows": [row, ...]}

A row is one configuration. Every row has all of these keys:

    {"study": "families",                         # or the ablation it belongs to: "kl", "latent_size", "steps", ...
     "family": "rectified_flow",                  # as `--families` names it
     "name": "Rectified flow",                    # in words; different for each row of a study
     "setting": None,                             # in an ablation: the value on its axis, a number or a word
     "status": "measured",                        # "no samples": trained, draws nothing; "failed": not trained
     "notes": [str, ...],                         # what could not be had, and why
     "command": "hfgen train diffusion ...",      # that trained it
     "folder": "rectified_flow",                  # of its pipeline, relative to report.json; of the first of several
     "seeds": [0],                                # of the trainings behind the figures: where several, means over them
     "parameters": int or None,                   # of the networks that the pipeline is made of
     "training_seconds": float or None,           # samples and checkpoints not counted
     "training_steps": int or None,
     "images_seen": int or None,
     "peak_memory_mib": int or None,              # of training
     "figures": {metric name: {"value": float, "interval": [low, high] or None, "deviation": float or None,
                               "better": "lower" | "higher" | a target such as "1",
                               "trainings": [float, ...]}},    # where several: each; their range is the interval
     "speed": [{"batch": int, "dtype": "float32" or "bfloat16", "steps": int, "scheduler": str or None,
                "images_per_second": float, "latency_p50_ms": float, "latency_p95_ms": float,
                "frechet": float or None, "front": bool, "default": bool}, ...],
     "abilities": [str, ...]}

Metric names are those of `hfgen.metrics.measures`, with the feature network in them: "Frechet distance (digits-cnn,
<revision>)", "kernel distance (...)", "classifier score (...)", "precision, k = 5 (...)", recall, density and coverage
alike, "bits per dimension", "reconstruction error, mse", and the two of memorisation. `figure` finds one by how its
name begins. Latency is that of a call with `batch` images; `scheduler` is a name of `hfgen.registry.SAMPLERS`, None and
one step where a family draws in one pass; `frechet` is that of this scheduler, number of steps and precision;
`default` marks what `figures` were measured with; `front` what no other entry of its study beats in Frechet distance,
latency and seconds an image at once. Abilities: "sampling", "likelihood" (bits per dimension of 8-bit images),
"reconstruction", "latent-edit" (images there and back, and paths between them), "class-conditional" (the family can be
trained so).
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..saving import hub
from . import pages
from .latency import front

Row = Mapping[str, Any]


def assemble(home: Path, rows: Sequence[Row], protocol: Mapping[str, Any], command: str) -> dict[str, Any]:
    """report.json of these rows, the Pareto front of each study marked.

    Args:
        home: folder of the comparison, in which the rows' folders lie.
        rows: as above, without the marks.
        protocol: what the rows share.
        command: that repeats all.
    """
    marked = [{**row, "speed": [dict(entry) for entry in row["speed"]]} for row in rows]
    for study in dict.fromkeys(row["study"] for row in marked):
        entries = [entry for row in marked if row["study"] == study for entry in row["speed"]]
        timed = [entry for entry in entries if entry["frechet"] is not None]
        places = [(entry["frechet"], entry["latency_p50_ms"], 1 / entry["images_per_second"]) for entry in timed]
        for entry in entries:
            entry["front"] = False
        for entry, on in zip(timed, front(places), strict=True):
            entry["front"] = on
    return {
        "protocol": dict(protocol),
        "hardware": _hardware(home, rows),
        "versions": hub.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "rows": marked,
    }


def _hardware(home: Path, rows: Sequence[Row]) -> str:
    """What the first trained row says that it was trained on."""
    for row in rows:
        path = home / row["folder"] / "metrics.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))["hardware"]
    return "unknown: nothing has been trained"


def write(home: Path, report: Mapping[str, Any]) -> None:
    """report.json, report.md and report.html, each replaced as a whole."""
    texts = {
        "report.json": json.dumps(report, indent=2, allow_nan=False) + "\n",
        "report.md": pages.markdown(report),
        "report.html": pages.page(report, home),
    }
    for name, text in texts.items():
        part = home / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, home / name)


def summary(rows: Sequence[Row]) -> str:
    """The rows in brief, as text for a terminal."""
    return "\n".join(pages.brief(row) for row in rows)
