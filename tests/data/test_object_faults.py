"""What is wrong with data in 3DIEBench's layout, and what of it does not matter: lists, missing files, bad views."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from object_tree import HIGH, LOW, SYNSETS, TEST, TRAIN, VIEWS, expected_image, latent_of, load, write_lists

from equibench.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(published_objects: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_objects, tmp_path / "3DIEBench"))


def test_order_slashes_and_type_of_the_lists_do_not_matter(root: Path, tmp_path: Path) -> None:
    before = load(root)
    shuffled = np.random.default_rng(0).permutation(TRAIN).tolist()
    write_lists(root, shuffled, TEST[::-1], labels=(20, 10, 30))
    np.save(root / "train_images.npy", np.array([path.encode() for path in shuffled + shuffled[:1]]))
    labels = np.load(root / "train_labels.npy")
    np.save(root / "train_labels.npy", np.append(labels, labels[0]).astype(float))
    after = load(root)
    assert (after.sha256, after.train_objects) == (before.sha256, before.train_objects)
    write_lists(tmp_path / "lists", TRAIN[::-1], TEST)
    for list_file in root.glob("*.npy"):
        list_file.unlink()
    assert load(root, lists=tmp_path / "lists").sha256 == before.sha256


def test_listed_objects_that_are_not_there_are_counted_and_keep_their_class(root: Path) -> None:
    for path in (TRAIN[0], TRAIN[1], TEST[0]):
        shutil.rmtree(root / path)
    dataset = load(root)
    assert dataset.class_names == SYNSETS
    assert set(dataset.train.labels) == set(dataset.test.labels) == {1, 2}
    assert dataset.absent == 3
    assert dataset.description == "3diebench (4 + 2 objects, 44 + 22 views, 16 px, 3 listed objects not there)"
    shutil.rmtree(root / TEST[1])
    shutil.rmtree(root / TEST[2])
    with pytest.raises(UserError, match=r"holds none of the 3 objects that val_images\.npy names"):
        load(root)


def test_objects_of_no_list_are_passed_over(root: Path) -> None:
    shutil.copytree(root / TRAIN[0], root / ".unfinished" / "x")
    shutil.copytree(root / TRAIN[0], root / SYNSETS[0] / "unlisted")
    (root / TRAIN[0] / "notes.txt").write_text("")
    (root / TRAIN[0] / "image_01.jpg").write_text("no view's")
    assert load(root).train_objects == tuple(TRAIN)


def save(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda root: np.save(root / f"{name}.npy", change(np.load(root / f"{name}.npy")))


def name_first(name: str, entry: str) -> Callable[[Path], None]:
    return save(name, lambda array: np.array([entry, *array[1:]]))


WRONG_LISTS = {
    "train_images.npy is missing": lambda root: (root / "train_images.npy").unlink(),
    "val_labels.npy is missing": lambda root: (root / "val_labels.npy").unlink(),
    "val_images.npy is of no use: cannot be read": lambda root: (root / "val_images.npy").write_bytes(b"PK\x03\x04"),
    "train_labels.npy is of no use: .*allow_pickle": save("train_labels", lambda a: a.astype(object)),
    "train_images.npy does not hold a row": save("train_images", lambda a: a[:0]),
    "val_labels.npy does not hold a row": save("val_labels", lambda a: a[None]),
    "train_labels.npy holds 5 labels for 6 objects": save("train_labels", lambda a: a[1:]),
    "gives 02691156/c the label 1; '02691156' already went with 0": save(
        "train_labels", lambda a: a + (np.arange(6) == 1)
    ),
    "gives 02691156/a the label 1; '02691156' already": save("val_labels", lambda a: a[[1, 0, 2]]),
    "gives 02828884/b the label 0; 0 already went with '02691156'": save("train_labels", lambda a: a * (a == 2)),
    "val_images.npy names 02691156/b, which train_images.npy names": name_first("val_images", "02691156/b"),
    r"train_images.npy names '/\.\./x/', which is no object": name_first("train_images", "/../x/"),
    "train_images.npy names '/b/', which is no object": name_first("train_images", "/b/"),
}


@pytest.mark.parametrize("message", WRONG_LISTS)
def test_wrong_lists_are_named(root: Path, message: str) -> None:
    WRONG_LISTS[message](root)
    for skip_bad in (False, True):
        with pytest.raises(UserError, match=message):
            load(root, skip_bad=skip_bad)


# Views


def latent_with(place: int, value: float) -> np.ndarray:
    latent = latent_of(TRAIN[1], 4)
    latent[place] = value
    return latent


def save_latent(latent: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "latent_4.npy", latent)


def cut(folder: Path) -> None:
    content = (folder / "image_4.jpg").read_bytes()
    (folder / "image_4.jpg").write_bytes(content[: len(content) // 2])


def damage(folder: Path) -> None:
    content = (folder / "latent_4.npy").read_bytes()
    (folder / "latent_4.npy").write_bytes(content.replace(b")", b"("))  # the header is a tuple that does not end


WRONG_VIEWS = {
    "image_4.jpg is missing, while latent_4.npy is there": lambda folder: (folder / "image_4.jpg").unlink(),
    "latent_4.npy is missing, while image_4.jpg is there": lambda folder: (folder / "latent_4.npy").unlink(),
    "image_4.jpg cannot be decoded": cut,
    r"latent_4.npy has the shape \(9,\), .* readme says nine": save_latent(np.zeros(9)),
    r"latent_4.npy has the shape \(1, 7\)": save_latent(np.zeros((1, 7))),
    "latent_4.npy has yaw = nan": save_latent(latent_with(0, np.nan)),
    "latent_4.npy has roll = -1.57079.*, expected -1.5708 to 1.5708": save_latent(latent_with(2, -np.pi / 2 - 2e-6)),
    "latent_4.npy has spot_theta = 0.8": save_latent(latent_with(4, 0.8)),
    "latent_4.npy has spot_hue = inf": save_latent(latent_with(6, np.inf)),
    "latent_4.npy does not hold real numbers": save_latent(np.array(list("abcdefg"))),
    "latent_4.npy cannot be read": lambda folder: (folder / "latent_4.npy").write_bytes(b"\x93NUMPY"),
    "latent_4.npy cannot be read: .*EOF": damage,
}


@pytest.mark.parametrize("message", WRONG_VIEWS)
def test_a_bad_view_is_named_or_left_out_and_counted(root: Path, message: str) -> None:
    WRONG_VIEWS[message](root / TRAIN[1])
    with pytest.raises(UserError, match=f"{TRAIN[1]}/{message}") as caught:
        load(root)
    assert "skip_bad" in caught.value.fix
    for most_bytes in (2**30, 0):
        dataset = load(root, skip_bad=True, most_bytes=most_bytes)
        assert len(dataset.train.images) == 65
        np.testing.assert_array_equal(dataset.train.images[14], expected_image(root, TRAIN[1], 3, 16))
        np.testing.assert_array_equal(dataset.train.images[15], expected_image(root, TRAIN[1], 5, 16))
        np.testing.assert_array_equal(dataset.train.latents[15], latent_of(TRAIN[1], 5))
        assert dataset.train.objects.tolist()[10:22] == [0] + [1] * 10 + [2]
        assert [fault.path for fault in dataset.faults] == [f"{TRAIN[1]}/{message.split()[0]}"]
        assert dataset.description.endswith("16 px, unusable and left out: 1 views, 0 objects)")
    with pytest.raises(UserError, match=TRAIN[1]):  # what skip_bad has left in the cache does not hide it
        load(root)


def test_values_at_the_ends_of_their_ranges_are_kept_as_they_are(root: Path) -> None:
    for view, latent in enumerate((LOW, HIGH, HIGH + 9e-7)):
        np.save(root / TRAIN[0] / f"latent_{view}.npy", latent)
    np.testing.assert_array_equal(load(root).train.latents[:3], [LOW, HIGH, HIGH + 9e-7])


def keep_views(folder: Path, count: int) -> None:
    for view in range(count, VIEWS):
        (folder / f"image_{view}.jpg").unlink()
        (folder / f"latent_{view}.npy").unlink()


def test_objects_may_differ_in_views_but_need_two(root: Path) -> None:
    keep_views(root / TRAIN[2], 2)
    dataset = load(root)
    assert np.bincount(dataset.train.objects).tolist() == [11, 11, 2, 11, 11, 11]
    keep_views(root / TRAIN[0], 1)
    keep_views(root / TRAIN[4], 0)
    with pytest.raises(UserError, match=f"{TRAIN[0]} has 1 usable view, fewer than 2"):
        load(root)
    cut_images = root / TRAIN[2]
    (cut_images / "image_0.jpg").write_bytes(b"")  # leaves it one view, which only decoding shows
    for most_bytes in (2**30, 0):
        dataset = load(root, skip_bad=True, most_bytes=most_bytes)
        assert dataset.train_objects == (TRAIN[1], TRAIN[3], TRAIN[5])
        assert np.bincount(dataset.train.objects).tolist() == [11, 11, 11]
        np.testing.assert_array_equal(dataset.train.images[11], expected_image(root, TRAIN[3], 0, 16))
        left_out = [TRAIN[0], TRAIN[4], f"{TRAIN[2]}/image_0.jpg", TRAIN[2]]
        assert [fault.path for fault in dataset.faults] == left_out
        assert dataset.description.endswith("left out: 1 views, 3 objects)")
        assert dataset.left_out == 1


def test_a_half_without_usable_objects_is_refused(root: Path, cache: Path) -> None:
    for path in TEST:
        for view in range(1, VIEWS):
            (root / path / f"image_{view}.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no test object of .* can be used") as caught:
        load(root, skip_bad=True)
    assert caught.value.fix == f"the last of 33 faults: {TEST[2]} has 1 usable view, fewer than 2"
    assert not list((cache / "arrays").glob("*/*"))


def test_an_undecoded_image_that_is_bad_is_named_when_it_is_asked_for(root: Path) -> None:
    cut(root / TRAIN[1])
    images = load(root, most_bytes=0).train.images
    np.testing.assert_array_equal(images[14], expected_image(root, TRAIN[1], 3, 16))
    with pytest.raises(UserError, match=rf"{TRAIN[1]}/image_4\.jpg cannot be decoded"):
        images[10:20]
