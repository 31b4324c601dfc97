"""3DIEBench's layout: what becomes of a small tree of it, decoded beforehand or when asked for, and of its cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from object_tree import SYNSETS, TEST, TRAIN, VIEWS, expected_image, latent_of, load
from PIL import Image

from equibench.data import object_layout
from equibench.data import objects as object_folder
from equibench.data.dataset import split_indices
from equibench.data.object_layout import LazyImages, find_object_data
from equibench.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(published_objects: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_objects, tmp_path / "3DIEBench"))


@pytest.mark.parametrize("most_bytes", [2**30, 0])
def test_views_of_an_object_stand_together_with_their_latents(root: Path, most_bytes: int) -> None:
    dataset = load(root, most_bytes=most_bytes)
    for half, paths, told in (
        (dataset.train, TRAIN, dataset.train_objects),
        (dataset.test, TEST, dataset.test_objects),
    ):
        where = [(path, view) for path in paths for view in range(VIEWS)]
        assert told == tuple(paths)
        assert half.images.shape == (len(where), 3, 16, 16)
        np.testing.assert_array_equal(half.images[:], [expected_image(root, *each, 16) for each in where])
        np.testing.assert_array_equal(half.latents, [latent_of(*each) for each in where])
        assert half.labels.tolist() == [SYNSETS.index(path[:8]) for path, _ in where]
        assert half.objects is not None
        assert half.objects.tolist() == [paths.index(path) for path, _ in where]
        assert (half.labels.dtype, half.objects.dtype, half.images.dtype) == (np.int64, np.int64, np.uint8)
    assert dataset.class_names == SYNSETS
    assert dataset.has_objects
    assert dataset.description == "3diebench (6 + 3 objects, 66 + 33 views, 16 px)"
    assert isinstance(dataset.train.images, LazyImages) == (most_bytes == 0)


def test_the_whole_frame_is_resized_and_the_middle_taken(root: Path) -> None:
    wide = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    wide.save(root / TRAIN[0] / "image_0.jpg")
    images = load(root, size=20).train.images
    np.testing.assert_array_equal(images[0], expected_image(root, TRAIN[0], 0, 20))


def test_lazy_images_are_indexed_like_an_array(root: Path) -> None:
    array, lazy = load(root).train.images, load(root, most_bytes=0).train.images
    chosen = np.array([[40, 3], [3, -1]])
    for index in (0, -1, slice(60, 3, -7), slice(5, 5), [7, 2, 2], chosen, np.arange(66) % 13 == 0):
        found = lazy[index]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, array[index])
    assert len(lazy) == 66
    with pytest.raises(IndexError):
        lazy[66]


def test_it_serves_as_any_dataset(root: Path) -> None:
    """The suite sets whole objects apart for validation, whatever holds the images."""
    splits = [split_indices(load(root, most_bytes=most)) for most in (2**30, 0)]
    assert sorted(np.concatenate([splits[0]["train"], splits[0]["val"]])) == list(range(66))
    for split, rows in splits[0].items():
        np.testing.assert_array_equal(rows, splits[1][split])


# The cache and the digest


def test_views_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    monkeypatch.setattr(object_folder, "_read_view", None)
    again = load(root)
    assert again.sha256 == first.sha256
    for key in ("images", "labels", "latents", "objects"):
        assert not getattr(again.train, key).flags.writeable
        assert isinstance(getattr(again.train, key), np.memmap)
    with pytest.raises(TypeError):
        load(root, size=17)  # other arrays, which would have to be read


@pytest.mark.parametrize("name", ["train_latents", "test_objects", "train_paths", "test_images"])
def test_a_cache_that_was_damaged_is_made_anew(root: Path, cache: Path, name: str) -> None:
    first = load(root)
    (file,) = cache.glob(f"arrays/*/{name}.npy")
    os.truncate(file, 100)
    del first
    np.testing.assert_array_equal(load(root).test.images[0], expected_image(root, TEST[0], 0, 16))
    file.unlink()
    assert load(root).train.latents is not None


def halve_latent(root: Path) -> None:
    np.save(root / "new.npy", latent_of(TRAIN[0], 0) * 0.5)
    (root / "new.npy").replace(root / TRAIN[0] / "latent_0.npy")


def replace_image(root: Path) -> None:
    shutil.copy(root / TRAIN[0] / "image_1.jpg", root / "new.jpg")
    (root / "new.jpg").replace(root / TRAIN[0] / "image_0.jpg")


def replace_by_itself(root: Path) -> None:
    shutil.copyfile(root / TRAIN[0] / "image_0.jpg", root / "new.jpg")
    (root / "new.jpg").replace(root / TRAIN[0] / "image_0.jpg")


CHANGES = {
    "latent": halve_latent,
    "image": replace_image,
    "object": lambda root: (root / TRAIN[0]).rename(root / SYNSETS[0] / "other"),
    "time": replace_by_itself,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("most_bytes", [2**30, 0])
def test_the_digest_follows_the_content(root: Path, most_bytes: int, change: str) -> None:
    before = load(root, most_bytes=most_bytes)
    CHANGES[change](root)
    after = load(root, most_bytes=most_bytes)
    assert (after.sha256 != before.sha256) == (change != "time" or most_bytes == 0)
    if change == "latent":
        np.testing.assert_array_equal(after.train.latents[0], latent_of(TRAIN[0], 0) * 0.5)
    if change == "image":
        np.testing.assert_array_equal(after.train.images[0], expected_image(root, TRAIN[0], 1, 16))


def test_a_file_overwritten_in_place_is_read_again(root: Path) -> None:
    load(root)
    shutil.copyfile(root / TRAIN[0] / "image_1.jpg", root / TRAIN[0] / "image_0.jpg")
    np.testing.assert_array_equal(load(root).train.images[0], expected_image(root, TRAIN[0], 1, 16))


def test_millions_of_files_are_looked_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root, most_bytes=0)
    monkeypatch.setattr(object_layout, "list_objects", None)
    again = load(root, most_bytes=0)
    assert (again.sha256, again.description) == (first.sha256, first.description)
    (root / TRAIN[3] / "image_2.jpg").unlink()
    with pytest.raises(TypeError):
        load(root, most_bytes=0)


@pytest.mark.parametrize("most_bytes", [2**30, 0])
def test_the_digest_does_not_depend_on_the_place(published_objects: Path, root: Path, most_bytes: int) -> None:
    assert (
        load(published_objects, most_bytes=most_bytes).sha256 == load(root, most_bytes=most_bytes).sha256
    )  # copied with times


def test_the_digest_covers_which_views_are_one_object(root: Path) -> None:
    """A view moves from one object to the next of its class: images, labels and latents stay, objects do not."""
    before = load(root)
    one, other = root / TRAIN[0], root / TRAIN[1]
    for view in reversed(range(VIEWS)):
        for name in ("image_{}.jpg", "latent_{}.npy"):
            (other / name.format(view)).rename(other / name.format(view + 1))
    for name in ("image_{}.jpg", "latent_{}.npy"):
        (one / name.format(VIEWS - 1)).rename(other / name.format(0))
    after = load(root)
    np.testing.assert_array_equal(after.train.images, before.train.images)
    np.testing.assert_array_equal(after.train.latents, before.train.latents)
    assert after.train.objects.tolist()[:22] == [0] * 10 + [1] * 12
    assert after.sha256 != before.sha256


def test_a_full_disk_is_told_before_anything_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=70_000))
    with pytest.raises(UserError, match=r"99 views of 16 px take 0\.1 GB"):
        load(root)
    load(root, most_bytes=0)  # takes 8 kB


# Names and places


def test_rendered_data_say_so(root: Path) -> None:
    (root / "render.json").write_text("{}")
    assert load(root).name == "rendered-3diebench"
    dataset = load(root, name="rendered-solids")
    assert (dataset.name, dataset.description[:17]) == ("rendered-solids", "rendered-solids (")


def test_a_wrong_folder_or_size_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        load(root / "nothing")
    assert "latent_49.npy" in caught.value.fix
    with pytest.raises(UserError, match="is not a folder"):
        load(root / "train_images.npy")
    with pytest.raises(UserError, match="size=7"):
        load(root, size=7)


@pytest.mark.parametrize("below", [".", "3DIEBench", "sets/3DIEBench"])
def test_the_data_are_found(
    published_objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    place = tmp_path / "data" / below
    shutil.copytree(published_objects, place)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("EQUIBENCH_DATA", str(empty))
    assert find_object_data(tmp_path / "data") == place
    monkeypatch.setenv("EQUIBENCH_DATA", str(tmp_path / "data"))
    assert find_object_data() == find_object_data(empty) == place
    assert find_object_data(place) == place


def test_data_that_are_nowhere_are_told_where_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIBENCH_DATA", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=f"not in {tmp_path} or {tmp_path / 'gone'}") as caught:
        find_object_data(tmp_path)
    for wanted in ("3DIEBench.tar.gz (17 GB)", "val_labels.npy", "image_0.jpg", "latent_0.npy"):
        assert wanted in caught.value.fix
    with pytest.raises(UserError, match="is not a folder"):
        find_object_data(tmp_path / "gone")
