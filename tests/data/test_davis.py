"""DAVIS-2017's layout: what is read, and what is said where it is not as published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_tree import masks_of, write_videos

from equibench.data.davis import find_davis, load_davis, missing_davis, read_frame, read_mask
from equibench.data.transfer_sources import GENERATED
from equibench.errors import UserError


def test_videos_frames_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_videos(tmp_path)
    found = load_davis(find_davis(tmp_path))
    assert (found.name, [video.name for video in found.videos]) == ("rendered-davis2017", ["one", "two"])
    for objects, video in enumerate(found.videos, 1):
        assert [path.name for path in video.frames] == [f"{n:05}.jpg" for n in range(4)]
        np.testing.assert_array_equal(read_mask(video.masks[2]), masks_of(objects, 8))
        assert read_frame(video.frames[0]).shape == (3, 120, 220)
    assert find_davis(folder) == folder
    monkeypatch.setenv("EQUIBENCH_DATA", str(tmp_path))
    assert find_davis() == folder
    assert missing_davis() == ""


def test_void_is_background(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1], [255, 2]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 1], [0, 2]]


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "same", "mask", "frame"):
        folder = write_videos(tmp_path / name)
        if name == "mask":
            shutil.copy(folder / "Annotations/480p/one/00001.png", folder / "Annotations/480p/one/00002.png")
        if name == "frame":
            shutil.copy(folder / "JPEGImages/480p/one/00001.jpg", folder / "JPEGImages/480p/one/00002.jpg")
        digests.append(load_davis(folder).sha256)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "ImageSets/2017/val.txt").write_text("\n"), "val.txt names no video"),
    (lambda f: (f / "ImageSets/2017/val.txt").write_text("one\none\n"), "val.txt names a video twice"),
    (lambda f: (f / "ImageSets/2017/val.txt").write_text("three\n"), "JPEGImages/480p/three, which .*val.txt names"),
    (lambda f: shutil.rmtree(f / "Annotations/480p/two"), "Annotations/480p/two, which .* is missing"),
    (lambda f: (f / "Annotations/480p/two/00001.png").unlink(), "frame 00001 of two is in one of .* only"),
    (lambda f: [p.unlink() for p in f.glob("*/480p/two/0000[23].*")], "480p/two holds 2 frames"),
    (lambda f: (f / GENERATED).unlink(), "holds 2 videos of 8 frames, DAVIS-2017's list 30 of 1,999"),
]


@pytest.mark.parametrize(("spoil", "problem"), WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, spoil: Callable[[Path], object], problem: str) -> None:
    folder = write_videos(tmp_path)
    spoil(folder)
    with pytest.raises(UserError, match=problem) as caught:
        load_davis(folder)
    assert caught.value.fix


def test_absent_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"DAVIS-2017 is not in {tmp_path}") as caught:
        find_davis(tmp_path)
    assert "--data-root" in caught.value.fix
    assert "DAVIS" in missing_davis(tmp_path)
    for reader, file in ((read_frame, "x.jpg"), (read_mask, "x.png")):
        (tmp_path / file).write_bytes(b"no picture")
        with pytest.raises(UserError, match=f"{file} cannot be decoded"):
            reader(tmp_path / file)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(UserError, match="rgb.png has 3 channels"):
        read_mask(tmp_path / "rgb.png")
