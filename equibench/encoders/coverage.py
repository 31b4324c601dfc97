"""Strict loading: which of a network's weights a checkpoint holds, and a refusal when that is not all of them.

A network that silently keeps random weights still gives features, and those still get a score. So every name is
accounted for, and what is missing has to be allowed by name of the option.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equibench.encoders.checkpoint import Checkpoint
from equibench.errors import UserError

_NEARLY_ALL = 0.99
_SHOWN = 6

# wrappers that training code puts before a network's own names
_PREFIXES = (
    "module", "_orig_mod", "model", "backbone", "encoder", "network", "net", "base_encoder", "encoder_q", "encoder_k",
    "momentum_encoder", "online_encoder", "target_encoder", "context_encoder", "student", "teacher", "visual", "trunk",
    "feature_extractor", "base_model", "ema", "vit", "resnet",
)  # fmt: skip

# names that torchvision itself changed and still reads in its own older files
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


@dataclass(frozen=True)
class Coverage:
    """How a checkpoint's names fit a network's."""

    missing: tuple[str, ...]  # the network's weights that the checkpoint does not hold
    unexpected: tuple[str, ...]  # floating-point entries of the checkpoint that the network has no place for
    misshaped: tuple[str, ...]  # right name, another shape or kind of number: "name (their shape, not ours)"
    ignored: tuple[str, ...]  # no part of an encoder: the classifier's entries, and counters that the network lacks
    loaded: int  # elements of parameters and floating-point persistent buffers, classifier left out
    total: int  # such elements that the network has
    resized: tuple[str, ...] = ()  # positional embeddings of another image size, resampled; they count as loaded
    prefix: str = ""  # what was taken off the checkpoint's names to make them fit

    @property
    def share(self) -> float:
        """Elements loaded over elements that the network has, 0 to 1."""
        return self.loaded / self.total if self.total else 0.0

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    def describe(self) -> str:
        """A few lines: the share, then the first names of each kind."""
        lines = [f"{_percent(self.share)} of the encoder's weights ({self.loaded:,} of {self.total:,} elements)"]
        for label in ("missing", "misshaped", "unexpected", "ignored", "resized"):
            if names := getattr(self, label):
                lines.append(f"  {label} ({len(names)}): {_listed(names)}")
        return "\n".join(lines)


def load_strictly(
    module: nn.Module, checkpoint: Checkpoint, *, classifier: tuple[str, ...] = (),
    allow_partial: bool = False, allow_random: bool = False,
) -> tuple[Coverage, tuple[str, ...]]:  # fmt: skip
    """Copy a checkpoint's weights into a network, all of them or none, and say in words what was done to the names.

    Args:
        module: the network; changed only if nothing is refused.
        classifier: prefixes of names that are no part of the encoder, such as "fc." or "classifier.1.".
        allow_partial: take a checkpoint whose names do not all fit, if 99 % of the weights are there.
        allow_random: with it, take any share; the rest keeps its random values.

    Raises:
        UserError: names are missing, left over or misshaped and that was not allowed; a weight is NaN or infinite.
    """
    coverage, state = fit_names(module, checkpoint.state, classifier)
    if not coverage.complete:
        _check_allowed(checkpoint, coverage, allow_partial, allow_random)
    check_finite(state, str(checkpoint.path), classifier)
    module.load_state_dict(state, strict=False)
    notes = [*checkpoint.notes]
    notes += [f"the prefix {coverage.prefix!r} was taken off the names"] if coverage.prefix else []
    notes += [f"positional embedding of another image size, resampled: {name}" for name in coverage.resized]
    if not coverage.complete:
        notes.append(f"partial weights: {_percent(coverage.share)} of the encoder comes from the file")
    return coverage, tuple(notes)


def fit_names(
    module: nn.Module, state: Mapping[str, Tensor], classifier: tuple[str, ...] = ()
) -> tuple[Coverage, dict[str, Tensor]]:
    """How a checkpoint's names and shapes fit a network's, and its tensors under the network's names.

    Nothing is changed, and the network may be on the meta device.
    """
    own = _tensors(module)
    prefix = _best_prefix(own, state)
    inside = {_current(name.removeprefix(prefix), own): t for name, t in state.items() if name.startswith(prefix)}
    # what does not carry the prefix belongs to another network beside this one, whatever it is called
    outside = [name for name in state if not name.startswith(prefix)]
    unexpected = [name for name in outside if state[name].is_floating_point()]
    ignored = [name for name in outside if not state[name].is_floating_point()]
    kept: dict[str, Tensor] = {}
    misshaped, resized = [], []
    for name, tensor in inside.items():
        if is_classifier := name.startswith(classifier):
            ignored.append(name)
        if name in own and _fits(own[name], tensor):
            kept[name] = tensor
        elif is_classifier:
            continue
        elif name not in own:
            (unexpected if tensor.is_floating_point() else ignored).append(name)
        elif grids := _position_grids(name, tensor, own[name]):
            kept[name] = _resampled(tensor, grids, own[name])
            resized.append(f"{name} ({grids[0]} x {grids[0]} patches, here {grids[1]} x {grids[1]})")
        else:
            misshaped.append(f"{name} ({_shape(tensor)}, not {_shape(own[name])})")
    sizes = _sizes(own, classifier)
    missing = tuple(name for name in sizes if name not in inside)
    names = (missing, tuple(unexpected), tuple(misshaped), tuple(ignored))
    loaded = sum(size for name, size in sizes.items() if name in kept)
    return Coverage(*names, loaded, sum(sizes.values()), resized=tuple(resized), prefix=prefix), kept


def full_coverage(module: nn.Module, classifier: tuple[str, ...] = ()) -> Coverage:
    """The coverage of a network whose library has loaded every weight itself."""
    total = sum(_sizes(_tensors(module), classifier).values())
    return Coverage((), (), (), (), total, total)


def check_finite(weights: Mapping[str, object], source: str, classifier: tuple[str, ...] = ()) -> None:
    """Raise a UserError if a weight is NaN or infinite; the classifier's are not looked at."""
    floats = {n: v for n, v in weights.items() if isinstance(v, Tensor) and v.is_floating_point()}
    bad = [name for name, v in floats.items() if not name.startswith(classifier) and not torch.isfinite(v).all()]
    if bad:
        problem = f"{source} has weights that are NaN or infinite: {_listed(bad)}"
        raise UserError(problem, "give an earlier checkpoint: the training has diverged")


def _check_allowed(checkpoint: Checkpoint, coverage: Coverage, allow_partial: bool, allow_random: bool) -> None:
    described = f"{checkpoint.path} does not fit the architecture: it holds {coverage.describe()}"
    if not allow_partial:
        fix = f"give another --arch (`equibench doctor {checkpoint.path}` shows which ones fit)"
        if not (coverage.missing or coverage.misshaped):
            fix = (
                "the encoder's own weights are all there; what is left over is often a projection head or a second "
                "network of pretraining: --allow-partial (allow_partial=True) leaves it out"
            )
        elif coverage.share >= _NEARLY_ALL:
            fix += ", or --allow-partial (allow_partial=True) to score it without the weights that are missing"
        raise UserError(described, fix)
    if coverage.share < _NEARLY_ALL and not allow_random:
        raise UserError(
            f"{described}\nmore than 1 % of the network would keep random weights, so its score would mean nothing",
            "give another --arch, or --allow-random (allow_random=True) if a random network is what you want to score",
        )


def _best_prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The chain of wrappers ("module.encoder_q.") whose removal makes most of a network's weights fit; "" if none."""
    chains = {""}
    for name in state:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 5)):
            if parts[depth - 1] not in _PREFIXES:
                break
            chains.add(".".join(parts[:depth]) + ".")

    def covered(prefix: str) -> int:
        inside = {name: _current(name.removeprefix(prefix), own) for name in state if name.startswith(prefix)}
        return sum(state[n].numel() for n, short in inside.items() if short in own and _fits(own[short], state[n]))

    # sorted: of equals the shortest, then a fixed order
    return max(sorted(chains, key=lambda chain: (len(chain), chain)), key=covered)


def _current(name: str, own: Mapping[str, Tensor]) -> str:
    """The name by which the network calls what an older file calls `name`."""
    if name in own:
        return name
    return next((new for pattern, now in _RENAMED if (new := pattern.sub(now, name)) in own), name)


def _fits(own: Tensor, theirs: Tensor) -> bool:
    """Same shape and same kind of number: integers copied into a float would be quantised weights without a scale."""
    same_kind = (own.is_floating_point(), own.is_complex()) == (theirs.is_floating_point(), theirs.is_complex())
    return own.shape == theirs.shape and same_kind


def _position_grids(name: str, theirs: Tensor, own: Tensor) -> tuple[int, int] | None:
    """Sides of the patch grids (theirs, ours) where a positional embedding is of another image size, else None."""
    if name.rpartition(".")[2] not in {"pos_embed", "pos_embedding", "position_embedding"}:
        return None
    if theirs.ndim != 3 or own.ndim != 3 or theirs.shape[::2] != own.shape[::2] or not theirs.is_floating_point():
        return None
    for extra in (1, 0, 2, 5):  # class token; none; with DeiT's distillation token; with DINOv2's four registers
        patches = (theirs.shape[1] - extra, own.shape[1] - extra)
        if min(patches) > 0 and all(math.isqrt(count) ** 2 == count for count in patches):
            return math.isqrt(patches[0]), math.isqrt(patches[1])
    return None


def _resampled(theirs: Tensor, grids: tuple[int, int], own: Tensor) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    if own.is_meta:
        return own
    extra = own.shape[1] - grids[1] ** 2
    return resample_abs_pos_embed(theirs, [grids[1]] * 2, [grids[0]] * 2, num_prefix_tokens=extra)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _sizes(own: Mapping[str, Tensor], classifier: tuple[str, ...]) -> dict[str, int]:
    """Numbers of elements of the floating-point tensors that are the encoder's own."""
    return {n: v.numel() for n, v in own.items() if v.is_floating_point() and not n.startswith(classifier)}


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return "x".join(map(str, tensor.shape)) + kind if tensor.ndim else f"scalar{kind}"


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all of it."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
