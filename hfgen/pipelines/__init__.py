"""Stands for ../../pipelines in a checkout. An installed hfgen has the files of that folder here."""

from pathlib import Path as _Path

_source = _Path(__file__).resolve().parents[2] / "pipelines"
__path__ = [str(_source)]
exec(compile((_source / "__init__.py").read_text(encoding="utf-8"), str(_source / "__init__.py"), "exec"))
