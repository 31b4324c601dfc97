"""Homographies between patches: the geometry in closed form, the patches' pixels, heads that can and cannot know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import dblquad
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from equibench.data.dataset import Dataset
from equibench.data.homographies import (
    CORNERS,
    REACH,
    Patches,
    apply_homography,
    draw_homographies,
    find_pictures,
    fit_homography,
)
from equibench.encoders.adapter import ImageEncoder, Preprocessing
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import evaluate, evaluator_of
from equibench.evaluation.homography import IDENTITY_ERROR, corner_errors, corners_of, displacements, token_places
from equibench.profiles import get_profile
from equibench.records import predictions_path, read_predictions
from equibench.runner.open import choose_tasks
from equibench.task import TASKS

TINY = get_profile("tiny")


# Geometry


def test_a_homography_is_found_from_four_places_and_from_many() -> None:
    rng = np.random.default_rng(0)
    for known in (
        np.eye(3) + rng.normal(size=(3, 3)) * [[0.1, 0.1, 9], [0.1, 0.1, 9], [5e-4, 5e-4, 0]] for _ in range(5)
    ):
        for places in (CORNERS, token_places((5, 7))):
            led = np.concatenate([places, np.ones((len(places), 1))], axis=1) @ known.T
            found = fit_homography(places, (led[:, :2] / led[:, 2:])[None])
            np.testing.assert_allclose(found[0], known / known[2, 2], atol=1e-8)
            np.testing.assert_allclose(apply_homography(found, places)[0], led[:, :2] / led[:, 2:], atol=1e-7)


def test_tokens_displacements_and_corners_say_the_same() -> None:
    corners = np.random.default_rng(0).uniform(-REACH, REACH, (20, 4, 2))
    for grid in ((14, 14), (4, 4), (2, 3)):
        field = displacements(corners, grid)
        assert field.shape == (20, 2, *grid)
        np.testing.assert_allclose(corners_of(field), corners, atol=1e-6)
    shift = np.broadcast_to([3.0, -5.0], (1, 4, 2))
    field = displacements(shift, (3, 3))
    np.testing.assert_allclose(field[0, 0], 3)
    np.testing.assert_allclose(field[0, 1], -5)
    # the middle of the first of two tokens of 64 px lies between its 32nd and 33rd pixel
    assert token_places((2, 2)).tolist() == [[31.5, 31.5], [95.5, 31.5], [31.5, 95.5], [95.5, 95.5]]


def test_what_the_identity_costs() -> None:
    mean, _ = dblquad(lambda y, x: np.hypot(x, y), 0, REACH, 0, REACH)
    assert pytest.approx(mean / REACH**2) == IDENTITY_ERROR
    drawn = np.random.default_rng(0).uniform(-REACH, REACH, (20_000, 4, 2))
    assert corner_errors(np.zeros_like(drawn), drawn).mean() == pytest.approx(IDENTITY_ERROR, rel=0.01)
    assert corner_errors(drawn + [3, 4], drawn) == pytest.approx(5)


# Pairs


def write_pictures(root: Path, train: int, test: int) -> Path:
    """Pictures that show where each of their pixels is: red says how far right, green how far down."""
    y, x = np.mgrid[:240, :320]
    picture = np.stack([x * 255 / 319, y * 255 / 239, 0 * x], axis=-1)
    for folder, count in (("train2017", train), ("val2017", test)):
        (root / "coco" / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.rint(picture).astype(np.uint8)).save(root / "coco" / folder / f"{number:012}.png")
    return root


def test_a_patch_shows_what_the_homography_leads_to(tmp_path: Path) -> None:
    drawn = draw_homographies(find_pictures(write_pictures(tmp_path, 5, 3)), (5, 99))
    assert drawn.name == "coco-pictures"
    assert {split: len(files) for split, files in drawn.files.items()} == {"train": 5, "test": 3}
    origin, corners = drawn.origin["train"], drawn.corners["train"]
    first = Patches(drawn.files["train"], origin, np.zeros_like(corners))[0:5]
    second = Patches(drawn.files["train"], origin, corners)[0:5]
    assert first.shape == second.shape == (5, 3, 128, 128)
    scale = np.array([255 / 319, 255 / 239])
    for corner, (x, y) in enumerate(CORNERS.astype(int)):
        for patches, moved in ((first, 0), (second, corners[:, corner])):
            np.testing.assert_allclose(patches[:, :2, y, x], (origin + [x, y] + moved) * scale, atol=1.01)
    # and between the corners, too
    led = apply_homography(fit_homography(CORNERS, CORNERS + corners), [[40, 90]])[:, 0]
    np.testing.assert_allclose(second[:, :2, 90, 40], (origin + led) * scale, atol=1.01)
    assert np.ptp(origin, axis=0).min() > 0
    assert origin.min() >= REACH
    assert (origin.max(axis=0) <= [160, 80]).all()


def test_pairs_are_drawn_by_counter_and_their_digest_follows_the_files(tmp_path: Path) -> None:
    root = find_pictures(write_pictures(tmp_path, 6, 2))
    few, all_ = draw_homographies(root, (3, 2)), draw_homographies(root, (6, 2))
    assert few.files["train"] == all_.files["train"][:3]
    np.testing.assert_array_equal(few.corners["train"], all_.corners["train"][:3])
    assert few.sha256 != all_.sha256
    write_pictures(tmp_path / "again", 6, 2)
    assert draw_homographies(tmp_path / "again/coco", (6, 2)).sha256 == all_.sha256
    changed = write_pictures(tmp_path / "changed", 6, 2) / "coco"
    Image.new("RGB", (64, 48)).save(changed / "val2017/000000000001.png")
    assert draw_homographies(changed, (6, 2)).sha256 != all_.sha256


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures for homographies in") as caught:
        find_pictures(tmp_path)
    assert "train2017" in caught.value.fix
    root = write_pictures(tmp_path, 2, 0) / "coco"
    with pytest.raises(UserError, match="val2017 holds no pictures"):
        draw_homographies(root, (2, 2))
    (root / "train2017/000000000000.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="000000000000.png cannot be decoded"):
        Patches([root / "train2017/000000000000.png"], np.zeros((1, 2)), np.zeros((1, 4, 2)))[0:1]


# The evaluator


class Means(nn.Module):
    """The mean colour of each sixteenth, or other share, of the image: of these pictures, where it is."""

    def __init__(self, grid: int = 4) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, x.shape[-1] // self.grid)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 3, 4, 4)


def row(model: nn.Module, size: int = 32) -> Row:
    encoder = ImageEncoder(model, architecture=type(model).__name__, preprocessing=Preprocessing(size))
    return Row(type(model).__name__, lambda: encoder, encoder.identity, "weights")


@pytest.fixture(scope="module")
def context(solids_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Context:
    root, work = write_pictures(tmp_path_factory.mktemp("pictures"), 128, 48), tmp_path_factory.mktemp("work")
    longer = replace(TINY, probing=replace(TINY.probing, epochs=60))
    return Context(longer, solids_dataset, "headline", work, torch.device("cpu"), False, data_root=root)


def test_who_sees_where_it_is_finds_the_corners_and_who_sees_nothing_does_not(context: Context) -> None:
    task = TASKS.get("homography")
    (seeing,), (blind,) = (evaluate(row(model), task, context) for model in (Means(), Nothing()))
    floor = seeing.metrics["mce"].floor
    assert (seeing.pairs, seeing.data, seeing.main_metric) == ([128, 0, 48], "coco-pictures", "mce")
    assert floor == blind.metrics["mce"].floor == pytest.approx(IDENTITY_ERROR, rel=0.1)
    assert seeing.metrics["mce"].value < floor / 2
    assert blind.metrics["mce"].value == pytest.approx(floor, rel=0.15)
    stored = read_predictions(predictions_path(context.work, seeing.evaluation_sha256))
    assert evaluator_of(task).scores(stored, "full") == seeing.metrics
    (again,) = evaluate(row(Means()), task, context)
    assert again.metrics == seeing.metrics
    assert not list(context.work.glob("token-maps-*")), "the maps go when they have been read"


def test_a_map_too_coarse_and_data_that_are_not_there(context: Context, tmp_path: Path) -> None:
    task = TASKS.get("homography")
    with pytest.raises(UserError, match="1 x 1 is too coarse"):
        evaluate(row(Means(1)), task, context)
    absent = replace(context, data_root=tmp_path)
    assert "coco/train2017" in evaluator_of(task).missing_data(task, absent)
    with pytest.raises(UserError, match="no pictures for homographies"):
        evaluate(row(Means()), task, absent)
    assert task not in choose_tasks(["all"])
