"""The manifest of pairs and the stream of pretraining pairs: what they depend on, and what they do not."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from equibench.data.dataset import SPLITS, Dataset, ImageSet, image_source, split_indices
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.pairs.manifest import draw_pairs, draw_theta, pretraining_epoch
from equibench.pretrain.batches import PairStream
from equibench.pretrain.method import Baseline, ViewPair
from equibench.profiles import get_profile
from equibench.transforms.transformation import BUILT_IN, MEAN, STD, TRANSFORMATIONS, view_spec
from equibench.utils.random import uniforms

TINY = get_profile("tiny")
SIZES = (40, 6, 10)
GOLDEN_IMAGES = [48, 56, 11, 0, 15]
GOLDEN_THETA = [17.768698, 33.452328, 18.503567, 34.91312, -20.893301]
GOLDEN_SHA256 = "0fbd916ac180aacebbb343f47419b7fd62035b6b930411fabf51ec43601759b0"


def small(name: str = "small") -> Dataset:
    """60 + 12 images of two classes, all made of arithmetic."""
    grid = np.arange(60 * 3 * 8 * 8).reshape(60, 3, 8, 8)
    images = (grid * 37 % 251).astype(np.uint8)
    train = ImageSet(images, np.arange(60, dtype=np.int64) % 2)
    test = ImageSet(images[:12] + 1, np.arange(12, dtype=np.int64) % 2)
    return Dataset(name, "made here", train, test, ("a", "b"), hashlib.sha256(images.tobytes()).hexdigest())


def stream(dataset: Dataset, *, split: str = "train", single: bool = False, variant: str = "headline") -> PairStream:
    method = Baseline(TINY, ViTEncoder(TINY.encoder, 32, view_spec(variant, 32)))
    method.one_at_a_time = single
    return PairStream(dataset, split, method, view_spec(variant, 32), seed=0)


@pytest.fixture(scope="module")
def encoder() -> ViTEncoder:
    return ViTEncoder(TINY.encoder, 32, view_spec("headline", 32))


def test_uniforms_are_philox_keyed_by_the_digest_of_the_names() -> None:
    key = np.frombuffer(hashlib.sha256(b"rotation|task|1|train").digest()[:16], dtype="<u8")
    expected = np.random.Generator(np.random.Philox(key=key)).random((5, 3))
    np.testing.assert_array_equal(uniforms((5, 3), "rotation", "task", 1, "train"), expected)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_row_does_not_depend_on_how_many_are_drawn(name: str) -> None:
    few, many = draw_theta(name, 7, 32, "task", 1, "train"), draw_theta(name, 5000, 32, "task", 1, "train")
    np.testing.assert_array_equal(few, many[:7])
    assert not np.array_equal(few, draw_theta(name, 7, 32, "task", 2, "train"))


def test_manifest_is_the_same_on_every_machine() -> None:
    pairs = draw_pairs(small(), "rotation", SIZES, task="rotation", version=1)
    assert pairs.image[:5].tolist() == GOLDEN_IMAGES
    assert pairs.theta[:5, 0].tolist() == GOLDEN_THETA
    assert pairs.sha256 == GOLDEN_SHA256


def test_digest_changes_with_task_version_data_sizes_and_theta() -> None:
    dataset = small()
    digests = [
        draw_pairs(dataset, "rotation", SIZES, task="rotation", version=1).sha256,
        draw_pairs(dataset, "rotation", SIZES, task="rotation", version=2).sha256,
        draw_pairs(dataset, "rotation", SIZES, task="other", version=1).sha256,
        draw_pairs(dataset, "blur", SIZES, task="rotation", version=1).sha256,
        draw_pairs(dataset, "rotation", (40, 6, 9), task="rotation", version=1).sha256,
        draw_pairs(replace(dataset, sha256="0" * 64), "rotation", SIZES, task="rotation", version=1).sha256,
    ]
    assert len(set(digests)) == len(digests)


def test_tasks_share_their_images() -> None:
    one, other = (draw_pairs(small(), n, SIZES, task=n, version=1) for n in ("rotation", "crop"))
    np.testing.assert_array_equal(one.image, other.image)
    assert one.images_sha256 == other.images_sha256
    assert one.sha256 != other.sha256
    fewer = draw_pairs(small(), "crop", (30, 6, 10), task="crop", version=1)
    assert fewer.images_sha256 != one.images_sha256
    np.testing.assert_array_equal(fewer.image[:30], one.image[:30])


def test_splits_are_stratified_disjoint_and_a_tenth(solids_dataset: Dataset) -> None:
    splits = split_indices(solids_dataset)
    assert [len(splits[name]) for name in SPLITS] == [540, 60, 200]
    np.testing.assert_array_equal(np.sort(np.concatenate([splits["train"], splits["val"]])), np.arange(600))
    np.testing.assert_array_equal(splits["test"], np.arange(200))
    for name in ("train", "val"):
        counts = np.bincount(solids_dataset.train.labels[splits[name]])
        np.testing.assert_array_equal(counts, np.full(10, len(splits[name]) // 10))
    np.testing.assert_array_equal(split_indices(solids_dataset)["val"], splits["val"])


def test_pretraining_never_sees_an_image_of_validation_or_test(solids_dataset: Dataset) -> None:
    splits = split_indices(solids_dataset)
    pairs = draw_pairs(solids_dataset, "flip", (256, 60, 128), task="flip", version=1)
    pretrained, _ = pretraining_epoch(splits["train"], 32, ["flip"], 0, 3)
    np.testing.assert_array_equal(np.sort(pretrained), splits["train"])
    assert set(pairs.image[pairs.rows("train")]) <= set(pretrained)
    assert not set(pairs.image[pairs.rows("val")]) & set(pretrained)
    assert image_source(solids_dataset, "val") is solids_dataset.train
    assert image_source(solids_dataset, "test") is solids_dataset.test
    for split in SPLITS:
        assert len(set(pairs.image[pairs.rows(split)])) == pairs.sizes[SPLITS.index(split)], "drawn twice"


def test_rows_of_a_split() -> None:
    pairs = draw_pairs(small(), "flip", (40, 5, 10), task="flip", version=1)
    assert [pairs.rows(split) for split in SPLITS] == [slice(0, 40), slice(40, 45), slice(45, 55)]
    assert pairs.theta.shape == (55, 1)


@pytest.mark.parametrize(("sizes", "split"), [((55, 5, 10), "train"), ((40, 7, 10), "val"), ((40, 5, 13), "test")])
def test_too_few_images(sizes: tuple[int, int, int], split: str) -> None:
    with pytest.raises(UserError, match=f"its {split} split"):
        draw_pairs(small(), "flip", sizes, task="flip", version=1)


def assert_same(one: ViewPair, parts: list[ViewPair]) -> None:
    for field in ("v1", "v2", "labels"):
        torch.testing.assert_close(torch.cat([getattr(p, field) for p in parts]), getattr(one, field))
    for name in one.theta:
        assert torch.equal(torch.cat([p.theta[name] for p in parts]), one.theta[name])
        assert torch.equal(torch.cat([p.known[name] for p in parts]), one.known[name])


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("start", [0, 528])  # an epoch has 540 pairs
def test_pairs_do_not_depend_on_the_batch_size(
    solids_dataset: Dataset, encoder: ViTEncoder, start: int, single: bool
) -> None:
    pairs = stream(solids_dataset, single=single)
    again = stream(solids_dataset, single=single)
    parts = [again.batch(start + 16, 16, encoder), again.batch(start, 16, encoder)]
    assert_same(pairs.batch(start, 32, encoder), parts[::-1])


def test_epochs_show_every_image_once_and_with_new_theta(solids_dataset: Dataset, encoder: ViTEncoder) -> None:
    pairs = stream(solids_dataset)
    index, _, *drawn = pairs._rows(0, 1080)
    theta = dict(zip(pairs.names, drawn, strict=True))
    for epoch in (index[:540], index[540:]):
        np.testing.assert_array_equal(np.sort(epoch), split_indices(solids_dataset)["train"])
    assert not np.array_equal(index[:540], index[540:])
    assert not np.array_equal(theta["rotation"][:540], theta["rotation"][540:])
    other = PairStream(solids_dataset, "train", Baseline(TINY, encoder), view_spec("headline", 32), seed=1)
    assert not np.array_equal(other._rows(0, 540)[0], index[:540])


def test_held_out_stream_is_the_validation_tenth(solids_dataset: Dataset) -> None:
    index = stream(solids_dataset, split="val")._rows(0, 60)[0]
    np.testing.assert_array_equal(np.sort(index), split_indices(solids_dataset)["val"])


@pytest.mark.parametrize("single", [False, True])
def test_first_view_is_the_image_and_both_are_blank_outside_the_disc(
    solids_dataset: Dataset, encoder: ViTEncoder, single: bool
) -> None:
    pairs = stream(solids_dataset, single=single)
    views, index = pairs.batch(0, 16, encoder), pairs._rows(0, 16)[0]
    images = torch.from_numpy(solids_dataset.train.images[index]).float() / 255
    axis = np.arange(32) - 15.5
    disc = torch.from_numpy(np.hypot(axis[:, None], axis[None, :]) <= 11.5)
    expected = tv.normalize(images, list(MEAN), list(STD)) * disc
    torch.testing.assert_close(views.v1, expected, atol=1e-5, rtol=0)
    assert (views.v2[..., ~disc] == 0).all()
    assert (views.mask.bool() == disc).all()
    assert views.labels is not None
    np.testing.assert_array_equal(views.labels, solids_dataset.train.labels[index])


def test_views_without_disc_are_black_where_nothing_is_known(solids_dataset: Dataset) -> None:
    whole = ViTEncoder(TINY.encoder, 32, view_spec("paper_like", 32))
    pairs = stream(solids_dataset, variant="paper_like")
    pairs.names = ("rotation",)
    views = pairs.batch(0, 64, whole)
    assert bool(views.mask.all())
    turned = views.theta["rotation"][:, 0].abs() > 0.7
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    corner = views.v2[turned][..., 0, 0]
    torch.testing.assert_close(corner, black.expand_as(corner))


def test_one_at_a_time_applies_what_known_says_and_nothing_else(solids_dataset: Dataset, encoder: ViTEncoder) -> None:
    views = stream(solids_dataset, single=True).batch(0, 128, encoder)
    known = torch.stack([views.known[name] for name in BUILT_IN])
    assert (known.sum(dim=0) == 1).all()
    assert (known.sum(dim=1) > 8).all(), "each of the six gets its share"
    # rotations by torchvision, on the pairs said to be rotated: what is shown is a rotation alone
    rows, disc = views.known["rotation"].nonzero()[:, 0], encoder.mask.bool()
    pairs = stream(solids_dataset, single=True)
    images = torch.from_numpy(solids_dataset.train.images[pairs._rows(0, 128)[0]]).float() / 255
    for row in rows.tolist():
        angle = 45 * float(views.theta["rotation"][row])
        turned = tv.rotate(images[row], angle, interpolation=InterpolationMode.BILINEAR)
        turned = tv.normalize(turned, list(MEAN), list(STD))
        torch.testing.assert_close(views.v2[row][:, disc], turned[:, disc], atol=1e-3, rtol=0)
    still = views.known["flip"] & (views.theta["flip"][:, 0] == 0)
    torch.testing.assert_close(views.v2[still], views.v1[still], atol=1e-4, rtol=0)


def test_all_at_once_are_all_known(solids_dataset: Dataset, encoder: ViTEncoder) -> None:
    views = stream(solids_dataset).batch(0, 16, encoder)
    assert all(bool(flags.all()) for flags in views.known.values())
    assert list(views.theta) == list(BUILT_IN)
