"""Pair manifests on disk: the stored form of what every encoder is scored on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equibench.data.pairs import Pairs
from equibench.files import write_atomically


def store_pairs(pairs: Pairs, name: str, folder: Path) -> Path:
    """Write a manifest once, under its name and the start of its digest; returns the file.

    The file holds `image` (N,) indices into each split's images, `theta` (N, P), `sizes` of train, val and test,
    and `sha256`.
    """
    path = folder / f"{name}-{pairs.sha256[:16]}.npz"
    if not path.exists():
        arrays = {"image": pairs.image, "theta": pairs.theta, "sizes": np.array(pairs.sizes)}
        write_atomically(path, lambda temporary: np.savez(temporary, sha256=np.array(pairs.sha256), **arrays))  # type: ignore[arg-type]
    return path
