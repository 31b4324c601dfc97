"""Every evaluator through the pipeline: whatever is registered can be measured, and theory is met."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored import PAIRS, FlipInvariant, Hash, Pixels
from sklearn.metrics import roc_auc_score
from torch import nn

import equibench.runner.open
from equibench.config import RunConfig
from equibench.data.dataset import Dataset
from equibench.errors import UserError
from equibench.evaluation import action, evaluator, invariance
from equibench.evaluation.context import Context, Row
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.evaluator import EVALUATORS, evaluate, evaluation_digest, evaluator_of, metric_info
from equibench.pairs.manifest import Pairs
from equibench.records import Record, predictions_path, read_predictions
from equibench.runner.open import OpenedScore, open_score
from equibench.task import TASKS, Task
from equibench.transforms.transformation import view_spec

NAMES = [name for name in TASKS.names() if TASKS.get(name).data is None and not TASKS.get(name).observed]
"""What is asked of any images; tasks on views of objects and on data of their own have tests of their own."""


@pytest.fixture(scope="module", autouse=True)
def _small_data(solids_dataset: Dataset) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
        yield


def opened(source: Any, folder: Path, **options: Any) -> OpenedScore:
    given = {"profile": "tiny", "pairs": PAIRS, "pretrained": False, "runs": folder, "controls": False, **options}
    return open_score(source, RunConfig.of(**given), ExitStack())


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> OpenedScore:
    """An untrained network of the usual kind: it has layers and a token map."""
    return opened("timm:test_resnet", tmp_path_factory.mktemp("network"), size=32, pooling="layer3", layers=["layer1"])


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_task_can_be_measured(name: str, network: OpenedScore) -> None:
    task, context = TASKS.get(name), network.context
    kind, row = evaluator_of(task), network.rows[0]
    records = {r.features: r for r in evaluate(row, task, context)}
    expected = {"attentive"} if kind.name == "attentive" else {"full", "layer:layer1"}
    beside = {"grid", "distance"} if kind.name == "regression" else set()
    assert set(records) - {"invariant", "equivariant"} == expected | beside
    stored = read_predictions(predictions_path(context.work, evaluation_digest(row, task, context)))
    for features in sorted(expected):
        record = records[features]
        found = record.interval()
        assert found is not None
        value, low, high = found
        assert all(map(isfinite, found))
        assert low <= value <= high
        assert record.main_metric == kind.main_metric
        assert set(record.metrics) <= set(kind.metrics)
        assert metric_info(record.main_metric) == kind.metrics[kind.main_metric]
        assert record.metrics == kind.scores(stored, features)
        draws = kind.resampled(stored, features)
        assert np.nanquantile(draws, [0.025, 0.975]) == pytest.approx([low, high], abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_and_digests_are_the_same_whenever_drawn(name: str, network: OpenedScore, tmp_path: Path) -> None:
    task, context = TASKS.get(name), network.context
    again = replace(context, work=tmp_path, _shared={})
    kind = evaluator_of(task)
    assert kind.manifests(task, again) == kind.manifests(task, context)
    sizes, _ = kind.manifests(task, context)
    assert sum(sizes) == sum(len(pairs.image) for pairs in kind.pairs(task, context))
    digest = evaluation_digest(network.rows[0], task, context)
    assert evaluation_digest(network.rows[0], task, again) == digest
    fewer = replace(context, profile=replace(context.profile, probing=replace(context.probing, pairs=(64, 16, 32))))
    assert evaluation_digest(network.rows[0], task, replace(fewer, _shared={})) != digest


def test_the_views_are_in_the_digest_of_every_row(network: OpenedScore) -> None:
    task, context = TASKS.get("rotation"), network.context
    assert context.spec == view_spec("headline", 32)
    other = replace(context, variant="paper_like")
    for row in [network.rows[0], *map(Row, CONTROLS)]:  # a control has no identity that would tell
        assert evaluation_digest(row, task, other) != evaluation_digest(row, task, context)


def test_an_action_is_fitted_on_a_limited_number_of_training_pairs_alone(
    network: OpenedScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "FIT_PAIRS", 50)
    monkeypatch.setattr(invariance, "FIT_IMAGES", 50)
    triples = evaluator.encoded(network.rows[0], TASKS.get("rotation.action"), network.context)["full"]
    for split, count in (("train", 50), ("val", 32), ("test", 64)):
        assert [len(part) for part in (triples[split].first, triples[split].second, triples[split].theta)] == [
            count
        ] * 3
    measured = evaluate(network.rows[0], TASKS.get("rotation.invariance"), network.context)
    assert measured[0].interval() is not None


def test_an_action_without_an_inverse_in_its_range_is_scored_without_it(
    network: OpenedScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = replace(action.TRANSFORMATIONS["flip"], inverse=lambda theta: theta + 5)
    monkeypatch.setitem(action.TRANSFORMATIONS, "flip", far)
    found = EVALUATORS.get("action").measure(network.rows[0], TASKS.get("flip.action"), network.context)
    assert "full/inverse_error" not in found.arrays


# Theory, through views, float16 features and probes


class Scores:
    """Metrics of one encoder by task, measured when they are asked for."""

    def __init__(self, encoder: nn.Module, folder: Path) -> None:
        self.opened = opened(encoder, folder, pairs=(400, 60, 150))
        self.records: dict[str, Record] = {}

    def __call__(self, name: str) -> Record:
        if name not in self.records:
            self.records[name] = evaluate(self.opened.rows[0], TASKS.get(name), self.context)[0]
        return self.records[name]

    @property
    def context(self) -> Context:
        return self.opened.context

    def metric(self, task: str, metric: str) -> float:
        value = self(task).metrics[metric].value
        assert value is not None
        return value


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scores]:
    folder = tmp_path_factory.mktemp("theory")
    return {"pixels": Scores(Pixels(), folder), "invariant": Scores(FlipInvariant(), folder),
            "hash": Scores(Hash(), folder)}  # fmt: skip


def test_an_encoder_that_ignores_flips_shows_nothing_of_them(encoders: dict[str, Scores]) -> None:
    found = encoders["invariant"]
    assert found.metric("flip.invariance", "invariance_ratio") == 0
    assert found.metric("flip.invariance", "cosine") == pytest.approx(1, abs=1e-9)
    assert found.metric("flip.invariance", "consistency") == 1
    assert found.metric("flip.wahba", "wahba_identity") == 0
    assert found.metric("flip.wahba", "wahba") == pytest.approx(0, abs=1e-9)
    assert found.metric("flip.wahba", "gamma_f") == 0
    assert found.metric("flip.action", "identity_r2") == 1
    assert found.metric("flip.action", "equivariance_r2") == pytest.approx(1, abs=1e-3)
    assert found.metric("flip.action", "theta_gain") == pytest.approx(0, abs=0.02)
    assert found.metric("flip", "r2") < 0.05
    assert found.metric("flip", "auc") == pytest.approx(0.5, abs=0.1)


def test_pixels_are_moved_by_a_matrix(encoders: dict[str, Scores]) -> None:
    found = encoders["pixels"]
    assert found.metric("flip.action", "equivariance_r2") > 0.99
    assert found.metric("flip.action", "theta_gain") > 0.99
    assert found.metric("flip.action", "composition_error") < 0.02
    assert found.metric("flip.action", "inverse_error") < 0.02
    assert found.metric("flip.action", "identity_error") < 0.01
    assert found.metric("flip.action", "explained_variance") > 0.99
    assert found.metric("rotation.action", "equivariance_r2") > 0.7
    assert found.metric("flip.wahba", "wahba") < 0.1 < found.metric("flip.wahba", "wahba_identity")
    assert found.metric("rotation.retrieval", "mrr") > 2 * (found("rotation.retrieval").metrics["mrr"].floor or 1)
    assert 0.05 < found.metric("rotation.invariance", "invariance_ratio") < 1


@pytest.mark.parametrize("transformation", ["flip", "rotation", "translation"])
def test_unrelated_features_get_what_guessing_gets(transformation: str, encoders: dict[str, Scores]) -> None:
    found = encoders["hash"]
    # half of the pure flips are none, and there f(gx) is f(x): told θ, W is right there; else f(x) / 2 is the best
    half = transformation == "flip"
    assert found.metric(transformation, "r2") < 0.02
    assert found.metric(f"{transformation}.action", "equivariance_r2") == pytest.approx(0.5 if half else 0, abs=0.1)
    assert found.metric(f"{transformation}.action", "r2_without_theta") == pytest.approx(0.25 if half else 0, abs=0.1)
    assert found.metric(f"{transformation}.action", "theta_gain") == pytest.approx(1 / 3 if half else 0, abs=0.1)
    if f"{transformation}.retrieval" in TASKS.names():
        for metric in found(f"{transformation}.retrieval").metrics.values():
            assert metric.low is not None
            assert metric.high is not None
            assert metric.low - 0.02 < (metric.floor or 0) < metric.high + 0.02
    assert found.metric(f"{transformation}.invariance", "invariance_ratio") == pytest.approx(
        0.5 if half else 1, abs=0.1
    )
    assert found.metric(f"{transformation}.wahba", "wahba") == pytest.approx(2, abs=0.3)


# The flip, whose regression moves every second view a little


def distance_auc(row: Row, pairs: Pairs, context: Context) -> float:
    """How well |f(gx) - f(x)| alone tells flipped pairs from those that are not."""
    both = (context.views.first(pairs), context.views.second(pairs))
    first, second = (np.asarray(context.encode(row, views)["default"], dtype=np.float64) for views in both)
    return float(roc_auc_score(pairs.theta[:, 0], np.linalg.norm(second - first, axis=1)))


def test_unflipped_pairs_are_not_given_away_by_equal_features(network: OpenedScore) -> None:
    row, context = network.rows[0], network.context
    pure = evaluator.pairs_of(TASKS.get("flip.action"), context)
    assert distance_auc(row, pure, context) == 1, "what the regression did before it had a nuisance"
    assert distance_auc(row, context.pairs(TASKS.get("flip")), context) < 0.9, "photographs: 0.6"


@pytest.mark.parametrize("name", ["flip.action", "flip.invariance"])
def test_what_asks_for_an_exact_flip_gets_it(name: str, network: OpenedScore) -> None:
    task, context = TASKS.get(name), network.context
    shaken = context.pairs(TASKS.get("flip"))
    assert shaken.nuisance
    for pairs in evaluator_of(task).pairs(task, context):
        assert not pairs.nuisance
        assert pairs.sha256 != shaken.sha256
    pure = evaluator_of(task).pairs(task, context)[0]
    assert pure.images_sha256 == shaken.images_sha256, "first views are encoded once"
    first, second = (view.images[slice(None)] for view in (context.views.first(pure), context.views.second(pure)))
    np.testing.assert_array_equal(second[pure.theta[:, 0] == 0], first[pure.theta[:, 0] == 0])


def test_a_feature_that_shows_the_flip_is_still_read(
    encoders: dict[str, Scores], solids_dataset: Dataset, tmp_path: Path
) -> None:
    """On images that are all darker to the right, a feature that knows left from right tells the flip."""
    shade = np.linspace(1, 0.2, 32)
    train, test = (
        replace(part, images=(np.asarray(part.images) * shade).astype(np.uint8))
        for part in (solids_dataset.train, solids_dataset.test)
    )
    shaded = replace(solids_dataset, train=train, test=test, sha256="0" * 64)
    for name, low, high in (("pixels", 0.98, 1), ("invariant", 0.3, 0.7)):
        opened = encoders[name].opened
        context = replace(opened.context, dataset=shaded, work=tmp_path, _shared={})
        auc = evaluate(opened.rows[0], TASKS.get("flip"), context)[0].metrics["auc"].value
        assert auc is not None
        assert low <= auc <= high


def test_an_unknown_evaluator_is_said_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'action'"):
        evaluator_of(Task(name="x", title="X", version=1, transformation="flip", evaluator="actoin"))
