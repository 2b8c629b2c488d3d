"""Families at work on points in the plane, where everything that a model learns can be drawn."""
