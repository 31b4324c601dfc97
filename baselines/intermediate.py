"""Intermediate reconstruction: an SSL method on the invariant half, decoders of images on the way on the other half.

Wang et al., AAAI 2026, arXiv 2503.18753 (P2), section 3: view 1 is A1(I), u is A2(I), view 2 is g_theta(u), and from the
equivariant patch tokens of both views decoder k redraws g_{k theta / (K + 1)}(u). L = L_SSL + lambda (1/K) sum_k L_k.
What the paper leaves open is a setting: docs/protocol.md 13.4.
"""

from dataclasses import replace

import torch
from equibench.baselines.dinov2 import DINOv2
from equibench.baselines.ibot import IBOT
from equibench.baselines.simclr import SimCLR
from equibench.baselines.vicreg import VICReg
from torch import Tensor, cat, nn

from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.pretrain.augment import BLUR_CHANCE, Pipeline, augmented, moved, pictures_of
from equibench.pretrain.method import Baseline, Criterion, TokenPair, ViewPair, register_baseline
from equibench.pretrain.modules import ImageDecoder, masked_pixel_mse
from equibench.profiles import Profile, extras_of

TARGETS = {
    "rotation": ("rotation",),
    "color": ("color",),
    "blur": ("blur",),
    "translation": ("translation",),
    "se2": ("rotation", "translation"),
}
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
        self.splits_features, self.settings = splits_features, extras_of(profile).redrawing
        width = self.features - self.invariant
        makes_views = {} if ssl is VICReg else {"views": None}
        self.ssl = ssl(profile, encoder, self.invariant if splits_features else self.features, **makes_views)
        self.pipeline, self.names = views, TARGETS[g]
        self.shares = [k / (count + 1) for k in range(1, count + 1)] + [1.0] * final
        self.equivariant = nn.Identity() if splits_features else nn.Linear(self.features, width)
        channels = 2 * width * (2 if self.settings.class_token else 1)
        grid, patch = profile.image_size // encoder.patch, encoder.patch
        decoders = (ImageDecoder(channels, self.settings, grid, patch, encoder.visible) for _ in self.shares)
        self.decoders = nn.ModuleList(decoders)

    def prepare(self, views: ViewPair) -> ViewPair:
        pictures = pictures_of(views)
        one, u = (views.normalise(augmented(pictures, self.pipeline, "view 1")), augmented(pictures, self.pipeline, "view 2"))
        theta = {name: pictures.theta(name, "g") for name in self.names}
        *targets, other = (moved(u, theta, share, pictures.fill) for share in [*self.shares, 1.0])
        return self.ssl.prepare(replace(views, v1=one, v2=views.normalise(other), targets=tuple(targets)))

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

        The ratio is to the error of each pixel's mean over images; a gap is the error with that view's tokens taken from
        another image, minus the error as it is.
        """
        found = self.ssl.diagnostics(views, self._ssl_tokens(tokens))
        failed = self.ssl.not_learned({name: float(value) for name, value in found.items()})
        z1, z2 = self._equivariant(tokens)
        error = self.reconstruction_error(views, z1, z2)
        mean = tuple(target.mean(dim=0, keepdim=True).expand_as(target) for target in views.targets)
        of_mean = torch.stack([self._error(views, one, t) for one, t in zip(mean, views.targets, strict=True)]).mean()
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
        both = cat([z1, z2], dim=2)
        pairs = zip(self.decoders, views.targets, strict=True)
        return torch.stack([self._error(views, decoder(both), target) for decoder, target in pairs]).mean()

    def _error(self, views: ViewPair, images: Tensor, target: Tensor) -> Tensor:
        mask = views.mask.expand(3, *views.mask.shape)
        error = masked_pixel_mse(images, target, mask)
        return error * mask.sum() if self.settings.reduction == "sum" else error

    def _ssl_tokens(self, tokens: TokenPair) -> TokenPair:
        return tokens.channels(0, self.invariant) if self.splits_features else tokens

    def _equivariant(self, tokens: TokenPair) -> tuple[Tensor, Tensor]:
        """Equivariant tokens of both views, of each patch: (N, L, C)."""
        asked = self.settings.first_view == "teacher" and tokens.teacher is not None
        first = tokens.teacher.v1 if asked and tokens.teacher else tokens.v1
        one, other = (self._of_patches(view) for view in (first, tokens.v2))
        return one, other

    def _of_patches(self, tokens: Tokens) -> Tensor:
        every = cat([tokens.cls[:, None], tokens.patches], dim=1)
        part = every[..., self.invariant :] if self.splits_features else self.equivariant(every)
        cls, patches = part[:, :1], part[:, 1:]
        return cat([patches, cls.expand_as(patches)], dim=2) if self.settings.class_token else patches


def intermediate(name: str, title: str, ssl: type[Baseline], g: str, **settings: object) -> None:
    """Register a row: intermediate reconstruction with g on top of an SSL method; settings as for `Intermediate`."""
    register_baseline(name, title=title, ssl=ssl, g=g, **settings)(Intermediate)


_SHORT = {"rotation": "rot", "color": "color", "blur": "blur", "translation": "trans", "se2": "se2"}
intermediate("vicreg_rot_rot", "VICReg + intermediate(rot; rot)", VICReg, "rotation", views="rotation")
for _g, _short in _SHORT.items():
    intermediate(f"vicreg_all_{_short}", f"VICReg + intermediate(all; {_short})", VICReg, _g)
for _count, _final, _id, _said in [(1, False, "k1", "K=1"), (3, False, "k3", "K=3"), (2, True, "k2_final", "2 + final")]:
    _title = f"VICReg + intermediate(all; rot), {_said}"
    intermediate(f"vicreg_all_rot_{_id}", _title, VICReg, "rotation", count=_count, final=_final)
for _ssl, _id, _name in [(SimCLR, "simclr", "SimCLR"), (IBOT, "ibot", "iBOT"), (DINOv2, "dinov2", "DINOv2")]:
    for _g in ("rotation", "se2"):
        intermediate(f"{_id}_all_{_SHORT[_g]}", f"{_name} + intermediate(all; {_SHORT[_g]})", _ssl, _g)
