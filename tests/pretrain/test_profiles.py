"""What holds of every profile, so that every row can learn: embeddings, halves, weights, and what is kept."""

from __future__ import annotations

import pytest
import torch

from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.pretrain import modules
from equibench.pretrain.method import BASELINES, Theta, TokenPair, ViewPair
from equibench.profiles import PROFILES, Profile
from equibench.report.recipes import PUBLISHED_RECIPES
from equibench.transforms.transformation import TRANSFORMATIONS, view_spec

profiles = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
COUNT = 4


@pytest.fixture(scope="module")
def encoders() -> dict[str, ViTEncoder]:
    return {p.name: ViTEncoder(p.encoder, p.image_size, view_spec("headline", p.image_size)) for p in PROFILES.values()}


def anything(encoder: ViTEncoder, size: int) -> tuple[ViewPair, TokenPair]:
    """A batch of noise with every transformation between its views, and tokens of noise."""
    theta = {name: torch.zeros(COUNT, len(t.parameters)) for name, t in TRANSFORMATIONS.items()}
    known = {name: torch.ones(COUNT, dtype=torch.bool) for name in TRANSFORMATIONS}
    one, other = torch.randn(2, COUNT, 3, size, size)
    cls, patches = torch.randn(COUNT, encoder.features), torch.randn(COUNT, len(encoder.visible), encoder.features)
    tokens = Tokens(cls, patches)
    labels = torch.arange(COUNT)
    return ViewPair(one, other, Theta(theta), known, encoder.mask, labels), TokenPair(tokens, tokens)


@profiles
@pytest.mark.parametrize("name", [name for name in BASELINES.names() if BASELINES.get(name).transformations])
def test_no_loss_has_more_than_two_embedding_dimensions_for_each_pair_of_a_batch(
    profile: Profile, name: str, encoders: dict[str, ViTEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, entry, seen = encoders[profile.name], BASELINES.get(name), []
    for place in ("vicreg", "sie"):
        module = f"equibench.baselines.{place}.covariance"
        monkeypatch.setattr(module, lambda x: seen.append(x.shape[1]) or modules.covariance(x))
    views, tokens = anything(encoder, profile.image_size)
    entry.build(profile, encoder, classes=COUNT).loss(views, tokens)
    assert seen or name == "supervised"
    assert all(dimensions <= 2 * profile.pretraining.batch for dimensions in seen)


@profiles
def test_the_halves_can_be_two(profile: Profile) -> None:
    """A linear head with more outputs than inputs would make one half a linear function of the other."""
    assert profile.encoder.features <= profile.encoder.width
    assert profile.encoder.features == 2 * profile.encoder.half


@profiles
def test_the_steps_kept_are_steps_of_checkpoints_within_the_run(profile: Profile) -> None:
    settings = profile.pretraining
    assert all(0 < step < settings.steps and step % settings.checkpoint_every == 0 for step in profile.snapshots)
    assert settings.log_every <= settings.checkpoint_every, "or a checkpoint is gone before it is copied"


@profiles
def test_settings_of_methods_with_teachers_and_decoders_fit_the_profile(profile: Profile) -> None:
    crops, drawing = profile.extras.distillation, profile.extras.redrawing
    assert crops.local_size % profile.encoder.patch == 0
    assert crops.local_size < profile.image_size
    assert 0 < crops.momentum < 1
    assert 0 < crops.temperatures[0] <= crops.temperatures[1] < 0.1, "sharper than the student"
    assert crops.bottleneck <= crops.hidden
    assert drawing.narrowest <= drawing.width


def test_published_recipes_have_the_steps_of_their_epochs() -> None:
    steps = {name: recipe.steps for name, recipe in PUBLISHED_RECIPES.items()}
    assert steps == {"vicreg": 800 * 625, "ibot": 250 * 1251, "dinov2": 100 * 625}
    assert PUBLISHED_RECIPES["dinov2"].lr == pytest.approx(5.66e-3, rel=1e-3)


@profiles
def test_the_reconstruction_weighs_as_in_the_papers(profile: Profile) -> None:
    assert 0.1 <= profile.pretraining.lambda_recon <= 5
