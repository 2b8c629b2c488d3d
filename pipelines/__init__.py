"""Pipelines: how to draw from a trained model, one family a file."""
