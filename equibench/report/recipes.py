"""Published recipes of pretraining, as data: what `--dry-run` says that the papers' own runs took."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published recipe on ImageNet-1K, as far as the paper gives it (docs/protocol.md 13.6)."""

    backbone: str
    epochs: int
    batch: int
    lr: float  # peak, after the paper's scaling with the batch
    warmup_epochs: int | None  # None: not said
    said: str  # what else the source gives

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; an epoch drops its incomplete batch."""
        return self.epochs * (IMAGENET_IMAGES // self.batch)


IMAGENET_IMAGES = 1_281_167
PUBLISHED_RECIPES = {
    "vicreg": Published("ViT-S/16", 800, 2048, 1e-4 * 2048 / 256, None, "AdamW, cosine"),
    "ibot": Published("ViT-L/16", 250, 1024, 5e-4 * 1024 / 256, 10, "8,192 prototypes, 10 local crops of 96 px"),
    "dinov2": Published("ViT-L/16", 100, 2048, 4e-3 * (2048 / 1024) ** 0.5, 10, "65,536 prototypes, 8 local crops"),
}
"""By the SSL method of a row; of SimCLR the paper says nothing at all."""
