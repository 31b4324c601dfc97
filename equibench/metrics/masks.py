"""How far a predicted mask is the annotated one: DAVIS's region similarity J and boundary accuracy F.

Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, section 5.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

TOLERANCE = 0.008
"""Of the image's diagonal: how far a boundary pixel may lie from the other boundary."""

_Mask = NDArray[np.bool_]


def region_similarity(predicted: _Mask, annotated: _Mask) -> float:
    """J, the intersection over the union of two masks (H, W), in [0, 1]; 1 where both are empty."""
    union = np.count_nonzero(predicted | annotated)
    return np.count_nonzero(predicted & annotated) / union if union else 1.0


def boundary_accuracy(predicted: _Mask, annotated: _Mask, tolerance: float = TOLERANCE) -> float:
    """F = 2 P R / (P + R) of the boundaries of two masks (H, W), in [0, 1].

    P is the share of the predicted boundary's pixels that lie within `tolerance` of the image's diagonal (rounded up to
    whole pixels) of the annotated boundary, R the share of that one's which lie so near the predicted one. It is 1
    where both masks have no boundary, and 0 where one has none.
    """
    reach = math.ceil(tolerance * math.hypot(*annotated.shape))
    ours, theirs = boundary(predicted), boundary(annotated)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    # what lies outside both boundaries' rectangle has no part in the distances between them
    rows, columns = (np.flatnonzero((ours | theirs).any(axis=axis)) for axis in (1, 0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ours, theirs = ours[window], theirs[window]
    precision = (distance_transform_edt(~theirs)[ours] <= reach).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= reach).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: _Mask) -> _Mask:
    """(H, W): pixels that differ from their right, lower or lower right neighbour inside the image."""
    wider = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != wider[:-1, 1:]) | (mask != wider[1:, :-1]) | (mask != wider[1:, 1:])
