"""Losses of SimCLR, iBOT and DINOv2 against numpy written from the published formulae, and what is easily got wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from equibench.data.dataset import Dataset
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import TrainingStep, build_step
from equibench.pretrain.method import BASELINES, TokenPair, ViewPair
from equibench.pretrain.teacher import Distilled, PatchLoss, sinkhorn_knopp
from equibench.profiles import get_profile
from equibench.transforms.transformation import view_spec

TINY = get_profile("tiny")
Array = np.ndarray


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def np_cross_entropy(target: Array, logits: Array) -> Array:
    return -(target * np.log(softmax(logits / 0.1))).sum(axis=-1)


def np_nt_xent(x: Array, y: Array, t: float) -> float:
    z = np.concatenate([x, y])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(x), 0.0
    for i in range(2 * n):
        others = [np.exp(z[i] @ z[k] / t) for k in range(2 * n) if k != i]
        total -= np.log(np.exp(z[i] @ z[(i + n) % (2 * n)] / t) / sum(others))
    return total / (2 * n)


def np_koleo(x: Array) -> float:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(x) if j != i) for i, a in enumerate(x)]
    return float(-np.mean(np.log(nearest)))


def np_sinkhorn(logits: Array, t: float) -> Array:
    q = np.exp(logits / t).T
    prototypes, rows = q.shape
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=1, keepdims=True) * prototypes
        q /= q.sum(axis=0, keepdims=True) * rows
    return (q * rows).T


def prepared(name: str, dataset: Dataset, count: int = 8) -> tuple[TrainingStep, ViewPair, TokenPair]:
    """A method with heads that are not those of its first step, a batch as it prepares it, and its tokens."""
    step = build_step(BASELINES.get(name), TINY, "headline", 0, 10).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in step.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    stream = open_stream(dataset, "train", step.method, view_spec("headline", 32), seed=0)
    views = step.method.prepare(stream.batch(0, count, step.encoder))
    return step, views, step.method.encode(step.encoder, views)


def numpy(x: Tensor) -> Array:
    return x.detach().double().numpy()


def test_simclr_is_nt_xent_of_its_embeddings(solids_dataset: Dataset) -> None:
    step, views, tokens = prepared("simclr", solids_dataset)
    method = step.method
    one, other = (numpy(method.projector(view.mean)) for view in (tokens.v1, tokens.v2))
    assert method.loss(views, tokens)["loss"].item() == pytest.approx(np_nt_xent(one, other, 0.5), rel=1e-5)
    # views that are all alike are told apart by chance
    alike = TokenPair(*(replace_patches(v, torch.ones_like(v.patches)) for v in (tokens.v1, tokens.v2)))
    assert method.diagnostics(views, alike)["contrast"].item() == pytest.approx(1, abs=1e-5)


def replace_patches(tokens: object, patches: Tensor) -> object:
    return replace(tokens, patches=patches)  # type: ignore[type-var]


def centre_of(method: Distilled) -> tuple[Array, Array]:
    """Of class tokens and of patches, (K,) each."""
    return numpy(method.class_loss.center).ravel(), numpy(method.patch_loss.loss.center.value).ravel()


def np_terms(method: Distilled, views: ViewPair, tokens: TokenPair, t: float) -> tuple[float, float]:
    """L_CLS and L_MIM as iBOT and DINOv2 state them, with the centres as they stand."""
    assert views.masks is not None
    of_class, of_patch = centre_of(method)
    teacher, student = ([numpy(x) for x in each] for each in method.class_logits(tokens))
    told = [softmax((x - of_class) / t) for x in teacher]
    terms = [np_cross_entropy(p, s).mean() for q, p in enumerate(told) for v, s in enumerate(student) if v != q]
    everywhere = torch.ones_like(views.masks)
    whole, guessed = (numpy(x) for x in method.patch_logits(tokens, everywhere))
    guessed, masks = guessed.reshape(whole.shape), views.masks.flatten(0, 1).numpy()
    by_patch = np_cross_entropy(softmax((whole - of_patch) / t), guessed)
    return float(np.mean(terms)), float(np.mean((by_patch * masks).sum(axis=1) / np.maximum(1, masks.sum(axis=1))))


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
@pytest.mark.parametrize(("progress", "temperature"), [(0.0, 0.04), (0.15, 0.055), (0.3, 0.07), (1.0, 0.07)])
def test_both_losses_are_the_papers_at_the_scheduled_temperature(
    name: str, progress: float, temperature: float, solids_dataset: Dataset
) -> None:
    step, views, tokens = prepared(name, solids_dataset)
    method = step.method
    method.loss(views, tokens)  # the centres are no longer 0
    method.progress.fill_(progress)
    expected = np_terms(method, views, tokens, temperature)
    found = method.loss(views, tokens)
    assert (found["class_loss"].item(), found["patch_loss"].item()) == pytest.approx(expected, rel=1e-4)


def test_ibot_weighs_its_two_losses_alike(solids_dataset: Dataset) -> None:
    step, views, tokens = prepared("ibot", solids_dataset)
    found = step.method.loss(views, tokens)
    assert found["loss"].item() == pytest.approx(found["class_loss"].item() + found["patch_loss"].item())


def test_dinov2_adds_a_tenth_of_koleo_of_each_large_crop_before_the_head(solids_dataset: Dataset) -> None:
    step, views, tokens = prepared("dinov2", solids_dataset)
    found = step.method.loss(views, tokens)
    expected = np_koleo(numpy(tokens.v1.cls)) + np_koleo(numpy(tokens.v2.cls))
    assert found["koleo"].item() == pytest.approx(expected, rel=1e-4)
    assert found["loss"].item() == pytest.approx(
        found["class_loss"].item() + found["patch_loss"].item() + 0.1 * expected, rel=1e-5
    )


def test_no_image_is_its_own_nearest_neighbour_in_koleo() -> None:
    from lightly.loss import KoLeoLoss

    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # all cosines between images are -1
    assert KoLeoLoss()(opposite).item() == pytest.approx(-np.log(2), abs=1e-6)


@pytest.mark.parametrize("name", ["simclr", "ibot", "dinov2", "dinov2_sinkhorn"])
def test_autocast_around_a_loss_does_not_reach_into_it(name: str, solids_dataset: Dataset) -> None:
    """Heads may compute in bfloat16; what is made of their outputs may not: KoLeo has no guard of its own."""
    step, views, tokens = prepared(name, solids_dataset)
    seen: list[torch.dtype] = []
    method = step.method
    losses = [m for n, m in method.named_modules() if n in ("class_loss", "patch_loss.loss", "koleo", "nt_xent")]
    for loss in losses:
        loss.register_forward_pre_hook(lambda _m, inputs: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.loss(views, tokens)["loss"]
    assert found.dtype == torch.float32
    assert seen
    assert not any(seen)


def centres_after(name: str, dataset: Dataset) -> tuple[Array, Array, Array]:
    """The patch centre after one step from 0, and the means of all patches and of the masked ones."""
    step, views, tokens = prepared(name, dataset)
    assert views.masks is not None
    patches = numpy(step.method.patch_logits(tokens, views.masks)[0])
    step.method.loss(views, tokens)
    masked = patches[views.masks.flatten(0, 1).numpy()]
    return centre_of(step.method)[1], patches.mean(axis=(0, 1)), masked.mean(axis=0)


def test_ibots_patch_centre_is_that_of_all_patches_and_dinov2s_of_the_masked_ones(solids_dataset: Dataset) -> None:
    centre, of_all, of_masked = centres_after("ibot", solids_dataset)
    np.testing.assert_allclose(centre, 0.1 * of_all, rtol=1e-4, atol=1e-7)
    assert np.abs(of_all - of_masked).max() > 1e-3, "or the two could not be told apart"
    centre, _, of_masked = centres_after("dinov2", solids_dataset)
    np.testing.assert_allclose(centre, 0.1 * of_masked, rtol=1e-4, atol=1e-7)


def test_looking_at_held_out_images_moves_no_centre(solids_dataset: Dataset) -> None:
    for name in ("ibot", "dinov2", "dinov2_sinkhorn"):
        step, views, tokens = prepared(name, solids_dataset)
        before = centre_of(step.method)
        with torch.no_grad():
            step.eval().method.diagnostics(views, tokens)
        for one, other in zip(before, centre_of(step.method), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_view_without_mask_counts_as_zero_and_a_batch_without_any_leaves_the_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 3, 5, generator=generator)
    masks = torch.tensor([[True, True, False, True], [False] * 4])
    loss = PatchLoss(5).train()
    value = loss(teacher, student, masks, 0.05, teacher)
    assert value.item() == pytest.approx(
        np_cross_entropy(softmax(numpy(teacher) / 0.05), numpy(student)).mean() / 2, rel=1e-5
    )
    before = loss.loss.center.value.clone()
    none = teacher[:0]
    assert loss(none, none, masks & False, 0.05, none).item() == 0
    torch.testing.assert_close(loss.loss.center.value, 0.9 * before)


def test_sinkhorn_is_the_formula_and_uses_all_prototypes_alike() -> None:
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    found = numpy(sinkhorn_knopp(logits, 0.5))
    np.testing.assert_allclose(found, np_sinkhorn(numpy(logits), 0.5), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    many = numpy(sinkhorn_knopp(logits, 0.5, iterations=100))
    np.testing.assert_allclose(many.mean(axis=0), 1 / 5, rtol=1e-4)
    assert torch.isfinite(sinkhorn_knopp(1e3 * logits, 0.04)).all(), "the exponential must not overflow"
    assert sinkhorn_knopp(logits[:0], 0.5).shape == (0, 5)


def test_with_sinkhorn_the_teacher_says_what_the_formula_says(solids_dataset: Dataset) -> None:
    step, views, tokens = prepared("dinov2_sinkhorn", solids_dataset)
    method = step.method
    teacher, student = ([numpy(x) for x in each] for each in method.class_logits(tokens))
    told = np.split(np_sinkhorn(np.concatenate(teacher), 0.04), 2)
    expected = [np_cross_entropy(p, s).mean() for q, p in enumerate(told) for v, s in enumerate(student) if v != q]
    assert method.loss(views, tokens)["class_loss"].item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert all((centre == 0).all() for centre in centre_of(method)), "it balances, so nothing is centred"
    np.testing.assert_allclose(
        numpy(method.targets(torch.from_numpy(teacher[0]).float())), np_sinkhorn(teacher[0], 0.04), rtol=1e-3, atol=1e-6
    )
