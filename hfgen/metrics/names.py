"""Names of metrics, for readers of reports as well. This module imports no torch."""

STANDARD_NAMES = {"Frechet distance": "FID", "kernel distance": "KID", "classifier score": "Inception Score"}
"""Names of the measures with the standard Inception network, and with no other."""

NO_FEATURES = "none"
"""Name of the features for measures that compare none."""

JOINT = "geometric mean of Frechet distances"
"""Beginning of the name of the number that samples are ranked by, where several networks measured them."""
