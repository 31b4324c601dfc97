"""Tasks on views of objects, and the classification of single images, through the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from object_data import VIEWS, with_objects
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

import equibench.runner.open
from equibench.config import RunConfig
from equibench.data.dataset import Dataset, ImageSet, image_source
from equibench.evaluation.context import Row
from equibench.evaluation.evaluator import evaluate, evaluation_digest, evaluator_of
from equibench.evaluation.retrieval import ObjectRetrievalEvaluator
from equibench.records import Record, predictions_path, read_predictions
from equibench.runner.open import OpenedScore, open_score
from equibench.task import TASKS, object_tasks

PAIRS = (400, 100, 150)
SIDE = 8


def written(images: ImageSet) -> ImageSet:
    """Pictures that hold their latents, one number a pixel, and nothing else: whoever reads them knows all."""
    assert images.latents is not None
    low, high = np.array([-np.pi / 2] * 3 + [0.0] * 4), np.array([np.pi / 2] * 3 + [1, np.pi / 4, 2 * np.pi, 1])
    share = (np.asarray(images.latents) - low) / (high - low)
    pictures = np.zeros((len(share), 3, SIDE, SIDE), np.uint8)
    pictures[:, 0, 0, :7] = np.rint(255 * share)
    pictures[np.arange(len(share)), 1, images.labels % SIDE, images.labels // SIDE] = 255
    return replace(images, images=pictures)


class Reader(nn.Module):
    """The latents' rotation matrix and hues, and the class: with these, the views are known."""

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[:, 0, 0, :3] - 0.5) * torch.pi
        cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles[:, 0])
        one = torch.ones_like(zero)

        def matrix(*rows: Tensor) -> Tensor:
            return torch.stack(rows, dim=1).view(-1, 3, 3)

        turn_x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
        turn_y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
        turn_z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
        pose = (turn_z @ turn_y @ turn_x).flatten(1)  # extrinsic: x first
        return torch.cat([pose, x[:, 0, 0, [3, 6]], x[:, 1].flatten(1)], dim=1)


class Nothing(nn.Module):
    """Noise that has nothing to do with the picture's pose, seeded by all of it."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x[0].numel(), dtype=torch.float64).sin().view(x.shape[1:])
        seeds = ((x * place).sum(dim=(1, 2, 3)).abs() * 1e9).long() % 2**31
        return torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(int(s))) for s in seeds])


@pytest.fixture(scope="module")
def objects(solids_dataset: Dataset) -> Dataset:
    grouped = with_objects(solids_dataset)
    return replace(grouped, train=written(grouped.train), test=written(grouped.test), sha256="written")


@pytest.fixture(scope="module", autouse=True)
def _data(objects: Dataset) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: objects)
        yield


def opened(source: Any, folder: Path, **options: Any) -> OpenedScore:
    given = {"profile": "tiny", "pairs": PAIRS, "runs": folder, "mean": (0, 0, 0), "std": (1, 1, 1), **options}
    return open_score(source, RunConfig.of(**given), ExitStack())


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> OpenedScore:
    return opened(Reader(), tmp_path_factory.mktemp("reader"), name="reader")


@pytest.fixture(scope="module")
def found(reader: OpenedScore) -> dict[str, Record]:
    return {n: evaluate(reader.rows[0], TASKS.get(n), reader.context)[0] for n in object_tasks()}


def test_default_tasks_of_such_data_are_those_on_their_views(reader: OpenedScore) -> None:
    assert [t.name for t in reader.tasks] == ["object_rotation", "object_color"]
    assert reader.context.variant == "rendered"
    assert reader.context.spec.radius is None


@pytest.mark.parametrize("name", object_tasks())
def test_scores_come_out_of_what_is_kept(name: str, reader: OpenedScore, found: dict[str, Record]) -> None:
    task, record = TASKS.get(name), found[name]
    kind = evaluator_of(task)
    stored = read_predictions(
        predictions_path(reader.context.work, evaluation_digest(reader.rows[0], task, reader.context))
    )
    main = record.interval()
    assert main is not None
    assert all(map(isfinite, main))
    assert main[1] <= main[0] <= main[2]
    assert record.metrics == kind.scores(stored, "full")
    draws = kind.resampled(stored, "full")
    assert np.nanquantile(draws, [0.025, 0.975]) == pytest.approx(main[1:], abs=1e-9)


def test_whoever_reads_the_latents_knows_rotation_color_and_class(found: dict[str, Record]) -> None:
    assert found["object_color"].metrics["r2"].value > 0.9
    assert found["object_color"].metrics["r2_linear"].value > 0.99
    assert found["object_class"].metrics["top1"].value == 1
    # an MLP of the tiny profile on 400 pairs learns products of matrices only so far
    assert found["object_rotation"].metrics["r2"].value > 0.3
    assert found["object_rotation"].metrics["degrees_mean"].value < 60


def test_an_exactly_equivariant_encoder_finds_every_view(found: dict[str, Record]) -> None:
    metrics = found["object_retrieval"].metrics
    assert metrics["mrr"].value > 0.95
    assert metrics["hit_at_1"].floor == 1 / VIEWS
    assert metrics["pose_retrieval_error"].value < 0.1 < 0.6 < metrics["pose_retrieval_error"].floor < 0.65


def test_noise_scores_what_guessing_does(tmp_path: Path) -> None:
    nothing = opened(Nothing(), tmp_path, name="nothing")
    records = {n: evaluate(nothing.rows[0], TASKS.get(n), nothing.context)[0] for n in object_tasks()}
    mrr = records["object_retrieval"].metrics["mrr"]
    # of four views the first is asked from itself: found by its own noise or not, the rest by chance
    assert mrr.floor - 0.15 < mrr.value < 1 / VIEWS + mrr.floor
    assert abs(records["object_rotation"].metrics["r2"].value) < 0.3
    assert records["object_class"].metrics["top1"].value < 0.35


def test_intervals_draw_whole_objects(reader: OpenedScore, found: dict[str, Record]) -> None:
    pairs = reader.context.pairs(TASKS.get("object_rotation"))
    stored = read_predictions(
        predictions_path(
            reader.context.work, evaluation_digest(reader.rows[0], TASKS.get("object_rotation"), reader.context)
        )
    )
    assert int(stored["cluster"]) == pairs.cluster > 1
    draws = evaluator_of(TASKS.get("object_rotation")).resampled(stored, "full")
    targets, mean, std = stored["targets"], stored["mean"], stored["std"]
    predicted = np.asarray(stored["full/predictions"], dtype=float)
    rng, count = np.random.default_rng(1), len(targets) // pairs.cluster
    values = []
    for _ in range(400):  # by hand: objects drawn, all pairs of each taken
        rows = np.concatenate(
            [np.arange(o * pairs.cluster, (o + 1) * pairs.cluster) for o in rng.integers(0, count, count)]
        )
        t = (targets[rows] - mean) / std
        r2 = [1 - ((t - (p[rows] - mean) / std) ** 2).sum(0) / ((t - t.mean(0)) ** 2).sum(0) for p in predicted]
        values.append(np.mean(r2))
    assert np.std(draws) == pytest.approx(np.std(values), rel=0.15)


def test_classes_are_those_of_scikit_learn(reader: OpenedScore, objects: Dataset) -> None:
    task = TASKS.get("object_class")
    pixels = next(s for s in reader.rows if s.name == "pixels")
    record = evaluate(pixels, task, reader.context)[0]
    pairs = reader.context.pairs(task)
    labels = {s: image_source(objects, s).labels[pairs.image[pairs.rows(s)]] for s in ("train", "val", "test")}
    stored = read_predictions(predictions_path(reader.context.work, record.evaluation_sha256))
    assert (stored["labels"] == labels["test"]).all()
    from equibench.evaluation.classification import labelled_images
    from equibench.evaluation.controls import single_features

    parts = single_features("pixels", labelled_images(task, reader.context).views, reader.context.spec)
    penalty = float(stored["full/penalty"])
    both = np.concatenate([parts["train"], parts["val"]]), np.concatenate([labels["train"], labels["val"]])
    theirs = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-8).fit(*both).predict(parts["test"])
    assert (theirs == stored["full/predictions"]).mean() > 0.98
    assert record.metrics["mean_per_class"].value == pytest.approx(
        balanced_accuracy_score(labels["test"], stored["full/predictions"])
    )


def test_the_constant_says_the_most_frequent_class(reader: OpenedScore, objects: Dataset) -> None:
    task = TASKS.get("object_class")
    record = evaluate(Row("constant"), task, reader.context)[0]
    pairs = reader.context.pairs(task)
    labels = {s: image_source(objects, s).labels[pairs.image[pairs.rows(s)]] for s in ("train", "test")}
    most = np.bincount(labels["train"]).argmax()
    assert record.metrics["top1"].value == pytest.approx((labels["test"] == most).mean())
    assert not Row("oracle").suits(task)


def test_the_bank_starts_from_the_first_view_of_each_object(reader: OpenedScore, objects: Dataset) -> None:
    pairs, views = ObjectRetrievalEvaluator().bank(TASKS.get("object_retrieval"), reader.context)
    assert views == VIEWS
    assert pairs.other is not None
    owner = objects.test.objects
    assert (owner[pairs.image] == owner[pairs.other]).all()
    assert (pairs.other.reshape(-1, VIEWS)[:, 0] == pairs.image.reshape(-1, VIEWS)[:, 0]).all()
    still = pairs.theta.reshape(-1, VIEWS, 4)[:, 0]
    np.testing.assert_allclose(still, np.tile([0, 0, 0, 1], (len(still), 1)), atol=1e-6)
    assert len(still) == min(len(owner) // VIEWS, reader.context.metric_sizes.retrieval_images)
