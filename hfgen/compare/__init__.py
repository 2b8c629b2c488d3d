"""`hfgen compare`: every family on the same data, under the same budget, measured by the same protocol."""
