"""iBOT: a student tells from a masked view what the teacher says of the whole one, for the image and for each patch.

Zhou et al., "iBOT: image BERT pre-training with online tokenizer", ICLR 2022, with the defaults of its code
(bytedance/ibot, main_ibot.py, da316d8): L = L_CLS + L_MIM, one head for class and patch tokens.
"""

import numpy as np
import torch
from torch import Tensor

from equibench.encoders.vit import ViTEncoder
from equibench.pretrain.augment import Pipeline
from equibench.pretrain.method import Pictures, TokenPair, ViewPair, register_baseline
from equibench.pretrain.teacher import MASK_RATIOS, STUDENT_TEMPERATURE, Distilled, PatchLoss
from equibench.profiles import Profile


@register_baseline("ibot", title="iBOT")
class IBOT(Distilled):
    """Self-distillation of class tokens over crops, and of the patch tokens that the student does not see."""

    def __init__(
        self, profile: Profile, encoder: ViTEncoder, features: int | None = None, views: Pipeline = "all"
    ) -> None:
        """`views`: how views are made of an image."""
        from lightly.loss import DINOLoss

        super().__init__(profile, encoder, features, views)
        prototypes = self.settings.prototypes
        self.class_loss = DINOLoss(prototypes, student_temp=STUDENT_TEMPERATURE, center_momentum=0.9)
        self.patch_loss = PatchLoss(prototypes, momentum=0.9)

    def mask_ratios(self, pictures: Pictures) -> np.ndarray:
        """Of each view, with equal chance: no mask, or one whose share is uniform."""
        chance, share = np.split(pictures.uniforms(4, "mask ratios").T, 2)
        low, high = MASK_RATIOS
        return np.where(chance < 0.5, 0.0, low + (high - low) * share)

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        assert views.masks is not None
        teacher, student = self.class_logits(tokens)
        patches, guessed = self.patch_logits(tokens, views.masks)
        masks, temperature = views.masks.flatten(0, 1), self.temperature
        with torch.autocast(guessed.device.type, enabled=False):
            of_class = self.class_loss(teacher, student, teacher_temp=temperature)
            # the centre is that of all patches: the masked ones alone are DINOv2's
            of_patches = self.patch_loss(patches[masks], guessed, masks, temperature, patches.flatten(0, 1))
        return {"loss": of_class + of_patches, "class_loss": of_class, "patch_loss": of_patches}

    def targets(self, logits: Tensor) -> Tensor:
        return torch.softmax((logits - self.class_loss.center[0]) / self.temperature, dim=1)
