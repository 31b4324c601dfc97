"""What several methods share: projector, cross-attention decoder, and the terms of their losses."""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equibench.encoders.vit import attention_kernel
from equibench.errors import UserError
from equibench.profiles import DecoderSize, Redrawing


def projector(input_size: int, widths: Sequence[int]) -> nn.Sequential:
    """Linear-BatchNorm-ReLU blocks and a last linear layer without bias (SIE's Projector; P1's g_inv).

    `widths` are those of the layers; the last one is the embedding's.
    """
    sizes = [input_size, *widths]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))


class CrossAttentionDecoder(nn.Module):
    """One block with cross-attention, then blocks with self-attention, then a linear layer to pixels.

    The query comes from view 2, key and value from view 1. Positions are added to query and key and again after the
    cross-attention, never to the value (docs/protocol.md 6.6), so that what the decoder knows of the picture's content
    comes through view 1's values and view 2's attention weights.

    The logits are divided by sqrt(head width), which eq. (1) leaves out, but every transformer does.

    The whole image has `grid` patches along a side, of which tokens stand for those with indices `visible` (L,); of
    each `pixels` numbers are predicted (3 * patch²). `query_residual` adds the query to the cross-attention's output;
    eq. (1) has no such term, so it is off.
    """

    position: Tensor

    def __init__(
        self, size: DecoderSize, grid: int, visible: Tensor, pixels: int, query_residual: bool = False
    ) -> None:
        from timm.layers import Mlp
        from timm.models.vision_transformer import Block

        super().__init__()
        width = size.width
        self.heads, self.query_residual = size.heads, query_residual
        self.norm_query, self.norm_key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm_mlp, self.mlp = nn.LayerNorm(width), Mlp(width, 4 * width)
        blocks = (Block(width, size.heads, mlp_ratio=4, qkv_bias=True) for _ in range(size.depth - 1))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.to_pixels = nn.LayerNorm(width), nn.Linear(width, pixels)
        self.register_buffer("position", sincos_positions(grid, width)[visible.cpu()], persistent=False)

    def forward(self, query_tokens: Tensor, key_tokens: Tensor) -> Tensor:
        """Equivariant tokens of view 2 and of view 1, both (N, L, width) -> view 2's patches (N, L, pixels)."""
        with attention_kernel(query_tokens.device):
            x = self.cross_attention(query_tokens, key_tokens)
            if self.query_residual:
                x = x + query_tokens
            x = x + self.position
            x = x + self.mlp(self.norm_mlp(x))
            return self.to_pixels(self.norm(self.blocks(x)))

    def cross_attention(self, query_tokens: Tensor, key_tokens: Tensor) -> Tensor:
        """softmax(Q K^T) V of eq. (1), multi-head: (N, L, width)."""
        query_input, key_input = self.norm_query(query_tokens), self.norm_key(key_tokens)
        parts = (self.query(query_input + self.position), self.key(key_input + self.position), self.value(key_input))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).flatten(2))


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine and cosine position embeddings, row-major: (grid², width); width must be a multiple of 4."""
    quarter = width // 4
    frequency = 1 / 10_000 ** (torch.arange(quarter) / quarter)
    angle = torch.arange(grid)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = (axis.expand(grid, grid, -1) for axis in (wave[:, None], wave[None]))
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, -1)


class ImageDecoder(nn.Module):
    """Patch tokens of two views, side by side, to an image in [0, 1] (P2, section 3 and figure 1).

    A linear layer, then transposed convolutions (4 x 4, stride 2) that double the side until a patch is as large as it
    was, each with BatchNorm and ReLU, the last with BatchNorm and a sigmoid. Places of patches that the encoder does
    not see begin as 0. A UserError if the patch is no power of two, so that no doublings lead to it.
    """

    visible: Tensor

    def __init__(self, channels: int, size: Redrawing, grid: int, patch: int, visible: Tensor) -> None:
        super().__init__()
        doublings = patch.bit_length() - 1
        if patch < 2 or patch != 2**doublings:
            problem = f"a decoder of images doubles its side until a patch is done, which never gives {patch} px"
            raise UserError(problem, "choose an encoder whose patch is 2, 4, 8, 16 or 32 px")
        self.grid, self.linear = grid, nn.Linear(channels, size.width)
        widths = [max(size.width >> k, size.narrowest) for k in range(doublings)]
        layers: list[nn.Module] = []
        for before, after in pairwise([*widths, 3]):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU(inplace=True))
        self.up = nn.Sequential(*layers[:-1], nn.Sigmoid())
        self.register_buffer("visible", visible.clone(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, channels) of the L patches that are visible -> images (N, 3, S, S)."""
        x = self.linear(tokens)
        whole = x.new_zeros(len(x), self.grid**2, x.shape[2])
        whole[:, self.visible] = x
        images: Tensor = self.up(whole.mT.unflatten(2, (self.grid, self.grid)))
        return images


_VARIANCE_EPS = 1e-4


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute a loss in float32 also under bf16 autocast, where batch statistics would lose their small terms."""

    @wraps(loss)
    def in_float32(*tensors: Tensor) -> Tensor:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors))

    return in_float32


@full_precision
def invariance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference of two embeddings."""
    return F.mse_loss(x, y)


@full_precision
def variance(x: Tensor) -> Tensor:
    """Hinge that keeps each dimension's standard deviation over the batch at 1 or more."""
    return F.relu(1 - torch.sqrt(x.var(dim=0) + _VARIANCE_EPS)).mean()


@full_precision
def covariance(x: Tensor) -> Tensor:
    """Sum of the squared off-diagonal entries of the covariance matrix, over the number of dimensions."""
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred / (len(x) - 1)
    # all entries minus the diagonal: no mask of D x D is needed
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / x.shape[1]


def both(loss_of_one: Tensor, loss_of_other: Tensor) -> Tensor:
    """Mean over the two views, as SIE takes of its variance terms."""
    return 0.5 * (loss_of_one + loss_of_other)


@full_precision
def masked_pixel_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of patches of normalised RGB (N, L, pixels), where the mask (L, pixels) is 1: visible."""
    error = (prediction - target).square() * mask
    return error.sum() / (mask.sum() * len(prediction))
