"""Measurements in a JSON file: an interrupted benchmark goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Measured:
    """Values by key, each written as soon as it is measured.

    Args:
        file: JSON file; made with its folder by the first measurement.
        settings: what all values depend on. A file with others is refused.

    Raises:
        SystemExit: the file was measured with other settings.
    """

    def __init__(self, file: Path, settings: dict[str, Any]):
        self.file, settings = file, json.loads(json.dumps(settings))
        before = json.loads(file.read_text()) if file.is_file() else {}
        if before.get("settings", settings) != settings:
            raise SystemExit(
                f"error: {file} was measured with {before['settings']}, not with {settings}. Give another --output_dir."
            )
        self.settings, self.values = settings, before.get("values", {})

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return the value of a key, measured now if the file has none."""
        if key not in self.values:
            self.set(key, measure())
        return self.values[key]

    def set(self, key: str, value: Any) -> None:
        """Write a value and the file."""
        self.values[key] = json.loads(json.dumps(value))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps({"settings": self.settings, "values": self.values}, indent=2) + "\n")
        draft.replace(self.file)
