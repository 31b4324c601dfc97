"""Patch tokens on disk and what the attentive probe makes of them: scikit-learn's whitening, one pass, no basis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scored import PAIRS, Hash
from sklearn.decomposition import PCA
from torch import Tensor, nn

import equibench.runner.open
from equibench.config import RunConfig
from equibench.data.dataset import Dataset
from equibench.encoders.vit import TOKEN_SETS
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row, vit_identity
from equibench.evaluation.evaluator import evaluate
from equibench.evaluation.regression import RegressionEvaluator
from equibench.evaluation.tokens import TokenWhitening, encode_tokens
from equibench.pretrain.runs import build_encoder
from equibench.records import predictions_path, read_predictions
from equibench.runner.open import OpenedScore, open_score
from equibench.task import TASKS
from equibench.utils.digests import definitions_of

TASK, REGRESSION = TASKS.get("flip.attentive"), TASKS.get("flip")


@pytest.fixture(scope="module", autouse=True)
def _small_data(solids_dataset: Dataset) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
        yield


class Turned(nn.Module):
    """A map of random filters, of which the channels are turned and made larger after all that is not linear."""

    def __init__(self, turn: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Parameter(torch.randn(12, 3, 4, 4, generator=generator))
        self.turn = nn.Parameter(5 * torch.linalg.qr(torch.randn(12, 12, generator=generator))[0])
        self.mixed = turn

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.conv2d(x, self.filters, stride=2).abs()
        return torch.einsum("nchw,cd->ndhw", y, self.turn) if self.mixed else y


def opened(source: Any, folder: Path, **options: Any) -> OpenedScore:
    given = {"profile": "tiny", "pairs": PAIRS, "pretrained": False, "runs": folder, "controls": False, **options}
    return open_score(source, RunConfig.of(**given), ExitStack())


def in_float32(found: OpenedScore) -> tuple[Row, Context]:
    return found.rows[0], replace(found.context, bf16=False)


def counting(module: nn.Module) -> list[int]:
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    return seen


def test_whitening_is_scikit_learns_on_the_places_that_are_seen() -> None:
    rng = np.random.default_rng(0)
    maps = (rng.gamma(2.0, size=(90, 9, 5)) @ rng.normal(size=(5, 5)) + 3).astype(np.float32)
    maps[:, [0, 8]] = 0
    found = TokenWhitening.of(maps)
    np.testing.assert_array_equal(found.places, np.arange(1, 8))
    tokens = maps[:, 1:8].reshape(-1, 5).astype(float)
    expected = PCA(whiten=True).fit_transform(tokens) * np.sqrt(len(tokens) / (len(tokens) - 1))
    expected *= np.where((expected**3).sum(axis=0) < 0, -1, 1)
    mine = found(maps).reshape(-1, 5)
    assert mine.dtype == np.float16
    sure = np.abs((expected[: 64 * 7] ** 3).mean(axis=0)) > 0.1  # elsewhere either sign will do
    assert sure.sum() >= 3
    np.testing.assert_allclose(mine[:, sure], expected[:, sure], atol=0.01)
    np.testing.assert_allclose(np.cov(mine.astype(float).T, ddof=0), np.eye(5), atol=0.01)


def test_at_most_64_directions_are_kept_and_none_that_is_rounding() -> None:
    maps = np.random.default_rng(0).normal(size=(64, 4, 100)).astype(np.float32) * np.geomspace(10, 1, 100)
    assert TokenWhitening.of(maps.astype(np.float32)).directions.shape == (100, 64)
    maps[..., 3:] *= 1e-5
    assert TokenWhitening.of(maps.astype(np.float32)).directions.shape == (100, 3)
    with pytest.raises(UserError, match="the same in every image and place"):
        TokenWhitening.of(np.ones((10, 4, 3), np.float32))


def test_an_outlier_stays_within_float16() -> None:
    maps = np.random.default_rng(0).normal(size=(64, 4, 3)).astype(np.float32)
    assert np.isfinite(TokenWhitening.of(maps)(maps * np.float32(1e8))).all()


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet"])
def test_tokens_are_those_of_the_encoders_map_from_the_pass_that_gives_its_features(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name.removeprefix("timm:"), **({"img_size": 64} if "vit" in name else {}))
    row, context = in_float32(opened(model, tmp_path, size=64))
    pairs = context.pairs(REGRESSION)
    assert row.token_sets()
    inside: Any = row.encoder.model  # a copy of it
    seen = counting(inside.conv1 if hasattr(inside, "conv1") else inside.patch_embed)
    first, second, places = encode_tokens(row, pairs, context)
    assert sum(seen) == 2 * sum(PAIRS) + PAIRS[0]  # and those that whiten
    context.encode(row, context.views.second(pairs), (*row.layers, *row.token_sets()))
    encode_tokens(row, pairs, context)
    assert sum(seen) == 2 * sum(PAIRS) + PAIRS[0]
    views = [context.views.first(pairs), context.views.second(pairs)]
    images = [torch.from_numpy(np.array(v.images[slice(0, 224)])).float() / 255 for v in views]
    maps = [row.encoder.token_map(part) for part in images]  # type: ignore[operator]
    sides = [min(8, side) for side in maps[0].shape[2:]]
    averaged = [torch.nn.functional.adaptive_avg_pool2d(m, sides).flatten(2).mT.numpy() for m in maps]
    whitening = TokenWhitening.of(averaged[0][: PAIRS[0]])
    assert places == len(whitening.places) <= 64
    for stored, part in zip((first, second), averaged, strict=True):
        found = np.asarray(stored).astype(float)
        np.testing.assert_allclose(found, whitening(part).astype(float), atol=0.02)
    # the features of the same pass are those of a pass without tokens
    alone = replace(context, work=tmp_path / "alone")
    for one in views:
        mine, theirs = (c.encode(row, one, (*row.layers, *row.token_sets())) for c in (context, alone))
        for layer in mine:
            np.testing.assert_array_equal(mine[layer], theirs[layer])


def test_the_suites_own_encoder_leaves_hidden_places_out(tmp_path: Path) -> None:
    own = opened("timm:test_vit", tmp_path, size=32)
    profile, context = own.context.profile, replace(own.context, bf16=False)
    encoder = build_encoder(profile, "headline", 0).eval()
    identity = vit_identity("0", profile, context.spec)
    row = Row("own", lambda: encoder, identity, "0", token_sets=lambda: TOKEN_SETS)
    pairs = context.pairs(REGRESSION)
    _, second, places = encode_tokens(row, pairs, context)
    assert places == len(encoder.visible) < 16
    images = torch.from_numpy(np.array(context.views.second(pairs).images[slice(0, 20)])).float() / 255
    with torch.no_grad():
        tokens = encoder.tokens(encoder.normalise(images)).patches.numpy()
    # each whitened number is one linear map of the token at its place
    white = np.asarray(second[slice(0, 20)]).astype(float).reshape(20 * places, -1)
    inputs = np.c_[tokens.reshape(20 * places, -1).astype(float), np.ones(20 * places)]
    residual = white - inputs @ np.linalg.lstsq(inputs, white, rcond=None)[0]
    assert np.square(residual).sum() < 1e-4 * np.square(white).sum()


def test_no_basis_is_read(tmp_path: Path) -> None:
    found = {}
    for turn in (False, True):
        row, context = in_float32(opened(Turned(turn), tmp_path / str(turn), size=32))
        first, _, _ = encode_tokens(row, context.pairs(REGRESSION), context)
        (record,) = evaluate(row, TASK, context)
        found[turn] = (np.asarray(first).astype(float), record.metrics["r2"].value)
    np.testing.assert_allclose(found[True][0], found[False][0], atol=0.05)
    assert np.abs(found[False][0]).mean() > 0.5
    assert found[True][1] == pytest.approx(found[False][1], abs=0.05)


def test_its_record_is_one_of_the_regressions_pairs(tmp_path: Path) -> None:
    row, context = in_float32(opened("timm:test_resnet", tmp_path, size=32))
    (record,) = evaluate(row, TASK, context)
    assert (record.features, record.evaluator, record.main_metric) == ("attentive", "attentive", "r2")
    assert record.pairs_sha256 == context.pairs(REGRESSION).sha256
    assert record.interval() is not None
    stored = read_predictions(predictions_path(context.work, record.evaluation_sha256))
    assert stored["attentive/predictions"].shape == (1, PAIRS[2], 1)
    theirs = RegressionEvaluator().measure(Row("constant"), REGRESSION, context).arrays
    for name in ("targets", "mean", "std"):
        np.testing.assert_array_equal(stored[name], theirs[name])


def test_an_encoder_without_tokens_is_refused_where_asked_and_spared_by_default(tmp_path: Path) -> None:
    without = opened(Hash(), tmp_path / "a")
    assert not [task for task in without.tasks if task.evaluator == "attentive"]
    with pytest.raises(UserError, match="neither patch tokens nor a feature map"):
        evaluate(without.rows[0], TASK, without.context)
    names = [task.name for task in opened("timm:test_resnet", tmp_path / "b", size=32).tasks]
    assert names[:4] == ["rotation.attentive", "rotation", "color.attentive", "color"]
    chosen = opened("timm:test_resnet", tmp_path / "b", size=32, tasks=["rotation"]).tasks
    assert [task.name for task in chosen] == ["rotation"]


def test_scores_of_the_regression_do_not_depend_on_its_code() -> None:
    modules = {module for module, _ in definitions_of(RegressionEvaluator)}
    assert "equibench.probes.mlp" in modules
    assert not [module for module in modules if "attentive" in module or "tokens" in module]
