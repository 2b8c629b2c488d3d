"""Pipelines over HTTP: routes, schemas, metrics and limits around a `hfgen.serving.engine.BatchEngine`."""
