"""The encoder that the suite pretrains: a timm ViT with a linear head on every token.

P2 (section 4.1) puts a linear head on the backbone's tokens; its outputs are the features, of which the first half
is meant to be invariant and the second equivariant (docs/protocol.md 5.1).
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import adaptive_avg_pool2d

from equibench.profiles import EncoderSize
from equibench.transforms.transformation import MEAN, STD, ViewSpec, visible_disc

TOKEN_SETS = ("cls", "grid")
"""What tokens give besides their mean: the class token, and the means of the 2 x 2 quarters of the token grid."""


@dataclass
class Tokens:
    """Features of one view: the class token (N, D) and the patch tokens (N, L, D)."""

    cls: Tensor
    patches: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the patch tokens, (N, D) float32: the representation that probes see."""
        return self.patches.float().mean(dim=1)


class ViTEncoder(nn.Module):
    """A ViT that encodes only those patches of which the mask leaves something to see.

    A patch outside the disc is the same constant in every view: like the masked patches of an MAE encoder it is
    left out, which at 32 px with patch 4 halves the tokens. `visible` holds the indices of the patches kept.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor
    visible: Tensor

    def __init__(self, size: EncoderSize, image_size: int, views: ViewSpec) -> None:
        from timm.models.vision_transformer import VisionTransformer  # slow to import, and not needed to read a table

        super().__init__()
        self.features, self.invariant, self.patch = size.features, size.half, size.patch
        self.vit = VisionTransformer(
            img_size=image_size, patch_size=size.patch, embed_dim=size.width, depth=size.depth,
            num_heads=size.heads, num_classes=0, global_pool="",
        )  # fmt: skip
        self.head = nn.Linear(size.width, size.features)
        # a disc as wide as that hides nothing
        mask = visible_disc(image_size, image_size if views.radius is None else views.radius)
        in_patch = mask.unfold(0, size.patch, size.patch).unfold(1, size.patch, size.patch)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("visible", in_patch.amax(dim=(2, 3)).flatten().nonzero()[:, 0], persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] -> normalised, 0 outside the mask."""
        return (images - self.mean) / self.std * self.mask

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, S, S) -> class token and visible patch tokens (N, 1 + L, D)."""
        position, cls = self.vit.pos_embed, self.vit.cls_token
        assert position is not None
        assert cls is not None
        x = self.vit.patch_embed(images)[:, self.visible] + position[:, 1 + self.visible]
        first = (cls + position[:, :1]).expand(len(x), -1, -1)
        with attention_kernel(images.device):
            x = self.vit.blocks(torch.cat([first, x], dim=1))
        return self.head(self.vit.norm(x))

    def represent(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] -> representations (N, D) float32."""
        return self.tokens(self.normalise(images)).mean

    def outputs(self, images: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
        """The representation as "default", and of "cls" and "grid" those asked for, from one forward pass."""
        found = self.tokens(self.normalise(images))
        side = images.shape[-1] // self.patch
        whole = found.patches.new_zeros(len(images), side**2, self.features)
        whole[:, self.visible] = found.patches
        every = {"default": found.mean, "cls": found.cls.float(), "grid": quarters(whole.mT.unflatten(2, (side, side)))}
        return {name: every[name] for name in ("default", *layers)}

    def tokens(self, images: Tensor) -> Tokens:
        """Normalised images (N, 3, S, S) -> features of the class token and of the visible patches."""
        x = self(images)
        return Tokens(x[:, 0], x[:, 1:])


def quarters(grid: Tensor) -> Tensor:
    """A map (N, D, h, w) -> the means of its four quarters, side by side (N, 4 D) float32; hidden places count as 0."""
    return adaptive_avg_pool2d(grid.float(), 2).flatten(1)


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """The quicker attention for short sequences: on a CPU, plain matrix products make a step 1.2 x faster."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def weights_sha256(module: nn.Module) -> str:
    """Digest of a module's parameters and persistent buffers: names, types, shapes and bytes."""
    return state_sha256(module.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Digest of named tensors, in whatever order: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}|{array.dtype}|{tuple(array.shape)}|".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
