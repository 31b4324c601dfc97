"""A contact sheet: one picture that shows some views of some objects of data in the layout of 3DIEBench."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from equibench.errors import UserError
from equibench.files import write_atomically

GAP = 3  # pixels between the pictures


def contact_sheet(
    root: Path | str, path: Path | str, *, objects: int = 10, views: int = 8, cell: int | None = None
) -> Path:
    """Writes a PNG with one row of views for each object, and returns its path.

    The objects are taken from each class in turn, those for training before those for validation.

    Args:
        root: the folder that holds train_images.npy and val_images.npy.
        objects: rows at most, 1 or more.
        views: columns, views 0, 1, ...; 1 or more.
        cell: side of each picture in pixels; that of the first one if not given.

    Raises:
        UserError: a list or a picture is missing or does not decode; the file cannot be written; a number is too small.
    """
    root, path = Path(root).expanduser(), Path(path).expanduser()
    for name, value in (("objects", objects), ("views", views), ("cell", cell or 1)):
        if value < 1:
            raise UserError(f"{name}={value} is too small.", f"Give {name} of 1 or more.")
    rows = [[root / entry / f"image_{view}.jpg" for view in range(views)] for entry in _choose(root, objects)]
    with _open(rows[0][0]) as first:
        side = cell or first.width
    step = side + GAP
    sheet = Image.new("RGB", (views * step + GAP, len(rows) * step + GAP), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            with _open(picture) as opened:
                image = opened.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(image, (GAP + column * step, GAP + row * step))
    write_atomically(path, lambda temporary: sheet.save(temporary, "PNG", optimize=True))
    return path


def _choose(root: Path, count: int) -> list[str]:
    """The first of each class, then the second of each, as paths below the root."""
    by_class: dict[str, list[str]] = {}
    for split in ("train", "val"):
        file = root / f"{split}_images.npy"
        try:
            entries = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} cannot be read: {error}", "Give a folder as `equibench data render` writes it."
            ) from error
        for entry in sorted(str(value).strip("/") for value in entries):
            by_class.setdefault(entry.split("/")[0], []).append(entry)
    turns = zip_longest(*(by_class[name] for name in sorted(by_class)))
    chosen = [entry for turn in turns for entry in turn if entry][:count]
    if not chosen:
        raise UserError(f"{root} lists no objects.", "Give a folder as `equibench data render` writes it.")
    return sorted(chosen)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} cannot be shown: {error}", "Ask for fewer views, or mend the data.") from error
