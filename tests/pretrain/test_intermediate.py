"""Intermediate reconstruction: which images are redrawn, from what, and what the paper leaves to a setting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from equibench.baselines.intermediate import TARGETS, Intermediate
from torch import nn

from equibench import profiles
from equibench.data.dataset import Dataset
from equibench.encoders.vit import Tokens
from equibench.errors import UserError
from equibench.pretrain.augment import augmented
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import TrainingStep, build_step
from equibench.pretrain.method import BASELINES, TokenPair, ViewPair
from equibench.pretrain.modules import ImageDecoder
from equibench.profiles import Redrawing, get_profile
from equibench.transforms.transformation import transform, view_spec

TINY = get_profile("tiny")
COUNT = 8


def batch_of(name: str, dataset: Dataset) -> tuple[TrainingStep, ViewPair, ViewPair]:
    """The method, its batch, and the batch before it was prepared."""
    step = build_step(BASELINES.get(name), TINY, "headline", 0, 10).train()
    stream = open_stream(dataset, "train", step.method, view_spec("headline", 32), seed=0)
    bare = stream.batch(0, COUNT, step.encoder)
    return step, step.method.prepare(bare), bare


def with_redrawing(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    extras = profiles.EXTRA_SETTINGS["tiny"]
    changed = replace(extras, redrawing=replace(extras.redrawing, **changes))
    monkeypatch.setitem(profiles.EXTRA_SETTINGS, "tiny", changed)


@pytest.mark.parametrize("short", ["rot", "color", "blur", "trans", "se2"])
def test_targets_are_u_on_its_way_to_view_two(short: str, solids_dataset: Dataset) -> None:
    """theta is 0 at the identity of all these transformations, so theta_k is k theta / (K + 1)."""
    step, views, bare = batch_of(f"vicreg_all_{short}", solids_dataset)
    assert bare.pictures is not None
    u = augmented(bare.pictures, "all", "view 2")
    theta = {name: bare.pictures.theta(name, "g") for name in step.method.names}
    assert len(views.targets) == 2
    for k, target in enumerate(views.targets, start=1):
        torch.testing.assert_close(target, transform(u, {name: k * t / 3 for name, t in theta.items()}))
        assert 0 <= float(target.min()) < float(target.max()) <= 1, "RGB, not normalised"
    torch.testing.assert_close(views.v2, step.encoder.normalise(transform(u, theta)))
    torch.testing.assert_close(views.v1, step.encoder.normalise(augmented(bare.pictures, "all", "view 1")))
    steps = [
        (a - b).square().mean() for a, b in zip([u, *views.targets], [*views.targets, transform(u, theta)], strict=True)
    ]
    assert min(steps) > 0, "each image differs from the one before"


def test_se2_turns_and_shifts_by_one_path(solids_dataset: Dataset) -> None:
    """A bright dot goes where the matrices of a third of the angle and of the shift put it."""
    assert TARGETS["se2"] == ("rotation", "translation")
    from equibench.pretrain.augment import moved

    image = torch.zeros(1, 3, 33, 33)
    image[:, :, 16, 22] = 1  # 6 px to the right of the centre
    theta = {"rotation": torch.tensor([[90.0]]), "translation": torch.tensor([[3.0, 0.0]])}
    found = moved(image, theta, 1 / 3, "black")[0, 0]
    row, column = divmod(int(found.argmax()), 33)
    # rotation counter-clockwise by 30 degrees of the dot, and a shift by 1 px, in either order within a pixel
    assert abs(column - (16 + 6 * 0.866 + 1)) <= 1.1
    assert abs(row - (16 - 6 * 0.5)) <= 1.1


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("vicreg_all_rot_k1", [1 / 2]),
        ("vicreg_all_rot", [1 / 3, 2 / 3]),
        ("vicreg_all_rot_k3", [1 / 4, 1 / 2, 3 / 4]),
        ("vicreg_all_rot_k2_final", [1 / 3, 2 / 3, 1]),
    ],
)
def test_as_many_images_are_redrawn_as_the_row_says(name: str, shares: list[float], solids_dataset: Dataset) -> None:
    step, views, bare = batch_of(name, solids_dataset)
    assert bare.pictures is not None
    u, theta = augmented(bare.pictures, "all", "view 2"), bare.pictures.theta("rotation", "g")
    assert len(step.method.decoders) == len(views.targets) == len(shares)
    for share, target in zip(shares, views.targets, strict=True):
        torch.testing.assert_close(target, transform(u, {"rotation": share * theta}))
    weights = [decoder.linear.weight for decoder in step.method.decoders]
    assert all((a - b).abs().max() > 0 for a, b in zip(weights, weights[1:], strict=False)), "each has its own"


class Grey(nn.Module):
    """A decoder that always draws the same grey."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.full((len(tokens), 3, 32, 32), self.value)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_ssl_loss_and_the_mean_of_the_decoders_errors(
    reduction: str, solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_redrawing(monkeypatch, reduction=reduction)
    step, views, _ = batch_of("vicreg_all_rot", solids_dataset)
    method = step.method
    method.decoders = nn.ModuleList([Grey(0.25), Grey(0.5)])
    losses, tokens = step(views)
    seen = [target[..., views.mask.bool()] for target in views.targets]
    errors = [(image - grey).square() for image, grey in zip(seen, (0.25, 0.5), strict=True)]
    each = [error.sum(dim=(1, 2)).mean() if reduction == "sum" else error.mean() for error in errors]
    assert losses["reconstruction"].item() == pytest.approx(float(sum(each)) / 2, rel=1e-4)
    half = tokens.channels(0, TINY.encoder.half)
    ssl = method.ssl.loss(views, half)["loss"]
    total = ssl + TINY.pretraining.lambda_recon * losses["reconstruction"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["vicreg_all_rot", "simclr_all_rot", "ibot_all_rot", "dinov2_all_se2"])
def test_each_half_is_trained_by_its_own_loss_alone(name: str, solids_dataset: Dataset) -> None:
    step, views, _ = batch_of(name, solids_dataset)
    tokens = step.method.encode(step.encoder, views)
    leaves = {
        view: Tokens(t.cls.detach().requires_grad_(), t.patches.detach().requires_grad_())
        for view, t in (("v1", tokens.v1), ("v2", tokens.v2))
    }
    losses = step.method.loss(views, TokenPair(**leaves, teacher=tokens.teacher, local=tokens.local))
    half, patches = TINY.encoder.half, [leaves["v1"].patches, leaves["v2"].patches]
    reconstruction = losses["reconstruction"]
    for term, mine, other in (
        (losses["loss"] - reconstruction, slice(0, half), slice(half, None)),
        (reconstruction, slice(half, None), slice(0, half)),
    ):
        for gradient in torch.autograd.grad(term, patches, retain_graph=True):
            assert gradient[..., other].abs().max() < 1e-9
            assert gradient[..., mine].abs().max() > 1e-6


def test_without_a_split_the_ssl_method_has_all_channels(solids_dataset: Dataset) -> None:
    step, views, _ = batch_of("vicreg_all_rot", solids_dataset)
    settings = {**BASELINES.get("vicreg_all_rot").settings, "splits_features": False}
    method = Intermediate(TINY, step.encoder, **settings)
    tokens = step.method.encode(step.encoder, views)
    leaf = tokens.v1.patches.detach().requires_grad_()
    losses = method.loss(views, TokenPair(Tokens(tokens.v1.cls.detach(), leaf), tokens.v2))
    for term in (losses["reconstruction"], losses["invariance"]):
        (gradient,) = torch.autograd.grad(term, leaf, retain_graph=True)
        assert (gradient.abs().amax(dim=(0, 1)) > 0).all()
    assert not method.splits_features


def test_view_one_can_come_from_the_teacher(solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = {}
    for first_view in ("student", "teacher"):
        with_redrawing(monkeypatch, first_view=first_view)
        step, views, _ = batch_of("ibot_all_rot", solids_dataset)
        tokens = step.method.encode(step.encoder, views)
        leaf = tokens.v1.patches.detach().requires_grad_()
        pair = TokenPair(Tokens(tokens.v1.cls, leaf), tokens.v2, tokens.teacher, tokens.local)
        (gradient,) = torch.autograd.grad(step.method.loss(views, pair)["reconstruction"], leaf, allow_unused=True)
        reached[first_view] = gradient is not None and bool(gradient.abs().max() > 0)
    assert reached == {"student": True, "teacher": False}


def test_the_class_token_can_be_seen_by_the_decoders(solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = {}
    for class_token in (False, True):
        with_redrawing(monkeypatch, class_token=class_token)
        step, views, _ = batch_of("vicreg_all_rot", solids_dataset)
        tokens = step.method.encode(step.encoder, views)
        leaf = tokens.v2.cls.detach().requires_grad_()
        pair = TokenPair(tokens.v1, Tokens(leaf, tokens.v2.patches))
        (gradient,) = torch.autograd.grad(step.method.loss(views, pair)["reconstruction"], leaf)
        reached[class_token] = bool(gradient.abs().max() > 0)
    assert reached == {False: False, True: True}


@pytest.mark.parametrize(("patch", "side"), [(2, 8), (4, 16), (8, 32), (16, 64)])
def test_a_decoder_draws_an_image_of_the_encoder_s_size(patch: int, side: int) -> None:
    visible = torch.tensor([0, 3, 5, 6, 9, 10])
    decoder = ImageDecoder(10, Redrawing(width=16, narrowest=4), 4, patch, visible)
    tokens = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    images = decoder(tokens)
    assert images.shape == (2, 3, side, side)
    assert 0 < float(images.min()) < float(images.max()) < 1
    convolutions = [part for part in decoder.up if isinstance(part, nn.ConvTranspose2d)]
    assert 2 ** len(convolutions) == patch
    assert isinstance(decoder.up[-1], nn.Sigmoid)
    # a token draws where its patch lies, and a little beyond
    other = tokens.clone()
    other[:, 2] += 1
    with torch.no_grad():
        changed = (decoder.eval()(other) - decoder(tokens)).abs().sum(dim=(0, 1))
    places = torch.arange(side) + 0.5
    row, column = (float((changed.sum(dim=d) * places).sum() / changed.sum()) / patch for d in (1, 0))
    assert (int(row), int(column)) == divmod(int(visible[2]), 4)


def test_a_patch_that_no_doubling_reaches_is_said() -> None:
    with pytest.raises(UserError, match="never gives 14 px"):
        ImageDecoder(10, Redrawing(width=16), 4, 14, torch.arange(16))
