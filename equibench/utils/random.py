"""Random numbers that depend on names alone: the same on every machine, in every process, in any order."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniforms(shape: tuple[int, int], *key: object) -> NDArray[np.float64]:
    """Numbers in [0, 1) that depend only on the key and on the row, not on the number of rows."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    philox = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
    return np.random.Generator(philox).random(shape)


def rows_of_uniforms(first: int, shape: tuple[int, int], *key: object) -> NDArray[np.float64]:
    """Rows `first` and following of what `uniforms` draws for the key, without drawing the rows before them."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    skipped, rest = divmod(first * shape[1], 4)  # Philox makes four numbers a step
    philox = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)).advance(skipped)
    return np.random.Generator(philox).random(rest + shape[0] * shape[1])[rest:].reshape(shape)
