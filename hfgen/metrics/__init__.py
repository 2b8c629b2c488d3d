"""Metrics: tensors -> numbers. Feature networks, distances between sets of samples, and measurements with intervals."""
