"""Measures of anomaly detection. Detectors give each item a score: the higher, the more anomalous."""

import torch
from torch import Tensor

from ..utils.arguments import checked


@checked
def auroc(normal: Tensor, anomalous: Tensor) -> float:
    """Compute the area under the receiver operating characteristic, for scores (N,) and (M,).

    It is the probability that an anomalous item has a higher score than a normal one, where ties count half (Hanley &
    McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747).

    Raises:
        ValueError: one side has no scores, or a score is NaN.
    """
    normal, anomalous = (scores.detach().double().cpu().flatten() for scores in (normal, anomalous))
    if not (len(normal) and len(anomalous)) or normal.isnan().any() or anomalous.isnan().any():
        raise ValueError(
            f"{len(normal)} normal and {len(anomalous)} anomalous scores: both sides need one or more, and none is NaN."
        )
    ascending = normal.sort().values
    below, up_to = (torch.searchsorted(ascending, anomalous, right=right) for right in (False, True))
    return float((below + up_to).double().mean()) / (2 * len(normal))
