"""Leads to ../../pipelines in a checkout. An installed hfgen holds that package itself, in this place."""

from pathlib import Path as _Path

_source = _Path(__file__).resolve().parents[2] / "pipelines"
__path__ = [str(_source)]
exec(compile((_source / "__init__.py").read_text(encoding="utf-8"), str(_source / "__init__.py"), "exec"))
