"""Comparison of families: the same data, the same budget, the same metrics; reports and recommendations."""
