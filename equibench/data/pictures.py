"""A picture file as RGB pixels: which files are pictures, what becomes of transparency, depth and orientation.

Everything that opens a picture goes through here, so that one file is the same pixels in every data set:

* transparency is laid over white, the colour of the page that a viewer shows behind it;
* of grey values of more than 8 bits the upper 8 are taken, counted from the top of the picture's own range;
* palettes, CMYK and the rest become RGB as Pillow does it; of an animation the first frame is taken.
"""

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps

PAGE = (255, 255, 255)
"""The colour behind what is transparent."""
_DEPTHS = (8, 10, 12, 14, 16)
_BITS_PER_SAMPLE = 258  # TIFF's tag
_FULL_RANGE = 64  # a brightest upper byte below this is no picture of 16 bits
_NO_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FITS"}  # Pillow runs a program for these, or reads none
_UNREADABLE = re.compile(r"\.(heic|heif|jxl|svgz?|raw|cr[23]|nef|arw|orf|rw2|dng|exr|hdr|xcf|ai|eps)")
_LONG = 8  # a picture that takes so many times as many pixels as are kept
_COUNTING = Lock()


@lru_cache(maxsize=1)
def picture_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of what Pillow reads here."""
    Image.init()
    return frozenset(s for s, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in _NO_PICTURES)


def is_picture(name: str) -> bool:
    """Whether a file's name ends as a picture's does, in capitals or not; also of kinds that Pillow does not read.

    These cannot be decoded, which is an error, while what is no picture is passed over.
    """
    suffix = Path(name).suffix.lower()
    return suffix in picture_suffixes() or bool(_UNREADABLE.fullmatch(suffix))


def read_picture(path: Path, *, turn: bool, treated: Counter[str] | None = None) -> Image.Image:
    """A file as an RGB picture of its own size.

    Args:
        turn: whether a camera's note of its orientation (EXIF) is heeded.
        treated: where pictures are counted that were not what they seem: "transparent", "deep".

    Raises:
        ValueError: values whose range is unknown, such as those of a floating-point picture beyond 255, or of colours
            of fewer than 16 bits in 16, of which Pillow gives the upper, empty byte only.
        OSError, and what else Pillow's decoders raise: the file is absent, damaged or no picture.
    """
    with Image.open(path) as opened:
        upper_byte = opened.mode not in ("I;16", "I;16B", "I;16L") and ";16" in str([t[3] for t in opened.tile])
        bits = _tiff_bits(opened)
        opened.load()
        image = ImageOps.exif_transpose(opened) if turn else opened.copy()
    seen = []
    if image.mode.startswith("I"):
        image = _eight_bits(np.asarray(image), bits)
        seen.append("deep")
    elif image.mode == "F":
        image = _from_floats(np.asarray(image))
        seen.append("deep")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            seen.append("transparent")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*PAGE, 255)), image)
    image = image.convert("RGB")
    if upper_byte and 0 < (largest := max(high for _, high in image.getextrema())) < _FULL_RANGE:  # type: ignore[misc]
        raise ValueError(
            f"its colours have 16 bits and use fewer (brightest: {largest} of 255); save it with 8, or scaled to 16"
        )
    if treated is not None and seen:
        with _COUNTING:
            treated.update(seen)
    return image


def resized_part(image: Image.Image, size: tuple[int, int], corner: tuple[int, int], side: int) -> np.ndarray:
    """(3, side, side) uint8: the square at ``corner`` (left, top) of the RGB picture as it is when resized to ``size``.

    Bicubic. Of a long picture that square alone is computed, which differs by a level or two, since Pillow holds the
    place as float32: as a whole, a picture of 2 x 6,000 px would become one of 200 million.
    """
    left, top = corner
    if size[0] * size[1] <= _LONG * side**2:
        whole = image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(whole.crop((left, top, left + side, top + side))).transpose(2, 0, 1)
    across, down = (own / new for own, new in zip(image.size, size, strict=True))
    right, bottom = (min((left + side) * across, image.width), min((top + side) * down, image.height))
    box = (left * across, top * down, right, bottom)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)


def treated_words(treated: dict[str, int]) -> str:
    """What was counted by `read_picture`, for a data set's description; "" where nothing was."""
    words = {"transparent": "transparent ones laid over white", "deep": "of more than 8 bits scaled to 8"}
    return "".join(f", {treated[what]:,} {text}" for what, text in words.items() if treated.get(what))


def _tiff_bits(image: Image.Image) -> int | None:
    """How many bits a TIFF says that its values have, if fewer than 16; of other files Pillow does not tell."""
    tags = getattr(image, "tag_v2", None)
    bits = tags.get(_BITS_PER_SAMPLE) if tags else None
    return int(bits[0]) if bits and int(bits[0]) in _DEPTHS[:-1] else None


def _eight_bits(values: np.ndarray, bits: int | None) -> Image.Image:
    """Grey values of up to 16 bits as 8: where the file does not say how many, the fewest that hold the largest one."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2 ** _DEPTHS[-1]:
        raise ValueError(f"its values go from {low:,} to {high:,}, and no picture of up to 16 bits holds these")
    bits = bits or next(depth for depth in _DEPTHS if high < 2**depth)
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _from_floats(values: np.ndarray) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255:  # false for nan, too
        raise ValueError(f"its floating-point values go from {low:g} to {high:g}, neither in [0, 1] nor in [0, 255]")
    return Image.fromarray(np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8))
