"""Masks carried through videos: the rule against a plain loop, and videos of which it is known where things go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle
from video_tree import SIZE, masks_of, write_videos

from equibench.data.dataset import Dataset
from equibench.data.davis import load_davis
from equibench.encoders.adapter import ImageEncoder, Preprocessing
from equibench.encoders.token_maps import TokenMaps
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import evaluate, evaluator_of
from equibench.evaluation.propagation import Propagation, carried_masks, object_scores, propagate
from equibench.metrics.masks import boundary_accuracy
from equibench.profiles import get_profile
from equibench.records import predictions_path, read_predictions
from equibench.runner.open import choose_tasks
from equibench.task import TASKS
from equibench.transforms.transformation import view_spec

TINY = get_profile("tiny")
SMALL = Propagation(nearest=3, radius=2.5, context=2)


class Patches(nn.Module):
    """The pixels of each patch of 16 px: red patches are alike, and red and blue ones are not."""

    def forward(self, x: Tensor) -> Tensor:
        return pixel_unshuffle(x, 16)


def patches() -> Row:
    encoder = ImageEncoder(Patches(), architecture="patches", preprocessing=Preprocessing())
    return Row("patches", lambda: encoder, encoder.identity, "weights")


# The rule


def plain(maps: np.ndarray, first: np.ndarray, settings: Propagation) -> list[np.ndarray]:
    """Labels (C, h, w) of each later frame, one token after the other."""
    frames, _, height, width = maps.shape
    unit = maps / np.linalg.norm(maps, axis=1, keepdims=True)
    labels = [first]
    for now in range(1, frames):
        found = np.zeros_like(first)
        for y in range(height):
            for x in range(width):
                known = []
                for at in sorted({0, *range(max(0, now - settings.context), now)}):
                    for v in range(height):
                        for u in range(width):
                            if at == 0 or np.hypot(v - y, u - x) < settings.radius:
                                known.append((unit[at, :, v, u] @ unit[now, :, y, x], labels[at][:, v, u]))
                known.sort(key=lambda item: -item[0])
                weights = np.exp([value / settings.temperature for value, _ in known[: settings.nearest]])
                picked = np.array([label for _, label in known[: settings.nearest]])
                found[:, y, x] = weights @ picked / weights.sum()
        labels.append(found)
    return labels[1:]


def test_the_rule_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    maps, first = rng.normal(size=(5, 6, 4, 5)), rng.dirichlet(np.ones(3), size=(4, 5)).transpose(2, 0, 1)
    found = list(propagate(torch.from_numpy(maps), torch.from_numpy(first), SMALL))
    for ours, theirs in zip(found, plain(maps, first, SMALL), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)
        np.testing.assert_allclose(ours.sum(dim=0), 1, atol=1e-9)


def test_what_moves_by_whole_tokens_is_followed_exactly() -> None:
    scene = torch.randn(1, 32, 8, 30, generator=torch.Generator().manual_seed(0))
    maps = torch.cat([scene[..., at : at + 20] for at in range(6)])  # to the left, a token a frame
    first = torch.zeros(2, 8, 20)
    first[1, 2:5, 12:17] = 1
    first[0] = 1 - first[1]
    for at, labels in enumerate(propagate(maps, first, replace(SMALL, nearest=1, radius=4)), 1):
        assert torch.equal(labels[1, :, : 20 - at], first[1, :, at:])


def test_the_first_frame_is_seen_from_everywhere_and_the_others_from_near_by() -> None:
    maps = torch.eye(12).view(1, 12, 3, 4).repeat(3, 1, 1, 1)
    maps[1] = maps[1].flip(-1)  # each token is now three, or one, away
    maps[2] = maps[1]
    first = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    second, third = propagate(maps, first, replace(SMALL, nearest=1, radius=1, context=1))
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, second)


# Scores


def test_scores_leave_the_first_and_the_last_frame_out() -> None:
    annotated = [masks_of(2, shift) for shift in (0, 4, 8, 12)]
    predicted = [annotated[3], masks_of(2, 6), masks_of(1, 8), annotated[0]]
    found = object_scores(iter(predicted), annotated)
    for row, of in enumerate((lambda a, b: jaccard_score(b.ravel(), a.ravel()), boundary_accuracy)):
        expected = [np.mean([of(predicted[t] == k, annotated[t] == k) for t in (1, 2)]) for k in (1, 2)]
        np.testing.assert_allclose(found[row], expected)


@pytest.fixture(scope="module")
def context(solids_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Context:
    root, work = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("work")
    write_videos(root)
    return Context(TINY, solids_dataset, "headline", work, torch.device("cpu"), False, data_root=root)


def test_patches_follow_moving_discs(context: Context) -> None:
    task, row = TASKS.get("davis2017"), patches()
    (record,) = evaluate(row, task, context)
    j, f, both = (record.metrics[name] for name in ("J", "F", "JF"))
    assert (record.data, record.pairs, record.main_metric) == ("rendered-davis2017", [0, 0, 2], "JF")
    assert both.value == pytest.approx((j.value + f.value) / 2)
    assert j.value > 0.9, "masks are as fine as the tokens"
    videos = load_davis(context.data_root / "DAVIS").videos
    expected, unmoved = [], []
    maps = TokenMaps(row.encoder, Propagation().grid)
    for objects, video in enumerate(videos, 1):
        carried = list(carried_masks(video, masks_of(objects, 0), maps, Propagation()))
        for number in range(1, objects + 1):
            truths = [(t, masks_of(objects, 4 * t) == number) for t in (1, 2)]
            expected.append(np.mean([jaccard_score(m.ravel(), (carried[t] == number).ravel()) for t, m in truths]))
            still = (masks_of(objects, 0) == number).ravel()
            unmoved.append(np.mean([jaccard_score(m.ravel(), still) for _, m in truths]))
    assert j.value == pytest.approx(np.mean(expected)), "the mean over objects, not over videos"
    assert j.floor == pytest.approx(np.mean(unmoved))
    assert j.floor < 0.85
    stored = read_predictions(predictions_path(context.work, record.evaluation_sha256))
    assert evaluator_of(task).scores(stored, "full") == record.metrics


def test_without_its_data_the_task_says_where_they_go(context: Context, tmp_path: Path) -> None:
    task = TASKS.get("davis2017")
    absent = replace(context, data_root=tmp_path)
    assert "put the folder DAVIS below" in evaluator_of(task).missing_data(task, absent)
    assert evaluator_of(task).missing_data(task, context) == ""
    with pytest.raises(UserError, match="DAVIS-2017 is not in"):
        evaluate(patches(), task, absent)
    assert task not in choose_tasks(["all"])
    assert choose_tasks(["propagation"]) == [task]


# Token maps


def test_a_vit_s_map_is_its_patch_tokens_at_any_size() -> None:
    import timm

    torch.manual_seed(0)
    vit = timm.create_model("test_vit").eval()
    at_home = TokenMaps(vit, (10, 10))  # the grid that it was built for
    images = torch.rand(2, 3, 160, 160)
    prepared = at_home.encoder.prepare(images)
    with torch.no_grad():
        tokens = timm.create_model("test_vit").eval().requires_grad_(False)
        tokens.load_state_dict(vit.state_dict())
        expected = tokens.forward_features(prepared)[:, 1:].mT.unflatten(2, (10, 10))
    torch.testing.assert_close(at_home(images), expected)
    wide = TokenMaps(vit, (3, 7))
    assert (wide.size, wide(images).shape) == ((48, 112), (2, 64, 3, 7))
    assert wide(images[..., :50]).shape == (2, 64, 3, 7)


def test_the_suite_s_own_vit_encodes_the_corners_too() -> None:
    torch.manual_seed(0)
    encoder = ViTEncoder(TINY.encoder, 32, view_spec("headline", 32)).eval()
    maps = TokenMaps(encoder)
    assert maps.size == (32, 32)
    images = torch.rand(1, 3, 32, 32)
    one = maps(images)
    assert one.shape == (1, 32, 4, 4)
    images[..., :4, :4] = 0
    assert not torch.allclose(maps(images)[..., 0, 0], one[..., 0, 0])
    assert TokenMaps(encoder, (5, 6))(images).shape == (1, 32, 5, 6)


def test_other_networks() -> None:
    import torchvision.models

    resnet = TokenMaps(torchvision.models.resnet18(weights=None), (4, 6))
    assert (resnet.size, resnet(torch.rand(1, 3, 32, 32)).shape) == ((64, 96), (1, 512, 2, 3))

    class OneSize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == x.shape[-2] == 32, "32 px only"
            return x[..., ::8, ::8]

    fixed = ImageEncoder(OneSize(), architecture="one_size", preprocessing=Preprocessing(32))
    assert TokenMaps(fixed, (4, 6)).size == (32, 32)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    vectors = ImageEncoder(flat, architecture="flat", preprocessing=Preprocessing(8))
    with pytest.raises(UserError, match="neither a feature map nor tokens"):
        TokenMaps(vectors, (2, 2))(torch.rand(1, 3, *SIZE))
