"""SIE: an invariant half, and an equivariant half that a linear map chosen by θ carries from view 1 to view 2.

Garrido, Najman, LeCun, "Self-supervised learning of split invariant equivariant representations", ICML 2023, with
the weights of its published command and heads sized for a ViT (docs/protocol.md 6.4). Eight rows are for
transformed images, two for views of 3-D objects.
"""

import math
from typing import Literal

import numpy as np
import torch
from equibench.baselines.vicreg import SPREAD
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.method import ALL, Baseline, Criterion, TokenPair, ViewPair, gather, register_baseline
from equibench.pretrain.modules import both, covariance, invariance, projector, variance
from equibench.profiles import Profile
from equibench.transforms.transformation import MAX_ANGLE, TRANSFORMATIONS, coded_width, standard_moments

_WEIGHTS = {"invariance": 10.0, "equivariance": 4.5, "variance": 10.0, "predicted_variance": 10.0, "covariance": 1.0}
ARC = 1.6 * math.pi
"""Angle between the ends of a parameter's range: less than a turn, where both ends would meet, yet so wide that no
weighted sum of cosine and sine is nearly constant."""

Code = Literal["phases", "standardised"]


def transformation_code(views: ViewPair, names: tuple[str, ...], code: Code = "phases") -> Tensor:
    """The code z of the transformations between the views: (N, K), in one of two forms (docs/protocol.md 6.5)."""
    one = _phases if code == "phases" else _standardised
    columns = [one(name, views.theta[name], views.known[name][:, None]) for name in names]
    if code == "standardised" and _has_constant(names):
        columns.append(torch.ones_like(columns[0][:, :1]))
    return torch.cat(columns, dim=1)


def code_size(names: tuple[str, ...], code: Code = "phases") -> int:
    """Number of entries of `transformation_code`."""
    single = {"pose", "flip"} if code == "phases" else set(TRANSFORMATIONS) - {"rotation"}
    entries = sum(len(TRANSFORMATIONS[name].parameters) * (1 if name in single else 2) for name in names)
    return entries + (code == "standardised" and _has_constant(names))


def _phases(name: str, theta: Tensor, known: Tensor) -> Tensor:
    """cos and sin of an angle for each parameter, which is 0 at the identity and where θ is not known.

    θ is (N, P) in the targets' coding, `known` (N, 1). A pose is its quaternion.
    """
    identity = TRANSFORMATIONS[name].encode(np.array(TRANSFORMATIONS[name].identity), 32)
    start = torch.as_tensor(identity, dtype=theta.dtype, device=theta.device)
    if name == "pose":
        return torch.where(known, theta, start)
    speed = torch.as_tensor(_radians_per_unit(name), dtype=theta.dtype, device=theta.device)
    angle = (theta - start) * speed * known
    if name == "flip":  # the sine is always 0, and its matrix would never be trained
        return angle.cos()
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _radians_per_unit(name: str) -> NDArray[np.float64]:
    """Of each parameter in its target's coding (P,): half a turn for the flip, a turn for a period of hues."""
    if name in ("flip", "hues"):
        return np.full(1, math.pi if name == "flip" else 2 * math.pi)
    return ARC / coded_width(name)


def _standardised(name: str, theta: Tensor, known: Tensor) -> Tensor:
    """A rotation's cos and sin, a pose's quaternion, all else standardised; 0 where θ is not known."""
    if name == "rotation":
        angle = theta * math.radians(MAX_ANGLE)
        return torch.cat([angle.cos(), angle.sin()], dim=1) * known
    if name == "pose":
        return theta * known
    mean, std = (torch.as_tensor(m, dtype=theta.dtype, device=theta.device) for m in standard_moments(name))
    return (theta - mean) / std * known


def _has_constant(names: tuple[str, ...]) -> bool:
    """Whether the standardised code needs an entry that is never 0; a pose's quaternion has one."""
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


def sie_loss(
    inv1: Tensor, inv2: Tensor, equi1: Tensor, equi2: Tensor, predicted: Tensor, weight: float = 1.0
) -> dict[str, Tensor]:
    """SIE's five terms and their weighted sum "loss", from embeddings (N, D) of the invariant and equivariant halves.

    `predicted` is W(z) equi1; `weight` multiplies that of the equivariance term.
    """
    x, y = gather(torch.cat([inv1, equi1], dim=1)), gather(torch.cat([inv2, equi2], dim=1))
    terms = {
        "invariance": invariance(inv1, inv2),
        "equivariance": invariance(predicted, equi2),
        "variance": both(variance(x), variance(y)),
        "predicted_variance": 0.5 * variance(gather(predicted)),
        "covariance": covariance(x) + covariance(y),
    }
    weights = {**_WEIGHTS, "equivariance": weight * _WEIGHTS["equivariance"]}
    total = torch.stack([weights[name] * terms[name] for name in weights]).sum()
    return {"loss": total, **terms}


class SIE(Baseline):
    """Split features with a linear predictor on the equivariant half that knows the transformation."""

    splits_features = True
    learned = {**SPREAD, "shuffled_code_ratio": Criterion("above", 1.5)}

    def __init__(
        self,
        profile: Profile,
        encoder: ViTEncoder,
        transformations: tuple[str, ...] = ALL,
        one_at_a_time: bool = False,
        code: Code = "phases",
    ) -> None:
        super().__init__(profile, encoder)
        self.transformations, self.one_at_a_time, self.code = transformations, one_at_a_time, code
        widths = profile.pretraining.projector
        self.invariant_projector = projector(self.invariant, widths)
        self.equivariant_projector = projector(self.features - self.invariant, widths)
        self.predictor = HypernetworkPredictor(code_size(transformations, code), widths[-1])

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        equi1, equi2, code = self._equivariant(views, tokens)
        predicted = self.predictor(equi1, code)
        return sie_loss(*self._invariant(tokens), equi1, equi2, predicted, self.profile.pretraining.weight)

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """The variance term, and L_equi with the codes of other samples over L_equi: near 1 no code is used."""
        equi1, equi2, code = self._equivariant(views, tokens)
        predicted = self.predictor(equi1, code)
        error = invariance(predicted, equi2)
        shuffled = invariance(self.predictor(equi1, code.roll(1, dims=0)), equi2)
        return {
            "variance": sie_loss(*self._invariant(tokens), equi1, equi2, predicted)["variance"],
            "equivariance": error,
            "shuffled_code_ratio": shuffled / error.clamp_min(1e-12),
        }

    def _invariant(self, tokens: TokenPair) -> tuple[Tensor, Tensor]:
        """Embeddings of both invariant halves."""
        one, other = (self.invariant_projector(t.mean[:, : self.invariant]) for t in (tokens.v1, tokens.v2))
        return one, other

    def _equivariant(self, views: ViewPair, tokens: TokenPair) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of both equivariant halves, and the code."""
        one, other = (self.equivariant_projector(t.mean[:, self.invariant :]) for t in (tokens.v1, tokens.v2))
        return one, other, transformation_code(views, self.transformations, self.code)


for _short, _name in [
    ("rot", "rotation"), ("color", "color"), ("blur", "blur"), ("trans", "translation"), ("crop", "crop"),
    ("flip", "flip"),
]:  # fmt: skip
    register_baseline(f"sie_{_short}", title=f"SIE({_short})", transformations=(_name,))(SIE)
register_baseline("sie_pose", title="SIE(rot), 3-D", transformations=("pose",))(SIE)
register_baseline("sie_pose_hues", title="SIE(rot+color), 3-D", transformations=("pose", "hues"))(SIE)
register_baseline("sie_all", title="SIE(all)")(SIE)
register_baseline("sie_all_single", title="SIE(all, single each time)", one_at_a_time=True)(SIE)
