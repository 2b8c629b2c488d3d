"""Evaluation of pipelines and folders of images: metrics with their protocol."""
