"""SimCLR: of all views of a batch, a view's embedding is nearest to that of the other view of its image.

Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual representations", ICML 2020.
NT-Xent (its eq. 1) is `lightly`'s, with the views of all processes as negatives.
"""

import math

import torch
from torch import Tensor

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.augment import Pipeline, two_views
from equibench.pretrain.method import Baseline, Criterion, TokenPair, ViewPair, register_baseline
from equibench.pretrain.modules import projector
from equibench.profiles import Profile


@register_baseline("simclr", title="SimCLR")
class SimCLR(Baseline):
    """Contrast of the two views of an image with all other views of the batch."""

    use_of_theta = "unused"
    transformations = ()  # it makes views of its own
    extras = ("temperature",)
    learned = {"contrast": Criterion("below", 0.8)}

    def __init__(
        self, profile: Profile, encoder: ViTEncoder, features: int | None = None, views: Pipeline = "all"
    ) -> None:
        """`views`: how views are made of an image."""
        from lightly.loss import NTXentLoss

        super().__init__(profile, encoder, features)
        temperature = profile.extras.temperature
        self.pipeline, self.projector = views, projector(self.features, profile.pretraining.projector)
        self.nt_xent = NTXentLoss(temperature, gather_distributed=torch.distributed.is_available())
        self.nt_xent_here = NTXentLoss(temperature)

    def prepare(self, views: ViewPair) -> ViewPair:
        return two_views(views, self.pipeline)

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        with torch.autocast(views.v1.device.type, enabled=False):
            return {"loss": self.nt_xent(*self._embeddings(tokens))}

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """NT-Xent over log(2N - 1), which it is for views that are not told apart."""
        # every process looks at the same held-out pairs, so none is gathered
        found = self.nt_xent_here(*self._embeddings(tokens))
        return {"nt_xent": found, "contrast": found / math.log(2 * len(views.v1) - 1)}

    def _embeddings(self, tokens: TokenPair) -> tuple[Tensor, Tensor]:
        one, other = (self.projector(view.mean).float() for view in (tokens.v1, tokens.v2))
        return one, other
