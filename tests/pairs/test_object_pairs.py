"""Pairs of the data's own views: which objects and views they are of, and θ against scipy's rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from object_data import VIEWS, with_objects
from scipy.spatial.transform import Rotation

from equibench.data.dataset import SPLITS, Dataset, image_source, known_indices, split_indices
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.pairs.manifest import draw_object_pairs
from equibench.pairs.views import ViewStore
from equibench.pretrain.batches import ObjectStream, PairStream, open_stream
from equibench.pretrain.method import Baseline
from equibench.profiles import get_profile
from equibench.transforms.transformation import TRANSFORMATIONS, view_spec

TINY = get_profile("tiny")
SIZES = (300, 60, 120)


@pytest.fixture(scope="module")
def objects(solids_dataset: Dataset) -> Dataset:
    return with_objects(solids_dataset)


def encoder() -> ViTEncoder:
    return ViTEncoder(TINY.encoder, 32, view_spec("rendered", 32))


def method(use: str = "unused") -> Baseline:
    made = Baseline(TINY, encoder())
    made.use_of_theta = use  # type: ignore[assignment]
    return made


def test_no_object_is_on_two_sides(objects: Dataset) -> None:
    split = split_indices(objects)
    owner = np.asarray(objects.train.objects)
    train, val = set(owner[split["train"]]), set(owner[split["val"]])
    assert not train & val
    assert len(train) + len(val) == len(set(owner))
    assert len(val) == pytest.approx(0.1 * len(set(owner)), abs=1)
    assert len(split["train"]) == len(train) * VIEWS


@pytest.mark.parametrize("name", ["pose", "hues"])
def test_a_pair_is_two_views_of_one_object_with_the_theta_between_them(objects: Dataset, name: str) -> None:
    pairs = draw_object_pairs(objects, name, SIZES, task="t", version=1)
    assert pairs.other is not None
    for split in SPLITS:
        rows, data = pairs.rows(split), image_source(objects, split)
        first, second = pairs.image[rows], pairs.other[rows]
        assert (first != second).all()
        assert (data.objects[first] == data.objects[second]).all()
        assert set(first) <= set(split_indices(objects)[split])
        one, other = data.latents[first], data.latents[second]
        if name == "hues":
            np.testing.assert_allclose(pairs.theta[rows], other[:, [3, 6]] - one[:, [3, 6]], atol=1e-6)
            continue
        # R1 q = R2, by matrices
        start, end = (Rotation.from_euler("xyz", x[:, :3]).as_matrix() for x in (one, other))
        turned = start @ Rotation.from_quat(pairs.theta[rows]).as_matrix()
        np.testing.assert_allclose(turned, end, atol=1e-5)


def test_each_test_object_has_as_many_pairs_and_they_stand_together(objects: Dataset) -> None:
    pairs = draw_object_pairs(objects, "pose", SIZES, task="t", version=1)
    owner = objects.test.objects[pairs.image[pairs.rows("test")]].reshape(-1, pairs.cluster)
    assert pairs.cluster == SIZES[2] // (len(objects.test.labels) // VIEWS)
    assert (owner == owner[:, :1]).all()
    assert len(set(owner[:, 0])) == len(owner) == len(set(objects.test.objects))


def test_tasks_share_pairs_and_the_manifest_tells_them_apart(objects: Dataset) -> None:
    pose, hues = (draw_object_pairs(objects, n, SIZES, task=n, version=1) for n in ("pose", "hues"))
    assert (pose.image == hues.image).all()
    assert (pose.other == hues.other).all()
    assert pose.images_sha256 == hues.images_sha256
    assert pose.sha256 != hues.sha256


def test_views_of_a_pair_are_the_data_s_pictures(objects: Dataset, tmp_path: object) -> None:
    pairs = draw_object_pairs(objects, "pose", SIZES, task="t", version=1)
    store = ViewStore(tmp_path, objects, view_spec("rendered", 32))  # type: ignore[arg-type]
    for views, index in ((store.first(pairs), pairs.image), (store.second(pairs), pairs.other)):
        assert index is not None
        images = views.images[slice(0, len(views.images))]
        each = images if views.row is None else images[views.row]
        test = pairs.rows("test")
        assert (each[test] == objects.test.images[index[test]]).all()


def test_data_without_objects_are_refused(solids_dataset: Dataset) -> None:
    with pytest.raises(UserError, match="no views of objects"):
        draw_object_pairs(solids_dataset, "pose", SIZES, task="t", version=1)
    needs_pose = method()
    needs_pose.transformations = ("pose",)
    with pytest.raises(UserError, match="needs views with pose"):
        open_stream(solids_dataset, "train", needs_pose, view_spec("headline", 32), 0)


def test_a_stream_shows_each_object_once_an_epoch_and_is_the_same_however_it_is_cut(objects: Dataset) -> None:
    net, spec = encoder(), view_spec("rendered", 32)
    stream = open_stream(objects, "train", method(), spec, 0)
    assert isinstance(stream, ObjectStream)
    first, second = stream._rows(0, stream.count)
    owner = objects.train.objects
    assert len(set(owner[first])) == stream.count
    assert (owner[first] == owner[second]).all()
    whole = stream.batch(stream.count - 3, 8, net)
    parts = [stream.batch(stream.count - 3, 5, net), stream.batch(stream.count + 2, 3, net)]
    assert torch.equal(whole.v2, torch.cat([p.v2 for p in parts]))
    assert torch.equal(whole.theta["pose"], torch.cat([p.theta["pose"] for p in parts]))
    assert net.mask.all(), "nothing of a rendered picture is hidden"


def test_theta_that_is_not_there_is_asked_for_in_vain(objects: Dataset) -> None:
    views = open_stream(objects, "train", method(), view_spec("rendered", 32), 0).batch(0, 4, encoder())
    with pytest.raises(UserError, match="asks for θ of 'rotation'.*pose, hues"):
        views.theta["rotation"]


@pytest.mark.parametrize("use", ["required", "optional", "unused"])
def test_a_fifth_is_known(solids_dataset: Dataset, use: str) -> None:
    known = known_indices(solids_dataset, 0.2)
    train = split_indices(solids_dataset)["train"]
    assert set(known) < set(train)
    counts = np.bincount(solids_dataset.train.labels[known]) / np.bincount(solids_dataset.train.labels[train])
    np.testing.assert_allclose(counts, 0.2, atol=0.02)  # of each class
    spec, count = view_spec("headline", 32), len(train)
    stream = PairStream(solids_dataset, "train", method(use), spec, 0, known_fraction=0.2)
    index = stream._rows(0, count)[0]
    assert set(index) == set(known) if use == "required" else set(train)
    flags = stream.batch(0, 64, encoder()).known["rotation"].numpy()
    assert (flags == np.isin(index[:64], known)).all()


def test_of_objects_the_known_ones_are_known_with_all_their_views(objects: Dataset) -> None:
    known = known_indices(objects, 0.2)
    owner = np.asarray(objects.train.objects)
    assert len(known) == VIEWS * len(set(owner[known]))
    stream = open_stream(objects, "train", method("required"), view_spec("rendered", 32), 0, known_fraction=0.2)
    assert isinstance(stream, ObjectStream)
    assert stream.count == len(set(owner[known]))


def test_inverse_of_a_pose_is_scipy_s() -> None:
    pose = TRANSFORMATIONS["pose"]
    theta = pose.draw(np.random.default_rng(0).random((50, 6)), 32)
    expected = Rotation.from_quat(theta).inv().as_matrix()
    assert pose.inverse is not None
    np.testing.assert_allclose(Rotation.from_quat(pose.inverse(theta)).as_matrix(), expected, atol=1e-12)
