"""Supervised training: the labels of both views, and nothing about what lies between them (docs/protocol.md 6.7)."""

import torch.nn.functional as F
from torch import Tensor, cat, nn

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.method import Baseline, Criterion, TokenPair, ViewPair, register_baseline
from equibench.profiles import Profile

LABEL_SMOOTHING = 0.1
"""As in DeiT's recipe, which the baseline's architecture is taken from."""


@register_baseline("supervised", title="Supervised")
class Supervised(Baseline):
    """Cross-entropy of a linear classifier on the representations of both views."""

    # it reads no θ, but P1 trains it, like SIE, on the part of the data whose transformations are known
    use_of_theta = "required"
    uses_labels = True
    learned = {"top1_over_chance": Criterion("above", 2.0)}

    def __init__(self, profile: Profile, encoder: ViTEncoder, classes: int) -> None:
        super().__init__(profile, encoder)
        self.classifier, self.classes = nn.Linear(self.features, classes), classes

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        logits, labels = self._logits(views, tokens)
        smoothing = self.profile.pretraining.weight * LABEL_SMOOTHING
        return {"loss": F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)}

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """Top-1 accuracy on both views, and how many times that of guessing it is."""
        logits, labels = self._logits(views, tokens)
        top1 = (logits.argmax(dim=1) == labels).float().mean()
        return {"top1": top1, "top1_over_chance": top1 * self.classes}

    def _logits(self, views: ViewPair, tokens: TokenPair) -> tuple[Tensor, Tensor]:
        assert views.labels is not None
        return self.classifier(cat([tokens.v1.mean, tokens.v2.mean])), views.labels.repeat(2)
