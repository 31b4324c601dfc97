"""ADE20K's folders: what is checked before training starts, and the rendered scenes that have their layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equibench.data.ade20k import (
    SCENE_CLASSES,
    check_tree,
    find_ade20k,
    label_areas,
    picture,
    rendered_scenes_folder,
    write_scenes,
)
from equibench.errors import UserError

TREE = "ADEChallengeData2016"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("seg") / "ade", images=(6, 4), size=48, seed=1)


@pytest.fixture
def broken(tree: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    for path in tree.rglob("*.*"):
        target = tmp_path / "ade" / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "ade" / TREE


def test_rendered_scenes_have_the_published_layout(tree: Path) -> None:
    for split, count in (("training", 6), ("validation", 4)):
        images = sorted((tree / TREE / "images" / split).glob("*.jpg"))
        masks = sorted((tree / TREE / "annotations" / split).glob("*.png"))
        assert [p.stem for p in images] == [p.stem for p in masks] == [f"{n:06d}" for n in range(1, count + 1)]
        for image, mask in zip(images, masks, strict=True):
            with Image.open(image) as colours, Image.open(mask) as labels:
                assert colours.size == labels.size
                assert (colours.mode, labels.mode) == ("RGB", "L")
                assert np.asarray(labels).max() <= len(SCENE_CLASSES) == 12


def test_rendered_scenes_are_the_same_every_time_and_not_in_every_split(tmp_path: Path, tree: Path) -> None:
    again = write_scenes(tmp_path / "again", images=(3, 2), size=48, seed=1)
    for path in again.rglob("*.*"):
        assert path.read_bytes() == (tree / path.relative_to(again)).read_bytes()
    image, label = picture("training", 2, 48, 1)
    assert label.shape == image.shape[:2]
    assert not np.array_equal(image, picture("validation", 2, 48, 1)[0])
    assert not np.array_equal(image, picture("training", 2, 48, 2)[0])


def test_labels_name_the_solids_that_were_rendered() -> None:
    found = [picture("training", n, 64, 0)[1] for n in range(40)]
    seen = set(np.unique(np.concatenate([label.ravel() for label in found])))
    assert seen == set(range(13))  # all solids, both grounds and "other" on the rims
    ground = np.mean([np.isin(label, (11, 12)).mean() for label in found])
    assert 0.3 < ground < 0.9


def test_rendered_scenes_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path))
    folder = rendered_scenes_folder(images=(2, 1), size=32)
    assert "rendered-scenes" in str(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert rendered_scenes_folder(images=(2, 1), size=32) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == times


def test_rendered_scenes_overwrite_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        write_scenes(tmp_path, images=(1, 1), size=32)
    with pytest.raises(UserError, match="images="):
        write_scenes(tmp_path / "new", images=(0, 1), size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("below", ["", "ade", f"ade/{TREE}"])
def test_the_tree_is_found_and_counted(tree: Path, below: str) -> None:
    root = tree.parent / below
    checked = check_tree(root, classes=12)
    assert checked.names["training"] == tuple(f"{n:06d}" for n in range(1, 7))
    assert not checked.bad
    masks = [np.asarray(Image.open(path)) for path in (tree / TREE / "annotations" / "training").iterdir()]
    expected = [sum(int((mask == label).sum()) for mask in masks) for label in range(1, 13)]
    assert checked.pixels.tolist() == expected


def test_the_tree_is_looked_for_in_the_environments_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="which is not set"):
        find_ade20k()
    monkeypatch.setenv("EQUIBENCH_DATA", str(tree))
    assert find_ade20k() == tree / TREE
    assert find_ade20k(tree.parent / "ade" / TREE / "images") == tree / TREE


def test_label_areas_are_those_of_the_annotations(tree: Path) -> None:
    checked = check_tree(tree, classes=12)
    paths = sorted((tree / TREE / "annotations" / "validation").iterdir())
    expected = [[int((np.asarray(Image.open(p)) == label).sum()) for label in range(1, 13)] for p in paths]
    np.testing.assert_array_equal(label_areas(checked), expected)


def test_missing_folders_are_told_with_the_layout(broken: Path) -> None:
    for path in (broken / "annotations" / "validation").iterdir():
        path.unlink()
    (broken / "annotations" / "validation").rmdir()
    with pytest.raises(UserError, match=r"annotations/validation is missing\n.*layout") as caught:
        find_ade20k(broken)
    assert f"ade/{TREE}/images/training/*.jpg" in caught.value.fix
    with pytest.raises(UserError, match=r"ADE20K is not in .*images"):
        find_ade20k(broken / "images")
    with pytest.raises(UserError, match="is not a folder"):
        find_ade20k(broken / "nowhere")


def of_another_size(root: Path) -> str:
    path = root / "annotations/training/000002.png"
    Image.fromarray(np.ones((20, 30), np.uint8)).save(path)
    return "annotations/training/000002.png: it is 30 x 20 px"


def beyond_the_classes(root: Path) -> str:
    path = root / "annotations/training/000002.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = 13
    Image.fromarray(mask).save(path)
    return "annotations/training/000002.png: it holds the label 13, beyond the 12 classes"


def without_annotation(root: Path) -> str:
    (root / "annotations/training/000002.png").unlink()
    return "images/training/000002.jpg: it has no annotation"


def cut_off(root: Path) -> str:
    path = root / "images/training/000002.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return "images/training/000002.jpg: it cannot be decoded"


def in_colour(root: Path) -> str:
    Image.open(root / "images/training/000002.jpg").save(root / "annotations/training/000002.png")
    return "annotations/training/000002.png: it has 3 channels"


@pytest.mark.parametrize("spoil", [of_another_size, beyond_the_classes, without_annotation, cut_off, in_colour])
def test_a_bad_file_is_named_or_left_out(broken: Path, spoil: Callable[[Path], str]) -> None:
    message = spoil(broken)
    with pytest.raises(UserError) as caught:
        check_tree(broken, classes=12)
    assert message in str(caught.value)
    checked = check_tree(broken, classes=12, skip_bad=True)
    assert [f"{path}: {reason}" for path, reason in checked.bad] == [message] or message in ": ".join(checked.bad[0])
    assert "000002" not in checked.names["training"]
    assert len(checked.names["training"]) == 5
    with pytest.raises(UserError, match="000002"):  # that another call left it out does not make it good
        check_tree(broken, classes=12)


def test_a_changed_file_is_looked_at_again(broken: Path) -> None:
    assert not check_tree(broken, classes=12).bad
    cut_off(broken)
    with pytest.raises(UserError, match="cannot be decoded"):
        check_tree(broken, classes=12)


def test_a_change_that_leaves_size_and_time_is_seen(broken: Path) -> None:
    before = check_tree(broken, classes=12)
    path = broken / "annotations/training/000002.png"
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 0xFF  # inside the last chunk of pixels, or its checksum
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UserError, match="000002"):
        check_tree(broken, classes=12)
    assert check_tree(broken, classes=12, skip_bad=True).sha256 != before.sha256


def test_images_of_other_suffixes_are_read(broken: Path) -> None:
    images = broken / "images/training"
    (images / "000001.jpg").rename(images / "000001.JPG")
    (images / "000002.jpg").rename(images / "000002.jpeg")
    Image.open(images / "000003.jpg").save(images / "000003.tif")
    (images / "000003.jpg").unlink()
    checked = check_tree(broken, classes=12)
    assert checked.images["training"][:3] == ("000001.JPG", "000002.jpeg", "000003.tif")
    assert checked.names["training"] == tuple(f"{n:06d}" for n in range(1, 7))
    (images / "000001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"both 000001.JPG and 000001.png|both 000001.png and 000001.JPG"):
        check_tree(broken, classes=12)


def test_an_annotation_whose_image_is_absent_is_told(broken: Path) -> None:
    (broken / "images/training/000002.jpg").rename(broken / "images/training/000002.image")
    with pytest.raises(UserError, match=r"annotations/training/000002.png: it has no image"):
        check_tree(broken, classes=12)
    checked = check_tree(broken, classes=12, skip_bad=True)
    assert checked.bad == (("annotations/training/000002.png", "it has no image"),)


def test_a_part_of_ade20k_is_not_taken_for_it(broken: Path) -> None:
    with pytest.raises(UserError, match=r"images/training: it holds 6 images, and ADE20K has 20,210 there"):
        check_tree(broken)
    checked = check_tree(broken, skip_bad=True)
    assert [file for file, _ in checked.bad] == ["images/training", "images/validation"]
