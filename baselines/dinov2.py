"""DINOv2: DINO's loss on class tokens, iBOT's on masked patches, and KoLeo, which spreads the images.

Oquab et al., "DINOv2: learning robust visual features without supervision", TMLR 2024, with the defaults of its code
(facebookresearch/dinov2, ssl_default_config.yaml, b8931f7), one head:
L = L_DINO + L_iBOT + 0.1 [KoLeo(x1) + KoLeo(x2)].
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.augment import Pipeline
from equibench.pretrain.method import Pictures, TokenPair, ViewPair, gather, register_baseline
from equibench.pretrain.teacher import MASK_RATIOS, STUDENT_TEMPERATURE, Distilled, PatchLoss, sinkhorn_knopp
from equibench.profiles import Profile

KOLEO_WEIGHT = 0.1


@register_baseline("dinov2", title="DINOv2")
class DINOv2(Distilled):
    """Self-distillation of class and masked patch tokens with a spread of the images' features."""

    def __init__(
        self,
        profile: Profile,
        encoder: ViTEncoder,
        features: int | None = None,
        views: Pipeline = "all",
        balance: Literal["centre", "sinkhorn"] = "centre",
    ) -> None:
        """`views`: how views are made of an image. `balance`: what keeps prototypes in use."""
        from lightly.loss import DINOLoss, KoLeoLoss

        super().__init__(profile, encoder, features, views)
        self.balance, prototypes = balance, self.settings.prototypes
        momentum = 0.9 if balance == "centre" else 1.0  # with 1 the centre stays at 0
        self.class_loss = DINOLoss(prototypes, student_temp=STUDENT_TEMPERATURE, center_momentum=momentum)
        self.patch_loss, self.koleo = PatchLoss(prototypes, momentum), KoLeoLoss()

    def mask_ratios(self, pictures: Pictures) -> np.ndarray:
        """One view of each pair, so half of all, with shares that are spread evenly over the pairs of a batch."""
        batch = self.profile.pretraining.batch
        row = np.concatenate([first + np.arange(count) for _, first, count in pictures.places])
        which, within = pictures.uniforms(2, "mask ratios").T
        low, high = MASK_RATIOS
        share = low + (high - low) * (row % batch + within) / batch
        return np.where((which < 0.5) == np.array([[True], [False]]), share, 0.0)

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        assert views.masks is not None
        teacher, student = self.class_logits(tokens)
        patches, guessed = self.patch_logits(tokens, views.masks)
        masks = views.masks.flatten(0, 1)
        hidden = patches[masks]
        with torch.autocast(guessed.device.type, enabled=False):
            told = self._balanced(torch.cat(teacher)).chunk(2)
            of_class = self.class_loss(list(told), student, teacher_temp=self.temperature)
            of_patches = self.patch_loss(self._balanced(hidden), guessed, masks, self.temperature, hidden)
            spread = sum(self.koleo(gather(view.cls.float())) for view in (tokens.v1, tokens.v2))
        total = of_class + of_patches + KOLEO_WEIGHT * spread
        return {"loss": total, "class_loss": of_class, "patch_loss": of_patches, "koleo": spread}

    def targets(self, logits: Tensor) -> Tensor:
        return torch.softmax((self._balanced(logits) - self.class_loss.center[0]) / self.temperature, dim=1)

    def _balanced(self, logits: Tensor) -> Tensor:
        """The teacher's logits; with Sinkhorn-Knopp, those of which the softmax is its distribution."""
        if self.balance == "centre":
            return logits
        return self.temperature * sinkhorn_knopp(logits, self.temperature).clamp_min(1e-30).log()


register_baseline("dinov2_sinkhorn", title="DINOv2, Sinkhorn-Knopp", balance="sinkhorn")(DINOv2)
