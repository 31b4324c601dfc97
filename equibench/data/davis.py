"""DAVIS-2017's validation videos in their published layout: frames, and a mask of numbered objects for each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from equibench.data.contents import file_digests
from equibench.data.dataset import data_roots
from equibench.data.pictures import read_picture
from equibench.data.transfer_sources import is_generated
from equibench.errors import UserError
from equibench.utils.files import digest_of

DAVIS_FOLDER = "DAVIS"  # that of the published archive
DAVIS_LAYOUT = f"""\
the layout of DAVIS-2017 (DAVIS-2017-trainval-480p.zip from https://davischallenge.org) is
  {DAVIS_FOLDER}/ImageSets/2017/val.txt            (a video's name on each line)
  {DAVIS_FOLDER}/JPEGImages/480p/<video>/00000.jpg, ...
  {DAVIS_FOLDER}/Annotations/480p/<video>/00000.png, ...  (one channel: 0 = background, then the objects' numbers)"""
_LIST = "ImageSets/2017/val.txt"
_PLACES = ("", DAVIS_FOLDER, "DAVIS-2017", "davis2017")
_PUBLISHED = (30, 1999)
"""Videos of the validation list, and frames of all of them."""
_FEWEST = 3
"""Frames: the first is given, the last is not scored."""
VOID = 255


@dataclass(frozen=True)
class Video:
    """One video: the files of its frames and of their masks, in order."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]


@dataclass(frozen=True)
class DavisData:
    """The videos of the validation list."""

    name: str  # "davis2017", with "rendered-" before it where a note in the folder says that they are generated
    videos: tuple[Video, ...]
    sha256: str  # digest of every file's name and of what it holds


def find_davis(data_root: Path | str | None = None) -> Path:
    """The folder of DAVIS-2017, at or below `data_root`, or else $EQUIBENCH_DATA.

    Raises:
        UserError: it is not there; the message draws the layout.
    """
    given, where = data_roots(data_root, DAVIS_LAYOUT)
    root = next((base / place for base in given for place in _PLACES if (base / place / _LIST).is_file()), None)
    if root is None:
        fix = f"give the folder by --data-root or $EQUIBENCH_DATA; {DAVIS_LAYOUT}"
        raise UserError(f"DAVIS-2017 is not in {where}", fix)
    return root


@lru_cache(maxsize=2)  # every row of a score asks for the same videos
def load_davis(root: Path) -> DavisData:
    """List the validation videos of a folder that `find_davis` has found.

    Raises:
        UserError: the list is empty, names a video twice or one that is not there; a frame has no mask or a mask no
            frame; a video has fewer than 3 frames; the numbers are not the published ones.
    """
    names = [line.strip() for line in (root / _LIST).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        problem = "names no video" if not names else "names a video twice"
        raise UserError(f"{root / _LIST} {problem}", "put the published list there")
    videos = tuple(_video(root, name) for name in names)
    counts = (len(videos), sum(len(video.frames) for video in videos))
    generated = is_generated(root)
    if not generated and counts != _PUBLISHED:
        problem = "{} holds {} videos of {:,} frames, DAVIS-2017's list {} of {:,}".format(root, *counts, *_PUBLISHED)
        raise UserError(problem, "fetch the complete data: a selection must not be scored under their name")
    paths = [path.relative_to(root).as_posix() for video in videos for path in (*video.frames, *video.masks)]
    return DavisData("rendered-" * generated + "davis2017", videos, digest_of([paths, *file_digests(root, paths)]))


def missing_davis(data_root: Path | str | None = None) -> str:
    """Where to put the folder if it is not there; else ""."""
    try:
        find_davis(data_root)
    except UserError:
        return f"put the folder {DAVIS_FOLDER} below --data-root or $EQUIBENCH_DATA"
    return ""


def read_frame(path: Path) -> NDArray[np.uint8]:
    """(3, H, W) uint8; a UserError names a file that does not decode."""
    try:
        return np.asarray(read_picture(path, turn=False)).transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise _undecodable(path, error) from error


def read_mask(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8 numbers of objects, 0 for the background and for what is annotated as void (255).

    Raises:
        UserError: the file does not decode, or has several channels.
    """
    try:
        with Image.open(path) as opened:
            mask = np.asarray(opened)  # the numbers themselves, and not the colours of a palette
    except Exception as error:  # as above
        raise _undecodable(path, error) from error
    if mask.ndim != 2:
        raise UserError(f"{path} has {mask.shape[-1]} channels, and a mask has one", "put the published masks there")
    return np.where(mask == VOID, 0, mask).astype(np.uint8)


def _undecodable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be decoded: {error}", "fetch the file again")


def _video(root: Path, name: str) -> Video:
    folders = [root / kind / "480p" / name for kind in ("JPEGImages", "Annotations")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}, which {root / _LIST} names, is missing", DAVIS_LAYOUT)
    frames, masks = sorted(folders[0].glob("*.jpg")), sorted(folders[1].glob("*.png"))
    if odd := sorted({path.stem for path in frames} ^ {path.stem for path in masks}):
        raise UserError(f"frame {odd[0]} of {name} is in one of {folders[0]} and {folders[1]} only", DAVIS_LAYOUT)
    if len(frames) < _FEWEST:
        raise UserError(f"{folders[0]} holds {len(frames)} frames", f"a video has {_FEWEST} frames or more")
    return Video(name, tuple(frames), tuple(masks))
