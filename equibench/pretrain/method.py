"""What a pretraining method is: a module with a loss over two views, and the views that it is trained on."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.errors import UserError
from equibench.profiles import Profile
from equibench.registry import Registry
from equibench.transforms.operations import Fill
from equibench.transforms.transformation import BUILT_IN, MEAN, STD, TRANSFORMATIONS
from equibench.utils.digests import code_digest
from equibench.utils.files import digest_of
from equibench.utils.random import rows_of_uniforms

ALL = BUILT_IN
UseOfTheta = Literal["required", "optional", "unused"]


class Theta(dict[str, Tensor]):
    """θ by transformation; asking for one that does not stand between the views says so."""

    def __missing__(self, name: str) -> Tensor:
        problem = f"the method asks for θ of {name!r}, but between these views there are {', '.join(self) or 'none'}"
        raise UserError(problem, "choose a method for these data, or name what it needs in its `transformations`")


@dataclass  # not frozen: Fabric moves the tensors of a batch in place
class Pictures:
    """The images of a batch before any view, and random numbers for each, for methods that make views of their own.

    A sample's numbers depend on its place in the run and on the key, not on the batch, the process or the device.
    """

    images: Tensor  # (N, 3, S, S) in [0, 1]
    fill: Fill  # what views show beyond the image
    places: list[tuple[int, int, int]]  # (epoch, first row, rows): where the samples stand in the run, in order
    key: tuple[object, ...]  # tells this stream of samples from others: split and seed

    def uniforms(self, width: int, *key: object) -> NDArray[np.float64]:
        """Numbers in [0, 1): (N, width)."""
        parts = [
            rows_of_uniforms(first, (count, width), "views", *key, *self.key, epoch)
            for epoch, first, count in self.places
        ]
        return np.concatenate(parts)

    def theta(self, name: str, *key: object) -> Tensor:
        """θ of a transformation, drawn as it always is: (N, P)."""
        one = TRANSFORMATIONS[name]
        return self.tensor(one.draw(self.uniforms(one.uniforms, name, *key), self.images.shape[-1]))

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """Numbers (N, ...) as a float tensor beside the images."""
        return torch.from_numpy(np.asarray(values)).float().to(self.images.device)


@dataclass  # not frozen, as above
class ViewPair:
    """A batch of pairs; views (N, 3, S, S) are normalised, and 0 outside the mask.

    Where the data bring views of objects along, `theta` and `known` have "pose" and "hues" whatever the method.
    """

    v1: Tensor  # I
    v2: Tensor  # g(I)
    theta: Mapping[str, Tensor]  # (N, P) of each transformation between them, in the regression targets' coding
    known: Mapping[str, Tensor]  # (N,) bool by transformation: whether a method may look at this sample's θ
    mask: Tensor  # (S, S) 1 where a pixel is visible
    labels: Tensor | None = None  # (N,) of classes, where the data have any
    pictures: Pictures | None = None  # what the views are made of; None where the data bring their views along
    masks: Tensor | None = None  # (2, N, L) bool of both views: patches that are hidden from the student
    local: tuple[Tensor, ...] = ()  # further crops (N, 3, s, s), normalised, with s at most S
    targets: tuple[Tensor, ...] = ()  # images (N, 3, S, S) in [0, 1] that are to be redrawn

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in [0, 1] -> as views are: normalised, and 0 outside the mask."""
        return standardise(images) * self.mask


def standardise(images: Tensor) -> Tensor:
    """Images (N, 3, s, s) in [0, 1], less the mean of each channel, over its standard deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


@dataclass
class TokenPair:
    """The encoder's features of both views, and a teacher's and those of further crops, where a method has any."""

    v1: Tokens
    v2: Tokens
    teacher: "TokenPair | None" = None
    local: tuple[Tokens, ...] = ()

    def channels(self, first: int, last: int) -> "TokenPair":
        """The same with channels first to last - 1 alone."""

        def part(tokens: Tokens) -> Tokens:
            return Tokens(tokens.cls[..., first:last], tokens.patches[..., first:last])

        teacher = self.teacher.channels(first, last) if self.teacher else None
        return TokenPair(part(self.v1), part(self.v2), teacher, tuple(map(part, self.local)))


def encode_pair(encoder: ViTEncoder, views: ViewPair) -> TokenPair:
    """Features of both views from one forward pass."""
    both, n = encoder.tokens(torch.cat([views.v1, views.v2])), len(views.v1)
    return TokenPair(Tokens(both.cls[:n], both.patches[:n]), Tokens(both.cls[n:], both.patches[n:]))


@dataclass(frozen=True)
class Criterion:
    """What a held-out diagnostic must be when pretraining ends: "below" or "above" a limit."""

    side: Literal["below", "above"]
    limit: float

    def met(self, value: float) -> bool:
        """Whether a value lies on the right side; one that is not a number does not."""
        return value < self.limit if self.side == "below" else value > self.limit

    def shortfall(self, value: float) -> float:
        """How many times too large (or too small) a positive value is; 1 where it is met, infinite if not finite."""
        if self.met(value) or not math.isfinite(value):
            return 1.0 if self.met(value) else math.inf
        return value / self.limit if self.side == "below" else self.limit / max(value, 1e-12)

    def __str__(self) -> str:
        return f"{self.side} {self.limit:g}"


class Baseline(nn.Module):
    """A pretraining method: its heads are its own, the encoder is the suite's.

    Subclass it, build the heads in `__init__`, return named scalars from `loss`, and decorate the class with
    `@register_baseline`. A step is `prepare`, `encode`, `loss`, and after the optimiser `after_step`; all but the loss
    have defaults that suit a method with one encoder and the two views that it is given. What has to survive an
    interruption (a teacher, centres, how far the run is) belongs into parameters and buffers.
    """

    splits_features = False  # whether it trains an invariant and an equivariant half, which are then scored alone too
    transformations: tuple[str, ...] = ALL  # what stands between the two views
    one_at_a_time = False  # draw one of the transformations per sample instead of composing all
    # where θ is known for some images only (P1 Table 3): "required" trains on these alone, "optional" on all, with
    # `ViewPair.known` to tell them apart, and "unused" says that it does not matter what is known
    use_of_theta: UseOfTheta = "required"
    uses_labels = False  # whether it is supervised; `__init__` then gets the number of `classes` too
    # diagnostics that say that it has learned what it is for (docs/protocol.md 6.10); {}: nobody can tell
    learned: ClassVar[Mapping[str, Criterion]] = {}
    # how it makes its own views, for methods that do: see `augment.two_views`; None: they are given
    pipeline: Literal["all", "rotation"] | None = None
    # what it reads of the profile's further settings: names of fields of `profiles.Extras`
    extras: ClassVar[tuple[str, ...]] = ()

    def __init__(self, profile: Profile, encoder: ViTEncoder, features: int | None = None) -> None:
        """`features`: how many channels its losses will be given, for a method that trains a part of them."""
        super().__init__()
        self.profile, self.invariant, self.features = profile, encoder.invariant, features or encoder.features

    def prepare(self, views: ViewPair) -> ViewPair:
        """The views that this method wants (crops, masks, targets), without gradients and in full precision."""
        return views

    def encode(self, encoder: ViTEncoder, views: ViewPair) -> TokenPair:
        """The features that `loss` will see: those of both views, and of whatever else was prepared."""
        return encode_pair(encoder, views)

    def after_step(self, encoder: ViTEncoder, step: int, steps: int) -> None:
        """Called after each of the optimiser's steps, with the number of steps done and that of the run."""

    def kept(self, encoder: ViTEncoder) -> ViTEncoder:
        """The encoder that the run is for: the one that is optimised, or a teacher that follows it."""
        return encoder

    def loss(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """Named scalars of one batch; the one called "loss" is minimised, all are logged."""
        raise TypeError(f"{type(self).__name__} must define loss(views, tokens)")

    def diagnostics(self, views: ViewPair, tokens: TokenPair) -> dict[str, Tensor]:
        """Named scalars of a held-out batch, which are no part of the loss; by default none.

        One called "collapsed", 1 or 0, says whether a teacher's `teacher_entropy` and `teacher_spread` are degenerate.
        """
        return {}

    @classmethod
    def not_learned(cls, diagnostics: Mapping[str, float]) -> list[str]:
        """The criteria of `learned` that these diagnostics fail, in words; one that is absent fails."""
        values = {name: diagnostics.get(name, math.nan) for name in cls.learned}
        return [f"{name} {values[name]:.2f}, not {c}" for name, c in cls.learned.items() if not c.met(values[name])]


@dataclass(frozen=True)
class BaselineEntry:
    """A registered method: a row of a table."""

    name: str
    title: str
    description: str
    method: type[Baseline]
    settings: Mapping[str, Any]  # what the class is given for this row
    splits_features: bool  # this and what follows: see `Baseline`
    transformations: tuple[str, ...]
    use_of_theta: UseOfTheta

    def build(self, profile: Profile, encoder: ViTEncoder, classes: int) -> Baseline:
        """The method for an encoder and data of so many classes."""
        own = {"classes": classes} if self.method.uses_labels else {}
        return self.method(profile, encoder, **self.settings, **own)

    @property
    def source_sha256(self) -> str:
        """Digest of the class, of what it uses and of the settings, so that a changed method is trained again."""
        classes = [value for value in self.settings.values() if isinstance(value, type)]
        named = {k: v.__name__ if isinstance(v, type) else v for k, v in self.settings.items()}
        return digest_of([code_digest(self.method, *classes), repr(sorted(named.items()))])

    @property
    def extras(self) -> tuple[str, ...]:
        """The further settings that the row's class, and the classes that it is given, read."""
        classes = [self.method, *(v for v in self.settings.values() if isinstance(v, type) and issubclass(v, Baseline))]
        return tuple(sorted({name for one in classes for name in one.extras}))


BASELINES: Registry[BaselineEntry] = Registry("baseline", "equibench.baselines")
_B = TypeVar("_B", bound=type[Baseline])


def register_baseline(name: str, title: str | None = None, **settings: Any) -> Callable[[_B], _B]:
    """Class decorator that registers a `Baseline` as a row.

    `name` is the row's id, as in a table's CSV, `title` its name in print (the id if there is none). Settings are
    passed on to the class, so that one class can register several rows. A UserError if the class is no `Baseline`, has
    no loss of its own, or the name is taken.
    """

    def keep(method: _B) -> _B:
        if not (isinstance(method, type) and issubclass(method, Baseline)):
            raise UserError(f"{name!r}: {method!r} is not a subclass of Baseline", "derive the class from Baseline")
        if method.loss is Baseline.loss:
            raise UserError(f"{name!r}: {method.__name__} has no loss", "define loss(self, views, tokens)")
        description = (method.__doc__ or "").strip().split("\n")[0]
        names = settings.get("transformations", method.transformations)
        facts = (settings.get("splits_features", method.splits_features), names, method.use_of_theta)
        BASELINES.add(name, BaselineEntry(name, title or name, description, method, settings, *facts))
        return method

    return keep


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient of a row is summed over the ranks that used it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Rows (n, D) of every process as one batch (N, D), for losses over batch statistics; x itself on one process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _Gather.apply(x)  # type: ignore[no-any-return]
    return x
