"""VICReg: both views' embeddings agree, every dimension varies, no two dimensions correlate.

Bardes, Ponce, LeCun, "VICReg", ICLR 2022. All channels are trained to be invariant, so there is no split.
"""

from torch import Tensor

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.method import Baseline, Criterion, TokenPair, ViewPair, gather, register_baseline
from equibench.pretrain.modules import both, covariance, invariance, projector, variance
from equibench.profiles import Profile

SIE_WEIGHTS = (10.0, 10.0, 1.0)
"""Invariance, variance and covariance as SIE weights them (docs/protocol.md 6.3); VICReg's own are (25, 25, 1)."""

SPREAD = {"variance": Criterion("below", 0.2)}
"""What every method with a variance hinge must reach: embeddings whose standard deviations are near 1."""


def vicreg_loss(
    x: Tensor, y: Tensor, weights: tuple[float, float, float] = SIE_WEIGHTS, weight: float = 1.0
) -> dict[str, Tensor]:
    """VICReg's three terms and their weighted sum "loss" for the embeddings (N, D) of two views.

    The variance term is the mean over the views and the covariance term their sum (VICReg eq. 6); `weight` multiplies
    the weight of the invariance term.
    """
    all_x, all_y = gather(x), gather(y)
    terms = {
        "invariance": invariance(x, y),
        "variance": both(variance(all_x), variance(all_y)),
        "covariance": covariance(all_x) + covariance(all_y),
    }
    on_invariance, on_variance, on_covariance = weights
    total = (
        weight * on_invariance * terms["invariance"]
        + on_variance * terms["variance"]
        + on_covariance * terms["covariance"]
    )
    return {"loss": total, **terms}


@register_baseline("vicreg", title="VICReg")
class VICReg(Baseline):
    """Joint embedding with variance, invariance and covariance terms on all channels."""

    use_of_theta = "unused"
    learned = SPREAD

    def __init__(self, profile: Profile, encoder: ViTEncoder, features: int | None = None) -> None:
        super().__init__(profile, encoder, features)
        self.projector = projector(self.features, profile.pretraining.projector)

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        embeddings = self.projector(tokens.v1.mean), self.projector(tokens.v2.mean)
        return vicreg_loss(*embeddings, weight=self.profile.pretraining.weight)

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """The loss's terms."""
        return self.loss(views, tokens)
