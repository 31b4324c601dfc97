"""Intermediate reconstruction: an SSL method on the invariant half, decoders of images on the way on the other half.

Wang et al., AAAI 2026, arXiv 2503.18753 (P2), section 3: view 1 is A1(I), u is A2(I), view 2 is g_theta(u). From the
equivariant patch tokens of both views decoder k redraws g_{k theta / (K + 1)}(u): L = L_SSL + lambda (1/K) sum_k L_k.
What the paper leaves open is a setting (docs/protocol.md 13.4).
"""

from dataclasses import replace

import torch
from equibench.baselines.dinov2 import DINOv2
from equibench.baselines.ibot import IBOT
from equibench.baselines.simclr import SimCLR
from equibench.baselines.vicreg import VICReg
from torch import Tensor, cat, nn

from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.pretrain.augment import Pipeline, augmented, moved, pictures_of
from equibench.pretrain.method import Baseline, Criterion, TokenPair, ViewPair, register_baseline
from equibench.pretrain.modules import ImageDecoder, masked_pixel_mse
from equibench.profiles import Profile

TARGETS = {g: (g,) for g in ("rotation", "color", "blur", "translation")} | {"se2": ("rotation", "translation")}
"""g by name: the transformations of which one theta moves all at once."""


class Intermediate(Baseline):
    """An SSL method whose encoder also has to tell what lies between u and g(u)."""

    splits_features = True
    use_of_theta = "unused"
    transformations = ()
    extras = ("redrawing",)
    learned = {"ssl_failed": Criterion("below", 0.5), "reconstruction_ratio": Criterion("below", 0.8)}

    def __init__(
        self,
        profile: Profile,
        encoder: ViTEncoder,
        ssl: type[Baseline],
        g: str,
        views: Pipeline = "all",
        count: int = 2,
        final: bool = False,
        splits_features: bool = True,
    ) -> None:
        """`count` images on the way are redrawn, and view 2 itself too if `final`.

        The features are split between both losses; unless `splits_features`, the SSL method has them all and the
        decoders have a linear layer of their own.
        """
        super().__init__(profile, encoder)
        self.splits_features, self.settings = splits_features, profile.extras.redrawing
        width = self.features - self.invariant
        self.ssl = ssl(profile, encoder, self.invariant if splits_features else self.features)
        self.ssl.pipeline = None  # it gets its views from here
        self.pipeline, self.names = views, TARGETS[g]
        self.shares, self.final = [k / (count + 1) for k in range(1, count + 1)], final
        self.equivariant = nn.Identity() if splits_features else nn.Linear(self.features, width)
        channels = 2 * width * (2 if self.settings.class_token else 1)
        parts = (channels, self.settings, profile.image_size // encoder.patch, encoder.patch, encoder.visible)
        self.decoders = nn.ModuleList(ImageDecoder(*parts) for _ in range(count + final))

    def prepare(self, views: ViewPair) -> ViewPair:
        pictures = pictures_of(views)
        one, u = (augmented(pictures, self.pipeline, name) for name in ("view 1", "view 2"))
        theta = {name: pictures.theta(name, "g") for name in self.names}
        *targets, other = (moved(u, theta, share, pictures.fill) for share in [*self.shares, 1.0])
        made = replace(views, v1=views.normalise(one), v2=views.normalise(other))
        return self.ssl.prepare(replace(made, targets=(*targets, other) if self.final else tuple(targets)))

    def encode(self, encoder: ViTEncoder, views: ViewPair) -> TokenPair:
        return self.ssl.encode(encoder, views)

    def after_step(self, encoder: ViTEncoder, step: int, steps: int) -> None:
        self.ssl.after_step(encoder, step, steps)

    def kept(self, encoder: ViTEncoder) -> ViTEncoder:
        return self.ssl.kept(encoder)

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        terms = self.ssl.loss(views, self._ssl_tokens(tokens))
        error = self.reconstruction_error(views, *self._equivariant(tokens))
        total = terms.pop("loss") + self.profile.pretraining.lambda_recon * error
        return {"loss": total, "reconstruction": error, **terms}

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """The SSL method's, how many of its criteria fail, and how well the images are redrawn.

        The ratio is to the error of each pixel's mean over images. A gap is the error with that view's tokens taken
        from another image, minus the error as it is.
        """
        found = self.ssl.diagnostics(views, self._ssl_tokens(tokens))
        failed = self.ssl.not_learned({name: float(value) for name, value in found.items()})
        z1, z2 = self._equivariant(tokens)
        error = self.reconstruction_error(views, z1, z2)
        images = torch.stack(views.targets, dim=1)
        of_mean = self._error(views, images.mean(dim=0).expand_as(images).flatten(0, 1), images.flatten(0, 1))
        return {
            **found,
            "ssl_failed": torch.tensor(float(len(failed))),
            "reconstruction": error,
            "reconstruction_ratio": error / of_mean,
            "view1_swap_gap": self.reconstruction_error(views, z1.roll(1, dims=0), z2) - error,
            "view2_swap_gap": self.reconstruction_error(views, z1, z2.roll(1, dims=0)) - error,
        }

    def reconstruction_error(self, views: ViewPair, z1: Tensor, z2: Tensor) -> Tensor:
        """Mean over the decoders of the squared error of RGB in [0, 1], for tokens of both views (N, L, C)."""
        drawn = (decoder(cat([z1, z2], dim=2)) for decoder in self.decoders)
        return torch.stack([self._error(views, *one) for one in zip(drawn, views.targets, strict=True)]).mean()

    def _error(self, views: ViewPair, images: Tensor, target: Tensor) -> Tensor:
        mask = views.mask.expand(3, *views.mask.shape)
        error = masked_pixel_mse(images, target, mask)
        return error * mask.sum() if self.settings.reduction == "sum" else error

    def _ssl_tokens(self, tokens: TokenPair) -> TokenPair:
        return tokens.channels(0, self.invariant) if self.splits_features else tokens

    def _equivariant(self, tokens: TokenPair) -> tuple[Tensor, Tensor]:
        """Equivariant tokens of both views, of each patch: (N, L, C)."""
        first = tokens.teacher if tokens.teacher and self.settings.first_view == "teacher" else tokens
        return self._of_patches(first.v1), self._of_patches(tokens.v2)

    def _of_patches(self, tokens: Tokens) -> Tensor:
        every = cat([tokens.cls[:, None], tokens.patches], dim=1)
        part = every[..., self.invariant :] if self.splits_features else self.equivariant(every)
        cls, patches = part[:, :1], part[:, 1:]
        return cat([patches, cls.expand_as(patches)], dim=2) if self.settings.class_token else patches


def intermediate(name: str, title: str, ssl: type[Baseline], g: str, **settings: object) -> None:
    """Register a row: an SSL method with intermediate reconstruction of g; settings are those of `Intermediate`."""
    register_baseline(name, title=title, ssl=ssl, g=g, **settings)(Intermediate)


intermediate("vicreg_rot_rot", "VICReg + intermediate(rot; rot)", VICReg, "rotation", views="rotation")
_ROT, _VICREG = "VICReg + intermediate(all; rot)", {"ssl": VICReg, "g": "rotation"}
intermediate("vicreg_all_rot_k1", f"{_ROT}, K=1", **_VICREG, count=1)
intermediate("vicreg_all_rot_k3", f"{_ROT}, K=3", **_VICREG, count=3)
intermediate("vicreg_all_rot_k2_final", f"{_ROT}, 2 + final", **_VICREG, final=True)
for _g, _id in {"rotation": "rot", "color": "color", "blur": "blur", "translation": "trans", "se2": "se2"}.items():
    for _ssl, _name in [(VICReg, "VICReg"), (SimCLR, "SimCLR"), (IBOT, "iBOT"), (DINOv2, "DINOv2")]:
        if _ssl is VICReg or _g in ("rotation", "se2"):
            intermediate(f"{_name.lower()}_all_{_id}", f"{_name} + intermediate(all; {_id})", _ssl, _g)
