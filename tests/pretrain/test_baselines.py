"""Every registered method on one small batch: it builds, its loss trains the encoder, and it is reproducible."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from equibench.baselines.reconstruction import Reconstruction, patches_of
from object_data import with_objects
from torch import Tensor, nn

from equibench.data.dataset import Dataset
from equibench.encoders.vit import Tokens, weights_sha256
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import TrainingStep, build_step
from equibench.pretrain.method import BASELINES, TokenPair, ViewPair, encode_pair
from equibench.pretrain.modules import CrossAttentionDecoder
from equibench.profiles import PROFILES, get_profile
from equibench.transforms.transformation import TRANSFORMATIONS, view_spec

TINY = get_profile("tiny")
NAMES = [name for name in BASELINES.names() if BASELINES.get(name).transformations]
"""Those that are given their views; of the others see `test_own_views`."""
SIE_NAMES = [name for name in NAMES if name.startswith("sie")]
STEPS = 60


def started(name: str, seed: int = 0) -> TrainingStep:
    return build_step(BASELINES.get(name), TINY, "headline", seed, 10).train()


def batch_of(step: TrainingStep, dataset: Dataset, count: int = 32) -> ViewPair:
    if any(TRANSFORMATIONS[name].observed for name in step.method.transformations):
        dataset = with_objects(dataset)
    return open_stream(dataset, "train", step.method, view_spec("headline", 32), seed=0).batch(0, count, step.encoder)


def fit(step: TrainingStep, views: ViewPair, steps: int) -> dict[str, float]:
    """Train what requires a gradient on the one batch; the loss's terms before the last step."""
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        losses, _ = step(views)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    return {name: value.item() for name, value in losses.items()}


@pytest.fixture(scope="module", params=NAMES)
def overfitted(
    request: pytest.FixtureRequest, solids_dataset: Dataset
) -> tuple[str, TrainingStep, ViewPair, dict[str, float]]:
    step = started(request.param)
    views = batch_of(step, solids_dataset)
    return request.param, step, views, fit(step, views, STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_finite_scalars_and_reaches_every_weight(name: str, solids_dataset: Dataset) -> None:
    step = started(name)
    losses, _ = step(batch_of(step, solids_dataset))
    assert "loss" in losses
    for value in losses.values():
        assert value.shape == ()
        assert torch.isfinite(value)
    losses["loss"].backward()
    for parameter_name, parameter in step.named_parameters():
        assert parameter.grad is not None, parameter_name
        if parameter.ndim > 1:  # a bias before a normalisation, or of attention's keys, has none to get
            assert float(parameter.grad.abs().max()) > 1e-9, parameter_name


def test_a_small_batch_is_overfitted_and_the_encoder_has_a_part_in_it(
    overfitted: tuple[str, TrainingStep, ViewPair, dict[str, float]],
) -> None:
    name, _, views, last = overfitted
    frozen = started(name)
    first = frozen(views)[0]["loss"].item()
    frozen.encoder.requires_grad_(False)
    heads_alone = fit(frozen, views, STEPS)["loss"]
    assert last["loss"] < 0.6 * first
    assert last["loss"] < 0.98 * heads_alone
    # the collapsed solution, all embeddings equal: no invariance and covariance loss, all of the variance's
    collapsed = 10 * (1 - 0.01) + ("predicted_variance" in last) * 5 * (1 - 0.01)
    assert last["loss"] < 0.7 * collapsed


@pytest.mark.parametrize("name", NAMES)
def test_what_says_that_it_has_learned_is_measured_and_told_from_the_untrained(
    name: str, solids_dataset: Dataset
) -> None:
    step = started(name).eval()
    views = batch_of(step, solids_dataset)
    with torch.no_grad():
        found = step.method.diagnostics(views, encode_pair(step.encoder, views))
    learned = type(step.method).learned
    assert learned
    assert set(learned) <= set(found)
    assert len(step.method.not_learned({name: float(value) for name, value in found.items()})) == len(learned)


@pytest.mark.parametrize("overfitted", NAMES, indirect=True)
def test_what_has_learned_its_batch_says_so(overfitted: tuple[str, TrainingStep, ViewPair, dict[str, float]]) -> None:
    _, step, views, _ = overfitted
    with torch.no_grad():
        found = step.method.diagnostics(views, encode_pair(step.encoder, views))
    assert step.method.not_learned({name: float(value) for name, value in found.items()}) == []


def test_same_seed_same_training(solids_dataset: Dataset) -> None:
    for name in ("vicreg", "reconstruction", "sie_all_single"):
        runs = []
        for seed in (0, 0, 1):
            step = started(name, seed)
            runs.append((fit(step, batch_of(step, solids_dataset), 3), weights_sha256(step)))
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]


def test_all_methods_start_from_the_same_encoder() -> None:
    assert len({weights_sha256(started(name).encoder) for name in NAMES}) == 1
    assert weights_sha256(started("vicreg", 1).encoder) != weights_sha256(started("vicreg").encoder)


@pytest.mark.parametrize("name", [n for n in NAMES if BASELINES.get(n).splits_features])
def test_each_half_is_trained_by_its_own_terms_alone(name: str, solids_dataset: Dataset) -> None:
    step = started(name)
    views = batch_of(step, solids_dataset)
    pair = encode_pair(step.encoder, views)
    leaves = [t.patches.detach().requires_grad_() for t in (pair.v1, pair.v2)]
    losses = step.method.loss(views, TokenPair(*(Tokens(pair.v1.cls.detach(), leaf) for leaf in leaves)))
    half = TINY.encoder.features // 2
    equivariant = losses["reconstruction" if "reconstruction" in losses else "equivariance"]
    for term, mine, other in (
        (losses["invariance"], slice(0, half), slice(half, None)),
        (equivariant, slice(half, None), slice(0, half)),
    ):
        for gradient in torch.autograd.grad(term, leaves, retain_graph=True):
            assert (gradient[..., other] == 0).all()
            assert gradient[..., mine].abs().max() > 0


@pytest.mark.parametrize("overfitted", SIE_NAMES, indirect=True)
def test_sie_uses_its_code(overfitted: tuple[str, TrainingStep, ViewPair, dict[str, float]]) -> None:
    name, step, views, _ = overfitted
    untrained = started(name)
    with torch.no_grad():
        trained_ratio = step.method.diagnostics(views, encode_pair(step.encoder, views))["shuffled_code_ratio"]
        ratio = untrained.method.diagnostics(views, encode_pair(untrained.encoder, views))["shuffled_code_ratio"]
    assert trained_ratio > 1.4
    assert trained_ratio > ratio


@pytest.mark.parametrize("overfitted", ["reconstruction"], indirect=True)
def test_reconstruction_beats_the_mean_picture_and_needs_both_views(
    overfitted: tuple[str, TrainingStep, ViewPair, dict[str, float]],
) -> None:
    _, step, views, last = overfitted
    seen = views.v2[..., views.mask.bool()]
    mean_picture = (seen - seen.mean(dim=0)).square().mean().item()
    assert last["reconstruction"] < 0.4 * mean_picture
    with torch.no_grad():
        gaps = step.method.diagnostics(views, encode_pair(step.encoder, views))
    count = len(seen)
    expected = gaps["reconstruction"].item() / (mean_picture * count / (count - 1))
    assert gaps["reconstruction_ratio"].item() == pytest.approx(expected, rel=1e-4)
    assert gaps["view1_swap_gap"] > 0.02
    assert gaps["view2_swap_gap"] > 0.02


def test_reconstruction_error_is_zero_for_view_two_itself(solids_dataset: Dataset) -> None:
    step = started("reconstruction")
    views, method = batch_of(step, solids_dataset, 4), step.method
    assert isinstance(method, Reconstruction)
    truth = patches_of(views.v2, TINY.encoder.patch)[:, step.encoder.visible]
    method.decoder.forward = lambda z2, z1: truth  # type: ignore[method-assign]
    z = torch.zeros(1)
    assert method.reconstruction_error(views, z, z).item() == 0
    method.decoder.forward = lambda z2, z1: truth + 0.5  # type: ignore[method-assign]
    assert method.reconstruction_error(views, z, z).item() == pytest.approx(0.25, rel=1e-5)


def test_view_two_asks_and_view_one_answers(solids_dataset: Dataset) -> None:
    step = started("reconstruction").eval()
    views, method = batch_of(step, solids_dataset, 4), step.method
    assert isinstance(method, Reconstruction)
    z1, z2 = torch.randn(2, 4, len(step.encoder.visible), TINY.decoder.width, generator=torch.manual_seed(0))
    with torch.no_grad():
        method.decoder.query.weight.zero_()  # now the question is the same whoever asks it
        error = method.reconstruction_error(views, z1, z2)
        torch.testing.assert_close(method.reconstruction_error(views, z1, -z2), error)
        other = torch.linspace(-1, 1, TINY.decoder.width).expand_as(z1)
        assert (method.reconstruction_error(views, other, z2) - error).abs() > 1e-3


def test_patches_are_those_of_unfold() -> None:
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(patches_of(images, 4), F.unfold(images, 4, stride=4).transpose(1, 2))


# The decoder


@pytest.fixture
def decoder() -> CrossAttentionDecoder:
    torch.manual_seed(0)
    return CrossAttentionDecoder(TINY.decoder, grid=4, visible=torch.arange(2, 14), pixels=12).eval()


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor]:
    """Query tokens of view 2 and key tokens of view 1."""
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 3, 12, TINY.decoder.width, generator=generator)
    return query, key


def test_cross_attention_is_torchs_with_positions_on_query_and_key_alone(
    decoder: CrossAttentionDecoder, tokens: tuple[Tensor, Tensor]
) -> None:
    query, key = tokens
    width, heads = TINY.decoder.width, TINY.decoder.heads
    reference = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    parts = (decoder.query, decoder.key, decoder.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.load_state_dict(decoder.out.state_dict())
        q, k = decoder.norm_query(query), decoder.norm_key(key)
        expected, _ = reference(q + decoder.position, k + decoder.position, k)
        torch.testing.assert_close(decoder.cross_attention(query, key), expected, atol=1e-5, rtol=1e-4)


def test_decoder_knows_where_its_keys_stand(decoder: CrossAttentionDecoder, tokens: tuple[Tensor, Tensor]) -> None:
    query, key = tokens
    with torch.no_grad():
        assert (decoder(query, key.flip(1)) - decoder(query, key)).abs().max() > 1e-3
        decoder.position.zero_()
        torch.testing.assert_close(decoder(query, key.flip(1)), decoder(query, key))


def test_view_two_comes_in_through_the_attention_weights_alone(
    decoder: CrossAttentionDecoder, tokens: tuple[Tensor, Tensor]
) -> None:
    query, key = tokens
    with torch.no_grad():
        assert (decoder(query, key) - decoder(-query, key)).abs().max() > 1e-3
        decoder.value.weight.zero_()  # equal values: the weights, which sum to 1, have nothing to choose from
        torch.testing.assert_close(decoder(query, key), decoder(-query, key))
        decoder.out.weight.zero_()
        torch.testing.assert_close(decoder(query, key), decoder(-query, -key))
        decoder.query_residual = True
        assert (decoder(query, key) - decoder(-query, key)).abs().max() > 1e-3


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_decoder_has_its_blocks_and_cross_attention_in_the_first_alone(profile: object) -> None:
    size = profile.decoder  # type: ignore[attr-defined]
    decoder = CrossAttentionDecoder(size, grid=4, visible=torch.arange(16), pixels=12)
    assert 1 + len(decoder.blocks) == size.depth
    first = sum(p.numel() for part in (decoder.query, decoder.key, decoder.value, decoder.out, decoder.mlp)
                for p in part.parameters())  # fmt: skip
    for block in decoder.blocks:
        assert block.attn.qkv.in_features == size.width
        # the same projections and MLP in self-attention: only the place of the norms differs
        ours = sum(p.numel() for part in (block.attn, block.mlp) for p in part.parameters())
        assert ours == first
