"""Pipelines, one family a file, and what they share: `base`, `parts`, `inputs`, `sampling`, `latents`."""
