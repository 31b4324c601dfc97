"""Strict loading: which of a network's weights a checkpoint holds, and a refusal when that is not all of them.

A network that silently keeps random weights still gives features, and those still get a score. So every name is
accounted for: loaded, known to be no part of an encoder, or a reason to refuse.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equibench.encoders import layouts
from equibench.encoders.branches import branch_names, choose_branch, named, unknown_branch
from equibench.encoders.weightfile import Checkpoint
from equibench.errors import UserError

_SHOWN = 6
_LIKELY = 0.5  # below this share a file is of another architecture, and what it lacks is not worth a list


@dataclass(frozen=True)
class Coverage:
    """How a checkpoint's names fit a network's."""

    missing: tuple[str, ...]  # the network's weights that the checkpoint does not hold
    unexpected: tuple[str, ...]  # floating-point entries of the branch that the network has no place for
    misshaped: tuple[str, ...]  # right name, another shape or kind of number: "name (their shape, not ours)"
    ignored: tuple[str, ...]  # no part of an encoder: the classifier's entries, and counters that the network lacks
    loaded: int  # elements of parameters and floating-point persistent buffers, classifier left out
    total: int  # such elements that the network has
    resized: tuple[str, ...] = ()  # positional embeddings of another image size, resampled; they count as loaded
    prefix: str = ""  # the branch of the file: what was taken off its names
    extras: tuple[str, ...] = ()  # what pretraining leaves beside an encoder, as "3 of the decoder"
    beside: tuple[str, ...] = ()  # what the file holds outside the branch, as "12 in 'student'"
    layout: str = ""  # how the names were turned into the network's own; "" if they were
    chosen: str = ""  # why this branch, where several fitted
    variant: tuple[str, ...] = ()  # options of timm's that what is left over asks for, such as "reg_tokens=4"
    changes: tuple[str, ...] = ()  # the same in words
    wrapped: int = 0  # names from which those of training wrappers ("module", "_orig_mod") were taken off
    lacking: tuple[str, ...] = ()  # names that stay random: those missing and those misshaped

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

    def notes(self) -> list[str]:
        """What was done to make the names fit, and what was left out, a sentence each."""
        found = []
        if self.wrapped:
            found.append(f"names of training wrappers, such as module, were taken off {self.wrapped} names")
        if self.prefix:
            found.append(
                f"weights taken from {self.prefix.rstrip('.')!r}" + (f" ({self.chosen})" if self.chosen else "")
            )
        elif self.chosen:
            found.append(f"weights taken from the names without a prefix ({self.chosen})")
        found += [f"names and shapes: {self.layout}"] if self.layout else []
        found += [f"beside it, not used: {', '.join(self.beside)}"] if self.beside else []
        found += [f"left out, no part of an encoder: {', '.join(self.extras)}"] if self.extras else []
        return found + [f"positional embedding of another image size, resampled: {name}" for name in self.resized]


@dataclass(frozen=True)
class _Fit:
    coverage: Coverage
    kept: dict[str, Tensor]


def load_strictly(
    module: nn.Module, checkpoint: Checkpoint, *, classifier: tuple[str, ...] = (), allow_random: Sequence[str] = (),
    branch: str | None = None, rename: str | None = None,
) -> tuple[Coverage, tuple[str, ...]]:  # fmt: skip
    """Copy a checkpoint's weights into a network, all of them or none, and say in words what was done to the names.

    Args:
        module: the network; changed only if nothing is refused.
        classifier: prefixes of names that are no part of the encoder, such as "fc." or "classifier.1.".
        allow_random: names of weights, or of modules, that may stay random; patterns such as "blocks.*" are taken.
        branch: which network of the file: an entry or a prefix of its names, such as "teacher".
        rename: rules 'regex=>text' separated by semicolons, applied to the file's names first; a name that becomes
            empty is left out.

    Raises:
        UserError: names are missing, left over or misshaped and that was not allowed; two networks fit and it is not
            known which one is meant; a weight is NaN, infinite, or has no values.
    """
    state = layouts.apply_rename(checkpoint.state, layouts.parse_rename(rename))
    fit = _best_fit(module, state, classifier, allow_random, branch, checkpoint.path)
    coverage = fit.coverage
    if not _acceptable(coverage, allow_random):
        raise _refusal(checkpoint, coverage, allow_random, module)
    _check_values(fit.kept, str(checkpoint.path))
    check_finite(fit.kept, str(checkpoint.path), classifier)
    module.load_state_dict(fit.kept, strict=False)
    notes = [*checkpoint.notes, *coverage.notes()]
    if coverage.lacking:
        notes.append(f"random, as allowed: {_listed(coverage.lacking)} ({_percent(1 - coverage.share)} of the encoder)")
    return coverage, tuple(notes)


def fit_names(
    module: nn.Module, state: Mapping[str, Tensor], classifier: tuple[str, ...] = ()
) -> tuple[Coverage, dict[str, Tensor]]:
    """How a checkpoint's names and shapes fit a network's, and its tensors under the network's names.

    Nothing is changed, and the network may be on the meta device. Of several branches that fit the first is taken.
    """
    fits, _ = _all_fits(module, state, classifier, (), None)
    return fits[0].coverage, fits[0].kept


def full_coverage(module: nn.Module, classifier: tuple[str, ...] = ()) -> Coverage:
    """The coverage of a network whose library has loaded every weight itself."""
    total = sum(_sizes(_tensors(module), classifier).values())
    return Coverage((), (), (), (), total, total)


def check_finite(weights: Mapping[str, object], source: str, classifier: tuple[str, ...] = ()) -> None:
    """Raise a UserError if a weight is NaN or infinite; the classifier's are not looked at."""
    floats = {n: v for n, v in weights.items() if isinstance(v, Tensor) and v.is_floating_point()}
    bad = [name for name, v in floats.items() if not name.startswith(classifier) and not is_finite(v)]
    if bad:
        problem = f"{source} has weights that are NaN or infinite: {_listed(bad)}"
        raise UserError(problem, "give an earlier checkpoint: the training has diverged")


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; True of values that are not there, or of a kind that cannot be told."""
    if values.is_meta:
        return True
    try:
        return bool(torch.isfinite(values.float() if values.dtype.itemsize == 1 else values).all())
    except RuntimeError:  # packed floats of four bits cannot be converted one by one
        return True


# --- finding the network among the names ----------------------------------------------------------------------------


def _best_fit(
    module: nn.Module, state: Mapping[str, Tensor], classifier: tuple[str, ...], allow_random: Sequence[str],
    branch: str | None, path: object,
) -> _Fit:  # fmt: skip
    fits, branches = _all_fits(module, state, classifier, allow_random, branch)
    if branch is not None and not branches:
        known, _ = _all_fits(module, state, classifier, allow_random, None)
        raise unknown_branch(branch, [fit.coverage.prefix for fit in known], path)
    different: list[_Fit] = []
    for fit in fits:
        if not any(_same(fit.kept, other.kept) for other in different):
            different.append(fit)
    if not _acceptable(fits[0].coverage, allow_random):
        return fits[0]
    index, why = choose_branch([fit.coverage.prefix for fit in different], path)
    if branch is not None:
        why = "as asked"
    return replace(different[index], coverage=replace(different[index].coverage, chosen=why))


def _all_fits(
    module: nn.Module, state: Mapping[str, Tensor], classifier: tuple[str, ...], allow_random: Sequence[str],
    branch: str | None,
) -> tuple[list[_Fit], list[str]]:  # fmt: skip
    """The branches that fit, or else the one that comes nearest; and the branches that were tried."""
    own = _tensors(module)
    short, wrapped = layouts.without_wrappers(state, own)
    branches = branch_names(short, max(1, len(_sizes(own, classifier)) // 3))
    if branch is not None:
        stripped = ".".join(part for part in branch.strip(".").split(".") if part not in layouts.WRAPPERS)
        branches = named(branches, stripped)
    best: _Fit | None = None
    inside = {p: {n.removeprefix(p): t for n, t in short.items() if n.startswith(p)} for p in branches or [""]}
    for layout, convert in _readings(module, own):
        found = []
        for prefix, names in inside.items():
            if converted := convert(names):
                fit = _fit(own, converted, names, classifier, prefix)
                beside = _beside(short, prefix, own)
                fit = replace(fit, coverage=replace(fit.coverage, layout=layout, beside=beside, wrapped=wrapped))
                found.append(fit)
        if fitting := [fit for fit in found if _acceptable(fit.coverage, allow_random)]:
            return fitting, branches
        # of equals the first reading, and the branch that leaves least over
        ranked = [fit for fit in (best, *found) if fit is not None]
        best = max(ranked, key=lambda fit: (fit.coverage.share, -len(fit.coverage.unexpected)))
    assert best is not None
    return [best], branches


def _readings(module: nn.Module, own: Mapping[str, Tensor]) -> Iterator[tuple[str, Callable[..., dict[str, Tensor]]]]:
    """Ways to read the names, the plainest first."""
    timm = layouts.timm_filter(module)
    yield "", dict
    yield "renamed by the table of public layouts", lambda names: layouts.renamed(names, own)
    if timm is not None:
        yield "read by timm's filter of the architecture", timm
        yield "renamed by the table, then by timm's filter", lambda names: timm(layouts.renamed(names, own))


def _fit(
    own: Mapping[str, Tensor], names: Mapping[str, Tensor], before: Mapping[str, Tensor],
    classifier: tuple[str, ...], prefix: str,
) -> _Fit:  # fmt: skip
    """One branch, its names already turned into the network's; `before` are its names and shapes in the file."""
    kept: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    misshaped, resized, ignored = {}, [], []
    for name, tensor in names.items():
        if is_classifier := name.startswith(classifier):
            ignored.append(name)
        if name in own and (fitted := _fitted(own[name], tensor)) is not None:
            kept[name] = fitted
            if was := _was_resized(name, tensor, before):
                resized.append(was)
        elif is_classifier:
            continue
        elif name not in own:
            if tensor.is_floating_point():
                left[name] = tensor
            else:
                ignored.append(name)
        elif grids := _position_grids(name, tensor, own[name]):
            kept[name] = _resampled(tensor, grids, own[name])
            resized.append(f"{name} ({grids[0]} x {grids[0]} patches, here {grids[1]} x {grids[1]})")
        else:
            misshaped[name] = f"{name} ({_shape(tensor)}, not {_shape(own[name])})"
    sizes = _sizes(own, classifier)
    missing = tuple(name for name in sizes if name not in names)
    extras, unexpected = _sorted_out(left, own)
    changes = layouts.changes_forward(unexpected, own)
    loaded = sum(size for name, size in sizes.items() if name in kept)
    coverage = Coverage(
        missing, tuple(unexpected), tuple(misshaped.values()), tuple(ignored), loaded, sum(sizes.values()),
        resized=tuple(resized), prefix=prefix, extras=extras, changes=tuple(what for what, _ in changes),
        variant=tuple(option for _, option in changes if option), lacking=(*missing, *misshaped),
    )  # fmt: skip
    return _Fit(coverage, kept)


def _sorted_out(left: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Known extras, counted by what they are, and the left-over names that are none."""
    parents = {name.partition(".")[0] for name in own if "." in name}
    found: Counter[str] = Counter()
    rest: dict[str, Tensor] = {}
    for name, tensor in left.items():
        what = "" if layouts.changes_forward({name: tensor}, own) else layouts.extra(name)
        # a part of the network's own modules that it does not know changes what they compute
        if what and (name.partition(".")[0] not in parents or "buffers" in what or "counters" in what):
            found[what] += 1
        else:
            rest[name] = tensor
    return tuple(f"{what} ({count})" for what, count in found.items()), rest


def _beside(state: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What the file holds outside a branch, by first differing name."""
    common, counts = prefix.split("."), Counter[str]()
    for name in state:
        if not name.startswith(prefix):
            parts = name.split(".")
            depth = next((d for d, (a, b) in enumerate(zip(parts, common, strict=False)) if a != b), 0)
            counts[".".join(parts[: depth + 1])] += 1
    shown = [f"{name!r} ({count})" for name, count in counts.most_common(_SHOWN)]
    return (*shown, f"{len(counts) - _SHOWN} more") if len(counts) > _SHOWN else tuple(shown)


def _acceptable(coverage: Coverage, allow_random: Sequence[str]) -> bool:
    return not coverage.unexpected and all(_is_allowed(name, allow_random) for name in coverage.lacking)


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    return any(
        name == one or name.startswith(f"{one.rstrip('.')}.") or fnmatch.fnmatchcase(name, one) for one in allowed
    )


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two branches hold the same numbers."""
    return one.keys() == other.keys() and all(
        value.is_meta or (value.dtype == other[name].dtype and torch.equal(value, other[name]))
        for name, value in one.items()
    )


# --- what is said of a file that does not fit -----------------------------------------------------------------------


def _refusal(checkpoint: Checkpoint, coverage: Coverage, allowed: Sequence[str], module: nn.Module) -> UserError:
    """Why a file does not fit, what that means, and what to do."""
    doctor = f"`equibench doctor {checkpoint.path}` shows which architectures fit"
    where = f" in {coverage.prefix.rstrip('.')!r}" if coverage.prefix else ""
    problem = f"{checkpoint.path} does not fit the architecture: it holds{where} {coverage.describe()}"
    if why := layouts.unreadable(checkpoint.state):
        form, _, mend = why.partition(": ")
        return UserError(f"{problem}\nit holds {form}", mend)
    if coverage.changes:
        options = "".join(f",{option}" for option in coverage.variant)
        fix = f"give the --arch that has it{f', such as timm:NAME{options}' if options else ''}; {doctor}"
        return UserError(f"{problem}\nit is another network, one with {' and '.join(coverage.changes)}", fix)
    rules = "--rename 'regex=>text' turns names into the network's own"
    if coverage.share < _LIKELY:
        return UserError(problem, f"give another --arch: {doctor}; {rules}")
    if lacking := [name for name in coverage.lacking if not _is_allowed(name, allowed)]:
        fix = f"give another --arch ({doctor}), or the weights; {rules}"
        fix += f"; only if they may be random: --allow-random {_grouped(lacking, module)}"
        return UserError(f"{problem}\nwhat is missing would stay random", fix)
    problem += "\nthe encoder's own weights are all there; what is left over is not known to be harmless"
    fix = f"give the --arch that has it: {doctor}"
    if rule := _leaving_out(checkpoint.state, coverage.unexpected, module):
        fix += f"; if its features do not depend on it, leave it out: --rename '{rule}'"
    return UserError(problem, fix)


def _leaving_out(state: Mapping[str, Tensor], left: Sequence[str], module: nn.Module) -> str:
    """Rules by which the file's left-over names are left out; "" if some of them are within the network's own parts."""
    parts, rules = {name.partition(".")[0] for name in _tensors(module)}, dict[str, None]()
    for name in left:
        first = name.partition(".")[0]
        full = next((one for one in state if one == name or one.endswith(f".{name}")), None)
        if first in parts or full is None:
            return ""
        rules[f"^{re.escape(full.removesuffix(name) + first)}\\b.*=>"] = None
    return ";".join(rules)


def _check_values(kept: Mapping[str, Tensor], source: str) -> None:
    if empty := [name for name, value in kept.items() if value.is_meta]:
        problem = f"{source} has names without values (tensors on the meta device): {_listed(empty)}"
        raise UserError(problem, "save the weights again after they have been loaded or gathered")
    if small := [name for name, v in kept.items() if v.is_floating_point() and v.dtype.itemsize == 1]:
        kind = str(kept[small[0]].dtype).removeprefix("torch.")
        problem = f"{source} has weights in {kind}, which need a scale that is not known here: {_listed(small)}"
        raise UserError(problem, "give the weights in float32, float16 or bfloat16")


def _grouped(names: Sequence[str], module: nn.Module) -> str:
    """Names as --allow-random takes them: a module's own where all that is in it is among them."""
    own, wanted, found = list(_tensors(module)), set(names), dict[str, None]()
    for name in names:
        parts = name.split(".")
        prefixes = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        whole = (
            p for p in prefixes if all(n in wanted for n in own if n.startswith(f"{p}.") and "num_batches" not in n)
        )
        found[next(whole, name)] = None
    return ",".join(found)


# --- tensors --------------------------------------------------------------------------------------------------------


def _fitted(own: Tensor, theirs: Tensor) -> Tensor | None:
    """The tensor in the network's shape; None where shape (but for sides of 1) or kind of number is another.

    Integers copied into a float would be quantised weights without a scale.
    """
    same_kind = (own.is_floating_point(), own.is_complex()) == (theirs.is_floating_point(), theirs.is_complex())
    if not same_kind or [n for n in own.shape if n != 1] != [n for n in theirs.shape if n != 1]:
        return None
    return theirs if own.shape == theirs.shape else theirs.reshape(own.shape)


def _was_resized(name: str, tensor: Tensor, before: Mapping[str, Tensor]) -> str:
    """What timm's filter made of a positional table of another size."""
    if name not in before or before[name].ndim != tensor.ndim or "pos" not in name:
        return ""
    old, new = (list(t.shape) for t in (before[name], tensor))
    # one token fewer: the class token's position was added to the token
    return f"{name} ({_shape(before[name])}, here {_shape(tensor)})" if sum(old) - sum(new) not in (0, 1) else ""


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

    if own.is_meta or theirs.is_meta:
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
