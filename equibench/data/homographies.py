"""S-COCO: pairs of patches of a picture with a homography between them (DeTone et al., arXiv 1606.03798, section 3).

A picture is resized to 320 x 240 px. A patch of 128 x 128 px is cut out at least 32 px away from the rim, and each of
its corners moved by up to 32 px in x and y. The second patch shows at each place what the picture holds at the place
that the homography of the four corners leads to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.nn.functional import grid_sample

from equibench.data.contents import file_digests
from equibench.data.dataset import data_roots
from equibench.data.pictures import is_picture, picture_suffixes, read_picture
from equibench.errors import UserError
from equibench.utils.arrays import decode_all
from equibench.utils.files import digest_of
from equibench.utils.random import uniforms

WIDTH, HEIGHT, PATCH, REACH = 320, 240, 128, 32
"""In pixels: a picture's sides, a patch's side, and how far a corner moves at most."""
COCO_FOLDER = "coco"
PICTURE_LAYOUT = f"""\
the pictures lie as those of COCO 2017 (http://images.cocodataset.org/zips/train2017.zip and val2017.zip) do,
  {COCO_FOLDER}/train2017/000000000009.jpg, ...
  {COCO_FOLDER}/val2017/000000000139.jpg, ...
and may be any others in two such folders"""
_FOLDERS = {"train": "train2017", "test": "val2017"}
_PUBLISHED = {"train": 118_287, "test": 5_000}

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class HomographyPairs:
    """So many pairs, one of a picture."""

    name: str  # "coco2017" where the folders hold as many pictures as that; else the folder's name and "-pictures"
    files: dict[str, tuple[Path, ...]]  # by split: train, test
    origin: dict[str, _Floats]  # (N, 2) x and y in whole pixels of the first patch's upper left corner in the picture
    corners: dict[str, _Floats]  # (N, 4, 2) x and y by which the homography moves each of the patch's `CORNERS`
    sha256: str  # digest of what the pictures' files hold, and of the draws


CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64) * (PATCH - 1)
"""(4, 2) x and y in a patch, in pixels from the middle of its first one."""


def find_pictures(data_root: Path | str | None = None) -> Path:
    """The folder that holds train2017/ and val2017/, at or below `data_root`, or else $EQUIBENCH_DATA.

    Raises:
        UserError: it is not there; the message draws the layout.
    """
    given, where = data_roots(data_root, PICTURE_LAYOUT)
    places = [base / below for base in given for below in ("", COCO_FOLDER, "COCO")]
    root = next((place for place in places if all((place / one).is_dir() for one in _FOLDERS.values())), None)
    if root is None:
        fix = f"give the folder by --data-root or $EQUIBENCH_DATA; {PICTURE_LAYOUT}"
        raise UserError(f"there are no pictures for homographies in {where}", fix)
    return root


def missing_pictures(data_root: Path | str | None = None) -> str:
    """Where to put the folders if they are not there; else ""."""
    try:
        find_pictures(data_root)
    except UserError:
        return f"put {COCO_FOLDER}/train2017 and {COCO_FOLDER}/val2017 below --data-root or $EQUIBENCH_DATA"
    return ""


@lru_cache(maxsize=4)  # every row of a score asks for the same pairs
def draw_homographies(root: Path, sizes: tuple[int, int]) -> HomographyPairs:
    """So many training and test pairs, or one of each picture where there are fewer; drawn by counter, not in turn.

    Raises:
        UserError: a folder holds no pictures.
    """
    files, origin, corners, there = {}, {}, {}, {}
    for (split, folder), size in zip(_FOLDERS.items(), sizes, strict=True):
        found = [entry.name for entry in os.scandir(root / folder) if is_picture(entry.name)]
        if not found:
            raise UserError(
                f"{root / folder} holds no pictures", f"pictures end in {', '.join(sorted(picture_suffixes()))}"
            )
        order = np.argsort(uniforms((len(found), 1), "homography", split, "pictures")[:, 0], kind="stable")[:size]
        files[split] = tuple(root / folder / sorted(found)[number] for number in order)
        drawn = uniforms((len(order), 10), "homography", split)
        room = np.array([WIDTH, HEIGHT]) - PATCH - 2 * REACH
        origin[split] = REACH + np.floor(drawn[:, :2] * (room + 1))
        corners[split] = (REACH * (2 * drawn[:, 2:] - 1)).reshape(-1, 4, 2)
        there[split] = len(found)
    said = [[*file_digests(root, [str(path.relative_to(root)) for path in files[split]])] for split in _FOLDERS]
    draws = [values.tolist() for drawn in (origin, corners) for values in drawn.values()]
    name = "coco2017" if there == _PUBLISHED else f"{root.resolve().name}-pictures"
    return HomographyPairs(name, files, origin, corners, digest_of([said, draws]))


@dataclass(frozen=True)
class Patches:
    """One patch of each pair, cut out of its picture when it is asked for: uint8 (N, 3, 128, 128).

    Args:
        files: the pictures.
        origin: (N, 2), see `HomographyPairs`.
        corners: (N, 4, 2) likewise, for the second patches; zeros for the first ones.
    """

    files: Sequence[Path]
    origin: _Floats
    corners: _Floats

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), 3, PATCH, PATCH)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        pictures = np.stack(list(decode_all(self.files[rows], _picture)))
        y, x = np.mgrid[:PATCH, :PATCH]
        places = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
        homography = fit_homography(CORNERS, CORNERS + self.corners[rows])
        shown = apply_homography(homography, places) + self.origin[rows][:, None]
        # grid_sample counts from -1, the first pixel's outer side, to 1
        grid = torch.from_numpy((2 * shown + 1) / [WIDTH, HEIGHT] - 1).view(len(pictures), PATCH, PATCH, 2)
        images = grid_sample(torch.from_numpy(pictures).double(), grid, mode="bilinear", align_corners=False)
        return images.round().clamp(0, 255).byte().numpy()


def fit_homography(start: ArrayLike, end: ArrayLike) -> _Floats:
    """The homographies (N, 3, 3), with 1 in their last place, that lead K >= 4 places to others by least squares.

    Of four places it is exact. What is least is the algebraic error, which for small displacements is nearly that in
    pixels (Hartley and Zisserman 2004, 4.1.2, with coordinates scaled to about 1).

    Args:
        start: (K, 2) places x, y, the same for all; end: (N, K, 2) where they are led to.
    """
    scale = PATCH / 2
    (x, y), there = np.asarray(start, dtype=np.float64).T / scale - 1, np.asarray(end, dtype=np.float64) / scale - 1
    u, v = there[..., 0], there[..., 1]
    x, y = np.broadcast_to(x, u.shape), np.broadcast_to(y, u.shape)
    one, zero = np.ones_like(u), np.zeros_like(u)
    rows_u = np.stack([x, y, one, zero, zero, zero, -x * u, -y * u], axis=-1)
    rows_v = np.stack([zero, zero, zero, x, y, one, -x * v, -y * v], axis=-1)
    system, target = np.concatenate([rows_u, rows_v], axis=1), np.concatenate([u, v], axis=1)
    normal, right = system.mT @ system, system.mT @ target[..., None]
    entries = np.linalg.solve(normal, right)[..., 0]
    found = np.concatenate([entries, np.ones((len(entries), 1))], axis=1).reshape(-1, 3, 3)
    to_unit = np.array([[1 / scale, 0, -1], [0, 1 / scale, -1], [0, 0, 1]])
    whole = np.linalg.inv(to_unit) @ found @ to_unit
    return np.asarray(whole / whole[:, 2:, 2:])


def apply_homography(homography: _Floats, places: ArrayLike) -> _Floats:
    """Where homographies (N, 3, 3) lead places (K, 2): (N, K, 2)."""
    flat = np.asarray(places, dtype=np.float64)
    led = np.concatenate([flat, np.ones((len(flat), 1))], axis=1) @ homography.mT
    return np.asarray(led[..., :2] / led[..., 2:])


def _picture(path: Path) -> NDArray[np.uint8]:
    """(3, 240, 320) uint8, whatever the picture's sides."""
    try:
        resized = read_picture(path, turn=False).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        return np.asarray(resized).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise UserError(f"{path} cannot be decoded: {error}", "replace or remove the file") from error
