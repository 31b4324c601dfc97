"""SIE: an invariant half, and an equivariant half that a linear map chosen by θ carries from view 1 to view 2.

Garrido, Najman, LeCun, "Self-supervised learning of split invariant equivariant representations", ICML 2023, with
the weights of its published command and heads sized for a ViT (docs/protocol.md 6.4). Eight rows are for
transformed images, two for views of 3-D objects.
"""

import math

import torch
from torch import Tensor, nn

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.method import ALL, Baseline, TokenPair, ViewPair, gather, register_baseline
from equibench.pretrain.modules import both, covariance, invariance, projector, variance
from equibench.profiles import Profile
from equibench.transforms.transformation import MAX_ANGLE, TRANSFORMATIONS, standard_moments

_WEIGHTS = {"invariance": 10.0, "equivariance": 4.5, "variance": 10.0, "predicted_variance": 10.0, "covariance": 1.0}


def transformation_code(views: ViewPair, names: tuple[str, ...]) -> Tensor:
    """The code z of the transformations between the views: (N, K).

    A rotation is (cos, sin), so that W = cos H1 + sin H2 holds the identity at θ = 0, and a pose its quaternion, as
    SIE has it; every other parameter is standardised, with a constant 1 appended once unless a pose is there. An entry
    whose transformation was not drawn for a sample is 0.
    """
    columns = []
    for name in names:
        theta, known = views.theta[name], views.known[name][:, None]
        if name == "rotation":
            angle = theta * math.radians(MAX_ANGLE)
            column = torch.cat([angle.cos(), angle.sin()], dim=1)
        elif name == "pose":
            column = theta
        else:
            mean, std = (torch.as_tensor(m, dtype=theta.dtype, device=theta.device) for m in standard_moments(name))
            column = (theta - mean) / std
        columns.append(column * known)
    if _has_constant(names):
        columns.append(torch.ones_like(columns[0][:, :1]))
    return torch.cat(columns, dim=1)


def code_size(names: tuple[str, ...]) -> int:
    """Number of entries of `transformation_code`."""
    entries = sum(2 if n == "rotation" else len(TRANSFORMATIONS[n].parameters) for n in names)
    return entries + _has_constant(names)


def _has_constant(names: tuple[str, ...]) -> bool:
    """Whether the code needs an entry that is there when all others are 0: a pose's quaternion never is."""
    return names != ("rotation",) and "pose" not in names


class HypernetworkPredictor(nn.Module):
    """y = W(z) x with W(z) = sum_k z_k H_k: a hypernetwork of one linear layer without bias."""

    def __init__(self, code: int, width: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(code, width, width) / math.sqrt(width * code))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (N, D), z (N, K) -> (N, D)."""
        every = torch.einsum("ni,koi->nko", x, self.basis)
        return (z.to(every.dtype).unsqueeze(1) @ every).squeeze(1)


def sie_loss(inv1: Tensor, inv2: Tensor, equi1: Tensor, equi2: Tensor, predicted: Tensor) -> dict[str, Tensor]:
    """SIE's five terms and their weighted sum "loss", from embeddings (N, D) of the invariant and equivariant halves.

    `predicted` is W(z) equi1.
    """
    x, y = gather(torch.cat([inv1, equi1], dim=1)), gather(torch.cat([inv2, equi2], dim=1))
    terms = {
        "invariance": invariance(inv1, inv2),
        "equivariance": invariance(predicted, equi2),
        "variance": both(variance(x), variance(y)),
        "predicted_variance": 0.5 * variance(gather(predicted)),
        "covariance": covariance(x) + covariance(y),
    }
    total = torch.stack([weight * terms[name] for name, weight in _WEIGHTS.items()]).sum()
    return {"loss": total, **terms}


class SIE(Baseline):
    """Split features with a linear predictor on the equivariant half that knows the transformation."""

    splits_features = True

    def __init__(
        self, profile: Profile, encoder: ViTEncoder, transformations: tuple[str, ...] = ALL, one_at_a_time: bool = False
    ) -> None:
        super().__init__(profile, encoder)
        self.transformations, self.one_at_a_time = transformations, one_at_a_time
        widths = profile.pretraining.projector
        self.invariant_projector = projector(self.invariant, widths)
        self.equivariant_projector = projector(self.features - self.invariant, widths)
        self.predictor = HypernetworkPredictor(code_size(transformations), widths[-1])

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        inv1, inv2 = (self.invariant_projector(t.mean[:, : self.invariant]) for t in (tokens.v1, tokens.v2))
        equi1, equi2, code = self._equivariant(views, tokens)
        return sie_loss(inv1, inv2, equi1, equi2, self.predictor(equi1, code))

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """L_equi with the codes of other samples over L_equi: near 1 means that the code is not used."""
        equi1, equi2, code = self._equivariant(views, tokens)
        error = invariance(self.predictor(equi1, code), equi2)
        shuffled = invariance(self.predictor(equi1, code.roll(1, dims=0)), equi2)
        return {"equivariance": error, "shuffled_code_ratio": shuffled / error.clamp_min(1e-12)}

    def _equivariant(self, views: ViewPair, tokens: TokenPair) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of both equivariant halves, and the code."""
        one, other = (self.equivariant_projector(t.mean[:, self.invariant :]) for t in (tokens.v1, tokens.v2))
        return one, other, transformation_code(views, self.transformations)


for _short, _name in [
    ("rot", "rotation"), ("color", "color"), ("blur", "blur"), ("trans", "translation"), ("crop", "crop"),
    ("flip", "flip"),
]:  # fmt: skip
    register_baseline(f"sie_{_short}", title=f"SIE({_short})", transformations=(_name,))(SIE)
register_baseline("sie_pose", title="SIE(rot), 3-D", transformations=("pose",))(SIE)
register_baseline("sie_pose_hues", title="SIE(rot+color), 3-D", transformations=("pose", "hues"))(SIE)
register_baseline("sie_all", title="SIE(all)")(SIE)
register_baseline("sie_all_single", title="SIE(all, single each time)", one_at_a_time=True)(SIE)
