"""The files of a comparison: report.json, and the same for people as report.md and report.html.

report.json, which `hfgen recommend` reads, is one object:

    {"protocol": {str: str or number},            # what all rows share: data, splits, counts, features, budget
     "hardware": str,
     "versions": {package: version},
     "date": str,                                 # year-month-day
     "command": str,                              # repeats the comparison
     "rows": [row, ...]}

A row is one configuration. Every row has all of these keys:

    {"study": "families",                         # or the name of an ablation: "kl", "latent_size", "steps", ...
     "family": "rectified_flow",                  # its name in `--families`
     "name": "Rectified flow",                    # for people; different for each row of a study
     "setting": None,                             # in an ablation: the value on its axis, a number or a word
     "status": "measured",                        # "no samples": trained, draws none; "failed": not trained
     "notes": [str, ...],                         # what could not be measured, and why
     "command": "hfgen train diffusion ...",      # repeats the training
     "folder": "rectified_flow",                  # of the pipeline, relative to report.json; of the first training
     "seeds": [0],                                # of the trainings; with several, numbers are their means
     "parameters": int or None,                   # of the pipeline's networks
     "training_seconds": float or None,           # of steps and a prior's fit
     "training_steps": int or None,
     "images_seen": int or None,
     "peak_memory_mib": int or None,              # of training
     "trainings": {key: [float, ...]},            # only with several: seconds, images and memory of each
     "figures": {metric name: {"value": float, "interval": [low, high] or None, "deviation": float or None,
                               "better": "lower" | "higher" | a target such as "1",
                               "trainings": [float, ...]}},    # with several trainings; the interval is their range
     "speed": [{"batch": int, "dtype": "float32" or "bfloat16", "steps": int, "scheduler": str or None,
                "images_per_second": float, "latency_p50_ms": float, "latency_p95_ms": float,
                "frechet": float or None, "distances": {network: float} or None,
                "front": bool, "default": bool}, ...],
     "abilities": [str, ...]}

Names of metrics are those of `hfgen.metrics.measures`; they hold the feature network: "Frechet distance (digits-cnn,
<revision>)", "kernel distance (...)", "classifier score (...)", "precision, k = 5 (...)", likewise recall, density and
coverage, the two metrics of memorisation, and without a network "bits per dimension" and "reconstruction error, mse".
With several networks each has its own, and "geometric mean of Frechet distances (...; ...)" is what rows are ranked by:
it does not depend on the scale of any network's features, and rises with each distance. `compare.rows.metric` finds one
by the beginning of its name, that of the first network.

In an entry of `speed`, the latency is that of a call with `batch` images. `scheduler` is a name of
`hfgen.registry.SAMPLERS`; families that draw in one pass have None, and 1 step. `distances` are those of samples of
this scheduler, number of steps and precision, by each network; `frechet` is their geometric mean. Reports of earlier
versions have one network and no `distances`. `default` marks the setting that `figures` were measured with. `front`
marks the Pareto front of the study in Frechet distance, latency, and seconds an image.

Abilities are "sampling", "likelihood" (bits per dimension of 8-bit images), "reconstruction", "latent-edit" (encoding,
decoding and interpolation), "class-conditional" (the family can be trained with classes).
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..disk.files import read_json, write_text
from ..disk.kinds import optional, text
from ..saving import hub
from . import pages
from .latency import pareto_front
from .rows import Row


def assemble(home: Path, rows: Sequence[Row], protocol: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Return the object of report.json, with the Pareto front of each study marked.

    Args:
        home: folder of the comparison, which holds the rows' folders.
        rows: the rows; their entries of `speed` have no key `front` yet.
        protocol: what all rows share.
        command: repeats the comparison.
    """
    rows = [{**row, "speed": [dict(entry) for entry in row["speed"]]} for row in rows]
    for study in dict.fromkeys(row["study"] for row in rows):
        entries = [entry for row in rows if row["study"] == study for entry in row["speed"]]
        candidates = [entry for entry in entries if entry["frechet"] is not None]
        points = [(e["frechet"], e["latency_p50_ms"], 1 / e["images_per_second"]) for e in candidates]
        for entry in entries:
            entry["front"] = False
        for entry, on_front in zip(candidates, pareto_front(points), strict=True):
            entry["front"] = on_front
    return {
        "protocol": dict(protocol),
        "hardware": _hardware(home, rows),
        "versions": hub.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "rows": rows,
    }


def _hardware(home: Path, rows: Sequence[Row]) -> str:
    """Return the hardware in the metrics.json of the first row that was trained."""
    for row in rows:
        path = home / row["folder"] / "metrics.json"
        if path.is_file():
            remedy = "Remove its folder, and run the same command again."
            return read_json(path, remedy, {"hardware": optional(text)}).get("hardware") or "unknown"
    return "unknown: nothing was trained"


def write(home: Path, report: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.html; each replaces the previous file atomically."""
    texts = {
        "report.json": json.dumps(report, indent=2, allow_nan=False) + "\n",
        "report.md": pages.markdown(report),
        "report.html": pages.page(report, home),
    }
    for name, content in texts.items():
        write_text(home / name, content)


def summary(rows: Sequence[Row]) -> str:
    """Return a line for each row, for a terminal."""
    return "\n".join(pages.brief(row) for row in rows)
