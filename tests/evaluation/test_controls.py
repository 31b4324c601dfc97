"""The controls: what they see, and that the oracle and the constant mark the ends of the scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from equibench.data.dataset import SPLITS, Dataset
from equibench.evaluation.controls import (
    CONTROLS,
    RIVALS,
    constant_prediction,
    distance_features,
    oracle_features,
    pixel_features,
    statistics_features,
)
from equibench.pairs.manifest import Pairs, draw_pairs, draw_theta
from equibench.pairs.views import Views
from equibench.probes.mlp import fit_mlp
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import Split, Whitening
from equibench.profiles import get_profile
from equibench.task import TASKS, regression_tasks
from equibench.transforms.transformation import TRANSFORMATIONS, ViewSpec
from equibench.utils.arrays import Gathered

WHOLE, DISC = ViewSpec("paper_like", "black", None), ViewSpec("headline", "reflect", 3.0)
SIZES = (256, 60, 128)


def seen(images: np.ndarray) -> Views:
    return Views("of a test", np.ascontiguousarray(images))


def manifest(dataset: Dataset, task_name: str) -> tuple[Pairs, np.ndarray]:
    task = TASKS.get(task_name)
    named = {"task": task.name, "version": task.version, "nuisance": task.nuisance}
    pairs = draw_pairs(dataset, task.transformation, SIZES, **named)  # type: ignore[arg-type]
    return pairs, TRANSFORMATIONS[task.transformation].encode(pairs.theta, 32)


@pytest.mark.parametrize("task", regression_tasks())
def test_oracle_reaches_the_ceiling(task: str, solids_dataset: Dataset) -> None:
    pairs, coded = manifest(solids_dataset, task)
    first, second = oracle_features(pairs, coded)
    splits = {n: Split(first[pairs.rows(n)], second[pairs.rows(n)], coded[pairs.rows(n)]) for n in SPLITS}
    settings, whitening = replace(get_profile("tiny").probing, pairs=SIZES, epochs=40), Whitening.of(splits["train"])
    truth, closed = splits["test"].targets, fit_closed_form(splits, whitening)
    predictions = fit_mlp(splits, whitening.shrunk(closed.shrinkage), settings, seeds=[0, 1, 2]).predictions
    # .9975 is the ceiling; 32 units of which a fifth are left out stop short of it
    assert np.mean([r2_score(truth, p) for p in predictions]) > 0.97
    assert r2_score(truth, closed.predictions) > 0.99


def test_the_distance_is_that_of_the_views_whether_they_are_stored_or_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 25, 7)).astype(np.float16)
    row = rng.integers(25, size=25)
    monkeypatch.setattr("equibench.evaluation.controls._PAIRS_AT_ONCE", 10)
    nothing, distance = distance_features(Gathered(first, row), second)
    expected = [[cdist(one[None], other[None])[0, 0]] for one, other in zip(first[row], second, strict=True)]
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    assert distance.dtype == np.float32
    assert nothing.shape == (25, 1)
    assert not nothing.any()
    assert not distance_features(first, first)[1].any()


def test_oracle_is_the_standardised_parameters_with_five_percent_noise(solids_dataset: Dataset) -> None:
    pairs, coded = manifest(solids_dataset, "color")
    first, second = oracle_features(pairs, coded)
    assert not first.any()
    train = coded[:256]
    noise = second - (coded - train.mean(axis=0)) / train.std(axis=0)
    assert noise.std() == pytest.approx(0.05, rel=0.05)
    assert abs(noise.mean()) < 0.005
    np.testing.assert_array_equal(second, oracle_features(pairs, coded)[1])


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_constant_scores_zero(name: str) -> None:
    splits = {}
    for split, count in (("train", 20_000), ("test", 5000)):
        coded = TRANSFORMATIONS[name].encode(draw_theta(name, count, 32, "test of the constant", split), 32)
        splits[split] = Split(coded, coded, coded)
    predicted = constant_prediction(splits)
    np.testing.assert_allclose(predicted, np.tile(splits["train"].targets.mean(axis=0), (5000, 1)))
    assert r2_score(splits["test"].targets, predicted) == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("spec", [WHOLE, DISC], ids=["whole", "disc"])
def test_statistics_by_hand(spec: ViewSpec) -> None:
    size = 8
    images = np.random.default_rng(0).integers(256, size=(2, 3, size, size), dtype=np.uint8)
    shown = [
        [spec.radius is None or np.hypot(y - 3.5, x - 3.5) <= spec.radius for x in range(size)] for y in range(size)
    ]
    first, second = statistics_features(seen(images), seen(images[::-1]), spec)
    np.testing.assert_allclose(second, first[::-1])
    assert first.shape == (2, 9)
    for n in range(2):
        for c in range(3):
            image = images[n, c] / 255
            visible = [image[y, x] for y in range(size) for x in range(size) if shown[y][x]]
            across = [
                (image[y, x + 1] - image[y, x]) ** 2
                for y in range(size) for x in range(size - 1) if shown[y][x] and shown[y][x + 1]
            ]  # fmt: skip
            down = [
                (image[y + 1, x] - image[y, x]) ** 2
                for y in range(size - 1) for x in range(size) if shown[y][x] and shown[y + 1][x]
            ]  # fmt: skip
            expected = [np.mean(visible), np.std(visible), np.mean(across) + np.mean(down)]
            np.testing.assert_allclose(first[n, [c, 3 + c, 6 + c]], expected, rtol=1e-4)


def test_pixels_are_principal_components_of_what_is_visible() -> None:
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(80, 12)) * 0.7 ** np.arange(12) @ rng.normal(size=(12, 3 * 64))
    images = np.clip(128 + 20 * fields, 0, 255).astype(np.uint8).reshape(80, 3, 8, 8)
    first, second = images[:40], images[40:]
    features = np.concatenate(pixel_features(seen(first), seen(second), slice(0, 30), WHOLE))
    fit = np.concatenate([first[:30], second[:30]]).reshape(60, -1) / 255
    reference = PCA(svd_solver="full").fit(fit)
    count = features.shape[1]
    assert 5 <= count <= 15, "no more than a quarter of the 60 views fitted"
    expected = reference.transform(images.reshape(80, -1) / 255)[:, :count]
    sign = np.sign((features * expected).sum(axis=0))  # components are defined up to it
    np.testing.assert_allclose(features * sign, expected, atol=2e-3)
    variance = np.concatenate([features[:30], features[40:70]]).var(axis=0, ddof=1)
    np.testing.assert_allclose(variance, reference.explained_variance_[:count], rtol=1e-3)


def test_pixels_outside_the_disc_are_not_seen() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(256, size=(2, 20, 3, 8, 8), dtype=np.uint8)
    hidden = np.hypot(*np.meshgrid(np.arange(8) - 3.5, np.arange(8) - 3.5)) > 3.0
    changed = np.where(hidden, 255 - second, second)
    for one, other in zip(
        pixel_features(seen(first), seen(second), slice(0, 16), DISC),
        pixel_features(seen(first), seen(changed), slice(0, 16), DISC),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        statistics_features(seen(first), seen(second), DISC),
        statistics_features(seen(first), seen(changed), DISC),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_names() -> None:
    assert set(CONTROLS) == {"random_init", "pixels", "image_statistics", "constant", "oracle"}
    assert set(RIVALS) < set(CONTROLS)
    assert [name for name, control in CONTROLS.items() if control.has_encoder] == ["random_init"]
