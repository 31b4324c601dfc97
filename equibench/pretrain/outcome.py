"""What a run has learned: means of held-out diagnostics, and whether the halves of the features are two."""

import numpy as np
import torch

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.batches import PairStream
from equibench.pretrain.method import Baseline, encode_pair

OVERLAP_IMAGES = 2560
"""Validation images, of which one half fits the linear map between the halves and the other tests it."""
_PENALTIES = np.logspace(-4, 4, 9)


def held_out_diagnostics(
    method: Baseline, encoder: ViTEncoder, stream: PairStream, batch: int, batches: int
) -> dict[str, float]:
    """Means of a method's diagnostics over the first batches of a held-out stream; both modules are in eval mode."""
    found = []
    for number in range(batches):
        views = stream.batch(number * batch, batch, encoder)
        found.append(method.diagnostics(views, encode_pair(encoder, views)))
    return {name: float(np.mean([float(each[name]) for each in found])) for name in found[0]}


def halves_overlap(encoder: ViTEncoder, stream: PairStream, batch: int) -> float:
    """R² of the equivariant half as a linear function of the invariant one (docs/protocol.md 6.11).

    Ridge regression between the halves of the representations of untransformed images, its penalty chosen by
    leave-one-out on every other image and the R², the mean over dimensions, taken on the rest. 1: the equivariant
    half holds nothing of its own that a linear map could tell; 0: it shares nothing linearly.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = stream.spread_rows(OVERLAP_IMAGES)
    parts = [stream.pictures(rows[start : start + batch], encoder) for start in range(0, len(rows), batch)]
    features = torch.cat([encoder.tokens(part).mean for part in parts]).double().cpu().numpy()
    invariant, equivariant = np.split(features, [encoder.invariant], axis=1)
    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES)).fit(invariant[::2], equivariant[::2])
    return float(model.score(invariant[1::2], equivariant[1::2]))
