"""How well scores tell anomalous items from normal ones; the higher a score, the more anomalous."""

import torch
from torch import Tensor


def auroc(normal: Tensor, anomalous: Tensor) -> float:
    """The probability that an anomalous item scores above a normal one, ties counting half: the area under the receiver
    operating characteristic (Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747), for scores (N,)
    and (M,).

    Raises:
        ValueError: no scores on one side, or scores that are not numbers.
    """
    normal, anomalous = (scores.detach().double().cpu().flatten() for scores in (normal, anomalous))
    if not (len(normal) and len(anomalous)) or normal.isnan().any() or anomalous.isnan().any():
        raise ValueError(f"{len(normal)} normal and {len(anomalous)} anomalous scores: both need numbers.")
    ordered = normal.sort().values
    below, up_to = (torch.searchsorted(ordered, anomalous, right=right) for right in (False, True))
    return float((below + up_to).double().mean()) / (2 * len(normal))
