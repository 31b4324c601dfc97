"""Small generated videos in DAVIS-2017's layout: blue noise drifts left behind red and green discs that drift right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from equibench.data.transfer_sources import GENERATED

SIZE = (120, 220)  # 4 px a token of the grid of 30 x 55
STEP = 4  # px a frame
COLOURS = np.array([[20, 20, 180], [180, 20, 20], [20, 180, 20]], np.uint8)  # ground, first and second disc


def write_videos(root: Path, names: tuple[str, ...] = ("one", "two"), frames: int = 4, step: int = STEP) -> Path:
    """Writes `DAVIS` into `root`; the second video has two objects, and all have the same number of frames."""
    folder = root / "DAVIS"
    (folder / "ImageSets/2017").mkdir(parents=True)
    (folder / GENERATED).write_text("generated\n")
    (folder / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in names))
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 60, (2, SIZE[0], SIZE[1] + 200, 3), np.uint8)
        for kind in ("JPEGImages", "Annotations"):
            (folder / kind / "480p" / name).mkdir(parents=True)
        for at in range(frames):
            mask = masks_of(number % 2 + 1, step * at)
            ground, discs = noise[0, :, step * at :], np.roll(noise[1], step * at, axis=1)
            picture = np.where(mask[..., None] > 0, discs[:, : SIZE[1]], ground[:, : SIZE[1]]) + COLOURS[mask]
            Image.fromarray(picture).save(folder / f"JPEGImages/480p/{name}/{at:05}.jpg", quality=95)
            annotation = Image.fromarray(mask)
            annotation.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            annotation.save(folder / f"Annotations/480p/{name}/{at:05}.png")
    return folder


def masks_of(objects: int, shift: int) -> np.ndarray:
    """(H, W) uint8: discs of radius 20 px, numbered from 1, moved to the right by so many pixels."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = np.zeros(SIZE, np.uint8)
    for number in range(objects):
        mask[np.hypot(x - (50 + 80 * number + shift), y - 60) <= 20] = number + 1
    return mask
