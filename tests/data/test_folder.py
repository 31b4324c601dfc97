"""Folders of images as datasets: the layouts, what becomes of a picture, the cache, and what is wrong with a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from equibench.data import folder as image_folder
from equibench.data.dataset import DATASETS, split_indices
from equibench.data.folder import load_image_folder
from equibench.data.load import load_dataset
from equibench.errors import UserError
from equibench.utils.arrays import AHEAD, MOST_THREADS, decode_all, row_writer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(path: Path, seed: int = 0, shape: tuple[int, int] = (20, 20)) -> Path:
    """A smooth picture of random colours (height, width), so that compression changes it little."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC).save(path)
    return path


def folder_of(root: Path, names: Sequence[str]) -> Path:
    for seed, name in enumerate(names):
        picture(root / name, seed)
    return root


def red_of(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].astype(int).tolist()


def expected_red(root: Path, names: Sequence[str]) -> list[int]:
    return [
        int(np.asarray(Image.open(root / name).resize((8, 8), Image.Resampling.BICUBIC))[0, 0, 0]) for name in names
    ]


SPLIT = [
    *("train/apple/b.png", "train/apple/a.png", "train/pear/deep/er/1.png", "train/pear/2.png"),
    *("{val}/pear/v.png", "test/pear/t2.png", "test/apple/t1.png"),
]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits_and_classes(tmp_path: Path, val: str) -> None:
    names = [name.format(val=val) for name in SPLIT]
    root = folder_of(tmp_path / "fruit", names)
    (root / "train" / "empty").mkdir()
    (root / "train" / ".hidden").mkdir()
    picture(root / "train" / ".hidden" / "x.png")
    picture(root / "train" / "apple" / ".x.png")
    (root / "train" / "apple" / "notes.txt").write_text("")
    dataset = load_image_folder(root, size=8)
    train = ["train/apple/a.png", "train/apple/b.png", "train/pear/2.png", "train/pear/deep/er/1.png"]
    assert red_of(dataset.train.images) == expected_red(root, [*train, f"{val}/pear/v.png"])
    assert red_of(dataset.test.images) == expected_red(root, ["test/apple/t1.png", "test/pear/t2.png"])
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    assert (dataset.class_names, dataset.validation) == (("apple", "pear"), 1)
    assert (dataset.name, dataset.description) == (
        "fruit",
        "fruit (5 + 2 images from a folder, 8 px; passed over: 1 .txt)",
    )
    assert split_indices(dataset)["val"].tolist() == [4]
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int64
    assert not dataset.train.images.flags.writeable


def test_no_validation_folder(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "x", [name for name in SPLIT if "{val}" not in name])
    dataset = load_image_folder(root, size=8)
    assert dataset.validation == 0
    assert len(split_indices(dataset)["val"]) == 1


def test_classes_without_splits_are_split_by_name_and_stay_where_they_are(tmp_path: Path) -> None:
    names = [f"{kind}/{number:03}.png" for kind in ("a", "b", "c") for number in range(40)]
    root = folder_of(tmp_path / "x", [*names, "small/1.png", "small/2.png", "single/1.png"])
    before = load_image_folder(root, size=8)
    counts = np.bincount(before.test.labels)
    assert before.class_names == ("a", "b", "c", "single", "small")
    assert all(3 <= count <= 14 for count in counts[:3])
    assert counts[3:].tolist() == [0, 1], "one of two is for testing, a single one is not"
    assert len(before.train.labels) + len(before.test.labels) == 123
    for seed, number in enumerate(range(40, 60)):
        picture(root / "b" / f"{number:03}.png", 1000 + seed)
    after = load_image_folder(root, size=8)
    for half in ("train", "test"):
        one, two = ({image.tobytes() for image in getattr(dataset, half).images} for dataset in (before, after))
        assert one <= two
    assert len(after.test.labels) > len(before.test.labels)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    dataset = load_image_folder(folder_of(tmp_path / "photos", [f"{n}.png" for n in range(30)]), size=8)
    assert dataset.class_names == ()
    assert set(dataset.train.labels) == set(dataset.test.labels) == {0}
    assert 0 < len(dataset.test.labels) < 15
    assert sum(map(len, split_indices(dataset).values())) == 30


def test_splits_without_classes(tmp_path: Path) -> None:
    dataset = load_image_folder(folder_of(tmp_path / "x", ["train/1.png", "train/2.png", "test/3.png"]), size=8)
    assert (dataset.class_names, len(dataset.train.labels)) == ((), 2)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "x", [f"{kind}/{n}.png" for kind in ("car", "train") for n in range(4)])
    assert load_image_folder(root, size=8).class_names == ("car", "train")


@pytest.mark.parametrize(("shape", "size", "short"), [((90, 151), 70, 80), ((151, 90), 64, 64), ((50, 50), 96, 110)])
def test_a_picture_is_resized_and_cropped_as_torchvision_does(
    tmp_path: Path, shape: tuple[int, int], size: int, short: int
) -> None:
    root = tmp_path / "x"
    for n in range(3):
        picture(root / ("test" if n == 2 else "train") / f"{n}.png", n, shape)
    found = load_image_folder(root, size=size).test.images[0]
    image = Image.open(root / "test" / "2.png")
    resized = tv.resize(image, [short], interpolation=InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(found, tv.pil_to_tensor(tv.center_crop(resized, [size, size])).numpy())


def test_every_kind_of_picture(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "x", ["train/1.png", "train/2.png"])
    base = Image.open(root / "train" / "1.png").resize((8, 8))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the camera was turned by 90 degrees
    palette = base.quantize(16)
    sixteen = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    (root / "test").mkdir()
    for name, image, options in (
        ("1.bmp", base, {}),
        ("2.PPM", base, {}),
        ("3.webp", base, {"lossless": True}),
        ("4.jpg", base.convert("L"), {"quality": 100}),
        ("5.png", base.convert("RGBA"), {}),
        ("6.jpeg", base, {"exif": turned, "quality": 100, "subsampling": 0}),
        ("7.png", sixteen, {}),
        ("8.png", palette, {}),
    ):
        image.save(root / "test" / name, **options)
    images = load_image_folder(root, size=8).test.images.transpose(0, 2, 3, 1).astype(int)
    plain = np.asarray(base).astype(int)
    for number in (0, 1, 2, 4):
        np.testing.assert_array_equal(images[number], plain)
    np.testing.assert_allclose(images[3], np.asarray(base.convert("L"))[..., None].repeat(3, -1), atol=3)
    np.testing.assert_allclose(images[5], np.rot90(plain, -1), atol=40)
    assert set(images[6].flatten()) == {0x80}
    np.testing.assert_array_equal(images[7], np.asarray(palette.convert("RGB")))


def test_the_second_opening_decodes_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "x", SPLIT)
    root.joinpath("{val}").rename(root / "val")
    one = load_image_folder(root, size=8)
    assert load_image_folder(root, size=9).sha256 != one.sha256
    decode = image_folder._decode
    monkeypatch.setattr(image_folder, "_decode", lambda *_: pytest.fail("an image was decoded again"))
    began = time.perf_counter()
    two = load_image_folder(str(root), size=8)
    assert time.perf_counter() - began < 0.5
    assert two.sha256 == one.sha256
    assert two.validation == 1
    np.testing.assert_array_equal(one.train.images, two.train.images)
    monkeypatch.setattr(image_folder, "_decode", decode)
    picture(root / "test" / "pear" / "t2.png", 99)
    assert load_image_folder(root, size=8).sha256 != one.sha256, "a changed file is seen"
    assert not list((cache / "arrays").glob(".unfinished-*"))


def broken(path: Path) -> Path:
    data = picture(path, shape=(64, 64)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def test_an_image_that_cannot_be_decoded(tmp_path: Path, cache: Path) -> None:
    root = folder_of(tmp_path / "x", ["train/a/1.png", "train/a/2.png", "test/a/3.png"])
    bad = [broken(root / "train" / "a" / "0.png"), root / "test" / "a" / "4.jpg"]
    bad[1].write_text("not a picture")
    with pytest.raises(UserError, match="0.png cannot be decoded: ") as caught:
        load_image_folder(root, size=8)
    assert str(bad[0]) in caught.value.problem
    assert "skip_bad" in caught.value.fix
    assert not [path for path in (cache / "arrays").iterdir() if not path.name.endswith(".lock")]
    dataset = load_dataset(str(root), size=8, skip_bad=True)
    assert dataset.description == "x (2 + 1 images from a folder, 8 px, 2 that could not be decoded left out)"
    assert red_of(dataset.train.images) == expected_red(root, ["train/a/1.png", "train/a/2.png"])
    with pytest.raises(UserError, match="0.png cannot be decoded"):
        load_image_folder(root, size=8)
    (root / "test" / "a" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match="no test image of x can be decoded"):
        load_image_folder(root, size=8, skip_bad=True)


WRONG: list[tuple[list[str], str]] = [
    ([], "holds no images"),
    (["notes.txt"], "holds no images"),
    (["one.png"], "holds 1 image, too few to split"),
    (["train/a/1.png", "train/a/2.png"], "has no folder test/ beside train"),
    (["train/a/1.png", "val/a/2.png"], "has no folder test/ beside train, val"),
    (["test/a/1.png"], "has no folder train/ beside test"),
    (["train/a/1.png", "train/a/2.png", "test/notes.txt"], "test holds no images"),
    (["train/a/1.png", "train/a/2.png", "test/a/3.png", "val/notes.txt"], "val holds no images"),
    (["train/notes.txt", "test/a/3.png"], "train holds no images"),
    (["train/a/1.png", "train/a/2.png", "test/b/3.png", "test/c/3.png"], "test holds images of the class 'b' and of 1"),
    (["train/a/1.png", "train/a/2.png", "test/a/3.png", "val/b/3.png"], "val holds images of the class 'b'"),
    (["train/a/1.png", "train/a/2.png", "test/3.png"], "test holds images outside folders of classes"),
    (["a/1.png", "a/2.png", "3.png"], "holds images .3.png, ...* beside folders of images .a, ..."),
    (["train/a/1.png", "val/a/1.png", "valid/a/1.png", "test/a/1.png"], "holds both val and valid"),
]


@pytest.mark.parametrize(("names", "problem"), WRONG)
def test_a_folder_that_cannot_be_used(tmp_path: Path, names: list[str], problem: str) -> None:
    root = tmp_path / "x"
    root.mkdir()
    folder_of(root, [name for name in names if name.endswith(".png")])
    for name in set(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt"):
            (root / name).write_text("")
    with pytest.raises(UserError, match=problem) as caught:
        load_image_folder(root, size=8)
    assert caught.value.fix


def test_wrong_arguments_and_a_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "x", [f"{n}.png" for n in range(9)])
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="0.png is not a folder"):
        load_image_folder(root / "0.png")
    with pytest.raises(UserError, match="size=7"):
        load_image_folder(root, size=7)
    with pytest.raises(UserError, match="sizes"):
        load_dataset(root, sizes=(1, 1))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="9 images of 8 px from x take 0.1 GB, and the cache .* has 0.0 GB free"):
        load_image_folder(root, size=8)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_followed_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "x", ["a/1.png", "a/2.png", "a/3.png"])
    (root / "a" / "up").symlink_to(root / "a")
    (root / "b").symlink_to(root / "a")
    dataset = load_image_folder(root, size=8)
    assert dataset.class_names == ("a", "b")
    assert len(dataset.train.labels) + len(dataset.test.labels) == 6
    (root / "a" / "4.png").symlink_to(root / "gone.png")
    with pytest.raises(UserError, match="4.png cannot be read"):
        load_image_folder(root, size=8)


def test_load_dataset_takes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "photos", [f"{n}.png" for n in range(9)])
    folder_of(tmp_path / "solids", [f"{n}.png" for n in range(9)])
    monkeypatch.chdir(tmp_path)
    sizes = {load_dataset(name, size=8).sha256 for name in ("photos", "./photos", tmp_path / "photos")}
    assert len(sizes) == 1
    assert load_dataset("photos").train.images.shape[1:] == (3, 224, 224)
    assert load_dataset("solids", sizes=(20, 10)).train.images.shape[1:] == (3, 32, 32)
    assert load_dataset("./solids", size=8).name not in DATASETS
    with pytest.raises(UserError, match="no dataset named 'photo'.*\n.*path of a folder of images"):
        load_dataset("photo")
    with pytest.raises(UserError, match="photo does not exist"):
        load_dataset("./photo")
    with pytest.raises(UserError, match="no dataset named ''"):
        load_dataset("")


def test_a_folder_with_cifar10_in_it_is_cifar10(tmp_path: Path) -> None:
    (tmp_path / "data" / "cifar-10-batches-bin").mkdir(parents=True)
    with pytest.raises(UserError, match="CIFAR-10 is incomplete"):
        load_dataset(tmp_path / "data")


def test_rows_are_written_one_by_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(256, size=(1234, 3, 2), dtype=np.uint8)
    with row_writer(tmp_path / "x.npy", (3, 2), np.uint8) as append:
        for row in rows:
            append(row)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
    with row_writer(tmp_path / "none.npy", (), np.int64):
        pass
    assert np.load(tmp_path / "none.npy").shape == (0,)


def test_memory_stays_bounded_and_the_order_is_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(200)]
    for n, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(path)
    asked: list[Path] = []

    def asking() -> Iterator[Path]:
        for path in paths:
            asked.append(path)
            yield path

    images = decode_all(asking(), lambda path: image_folder._decode(path, 8))
    assert np.asarray(next(images))[0, 0, 0] == 0
    assert len(asked) <= AHEAD * MOST_THREADS
    assert [int(np.asarray(image)[0, 0, 0]) for image in images] == list(range(1, 200))
