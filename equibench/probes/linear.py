"""The linear probe: ridge regression on both views' representations, its penalty chosen on the validation split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from equibench.probes.mlp import Split

PENALTIES = tuple(10.0**power for power in range(-2, 6))


def fit_linear(splits: Mapping[str, Split], columns: slice) -> NDArray[np.float64]:
    """Test predictions (N, K) in the targets' coding.

    Args:
        splits: "train", "val" and "test". The test targets are never read.
        columns: which columns of a view's representation the probe sees.
    """
    scaler = StandardScaler().fit(_inputs(splits["train"], columns))
    inputs = {name: scaler.transform(_inputs(split, columns)) for name, split in splits.items()}
    best, lowest = None, np.inf
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty).fit(inputs["train"], splits["train"].targets)
        error = float(np.square(model.predict(inputs["val"]) - splits["val"].targets).mean())
        if error < lowest:
            best, lowest = model, error
    assert best is not None
    return np.asarray(best.predict(inputs["test"]), dtype=np.float64).reshape(len(inputs["test"]), -1)


def _inputs(split: Split, columns: slice) -> NDArray[np.float64]:
    """Both views side by side, (N, 2 D)."""
    both = split.read(slice(0, len(split.targets)))[:, :, columns]
    return both.reshape(len(both), -1).astype(np.float64)
