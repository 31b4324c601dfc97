"""Teachers, masks and small crops: what follows whom, who sees what, and that a collapse is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from object_data import with_objects
from safetensors.torch import load_file
from torch import nn

from equibench import profiles
from equibench.data.dataset import Dataset
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.errors import UserError
from equibench.pretrain.augment import LOCAL_SCALE, augmented
from equibench.pretrain.batches import PairStream, open_stream
from equibench.pretrain.loop import TrainingStep, build_step, collapse_signs, run_pretraining
from equibench.pretrain.method import BASELINES, ViewPair
from equibench.pretrain.runs import keep_snapshot, read_snapshot, snapshot_path
from equibench.pretrain.teacher import block_masks, distance, encode_crops, follow, masked
from equibench.profiles import get_profile
from equibench.transforms.transformation import view_spec
from equibench.utils.random import rows_of_uniforms, uniforms

TINY = get_profile("tiny")
SHORT = replace(TINY, pretraining=replace(TINY.pretraining, pairs=160, checkpoint_every=5, log_every=5), snapshots=(5,))
TAUGHT = ["ibot", "dinov2", "ibot_all_rot"]


def started(name: str, dataset: Dataset) -> tuple[TrainingStep, PairStream]:
    step = build_step(BASELINES.get(name), TINY, "headline", 0, 10).train()
    return step, open_stream(dataset, "train", step.method, view_spec("headline", 32), seed=0)


def moved(step: TrainingStep, by: float = 0.1) -> None:
    """Change what is trained, as an optimiser would."""
    with torch.no_grad():
        for parameter in step.parameters():
            if parameter.requires_grad:
                parameter += by


def test_rows_are_those_of_the_whole_draw() -> None:
    whole = uniforms((50, 3), "a", 1)
    for first, count in ((0, 50), (1, 4), (17, 10), (49, 1)):
        np.testing.assert_array_equal(rows_of_uniforms(first, (count, 3), "a", 1), whole[first : first + count])


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_is_a_copy_that_follows_and_is_never_trained(name: str, solids_dataset: Dataset) -> None:
    step, stream = started(name, solids_dataset)
    method = getattr(step.method, "ssl", step.method)
    assert float(distance(method.teacher, step.encoder)) == float(distance(method.teacher_head, method.head)) == 0
    before = weights_sha256(method.teacher)
    step(step.method.prepare(stream.batch(0, 8, step.encoder)))[0]["loss"].backward()
    assert all(p.grad is None for part in (method.teacher, method.teacher_head) for p in part.parameters())
    moved(step)
    assert weights_sha256(method.teacher) == before
    assert float(distance(method.teacher, step.encoder)) > 0
    weight = method.teacher.head.weight.clone()
    step.method.after_step(step.encoder, 1, 10)
    torch.testing.assert_close(method.teacher.head.weight, 0.9 * weight + 0.1 * step.encoder.head.weight)
    weight = method.teacher.head.weight.clone()
    step.method.after_step(step.encoder, 10, 10)  # the last step's momentum is 1
    torch.testing.assert_close(method.teacher.head.weight, weight)


def test_a_moving_average_copies_buffers() -> None:
    student, teacher = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        student.weight.fill_(3)
        student.running_mean.fill_(5)
    follow(teacher, student, 0.75)
    assert teacher.weight.tolist() == [1.5, 1.5]
    assert teacher.running_mean.tolist() == [5, 5]


def test_the_last_layer_waits(solids_dataset: Dataset) -> None:
    step, stream = started("ibot", solids_dataset)
    views = step.method.prepare(stream.batch(0, 8, step.encoder))
    for progress, waits in ((0.0, True), (0.5, False)):
        step.zero_grad()
        step.method.progress.fill_(progress)
        step(views)[0]["loss"].backward()
        gradient = step.method.head.last_layer.weight_v.grad
        assert bool((gradient == 0).all()) is waits


@pytest.mark.parametrize("keeps", [True, False])
def test_a_run_keeps_its_teacher_or_its_student(
    keeps: bool, solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = profiles.EXTRA_SETTINGS["tiny"]
    changed = replace(extras, distillation=replace(extras.distillation, keeps_teacher=keeps))
    monkeypatch.setitem(profiles.EXTRA_SETTINGS, "tiny", changed)
    run = run_pretraining(
        BASELINES.get("ibot"), SHORT, solids_dataset, tmp_path, report=lambda s, *_: keep_snapshot(tmp_path, SHORT, s)
    )
    teacher = {
        name.removeprefix("teacher."): value
        for name, value in load_file(tmp_path / "method.safetensors").items()
        if name.startswith("teacher.")
    }
    same = all(torch.equal(value, teacher[name]) for name, value in run.encoder.state_dict().items())
    assert same is keeps
    on_its_way = load_file(snapshot_path(tmp_path, 5))
    assert set(on_its_way) == set(run.encoder.state_dict())
    assert isinstance(read_snapshot(tmp_path, SHORT, "headline", 0, 5), ViTEncoder)


def test_masked_patches_are_not_seen_and_all_others_are(solids_dataset: Dataset) -> None:
    step, stream = started("ibot", solids_dataset)
    encoder, views = step.encoder.eval(), stream.batch(0, 2, step.encoder)
    masks = torch.zeros(2, len(encoder.visible), dtype=torch.bool)
    masks[0, 3] = True
    row, column = divmod(int(encoder.visible[3]), 4)
    changed = views.v1.clone()
    changed[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
    with torch.no_grad():
        whole = encoder(views.v1)
        with masked(encoder, masks, step.method.mask_token):
            first, second = encoder(views.v1), encoder(changed)
        torch.testing.assert_close(encoder(views.v1), whole, msg="the mask is gone")
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3
    assert (first[0] - whole[0]).abs().max() > 1e-3
    torch.testing.assert_close(first[1], whole[1])


def test_a_crop_as_large_as_the_image_is_encoded_like_the_image() -> None:
    encoder = ViTEncoder(TINY.encoder, 32, view_spec("paper_like", 32)).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encode_crops(encoder, images), encoder(images), atol=1e-5, rtol=1e-4)
        assert encode_crops(encoder, images[..., :16, :16]).shape == (3, 1 + 4, TINY.encoder.features)


def test_masks_are_blocks_of_the_size_asked_for() -> None:
    visible = np.arange(64)
    ratios = np.array([[0.0, 0.25, 0.5]]).repeat(50, axis=0)
    seeds = np.random.default_rng(0).random(ratios.shape)
    masks = block_masks(ratios, seeds, 8, visible)
    assert masks.shape == (50, 3, 64)
    counts = masks.sum(dim=2).numpy()
    assert (counts[:, 0] == 0).all()
    assert (counts[:, 1] <= 16).all()
    assert counts[:, 1].mean() > 14, "blocks that no longer fit may leave some out"
    assert counts[:, 2].mean() > 29
    torch.testing.assert_close(block_masks(ratios[7:9], seeds[7:9], 8, visible), masks[7:9])
    # neighbours are masked together: far more than of 16 patches strewn over 64
    grid = masks[:, 1].unflatten(1, (8, 8)).float()
    assert (grid[:, :, 1:] * grid[:, :, :-1]).sum() > 2 * 50 * 56 * (16 / 64) ** 2


def test_a_mask_is_never_empty_and_leaves_pythons_generator_alone() -> None:
    import random

    random.seed(3)
    expected = random.Random(3).random()
    some = block_masks(np.full((1, 40), 0.1), np.random.default_rng(0).random((1, 40)), 4, np.array([5, 6]))
    assert some.any(dim=2).all()
    assert random.random() == expected


def test_ibot_masks_half_of_the_views_and_dinov2_one_of_each_pair(solids_dataset: Dataset) -> None:
    step, stream = started("ibot", solids_dataset)
    ratios = step.method.mask_ratios(stream.batch(0, 400, step.encoder).pictures)
    assert (ratios == 0).mean() == pytest.approx(0.5, abs=0.06)
    chosen = ratios[ratios > 0]
    assert 0.1 <= chosen.min() < 0.12 < 0.48 < chosen.max() <= 0.5
    step, stream = started("dinov2", solids_dataset)
    ratios = step.method.mask_ratios(stream.batch(0, 16, step.encoder).pictures)  # a batch of the profile
    assert ((ratios > 0).sum(axis=0) == 1).all()
    edges = np.linspace(0.1, 0.5, 17)
    np.testing.assert_array_equal(np.histogram(ratios.max(axis=0), edges)[0], 1)


@pytest.mark.parametrize("name", ["simclr", "ibot", "dinov2", "vicreg_all_se2"])
def test_what_is_prepared_depends_on_the_pair_and_not_on_the_batch(name: str, solids_dataset: Dataset) -> None:
    step, stream = started(name, solids_dataset)
    start = stream.count - 3  # across the end of an epoch
    whole = step.method.prepare(stream.batch(start, 8, step.encoder))
    parts = [step.method.prepare(stream.batch(first, n, step.encoder)) for first, n in ((start, 5), (start + 5, 3))]
    for field in ("v1", "v2"):
        torch.testing.assert_close(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))
    for field in ("local", "targets"):
        for number, made in enumerate(getattr(whole, field)):
            torch.testing.assert_close(torch.cat([getattr(part, field)[number] for part in parts]), made)
    if whole.masks is not None:
        assert torch.equal(torch.cat([part.masks for part in parts], dim=1), whole.masks)
    assert (whole.v1[0] - whole.v2[0]).abs().max() > 0.1


def test_views_are_the_pipeline_that_is_asked_for(solids_dataset: Dataset) -> None:
    step, stream = started("vicreg_rot_rot", solids_dataset)
    pictures = stream.batch(0, 64, step.encoder).pictures
    assert pictures is not None
    turned = augmented(pictures, "rotation", "view 1")
    means = [images[..., 12:20, 12:20].mean(dim=(1, 2, 3)) for images in (pictures.images, turned)]
    torch.testing.assert_close(*means, atol=0.12, rtol=0, msg="no color and no crop is changed at the centre")
    grey = [
        (view.amax(dim=1) - view.amin(dim=1)).amax(dim=(1, 2)) < 1e-3
        for view in (pictures.images, augmented(pictures, "all", "view 1"))
    ]
    assert grey[1].float().mean().item() - grey[0].float().mean().item() == pytest.approx(0.2, abs=0.12)


def test_small_crops_are_small_and_as_many_as_the_profile_says(solids_dataset: Dataset) -> None:
    step, stream = started("dinov2", solids_dataset)
    views = step.method.prepare(stream.batch(0, 4, step.encoder))
    size = profiles.EXTRA_SETTINGS["tiny"].distillation
    assert [tuple(crop.shape) for crop in views.local] == [(4, 3, size.local_size, size.local_size)] * size.local_crops
    tokens = step.method.encode(step.encoder, views)
    assert [len(each) for each in step.method.class_logits(tokens)] == [2, 2 + size.local_crops]
    assert LOCAL_SCALE[1] <= 0.32


def test_a_method_that_makes_its_views_is_refused_where_there_are_two_of_each_object(solids_dataset: Dataset) -> None:
    objects = with_objects(solids_dataset)
    for name in ("simclr", "ibot", "vicreg_all_rot"):
        step = build_step(BASELINES.get(name), TINY, "rendered", 0, 10)
        stream = open_stream(objects, "train", step.method, view_spec("rendered", 32), seed=0)
        with pytest.raises(UserError, match="makes its own views"):
            step.method.prepare(stream.batch(0, 4, step.encoder))


def taught(dataset: Dataset) -> tuple[TrainingStep, ViewPair]:
    step, stream = started("ibot", dataset)
    return step.eval(), step.method.prepare(stream.batch(0, 16, step.encoder))


@pytest.mark.parametrize(
    ("how", "entropy", "spread"), [("uniform", 1.0, 1.0), ("one prototype", 0.0, 0.0), ("as it starts", None, None)]
)
def test_a_collapse_is_seen_when_half_of_the_run_is_done(
    how: str, entropy: float | None, spread: float | None, solids_dataset: Dataset
) -> None:
    step, views = taught(solids_dataset)
    last = step.method.teacher_head.last_layer
    with torch.no_grad():
        if how == "uniform":
            last.weight_g.zero_()
        elif how == "one prototype":
            step.method.class_loss.center[..., 0] = -100
        for progress in (0.0, 0.6):
            step.method.progress.fill_(progress)
            found = step.method.diagnostics(views, step.method.encode(step.encoder, views))
            assert bool(found["collapsed"]) is (progress > 0 and entropy is not None)
    if entropy is not None:
        assert found["teacher_entropy"].item() == pytest.approx(entropy, abs=1e-3)
        assert found["teacher_spread"].item() == pytest.approx(spread, abs=1e-3)
        assert found["told_apart"].item() == pytest.approx(1, abs=1e-3)


def test_signs_of_collapse_in_words() -> None:
    well = {"feature_std": 0.5, "held_out/collapsed": 0.0}
    assert collapse_signs(well) == collapse_signs({"feature_std": 0.5}) == ""
    assert "hardly vary" in collapse_signs({"feature_std": 0.01})
    entropies = {"held_out/teacher_entropy": 1.0, "held_out/teacher_spread": 0.99}
    assert "entropy 1.00" in collapse_signs({**well, **entropies, "held_out/collapsed": 1.0})


def test_a_collapsed_teacher_is_in_the_log_and_in_what_the_run_says(
    solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equibench.pretrain.teacher import Distilled

    flat = lambda self, logits: torch.full_like(logits, 1 / logits.shape[1])  # noqa: E731
    for method in (Distilled, type(build_step(BASELINES.get("ibot"), TINY, "headline", 0, 10).method)):
        monkeypatch.setattr(method, "targets", flat)
    seen: list[dict[str, float]] = []
    run = run_pretraining(
        BASELINES.get("ibot"), SHORT, solids_dataset, tmp_path, report=lambda step, steps, scalars: seen.append(scalars)
    )
    assert run.collapsed
    assert seen[-1]["held_out/teacher_entropy"] == pytest.approx(1)
    assert collapse_signs(seen[-1])


@pytest.mark.parametrize(("name", "kept"), [("simclr", "encoder"), ("ibot_all_rot", "method.ssl.teacher")])
def test_the_run_s_encoder_is_found_by_its_name(name: str, kept: str) -> None:
    assert build_step(BASELINES.get(name), TINY, "headline", 0, 10).kept == kept


def test_a_profile_without_further_settings_is_named() -> None:
    with pytest.raises(UserError, match="'mine' has no settings"):
        profiles.extras_of(replace(TINY, name="mine"))
