"""What a picture file becomes: transparency, depth, orientation, suffixes; and content, by which files are known."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equibench.data import folder, object_layout, transfer
from equibench.data.contents import file_digests
from equibench.data.folder import load_image_folder
from equibench.data.pictures import is_picture, read_picture, resized_part
from equibench.errors import UserError


def pixels(path: Path, turn: bool = False) -> np.ndarray:
    return np.asarray(read_picture(path, turn=turn)).astype(int)


def noise(shape: tuple[int, ...], below: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(below, size=shape, dtype=np.uint16 if below > 256 else np.uint8)


# Pixels


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    colour, alpha = noise((6, 8, 3)), noise((6, 8), seed=1)
    alpha[:2], alpha[-2:] = 0, 255
    whole = Image.fromarray(np.dstack([colour, alpha]))
    if mode == "P":
        whole = whole.quantize(16)  # with an alpha for each colour of the palette
    whole = whole.convert(mode) if mode != "P" else whole
    whole.save(tmp_path / "x.png")
    treated: Counter[str] = Counter()
    found = np.asarray(read_picture(tmp_path / "x.png", turn=False, treated=treated)).astype(float)
    shown = np.asarray(whole.convert("RGBA")).astype(float)
    share = shown[..., 3:] / 255
    np.testing.assert_allclose(found, shown[..., :3] * share + 255 * (1 - share), atol=1)
    if mode != "P":
        assert (found[:2] == 255).all()
    assert treated == {"transparent": 1}


def test_one_colour_can_be_the_transparent_one(tmp_path: Path) -> None:
    colour = noise((6, 8, 3))
    colour[0] = (255, 0, 255)
    Image.fromarray(colour).save(tmp_path / "x.png", transparency=(255, 0, 255))
    found = pixels(tmp_path / "x.png")
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1:], colour[1:])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_values_of_more_than_8_bits_use_the_whole_range(tmp_path: Path, bits: int, suffix: str) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64).reshape(8, 8)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / f"x.{suffix}")
    found = pixels(tmp_path / f"x.{suffix}")
    np.testing.assert_allclose(found[..., 0], ramp * 255 / (2**bits - 1), atol=1)
    assert (found == found[..., :1]).all()


def test_floating_point_values_are_of_a_known_range_or_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for values in (ramp, ramp * 255):
        Image.fromarray(values).save(tmp_path / "x.tif")
        np.testing.assert_allclose(pixels(tmp_path / "x.tif")[..., 0], ramp * 255, atol=0.51)
    for values in (ramp * 4095, ramp - 1, np.full_like(ramp, np.nan)):
        Image.fromarray(values).save(tmp_path / "x.tif")
        with pytest.raises(ValueError, match="floating-point values"):
            pixels(tmp_path / "x.tif")
    Image.fromarray((ramp * 1e6).astype(np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="1,000,000"):
        pixels(tmp_path / "x.tif")


def png_of_16_bits(path: Path, values: np.ndarray) -> None:
    """Colours (H, W, 3) of 16 bits, which Pillow cannot write: the format's chunks by hand."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    high, wide = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", wide, high, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_colours_of_16_bits_are_read_and_those_of_12_in_16_refused(tmp_path: Path) -> None:
    values = noise((6, 8, 3), 2**16)
    png_of_16_bits(tmp_path / "x.png", values)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), values >> 8)
    png_of_16_bits(tmp_path / "x.png", values >> 4)
    with pytest.raises(ValueError, match="16 bits and use fewer"):
        pixels(tmp_path / "x.png")


def test_cmyk_palette_and_orientation(tmp_path: Path) -> None:
    base = Image.fromarray(noise((4, 4, 3))).resize((32, 24), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 8
    base.save(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png", turn=True), np.rot90(np.asarray(base)))
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), np.asarray(base))
    base.convert("CMYK").save(tmp_path / "print.tif")
    np.testing.assert_allclose(pixels(tmp_path / "print.tif"), np.asarray(base), atol=1)
    base.quantize(64).save(tmp_path / "palette.gif")
    np.testing.assert_array_equal(pixels(tmp_path / "palette.gif"), np.asarray(base.quantize(64).convert("RGB")))


@pytest.mark.parametrize("size", [(2, 900), (900, 2), (40, 500)])
def test_a_long_picture_is_cropped_before_it_is_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.fromarray(noise((8, 8, 3))).resize(size, Image.Resampling.BICUBIC)
    image.save(tmp_path / "x.png")
    side = 16
    new = tuple(round(side * own / min(size)) for own in size)
    corner = tuple((whole - side) // 2 for whole in new)
    whole = np.asarray(image.resize(new, Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    expected = whole[:, corner[1] : corner[1] + side, corner[0] : corner[0] + side]
    np.testing.assert_allclose(resized_part(image, new, corner, side).astype(int), expected, atol=3)
    for found in (
        folder._decode(tmp_path / "x.png", side),
        transfer._decode(tmp_path / "x.png", side),
        object_layout.decode_image(tmp_path / "x.png", side),
    ):
        np.testing.assert_allclose(found.astype(int), expected, atol=8)  # they round the middle in their own ways


# Which files


def test_every_suffix_that_pillow_reads_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    kinds = {"bird": ("jfif", "JPEG"), "cat": ("TIF", "TIFF"), "dog": ("gif", "GIF"), "eel": ("JPG", "JPEG")}
    for name, (suffix, kind) in kinds.items():
        (root / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(noise((10, 10, 3), seed=number)).save(root / name / f"{number}.{suffix}", kind)
    for name in ("cat/notes.txt", "cat/x.npy", "dog/y.NPY", "dog/LICENSE"):
        (root / name).write_text("")
    data = load_image_folder(root, size=8)
    assert data.class_names == tuple(kinds)
    assert len(data.train.labels) + len(data.test.labels) == 40
    assert data.left_out == 0
    assert data.description.endswith("8 px; passed over: 2 .npy, 1 .txt, 1 without a suffix)")


def test_a_picture_of_a_kind_that_pillow_does_not_read_is_not_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "x"
    for number in range(6):
        (root / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise((10, 10, 3), seed=number)).save(root / "a" / f"{number}.png")
    (root / "a" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"phone.HEIC cannot be decoded"):
        load_image_folder(root, size=8)
    assert load_image_folder(root, size=8, skip_bad=True).left_out == 1
    assert not is_picture("a.eps2")
    assert not is_picture("jpg")


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_that_lead_nowhere_are_left_out_where_told(tmp_path: Path) -> None:
    root = tmp_path / "x"
    (root / "a").mkdir(parents=True)
    for number in range(9):
        Image.fromarray(noise((10, 10, 3), seed=number)).save(root / "a" / f"{number}.png")
    (root / "a" / "gone.png").symlink_to("/nowhere/gone.png")
    with pytest.raises(UserError, match=r"gone.png cannot be read: No such file.*\n.*skip_bad"):
        load_image_folder(root, size=8)
    data = load_image_folder(root, size=8, skip_bad=True)
    assert (len(data.train.labels) + len(data.test.labels), data.left_out) == (9, 1)
    (root / "b").symlink_to("/nowhere/b")  # perhaps a class
    with pytest.raises(UserError, match=r"1 links that lead nowhere"):
        load_image_folder(root, size=8)
    assert "1 links that lead nowhere" in load_image_folder(root, size=8, skip_bad=True).description


# Content


def test_changed_pixels_of_the_same_size_and_time_are_seen(tmp_path: Path) -> None:
    root = tmp_path / "x"
    for version in (0, 1):
        for number in range(8):
            path = root / "a" / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 10 * number + version, np.uint8)).save(path)
            os.utime(path, (10**9, 10**9))
        data = load_image_folder(root, size=8)
        found = {int(image[0, 0, 0]) for half in (data.train, data.test) for image in half.images}
        assert found == {10 * number + version for number in range(8)}


def test_one_content_in_two_places_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("one", "two"):
        for number in range(8):
            path = tmp_path / place / "photos" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 77 + number, np.uint8)).save(path)
    first = load_image_folder(tmp_path / "one" / "photos", size=8)
    monkeypatch.setattr(folder, "_decode", lambda *_: pytest.fail("an image was decoded again"))
    assert load_image_folder(tmp_path / "two" / "photos", size=8).sha256 == first.sha256


def test_digests_are_in_order_and_name_what_cannot_be_read(tmp_path: Path) -> None:
    import hashlib

    names = [f"{n}.bin" for n in range(50)]
    for name in names:
        (tmp_path / name).write_bytes(os.urandom(1000))
    expected = [hashlib.blake2b((tmp_path / name).read_bytes()).hexdigest() for name in names]
    assert list(file_digests(tmp_path, names)) == expected
    assert list(file_digests(tmp_path, ["gone", *names], skip_bad=True)) == ["absent", *expected]
    with pytest.raises(UserError, match=r"gone, which list.txt names, cannot be read"):
        list(file_digests(tmp_path, ["gone"], lists={"gone": Path("list.txt")}))
