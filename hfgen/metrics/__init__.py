"""Tensors -> numbers: feature networks, distances, and the protocol that goes with every figure."""
