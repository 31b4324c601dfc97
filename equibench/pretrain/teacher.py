"""What methods with a teacher share: the teacher, its head and schedule, masked tokens, small crops, signs of collapse.

The student is the suite's encoder with a head, the teacher their moving average (Caron et al., DINO, ICCV 2021, section
3.1). What is trained of it, and against what, is said by the methods (`baselines/ibot.py`, `baselines/dinov2.py`).
"""

import copy
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from equibench.encoders.vit import Tokens, ViTEncoder, attention_kernel
from equibench.pretrain.augment import Pipeline, local_crops, pictures_of, two_views
from equibench.pretrain.method import Baseline, Criterion, Pictures, TokenPair, ViewPair, encode_pair
from equibench.profiles import Distillation, Profile

STUDENT_TEMPERATURE = 0.1
MASK_RATIOS = (0.1, 0.5)
"""Smallest and largest share of a view's patches that are masked, where any are."""
SMALLEST_BLOCK = 4
"""Patches in a block of a mask, at least; no mask has fewer, which matters for small grids."""
_COLLAPSE_AFTER = 0.5  # of a run: a teacher that is hardly trained says the same of all images, as it should


class Distilled(Baseline):
    """A student with a teacher that follows it; both views of the teacher are whole, the student's may be masked."""

    use_of_theta = "unused"
    transformations = ()
    extras = ("distillation",)
    learned = {"told_apart": Criterion("above", 1.1)}
    progress: Tensor

    def __init__(
        self, profile: Profile, encoder: ViTEncoder, features: int | None = None, views: Pipeline = "all"
    ) -> None:
        """`views`: how views are made of an image."""
        super().__init__(profile, encoder, features)
        self.pipeline, self.settings = views, profile.extras.distillation
        self.grid, self.visible = profile.image_size // encoder.patch, encoder.visible.cpu().numpy()
        self.head, self.teacher_head = (projection_head(self.features, self.settings) for _ in range(2))
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        # a copy: a teacher that is the student by reference agrees with it from the start and learns nothing
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(profile.encoder.width))
        self.register_buffer("progress", torch.zeros(()))  # the share of the run that is done
        self.head.last_layer.weight_v.register_hook(
            lambda gradient: gradient * (self.progress >= self.settings.frozen_last)
        )

    def mask_ratios(self, pictures: Pictures) -> np.ndarray:
        """Share of the patches to be masked in each view, 0 for none: (2, N)."""
        raise NotImplementedError

    def prepare(self, views: ViewPair) -> ViewPair:
        pictures, settings = pictures_of(views), self.settings
        masks = block_masks(self.mask_ratios(pictures), pictures.uniforms(2, "blocks").T, self.grid, self.visible)
        crops = local_crops(pictures, settings.local_crops, settings.local_size)
        return replace(two_views(views, self.pipeline), masks=masks.to(views.v1.device), local=crops)

    def encode(self, encoder: ViTEncoder, views: ViewPair) -> TokenPair:
        assert views.masks is not None
        with torch.no_grad():
            teacher = encode_pair(self.teacher, views)
        with masked(encoder, views.masks.flatten(0, 1), self.mask_token):
            student = encode_pair(encoder, views)
        local = encode_crops(encoder, torch.cat(views.local)).chunk(len(views.local)) if views.local else ()
        return TokenPair(student.v1, student.v2, teacher, tuple(Tokens(x[:, 0], x[:, 1:]) for x in local))

    def after_step(self, encoder: ViTEncoder, step: int, steps: int) -> None:
        """The teacher goes towards the student, by less and less: momentum from its start to 1 on a cosine."""
        from lightly.utils.scheduler import cosine_schedule

        self.progress.fill_(step / steps)
        momentum = cosine_schedule(step - 1, steps, self.settings.momentum, 1.0)
        follow(self.teacher, encoder, momentum)
        follow(self.teacher_head, self.head, momentum)

    def kept(self, encoder: ViTEncoder) -> ViTEncoder:
        return self.teacher if self.settings.keeps_teacher else encoder

    @property
    def temperature(self) -> float:
        """The teacher's, which rises linearly over the first steps."""
        first, last = self.settings.temperatures
        return first + (last - first) * min(1.0, float(self.progress) / self.settings.warmup)

    def class_logits(self, tokens: TokenPair) -> tuple[list[Tensor], list[Tensor]]:
        """Of the teacher's and the student's class tokens: lists of (N, K) float32, the views and then small crops."""
        assert tokens.teacher is not None
        with torch.no_grad():
            teacher = [self.teacher_head(view.cls).float() for view in (tokens.teacher.v1, tokens.teacher.v2)]
        return teacher, [self.head(view.cls).float() for view in (tokens.v1, tokens.v2, *tokens.local)]

    def patch_logits(self, tokens: TokenPair, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Of the teacher for all patches (2N, L, K), and of the student for the M masked ones (M, K); float32."""
        assert tokens.teacher is not None
        with torch.no_grad():
            both = torch.cat([tokens.teacher.v1.patches, tokens.teacher.v2.patches])
            teacher = self.teacher_head(both).float()
        return teacher, self.head(torch.cat([tokens.v1.patches, tokens.v2.patches])[masks.flatten(0, 1)]).float()

    def targets(self, logits: Tensor) -> Tensor:
        """The teacher's distribution over prototypes (N, K) for logits of class tokens."""
        raise NotImplementedError

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """Signs of collapse, and whether images are told apart (docs/protocol.md 13.5).

        `teacher_entropy` is that of each image's distribution, `teacher_spread` that of their mean, both over log K;
        `told_apart` is the cross-entropy against the teacher's word on another image over that on the same one.
        """
        assert tokens.teacher is not None
        (one, other), (student, *_) = self.class_logits(tokens)
        target = self.targets(torch.cat([one, other]))
        say = F.log_softmax(student / STUDENT_TEMPERATURE, dim=1)
        same, another = (cross_entropy(p, say) for p in (target[len(one) :], target[len(one) :].roll(1, dims=0)))
        entropy, spread = (entropy_share(p).mean() for p in (target, target.mean(dim=0, keepdim=True)))
        features = tokens.teacher.v1.mean
        size = features.square().mean().sqrt().clamp_min(1e-12)
        blank = torch.stack([entropy > 0.99, spread < 0.1]).any() & (self.progress >= _COLLAPSE_AFTER)
        return {
            "told_apart": another / same.clamp_min(1e-12),
            "teacher_entropy": entropy,
            "teacher_spread": spread,
            "teacher_feature_std": (features.std(dim=0) / size).mean(),
            "teacher_distance": distance(self.teacher_head, self.head),
            "collapsed": blank.float(),
        }


def projection_head(features: int, size: Distillation) -> Any:
    """DINO's head: three layers with GELU, unit length, and a weight-normed layer to the prototypes."""
    from lightly.models.modules.heads import DINOv2ProjectionHead

    with warnings.catch_warnings():  # of the older weight norm, whose parameters are what published weights have
        warnings.simplefilter("ignore", FutureWarning)
        return DINOv2ProjectionHead(features, size.hidden, size.bottleneck, size.prototypes)


class PatchLoss(nn.Module):
    """lightly's iBOT patch loss with a centre of one's own: the mean over the rows of all processes that are given.

    The library's own centre is the mean over the masked patches of each process, then over processes. `momentum` 1
    leaves the centre at 0.
    """

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        from lightly.loss import IBOTPatchLoss

        super().__init__()
        self.momentum = momentum
        self.loss = IBOTPatchLoss(prototypes, student_temp=STUDENT_TEMPERATURE)

    def forward(
        self, teacher: Tensor, student: Tensor, masks: Tensor, temperature: float, centred_on: Tensor
    ) -> Tensor:
        """Mean over views of the mean cross-entropy of each view's masked patches; views without any count as 0.

        Args:
            teacher, student: logits of the M masked patches (M, K).
            masks: which these are (V, L) bool, of V views.
            centred_on: logits (n, K) of which the centre for the next step is the mean.
        """
        centre = self.loss.center.value.clone()
        value: Tensor = self.loss(teacher, student, masks.unsqueeze(1), teacher_temp=temperature)
        if self.training and self.momentum < 1:
            centre = self.momentum * centre + (1 - self.momentum) * mean_over_processes(centred_on)
        self.loss.center.center = centre
        return value


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moving average of the parameters; buffers, such as running statistics, are copied."""
    from lightly.models.utils import update_momentum

    update_momentum(student, teacher, momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


class masked:
    """Context in which an encoder sees a mask token in place of the masked patches: (N, L) bool of visible patches."""

    def __init__(self, encoder: ViTEncoder, masks: Tensor, token: Tensor) -> None:
        self.encoder, self.masks, self.token = encoder, masks, token

    def __enter__(self) -> None:
        self.hook = self.encoder.vit.patch_embed.register_forward_hook(self._replace)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _replace(self, _module: nn.Module, _inputs: object, patches: Tensor) -> Tensor:
        whole = self.masks.new_zeros(patches.shape[:2])
        whole[:, self.encoder.visible] = self.masks
        return torch.where(whole[..., None], self.token.to(patches.dtype), patches)


def encode_crops(encoder: ViTEncoder, crops: Tensor) -> Tensor:
    """Small crops (N, 3, s, s), s a multiple of the patch -> class token and all patches (N, 1 + (s / patch)^2, D).

    Positions are those of the whole image, interpolated to the crop's grid.
    """
    from timm.layers import resample_abs_pos_embed

    vit, grid = encoder.vit, crops.shape[-1] // encoder.patch
    assert vit.pos_embed is not None
    assert vit.cls_token is not None
    position = resample_abs_pos_embed(vit.pos_embed, [grid, grid])
    patches = vit.patch_embed.norm(vit.patch_embed.proj(crops).flatten(2).mT)
    x = torch.cat([vit.cls_token.expand(len(crops), -1, -1), patches], dim=1) + position
    with attention_kernel(crops.device):
        x = vit.blocks(x)
    return encoder.head(vit.norm(x))


def block_masks(ratios: np.ndarray, seeds: np.ndarray, grid: int, visible: np.ndarray) -> Tensor:
    """Masks of rectangular blocks (BEiT's, as in iBOT and DINOv2): bool of visible patches, (..., L).

    Args:
        ratios: share of the grid's patches to be masked, (...); 0 for none.
        seeds: a number in [0, 1) for each mask, which determines it.
        grid: patches along a side.
        visible: indices (L,) of the patches that the encoder sees; one of them is masked at least.
    """
    from lightly.models.utils import random_block_mask_image

    masks = torch.zeros(ratios.size, len(visible), dtype=torch.bool)
    kept = random.getstate()  # the library draws from Python's own generator
    try:
        for mask, ratio, seed in zip(masks, ratios.flat, seeds.flat, strict=True):
            if ratio > 0:
                random.seed(int(seed * 2**53))
                count = max(SMALLEST_BLOCK, int(ratio * grid**2))
                mask[:] = random_block_mask_image((grid, grid), count, SMALLEST_BLOCK).flatten()[visible]
                mask[random.randrange(len(visible))] |= not mask.any()
    finally:
        random.setstate(kept)
    return masks.unflatten(0, ratios.shape)


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Distributions (B, K) in which all prototypes are used equally over the rows of all processes.

    Sinkhorn-Knopp on exp(logits / temperature), as in SwAV and DINOv2 (loss/dino_clstoken_loss.py). Processes may have
    different numbers of rows.
    """
    scaled = logits.float() / temperature
    top = over_processes(scaled.amax() if len(scaled) else scaled.new_tensor(-math.inf), "max")
    q = torch.exp(scaled - top)  # the constant cancels, and keeps the sum finite
    rows = over_processes(scaled.new_tensor(float(len(scaled))))
    q /= over_processes(q.sum())
    for _ in range(iterations):
        q /= over_processes(q.sum(dim=0)).clamp_min(1e-30) * q.shape[1]
        q /= q.sum(dim=1, keepdim=True).clamp_min(1e-30) * rows
    return q * rows


def over_processes(x: Tensor, how: str = "sum") -> Tensor:
    """Sum (or maximum) of a tensor over all processes; itself on one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return x


def mean_over_processes(rows: Tensor) -> Tensor:
    """Mean (1, K) of the rows (n, K) of all processes, which may have different numbers of them."""
    total = over_processes(torch.cat([rows.sum(dim=0), rows.new_tensor([float(len(rows))])]))
    return (total[:-1] / total[-1].clamp_min(1)).unsqueeze(0)


def cross_entropy(target: Tensor, log_probabilities: Tensor) -> Tensor:
    """Mean over rows of -sum_k target_k log p_k."""
    return -(target * log_probabilities).sum(dim=1).mean()


def entropy_share(distributions: Tensor) -> Tensor:
    """Entropy of each row of (N, K) over its largest value log K: 0 for one prototype alone, 1 for all equally."""
    return torch.special.entr(distributions.double()).sum(dim=1) / math.log(distributions.shape[1])


def distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """Norm of the difference of two networks' parameters, over the norm of the student's."""

    def flat(parameters: Sequence[Tensor]) -> Tensor:
        return torch.cat([p.detach().flatten().float() for p in parameters])

    mine, theirs = flat(list(teacher.parameters())), flat(list(student.parameters()))
    return (mine - theirs).norm() / theirs.norm().clamp_min(1e-12)
