"""Families at work on points in the plane, where all that they learn can be seen."""
