"""The nuisance of a task: drawn apart from θ, alike for all θ, and shown in every second view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from equibench.data.dataset import Dataset, image_source
from equibench.errors import UserError
from equibench.pairs.manifest import Pairs, draw_pairs
from equibench.pairs.views import ViewStore
from equibench.task import TASKS, Task, register_task
from equibench.transforms.transformation import transform_sequence, view_spec, visible_disc

FLIP = TASKS.get("flip")
SPEC = view_spec("headline", 32)
DISC = visible_disc(32, SPEC.radius or 0).numpy() > 0


def drawn(dataset: Dataset, count: int = 200, nuisance: tuple[tuple[str, float], ...] = FLIP.nuisance) -> Pairs:
    return draw_pairs(dataset, "flip", (count, 60, 200), task="flip", version=2, repeats=20, nuisance=nuisance)


def seen(dataset: Dataset, pairs: Pairs, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and the second views of the training pairs."""
    rows = pairs.rows("train")
    second = np.array(ViewStore(folder, dataset, SPEC).second(pairs).images[slice(None)])[rows]
    return np.asarray(image_source(dataset, "train").images)[pairs.image[rows]], second


def test_images_and_theta_are_those_without_it(solids_dataset: Dataset) -> None:
    pairs, pure = drawn(solids_dataset), drawn(solids_dataset, nuisance=())
    np.testing.assert_array_equal(pairs.image, pure.image)
    np.testing.assert_array_equal(pairs.theta, pure.theta)
    assert pairs.images_sha256 == pure.images_sha256, "view 1 is shared"
    assert not pure.nuisance


def test_it_is_the_same_whenever_drawn_and_in_the_digest(solids_dataset: Dataset) -> None:
    pairs, again, more = drawn(solids_dataset), drawn(solids_dataset), drawn(solids_dataset, 500)
    assert pairs.sha256 == again.sha256
    for name, theta in pairs.nuisance.items():
        np.testing.assert_array_equal(theta, again.nuisance[name])
        np.testing.assert_array_equal(theta[:200], more.nuisance[name][:200])
    less = (("translation", 0.25), FLIP.nuisance[1])
    others = [(), FLIP.nuisance[:1], FLIP.nuisance[::-1], less]
    digests = {drawn(solids_dataset, nuisance=nuisance).sha256 for nuisance in others}
    assert len(digests | {pairs.sha256}) == 5


def test_it_is_small_uniform_and_the_same_with_and_without_a_flip(solids_dataset: Dataset) -> None:
    pairs = drawn(solids_dataset, 5000)
    assert list(pairs.nuisance) == ["translation", "rotation"]
    values = np.concatenate(list(pairs.nuisance.values()), axis=1)
    flipped = pairs.theta[:, 0] == 1
    for column, most in zip(values.T, (2, 2, 5), strict=True):
        assert stats.kstest(column, stats.uniform(-most, 2 * most).cdf).pvalue > 0.01
        assert stats.ks_2samp(column[flipped], column[~flipped]).pvalue > 0.01
    assert np.abs(np.corrcoef(np.column_stack([pairs.theta, values]).T) - np.eye(4)).max() < 0.05


def test_second_views_are_flipped_then_moved_then_turned(solids_dataset: Dataset, tmp_path: Path) -> None:
    pairs = drawn(solids_dataset, 40)
    images, second = seen(solids_dataset, pairs, tmp_path)
    for n, image in enumerate(images):
        flipped = image[..., ::-1] if pairs.theta[n, 0] else image
        (right, down), angle = pairs.nuisance["translation"][n], np.deg2rad(pairs.nuisance["rotation"][n, 0])
        # scipy goes from places (row, column) of the output to those of the input
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        offset = 15.5 - turn @ [15.5, 15.5] - [down, right]
        for channel, shown in zip(flipped.astype(float), second[n], strict=True):
            expected = ndimage.affine_transform(channel, turn, offset, order=1)
            np.testing.assert_allclose(shown[DISC], expected[DISC], atol=1)


def test_no_unflipped_pair_looks_the_same(solids_dataset: Dataset, tmp_path: Path) -> None:
    pairs = drawn(solids_dataset)
    images, second = seen(solids_dataset, pairs, tmp_path)
    still = pairs.theta[pairs.rows("train"), 0] == 0
    assert still.sum() > 50
    assert (images != second)[still][..., DISC].any(axis=(1, 2)).all()


def test_the_disc_shows_no_filled_pixel() -> None:
    corners = torch.tensor([[x, y, a] for x in (-2.0, 0, 2) for y in (-2.0, 0, 2) for a in (-5.0, 5)])
    steps = [{"flip": torch.ones(18, 1)}, {"translation": corners[:, :2]}, {"rotation": corners[:, 2:]}]
    white = transform_sequence(torch.ones(18, 3, 32, 32), steps, "black")
    np.testing.assert_allclose(white.numpy()[..., DISC], 1, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nuisance": (("rotatoin", 0.5),)},
        {"nuisance": (("rotation", 0.0),)},
        {"nuisance": (("rotation", 1.5),)},
        {"nuisance": (("pose", 0.5),)},
        {"transformation": "pose"},
        {"evaluator": "action"},
    ],
)
def test_a_nuisance_that_cannot_be_applied_is_refused(wrong: dict[str, object]) -> None:
    settings = {"transformation": "flip", "nuisance": (("rotation", 0.5),), **wrong}
    with pytest.raises(UserError, match="nuisance"):
        register_task(Task(name="shaken", title="", version=1, **settings))  # type: ignore[arg-type]
    assert "shaken" not in TASKS.names()
