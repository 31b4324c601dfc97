"""The reconstruction method of P1: an invariant half under VICReg, an equivariant half that must redraw view 2.

Wang, Krajsek, Scharr, arXiv 2412.03314, section 2: L = L_SSL(invariant halves) + λ_recon * MSE(decoder, view 2).
"""

from equibench.baselines.vicreg import SPREAD, vicreg_loss
from torch import Tensor, nn

from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.pretrain.method import Baseline, Criterion, TokenPair, ViewPair, register_baseline
from equibench.pretrain.modules import CrossAttentionDecoder, masked_pixel_mse, projector
from equibench.profiles import Profile


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images (N, 3, S, S) -> the pixels of each patch, row-major, channels first (N, L, 3 * patch²)."""
    n, channels, side, _ = images.shape
    grid = side // patch
    blocks = images.reshape(n, channels, grid, patch, grid, patch)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)


@register_baseline("reconstruction", title="Ours")
class Reconstruction(Baseline):
    """VICReg on the invariant half, cross-attention reconstruction of view 2 from the equivariant half."""

    splits_features = True
    use_of_theta = "unused"
    learned = {**SPREAD, "reconstruction_ratio": Criterion("below", 0.5)}
    visible: Tensor

    def __init__(self, profile: Profile, encoder: ViTEncoder, query_residual: bool = False) -> None:
        super().__init__(profile, encoder)
        self.patch, width = encoder.patch, profile.decoder.width
        self.projector = projector(self.invariant, profile.pretraining.projector)
        self.equivariant_head = nn.Sequential(nn.Linear(self.features - self.invariant, width), nn.LayerNorm(width))
        self.decoder = CrossAttentionDecoder(
            profile.decoder, profile.image_size // self.patch, encoder.visible, 3 * self.patch**2, query_residual
        )
        self.register_buffer("visible", encoder.visible.clone(), persistent=False)

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        ssl = self.ssl_terms(tokens)
        reconstruction = self.reconstruction_error(views, self.equivariant(tokens.v1), self.equivariant(tokens.v2))
        total = ssl.pop("loss") + self.profile.pretraining.lambda_recon * reconstruction
        return {"loss": total, "reconstruction": reconstruction, **ssl}

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """How well view 2 is redrawn, and how much that needs view 1 and view 2 (docs/protocol.md 6.9).

        The ratio is to the error of each pixel's mean over images, which is the pixel's variance. Each gap is the error
        with that view's tokens taken from another image, minus the error as it is: near 0 for view 1 means that the
        decoder does without it and the method is an autoencoder of view 2.
        """
        z1, z2 = self.equivariant(tokens.v1), self.equivariant(tokens.v2)
        error = self.reconstruction_error(views, z1, z2)
        of_mean = views.v2[..., views.mask.bool()].var(dim=0).mean()
        return {
            "variance": self.ssl_terms(tokens)["variance"],
            "reconstruction": error,
            "reconstruction_ratio": error / of_mean,
            "view1_swap_gap": self.reconstruction_error(views, z1.roll(1, dims=0), z2) - error,
            "view2_swap_gap": self.reconstruction_error(views, z1, z2.roll(1, dims=0)) - error,
        }

    def ssl_terms(self, tokens: TokenPair) -> dict[str, Tensor]:
        """VICReg's terms on the invariant halves, and their weighted sum "loss"."""
        embeddings = (self.projector(t.mean[:, : self.invariant]) for t in (tokens.v1, tokens.v2))
        return vicreg_loss(*embeddings, weight=self.profile.pretraining.weight)

    def equivariant(self, tokens: Tokens) -> Tensor:
        """Equivariant halves of the patch tokens, through their head: (N, L, decoder width)."""
        return self.equivariant_head(tokens.patches[..., self.invariant :])

    def reconstruction_error(self, views: ViewPair, z1: Tensor, z2: Tensor) -> Tensor:
        """Pixel MSE of the decoder's view 2 over the visible pixels, normalised RGB."""
        images = (views.v2, views.mask.expand(1, 3, *views.mask.shape))
        target, mask = (patches_of(each, self.patch)[:, self.visible] for each in images)
        return masked_pixel_mse(self.decoder(z2, z1), target, mask[0])
