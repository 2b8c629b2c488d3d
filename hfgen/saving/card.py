"""Model cards: what a model is, how it was trained, its metrics, how to load it, and its limits."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from ..console.text import escaped, fence, first_line, quoted
from ..disk.files import check_writable, replacing
from ..disk.kinds import figure
from ..disk.reading import TEXT_BYTES, read_object, read_text
from ..disk.yaml_files import parse_yaml

MARK = "<!-- this card was written by hfgen -->"
TASK = "unconditional-image-generation"
SAMPLES = MappingProxyType({"samples.png": "samples"})
OUTCOME = '.images[0].save("sample.png")'
_RESULTS = ("<!-- results -->", "<!-- end of results -->")

_TEXT = """
{mark}
# {title}

{summary}

{first}## Use

{use}
{pictures}{results}
## Training

| | |
|---|---|
{table}

{repeat}
Losses and learning rates of all logged steps are in [metrics.jsonl](metrics.jsonl), the metrics above in
[metrics.json](metrics.json).

## Use and limits

The model knows {unit} like those it was trained on and nothing else. What it returns may repeat {unit} of the training
data, and the biases of these data. It is meant for research and teaching, not for decisions about people or as evidence
of anything. Results above hold under the protocol given with them and no other. Without results, no quality has been
measured.

## Licence

Weights: {licence}. Source files: Apache-2.0. The licence of the training data may say more.
"""

_PIPELINE = """```python
from hfgen import HFGenPipeline

pipeline = HFGenPipeline.from_pretrained({name})
pipeline({call}){outcome}
```

That runs no code from this repository. Without hfgen, diffusers loads the same pipeline from the source files here:

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({name}, trust_remote_code=True)
```
"""

_ADAPTER = """```python
from hfgen import HFGenPipeline

base = {base}
pipeline = HFGenPipeline.from_pretrained(base)
pipeline.load_lora_weights({name})
pipeline({call}){outcome}
```

This is a low-rank adapter of {base}: it changes the weights of that pipeline, and is nothing without it. The package
peft is needed: `pip install "hfgen[lora]"`. `pipeline.set_adapters` scales it, and adds it to others;
`pipeline.unload_lora_weights()` gives the base back.
"""

_WEIGHTS = """```python
from safetensors.torch import load_model

{loads}
```

The code of {classes} is not here: the folder holds the weights of each network, in a file of its name.
"""

_OWN = """```python
from hfgen import HFGenPipeline, TorchModel

{loads}
pipeline = HFGenPipeline.from_pretrained({name}, {arguments})
pipeline({call}){outcome}
```

The code of {classes} is not here: the folder holds its weights.
"""

_COMMAND = """This command repeats the training with [config.yaml](config.yaml) from this folder. Paths of the
machine that trained are cut to their last name: replace `output_dir` and local data by your own.

{command}
"""

_PYTHON = """It was trained from Python, by `hfgen.train`. The options are in [config.yaml](config.yaml); data,
network and objective are in the code that called it.
"""

_BRIEF = """---
library_name: diffusers
pipeline_tag: {task}
tags:
- hfgen
---
{mark}
# {title}

A pipeline made with hfgen.

{pictures}## Use

```python
from hfgen import HFGenPipeline

pipeline = HFGenPipeline.from_pretrained({name})
```

That runs no code from this repository. Without hfgen, diffusers loads the same pipeline from the source files here:
`DiffusionPipeline.from_pretrained({name}, trust_remote_code=True)`.
"""


_BRIEF_ADAPTER = """---
library_name: diffusers
pipeline_tag: {task}
tags:
- hfgen
- lora
---
{mark}
# {title}

{pictures}## Use

{use}"""


def write_card(
    folder: Path,
    title: str,
    summary: str,
    call: str | None,
    facts: Mapping[str, Any],
    command: str | None,
    tags: list[str],
    data: str,
    licence: str = "unknown",
    pictures: Mapping[str, str] = SAMPLES,
    task: str | None = TASK,
    outcome: str = OUTCOME,
    unit: str = "images",
    own_networks: Mapping[str, str] = MappingProxyType({}),
    base: str | None = None,
) -> None:
    """Write the folder's README.md: a card with valid metadata that says what the model is and how to use it.

    Args:
        folder: of the pipeline, its pictures and metrics.json.
        title, summary: a line each.
        call: arguments of an example call, as text. None: there is no pipeline, only weights.
        facts: rows of the table, in order.
        command: repeats the training; None: it was started from Python.
        tags: of the metadata, beside hfgen's own.
        data: the data set. A Hub id also enters the metadata.
        licence: of the weights, by the Hub's name (`mit`, `cc-by-4.0`, ...).
        pictures: captions by file name, in order; files that do not exist are left out.
        task: the Hub's name of the model's task; None: the Hub has no name for it.
        outcome: code after the example call that uses its output.
        unit: the plural noun for the items.
        own_networks: networks whose code is not in the folder, with the name of the class of each.
        base: the pipeline that the folder holds an adapter of; None: it holds a model of its own.
    """
    from huggingface_hub import ModelCard, ModelCardData

    on_hub = data.count("/") == 1 and not os.path.exists(data)
    data = escaped(data if on_hub else Path(data).name)  # no folder of this machine
    results, images = _evaluations(folder), _pictures(folder, {**pictures, "loss.png": "loss over steps"})
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        license=escaped(licence),
        tags=["hfgen", *map(escaped, tags), *([] if base is None else ["lora"])],
        base_model=None if base is None else escaped(base),
        datasets=[data] if on_hub else None,
        model_name=escaped(title) if results else None,
        eval_results=_eval_results(results, data, task) or None,
    )
    text = _TEXT.format(
        **{"mark": MARK, "unit": unit},
        title=escaped(title, "markdown"),
        summary=escaped(summary, "markdown"),
        use=_use(folder.resolve().name, call, outcome, own_networks, base),
        first="".join(images[:1]),
        pictures="".join(images[1:]),
        results=_results(results),
        table="\n".join(_row(key, value) for key, value in facts.items()),
        repeat=_PYTHON if command is None else _COMMAND.format(command=fence(command)),
        licence="none has been chosen" if licence == "unknown" else escaped(licence, "markdown"),
    )
    _save(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{text}"), folder / "README.md")


def _use(name: str, call: str | None, outcome: str, own_networks: Mapping[str, str], base: str | None) -> str:
    """Return the section that shows how to use the model."""
    if base is not None:
        return _ADAPTER.format(base=quoted(base), name=quoted(name), call=call, outcome=outcome)
    classes = ", ".join(dict.fromkeys(own_networks.values()))
    if call is None:
        weights = [
            f"{key} = {cls}()\nload_model({key}, {quoted(f'{name}/{key}.safetensors')})"
            for key, cls in own_networks.items()
        ]
        return _WEIGHTS.format(loads="\n".join(weights), classes=classes)
    if not own_networks:
        return _PIPELINE.format(name=quoted(name), call=call, outcome=outcome)
    loads = [f"{key} = TorchModel.load({cls}(), {quoted(f'{name}/{key}')})" for key, cls in own_networks.items()]
    arguments = ", ".join(f"{key}={key}" for key in own_networks)
    networks = {"loads": "\n".join(loads), "arguments": arguments, "classes": classes}
    return _OWN.format(name=quoted(name), call=call, outcome=outcome, **networks)


def check(folder: Path) -> None:
    """Raise ValueError or OSError if `add_results` could not change the card of a folder."""
    path = folder / "README.md"
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no file, and the results are entered in the model card. Move it away.")
    _ours(path)
    check_writable(path)


def _ours(path: Path) -> Any:
    """Return a card that hfgen wrote; None for any other. Raises ValueError for one whose metadata are damaged."""
    from huggingface_hub import ModelCard

    if MARK not in (text := read_text(path)):
        return None
    _check_front(text, path)
    try:
        return ModelCard(text)
    except Exception as error:  # YAML's errors, and huggingface_hub's of what the metadata hold
        raise ValueError(
            f"the metadata of {path} are damaged: {first_line(error)}. Repair the file, or move it away."
        ) from None


def add_results(folder: Path) -> None:
    """Copy the results in metrics.json, its list `evaluation`, to the card's section and metadata.

    If the folder has no card, or one that hfgen did not write, nothing happens.
    """
    path = folder / "README.md"
    card = _ours(path) if path.is_file() else None
    if card is None:
        return
    results = _evaluations(folder)
    title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    card.data.model_name = re.sub(r"\\([^\w\s])", r"\1", title[1]) if title else escaped(folder.resolve().name)
    data, task = (card.data.datasets or ["training data"])[0], card.data.get("pipeline_tag")
    card.data.eval_results = _eval_results(results, data, task) or None
    start, end = map(re.escape, _RESULTS)
    card.text = re.sub(rf"{start}.*{end}", lambda _: _results(results).strip(), card.text, flags=re.DOTALL)
    _save(card, path)


def _save(card: Any, path: Path) -> None:
    """Write a card of huggingface_hub."""
    with replacing(path) as draft:
        card.save(draft)


def brief_card(repo: str, samples: bool, base: str | None = None) -> str:
    """Return a short card for a pipeline, or an adapter, whose training is not known.

    Args:
        repo: name of the repository.
        samples: show the picture samples.png.
        base: the pipeline that it is an adapter of; None: it is a pipeline.
    """
    pictures = "![samples](samples.png)\n\n" if samples else ""
    title = escaped(repo.split("/")[-1], "markdown")
    if base is not None:
        use = _use(repo, "batch_size=4", OUTCOME, {}, base)
        return _BRIEF_ADAPTER.format(task=TASK, mark=MARK, title=title, pictures=pictures, use=use)
    return _BRIEF.format(task=TASK, mark=MARK, title=title, name=quoted(repo), pictures=pictures)


def name_repository(text: str, repo: str) -> str:
    """Return the card with the repository's name in its examples, in place of the folder's. Other texts stay."""
    if MARK not in text:
        return text
    repo, literal = quoted(repo)[1:-1], r'(?:[^"\\]|\\.)*'
    text = re.sub(rf'(TorchModel\.load\([^"]*"){literal}(/[^/"]*")', lambda m: m[1] + repo + m[2], text)
    loads = r"(?:Pipeline\.from_pretrained|\.load_lora_weights)"
    return re.sub(rf'({loads}\("){literal}(")', lambda m: m[1] + repo + m[2], text)


def _pictures(folder: Path, captions: Mapping[str, str]) -> list[str]:
    """Return Markdown of the pictures that exist."""
    return [
        f"![{escaped(caption, 'markdown')}]({quote(name)})\n\n"
        for name, caption in captions.items()
        if (folder / name).exists()
    ]


def _check_front(text: str, path: Path) -> None:
    """Raise ValueError for a card whose metadata are no YAML, or no entries by name."""
    front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    values = parse_yaml(front[1], str(path)) if front else {}
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path} begins with metadata that are no entries by name. Repair or remove it.")


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the valid entries of `evaluation` in metrics.json: each has a metric, its value and perhaps a protocol."""
    try:
        entries = read_object(folder / "metrics.json", TEXT_BYTES).get("evaluation") or []
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if is_entry(entry)] if isinstance(entries, list) else []


def is_entry(entry: Any) -> bool:
    """Return whether this is an entry of metrics.json: the text of a metric, its value, perhaps an interval."""
    if not isinstance(entry, dict) or not isinstance(entry.get("metric"), str) or not figure(entry.get("value")):
        return False
    interval = entry.get("interval")
    return not interval or (isinstance(interval, list) and len(interval) == 2 and all(map(figure, interval)))


def _protocol(entry: Mapping[str, Any]) -> str:
    """Return an entry's protocol and other fields in one line."""
    protocol = entry.get("protocol", {})
    columns = ("metric", "value", "interval", "protocol")
    rest = {key: value for key, value in entry.items() if key not in columns}
    parts = {**protocol, **rest} if isinstance(protocol, dict) else {"": protocol, **rest}
    return ", ".join(f"{key} {value}".strip() for key, value in parts.items()) or "not given"


def _interval(entry: Mapping[str, Any]) -> str:
    """Return the entry's confidence interval in brackets, or nothing."""
    low, high = entry.get("interval") or (None, None)
    return "" if low is None else f" ({low:.4g} to {high:.4g})"


def _row(*cells: Any) -> str:
    """Return a row of a table of Markdown."""
    return f"| {' | '.join(escaped(cell, 'markdown') for cell in cells)} |"


def _results(entries: list[dict[str, Any]]) -> str:
    """Return the section of results; without entries only its marks."""
    rows = "".join(_row(e["metric"], f"{e['value']:.4g}{_interval(e)}", _protocol(e)) + "\n" for e in entries)
    table = f"## Results\n\n| metric | value | protocol |\n|---|---|---|\n{rows}" if rows else ""
    return f"{_RESULTS[0]}\n{table}{_RESULTS[1]}\n"


def metric_id(name: str) -> str:
    """Return a metric's name in plain words, without features and numbers: "frechet_distance" of "Frechet distance
    (digits-cnn, f19612e28cdf)". The full name stands beside it."""
    words = re.split(r" \(|, ", name.lower())[0]
    return re.sub(r"[^a-z0-9]+", "_", words).strip("_") or "metric"


def _eval_results(entries: list[dict[str, Any]], data: str, task: str | None) -> list[Any]:
    """Return the entries as the Hub's metadata has them, for a task of the Hub or for none."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=data,
            dataset_name=escaped(entry.get("dataset", data)),
            metric_type=metric_id(escaped(entry["metric"])),
            metric_name=escaped(entry["metric"]),
            metric_value=entry["value"],
            metric_args={"protocol": escaped(_protocol(entry))},
        )
        for entry in entries
    ]
