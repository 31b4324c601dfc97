"""Views on disk or rendered on demand: each image once, two steps in one resampling, and pairs of special kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from equibench.data.dataset import Dataset, image_source
from equibench.errors import UserError
from equibench.pairs import views as module
from equibench.pairs.manifest import bank_pairs, composed_pairs, draw_pairs, fixed_pairs, half_way, image_pairs
from equibench.pairs.views import ViewStore
from equibench.task import TASKS
from equibench.transforms.transformation import (
    TRANSFORMATIONS,
    Transformation,
    register_transformation,
    transform,
    transform_sequence,
    view_spec,
)

SPEC = view_spec("headline", 32)


def test_an_image_that_several_pairs_use_is_there_once(solids_dataset: Dataset, tmp_path: Path) -> None:
    pairs = draw_pairs(solids_dataset, "flip", (800, 90, 50), task="a test", version=1, repeats=2)
    views = ViewStore(tmp_path, solids_dataset, SPEC).first(pairs)
    assert len(views.images) == 540 + 60 + 50
    assert views.row is not None
    for split in ("train", "val", "test"):
        rows = pairs.rows(split)
        seen = np.asarray(views.images[slice(None)])[views.row[rows]]
        np.testing.assert_array_equal(seen, image_source(solids_dataset, split).images[pairs.image[rows]])
    theta = pairs.theta[pairs.rows("train")]
    repeated = pairs.image[:260]
    np.testing.assert_array_equal(repeated, pairs.image[540:800])
    assert (theta[:260] != theta[540:800]).any(), "a repeated image has a θ of its own"


def test_without_repeats_pair_n_sees_image_n(solids_dataset: Dataset, tmp_path: Path) -> None:
    pairs = draw_pairs(solids_dataset, "flip", (30, 10, 20), task="a test", version=1)
    assert ViewStore(tmp_path, solids_dataset, SPEC).first(pairs).row is None


@pytest.mark.parametrize("name", ["rotation", "color"])
def test_views_on_demand_are_those_on_disk(
    name: str, solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = draw_pairs(solids_dataset, name, (30, 10, 20), task="a test", version=1)
    store = ViewStore(tmp_path, solids_dataset, SPEC)
    kept = np.array(store.second(pairs).images[slice(None)])
    store.discard(pairs)
    assert not list(tmp_path.glob("*.npy"))
    monkeypatch.setattr(module, "STORE_LIMIT", 0)
    on_demand = store.second(pairs).images
    assert len(on_demand) == 60
    np.testing.assert_array_equal(on_demand[slice(25, 45)], kept[25:45])
    assert not list(tmp_path.glob("*.npy"))


def test_two_rotations_are_one(solids_dataset: Dataset, tmp_path: Path) -> None:
    task = TASKS.get("rotation.action")
    pairs = composed_pairs(solids_dataset, task, 20)
    assert pairs.then is not None
    assert np.abs(pairs.theta).max() <= 22.5
    assert np.abs(pairs.then).max() <= 22.5
    views = np.array(ViewStore(tmp_path, solids_dataset, SPEC).second(pairs).images[slice(None)])
    images = torch.from_numpy(np.array(solids_dataset.test.images[pairs.image])).float() / 255
    once = transform(images, {"rotation": torch.from_numpy(pairs.theta + pairs.then).float()})
    assert np.abs(views - (once * 255).round().numpy()).max() <= 1


def test_steps_of_pixels_come_after_one_another() -> None:
    images = torch.rand(4, 3, 16, 16)
    turn = {"rotation": torch.full((4, 1), 20.0)}
    dim = {"color": torch.tensor([[-0.3, 0.1, 0.2, 0.05]]).repeat(4, 1)}
    expected = transform(transform(images, dim), turn)
    torch.testing.assert_close(transform_sequence(images, [dim, turn]), expected)
    torch.testing.assert_close(transform_sequence(images, [turn, dim]), transform(images, {**turn, **dim}))


def test_a_bank_holds_many_transforms_of_each_image(solids_dataset: Dataset) -> None:
    pairs = bank_pairs(solids_dataset, TASKS.get("translation.retrieval"), 7, 5)
    assert pairs.sizes == (0, 0, 35)
    assert (pairs.image.reshape(7, 5) == pairs.image.reshape(7, 5)[:, :1]).all()
    assert len(np.unique(pairs.theta, axis=0)) == 35


@pytest.mark.parametrize(("name", "count"), [("rotation.wahba", 4), ("flip.wahba", 1)])
def test_fixed_transformations_move_every_image_alike(name: str, count: int, solids_dataset: Dataset) -> None:
    pairs, found = fixed_pairs(solids_dataset, TASKS.get(name), 10, 4)
    assert found == count
    theta = pairs.theta.reshape(count, 10, -1)
    assert (theta == theta[:, :1]).all()
    assert len(np.unique(theta[:, 0], axis=0)) == count
    identity = TRANSFORMATIONS[pairs.transformation].identity
    assert (theta != np.array(identity)).any(axis=2).all()


def test_no_more_images_than_there_are(solids_dataset: Dataset) -> None:
    assert len(image_pairs(solids_dataset, TASKS.get("rotation.lie"), 10_000).image) == 200


def test_half_way_to_the_identity() -> None:
    np.testing.assert_allclose(half_way("crop", np.array([[0.3, 0.5, 0.4, 0.2]])), [[0.4, 0.5, 0.7, 0.6]])
    np.testing.assert_allclose(half_way("flip", np.array([[1.0], [0.0]])), [[1.0], [0.0]])


@pytest.mark.parametrize("name", [n for n, t in TRANSFORMATIONS.items() if t.inverse and not t.observed])
def test_an_inverse_undoes_its_transformation(name: str) -> None:
    transformation = TRANSFORMATIONS[name]
    assert transformation.inverse is not None
    u = np.random.default_rng(0).random((8, transformation.uniforms)) * 0.5 + 0.25
    theta = half_way(name, transformation.draw(u, 32)) / 2 if name != "flip" else np.ones((8, 1))
    ramp = torch.linspace(0.3, 0.6, 32)
    images = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 0.45)]).repeat(
        8, 1, 1, 1
    )
    steps = [{name: torch.from_numpy(t).float()} for t in (theta, transformation.inverse(theta))]
    back = transform_sequence(images, steps)[:, :, 12:20, 12:20]
    torch.testing.assert_close(back, images[:, :, 12:20, 12:20], atol=0.02, rtol=0)


def test_a_transformation_of_ones_own_must_be_one_thing() -> None:
    flip = TRANSFORMATIONS["flip"]
    settings = {k: getattr(flip, k) for k in ("parameters", "group", "uniforms", "draw", "identity", "code", "publish")}
    with pytest.raises(UserError, match="either a matrix or a pixel operation"):
        register_transformation(Transformation(name="nothing", **settings))
    with pytest.raises(UserError, match="registered twice"):
        register_transformation(flip)
    assert "nothing" not in TRANSFORMATIONS
