"""ADE20K's layout: the published data, found and checked; and rendered scenes in it, every pixel's class known.

The scenes are solids before textured grounds. They are a data set of their own, "rendered-scenes", and no measure of
what an encoder does on photographs.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from equibench.data import solids
from equibench.data.contents import file_digests
from equibench.data.dataset import data_roots
from equibench.data.pictures import is_picture
from equibench.errors import UserError
from equibench.utils.arrays import cache_folder, decode_all, progress, read_json, writing_to_cache
from equibench.utils.digests import code_digest
from equibench.utils.download import exclusive
from equibench.utils.files import write_text
from equibench.utils.random import uniforms

NAME = "ADEChallengeData2016"
_KINDS = ("images", "annotations")
ADE20K_SPLITS = ("training", "validation")
IMAGE, MASK = ".jpg", ".png"
CLASSES = 150
COUNTS = {"training": 20_210, "validation": 2_000}
"""Published images of each split."""
_VERSION = 2  # raised whenever another thing is checked

LAYOUT = f"""\
the layout of ADE20K is
  ade/{NAME}/images/training/*.jpg
  ade/{NAME}/images/validation/*.jpg
  ade/{NAME}/annotations/training/*.png    (one channel: 0 = other, 1 to 150 = classes)
  ade/{NAME}/annotations/validation/*.png"""

RENDERED_SCENES = "rendered-scenes"
GROUNDS = ("clouds", "stripes")
SCENE_CLASSES = (*solids.CLASS_NAMES, *GROUNDS)
"""Of labels 1 to 12. ADE20K's own names for these labels (wall, building, ...) do not fit."""

_SMALLEST = 32
DRAWS, CELLS = 40, 8  # numbers that a picture takes, and cells of the coarse noise along each side
QUALITY = 95  # of the JPEGs


def rendered_scenes_folder(images: tuple[int, int] = (200, 50), size: int = 96, seed: int = 0) -> Path:
    """The generated tree in the cache, made where it is not there; arguments and errors as for `write_scenes`."""
    # named by the generator's code, so that pictures of another version are not taken for its
    key = f"{code_digest(write_scenes)[:12]}-{images[0]}-{images[1]}-{size}-{seed}"
    folder = cache_folder() / RENDERED_SCENES / key
    if folder.is_dir():
        return folder
    with writing_to_cache():
        folder.parent.mkdir(exist_ok=True)
        with exclusive(folder.parent / ".render.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                write_scenes(folder, images=images, size=size, seed=seed)
    return folder


def write_scenes(root: Path | str, *, images: tuple[int, int] = (200, 50), size: int = 96, seed: int = 0) -> Path:
    """Write a tree in ADE20K's layout, all or nothing.

    A picture shows two to four solids before a ground that is divided in two, of clouds or stripes. Its label is 1 to
    10 for the solids (in the order of their names), 11 and 12 for the grounds, and 0, "other", on the rim of a solid,
    where both mix. Picture n of a split depends on nothing but (seed, split, n, size).

    Args:
        root: the folder to make, which is returned.
        images: how many for training and for validation, at least 1 each.
        size: height in pixels, at least 32; every other picture is a quarter wider than high.
        seed: which stream.

    Raises:
        UserError: a number is out of range, the folder exists and is not empty, or cannot be written.
    """
    root = Path(root).expanduser()
    if len(images) != 2 or min(images) < 1 or size < _SMALLEST:
        fix = f"give two numbers of at least 1 (training, validation) and {_SMALLEST} px or more"
        raise UserError(f"images={images} of size={size} cannot be generated", fix)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not an empty folder", "choose another folder")
    scratch = root.parent / f".unfinished-{uuid.uuid4().hex}"
    entries = [(split, n) for split, count in zip(ADE20K_SPLITS, images, strict=True) for n in range(count)]
    try:
        for kind in _KINDS:
            for split in ADE20K_SPLITS:
                (scratch / NAME / kind / split).mkdir(parents=True)
        with progress(f"rendering {RENDERED_SCENES}", len(entries)) as advance:
            for split, number in entries:
                files = _files(split, f"{number + 1:06d}{IMAGE}")
                for file, pixels in zip(files, picture(split, number, size, seed), strict=True):
                    Image.fromarray(pixels).save(scratch / NAME / file, quality=QUALITY)
                advance()
        os.replace(scratch, root)  # over an empty folder, or none
    except OSError as error:
        problem = f"{root} cannot be written: {error.strerror or error}"
        raise UserError(problem, "free some space or choose another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def picture(split: str, number: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture (H, W, 3) and its labels (H, W)."""
    from scipy import ndimage

    u = uniforms((1, DRAWS + 2 * CELLS * CELLS), "ade20k-generated", seed, split, number)[0]
    width = size if number % 2 == 0 else size * 5 // 4
    image, label = _ground(u, size, width)
    # ten solids in a row show each kind once, so a stream of all pictures' solids shows all kinds alike often
    stream = 2 * seed + ADE20K_SPLITS.index(split)
    for place in range(2 + int(3 * u[20])):  # each before the ground and before earlier ones
        share, across, down = u[21 + 3 * place : 24 + 3 * place]
        side = int(size * (0.45 + 0.3 * share))
        solid = solids.render_solids(1, size=side, seed=stream, start=4 * number + place)
        left, top = int(across * (width - side)), int(down * (size - side))
        window, mask = np.s_[top : top + side, left : left + side], solid.masks[0]
        image[window][mask] = solid.images[0].transpose(1, 2, 0)[mask]
        label[window][mask] = 0
        label[window][ndimage.binary_erosion(mask)] = int(solid.labels[0]) + 1
    return image, label


def _ground(u: NDArray[np.float64], height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture without solids: two grounds, divided by a straight line through its middle half."""
    y, x = np.mgrid[0:height, 0:width] / height
    angle, offset = 2 * np.pi * u[0], 0.5 * (u[1] - 0.5)
    first = (x - width / height / 2) * np.cos(angle) + (y - 0.5) * np.sin(angle) > offset
    image, label = np.empty((height, width, 3), np.uint8), np.empty((height, width), np.uint8)
    for part, where in enumerate((first, ~first)):
        kind, draws = int(2 * u[2 + part]), u[4 + 8 * part : 12 + 8 * part]
        if GROUNDS[kind] == "clouds":  # coarse noise, made smooth
            noise = u[DRAWS + part * CELLS * CELLS :][: CELLS * CELLS].reshape(CELLS, CELLS)
            coarse = Image.fromarray((255 * noise).astype(np.uint8))
            shade = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255
        else:  # waves of 6 to 12 to the picture's height
            along = x * np.cos(np.pi * draws[0]) + y * np.sin(np.pi * draws[0])
            shade = 0.5 + 0.5 * np.sin(2 * np.pi * (6 + 6 * draws[1]) * along)
        dark, bright = 40 + 80 * draws[2:5], 140 + 100 * draws[5:8]
        image[where] = (dark + shade[..., None] * (bright - dark))[where].astype(np.uint8)
        label[where] = len(solids.CLASS_NAMES) + 1 + kind
    return image, label


@dataclass(frozen=True)
class CheckedTree:
    """A tree of which every file has been decoded."""

    root: Path  # the folder that holds images/ and annotations/
    images: dict[str, tuple[str, ...]]  # the good ones by split, sorted, relative to images/SPLIT
    bad: tuple[tuple[str, str], ...]  # (file or folder, what is wrong) for each that was left out
    pixels: NDArray[np.int64]  # (classes,), how many pixels of the training annotations each class has
    sha256: str  # digest of the files' paths and of what they hold

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The good images by split, without suffix."""
        return {split: tuple(map(_stem, files)) for split, files in self.images.items()}


def find_ade20k(data_root: Path | str | None = None) -> Path:
    """The folder that holds images/ and annotations/, at or below `data_root`, or else $EQUIBENCH_DATA.

    A UserError draws the layout where it is not there.
    """
    given, where = data_roots(data_root, LAYOUT)
    places = [base / below for base in given for below in ("", NAME, f"ade/{NAME}")]
    root = next((place for place in places if all((place / kind).is_dir() for kind in _KINDS)), None)
    if root is None:
        raise UserError(f"ADE20K is not in {where}", f"give the folder by --data-root or $EQUIBENCH_DATA; {LAYOUT}")
    for folder in (root / kind / split for kind in _KINDS for split in ADE20K_SPLITS):
        if not folder.is_dir():
            raise UserError(f"{folder} is missing", LAYOUT)
    return root


def check_tree(data_root: Path | str | None = None, *, classes: int = CLASSES, skip_bad: bool = False) -> CheckedTree:
    """Decode every image and annotation once, and count the training annotations' pixels; the cache keeps the result.

    Args:
        data_root: a folder with ADE20K, see `find_ade20k`.
        classes: the largest label that an annotation may have.
        skip_bad: leave out bad images instead of refusing them.

    Raises:
        UserError: folders are missing; a split has no (good) image, or two images of one name; and, unless `skip_bad`,
            there are more or fewer images than published (of 150 classes), an image has no annotation or an annotation
            no image, a file does not decode, an annotation is of another size than its image, has several channels
            or a label beyond `classes`. The message names the file.
    """
    root = find_ade20k(data_root)
    entries = [(split, image) for split in ADE20K_SPLITS for image in _images(root / "images" / split)]
    absent = [*_unpublished(entries, classes), *_without_image(root, entries)]
    if absent and not skip_bad:
        raise _refused(root, *absent[0])
    files = [file for entry in entries for file in _files(*entry)]
    digest = hashlib.sha256(f"{_VERSION}|{classes}|".encode())
    for file, found_in in zip(files, file_digests(root, files, skip_bad=True), strict=True):
        digest.update(f"|{found_in}|".encode() + os.fsencode(file))
    sha256 = digest.hexdigest()
    with writing_to_cache() as cache:
        folder = cache / "checked"
        folder.mkdir(exist_ok=True)
        record = folder / f"ade20k-{sha256[:16]}.json"
        with exclusive(folder / ".ade20k.lock"):  # of several processes one looks, the others read what it found
            found = read_json(record)
            if found.get("sha256") != sha256:
                found = {"sha256": sha256, **_look(root, entries, classes, skip_bad)}
                write_text(record, json.dumps(found))
    bad = found["bad"]
    if bad and not skip_bad:  # another call had asked to leave them out
        raise _refused(root, *bad[0][2:])
    out = {(split, image) for split, image, _, _ in bad}
    good = {split: tuple(image for s, image in entries if s == split and (s, image) not in out) for split in COUNTS}
    for split, images in good.items():
        if not images:
            raise UserError(f"no image of {root / 'images' / split} is good", f"the first: {bad[0][2]}: {bad[0][3]}")
    left_out = (*absent, *((file, reason) for _, _, file, reason in bad))
    return CheckedTree(root, good, left_out, np.array(found["pixels"], dtype=np.int64), sha256)


def label_areas(tree: CheckedTree) -> NDArray[np.int64]:
    """Pixels of each class in each validation annotation, (N, classes): what is known without any prediction."""

    def areas(image: str) -> NDArray[np.int64]:
        with Image.open(tree.root / _files("validation", image)[1]) as opened:
            return np.bincount(np.asarray(opened).ravel(), minlength=len(tree.pixels) + 1)[1:]

    return np.stack(list(decode_all(tree.images["validation"], areas))).astype(np.int64)


def _images(folder: Path) -> list[str]:
    """All pictures below a folder, relative to it, sorted by their names without suffix."""
    found = sorted(
        (path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_picture(path.name)), key=_stem
    )
    found = [name for name in found if not name.rpartition("/")[2].startswith(".")]
    if not found:
        raise UserError(f"{folder} holds no image", LAYOUT)
    for one, other in pairwise(found):
        if _stem(one) == _stem(other):
            raise UserError(f"{folder} holds both {one} and {other}, which have one annotation", "keep one of them")
    return found


def _stem(file: str) -> str:
    return file.rpartition(".")[0]


def _unpublished(entries: list[tuple[str, str]], classes: int) -> Iterator[tuple[str, str]]:
    """Splits of ADE20K itself that hold another number of images than published."""
    for split, published in COUNTS.items() if classes == CLASSES else ():
        count = sum(one == split for one, _ in entries)
        if count != published:
            yield f"images/{split}", f"it holds {count:,} images, and ADE20K has {published:,} there"


def _without_image(root: Path, entries: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Annotations whose image is absent, or no picture by its name."""
    for split in ADE20K_SPLITS:
        folder = root / "annotations" / split
        expected = {_stem(image) for one, image in entries if one == split}
        for path in sorted(folder.rglob(f"*{MASK}")):
            name = path.relative_to(folder).as_posix()
            if _stem(name) not in expected and not path.name.startswith("."):
                yield f"annotations/{split}/{name}", "it has no image"


def _files(split: str, image: str) -> tuple[str, str]:
    """An image and its annotation, relative to the folder that holds images/ and annotations/."""
    return f"images/{split}/{image}", f"annotations/{split}/{_stem(image)}{MASK}"


def _look(root: Path, entries: list[tuple[str, str]], classes: int, skip_bad: bool) -> dict[str, list[Any]]:
    """The training annotations' pixels of each class; and (split, name, file at fault, its fault) of each bad image."""
    pixels = np.zeros(classes + 1, dtype=np.int64)
    bad: list[tuple[str, str, str, str]] = []
    with (
        progress("checking ADE20K", len(entries)) as advance,
        closing(decode_all(entries, partial(_look_at, root, classes))) as looked_at,
    ):
        for (split, name), found in zip(entries, looked_at, strict=True):
            advance()
            if isinstance(found, tuple) and not skip_bad:
                raise _refused(root, *found)
            if isinstance(found, tuple):
                bad.append((split, name, *found))
            elif split == "training":
                pixels += found
    return {"bad": bad, "pixels": pixels[1:].tolist()}


def _look_at(root: Path, classes: int, entry: tuple[str, str]) -> NDArray[np.int64] | tuple[str, str]:
    """Pixels of each label, "other" included (classes + 1,); or the file at fault and what is wrong with it."""
    image_file, mask_file = _files(*entry)
    if not (root / mask_file).exists():
        return image_file, f"it has no annotation ({mask_file} is missing)"
    file = image_file
    try:
        with Image.open(root / image_file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # as it is turned when it is trained on
            width, height = image.size
        file = mask_file
        with Image.open(root / mask_file) as opened:
            mask = np.asarray(opened)
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        return file, f"it cannot be decoded: {type(error).__name__}: {error}"
    if mask.ndim != 2:
        return file, f"it has {mask.shape[-1]} channels, and an annotation has one"
    if mask.shape != (height, width):
        return file, f"it is {mask.shape[1]} x {mask.shape[0]} px, its image {width} x {height}"
    if int(mask.max()) > classes:
        return file, f"it holds the label {int(mask.max())}, beyond the {classes} classes"
    return np.bincount(mask.ravel(), minlength=classes + 1).astype(np.int64)


def _refused(root: Path, file: str, reason: str) -> UserError:
    fix = "mend, fetch or remove it, or leave such images out with --skip-bad (skip_bad=True)"
    return UserError(f"{root / file}: {reason}", fix)
