"""What the layers of a network give, taken by forward hooks from one pass, and pooled to one vector an image."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from equibench.errors import UserError, closest

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)


def layer_names(module: nn.Module) -> tuple[str, ...]:
    """The network's blocks in order of depth, by structure alone.

    A block is an element of an nn.Sequential or nn.ModuleList that has parts with weights of its own (a transformer
    block, a residual block). Containers are followed inwards, and so is a stage: an element that itself holds a
    container with two or more blocks of one class. Beside blocks, a container's other elements count too (the stem
    in a torchvision `features`). A network without blocks (VGG, a plain nn.Sequential) gives the elements of its
    longest container, one without containers its top-level children.
    """
    if _holds_blocks(module):
        return tuple(_expand(module, ""))
    containers = [(n, m) for n, m in module.named_modules() if isinstance(m, _CONTAINERS) and len(m) > 1]
    name, longest = max(containers, key=lambda item: len(item[1]), default=("", module))
    return tuple(f"{name}.{child}".lstrip(".") for child, _ in longest.named_children())


def record_layers(
    module: nn.Module, names: Sequence[str], run: Callable[[], object], keep: Callable[[Tensor], Tensor] = torch.clone
) -> dict[str, Tensor]:
    """Outputs of modules, named as in `module.named_modules()`, while `run()` calls the network once.

    Of several outputs the first tensor is taken; of a module that is called twice, the last call's. `keep` says what to
    keep of it, at once: a later layer may work in place on the same memory.

    Raises:
        UserError: no such module, a module that was not called, or one that gives no tensor.
    """
    known = {name: part for name, part in module.named_modules() if name}
    for name in names:
        if name not in known:
            blocks = layer_names(module)
            shown = blocks if len(blocks) <= 12 else (*blocks[:5], "...", *blocks[-2:])
            problem = f"the encoder has no layer {name!r}{closest(name, known)}"
            raise UserError(problem, f"its blocks are: {', '.join(shown)}")
    outputs: dict[str, Tensor] = {}

    def take(name: str, _part: nn.Module, output: Tensor | None) -> None:
        if output is not None:
            outputs[name] = keep(output)

    _watch(((name, known[name]) for name in names), take, run)
    for name in names:
        if name not in outputs:
            problem = f"the layer {name!r} gives no tensor in a forward pass"
            raise UserError(problem, "name a module that the pass calls")
    return outputs


def final_features(module: nn.Module, run: Callable[[], object], skip: tuple[str, ...] = ()) -> Tensor | None:
    """The last output with 3 or 4 dimensions that a module gives: the final tokens (N, L, D) or map (N, C, h, w).

    The whole network's own output counts if it has them. Poolings do not count, nor modules whose name begins with a
    prefix in `skip` (a classifier's own layers). None if there is no such output.
    """
    last: Tensor | None = None
    pooled: Tensor | None = None

    def take(_name: str, part: nn.Module, output: Tensor | None) -> None:
        nonlocal last, pooled
        if isinstance(part, _POOLS):
            pooled = output
        elif output is not None and output.ndim in (3, 4) and output is not pooled:
            last = output

    _watch((item for item in module.named_modules() if not f"{item[0]}.".startswith(skip)), take, run)
    return last


def first_bad_layer(module: nn.Module, run: Callable[[], object]) -> str | None:
    """Name of the first module without parts, in order of execution, whose output is not finite; None if none is."""
    bad: list[str] = []

    def look(name: str, _part: nn.Module, output: Tensor | None) -> None:
        if not bad and output is not None and not torch.isfinite(output).all():
            bad.append(name)

    _watch((item for item in module.named_modules() if next(item[1].children(), None) is None), look, run)
    return bad[0] if bad else None


def pool(output: Tensor, prefix_tokens: int = 0, channels_last: bool = False) -> Tensor:
    """One vector an image, (N, D) float32; a UserError for another number of dimensions than these.

    Of (N, D) itself; of tokens (N, L, D) the mean without the first `prefix_tokens` (with them, where there are no
    others); of a map (N, C, h, w), or (N, h, w, C) with `channels_last`, the spatial mean.
    """
    if output.ndim == 2:
        return output.float()
    if output.ndim == 3:
        first = prefix_tokens if output.shape[1] > prefix_tokens else 0
        return output[:, first:].float().mean(dim=1)
    if output.ndim == 4:
        return output.float().mean(dim=(1, 2) if channels_last else (2, 3))
    problem = f"an output of shape {tuple(output.shape)} cannot be pooled to one vector an image"
    raise UserError(problem, "choose a layer that gives (N, D), tokens (N, L, D) or a map (N, C, h, w)")


def first_tensor(output: object) -> Tensor | None:
    """The tensor in an output: itself, or the first one in a tuple, list or dictionary."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for value in values if (found := first_tensor(value)) is not None), None)


def _watch(
    parts: Iterable[tuple[str, nn.Module]], take: Callable[[str, nn.Module, Tensor | None], None],
    run: Callable[[], object],
) -> None:  # fmt: skip
    """Call the network by `run()`; `take` gets each part's name, the part, and the tensor in its output."""

    def hook(name: str, part: nn.Module, _inputs: object, output: object) -> None:
        take(name, part, first_tensor(output))

    with ExitStack() as hooks:
        for name, part in parts:
            hooks.enter_context(part.register_forward_hook(partial(hook, name)))
        run()


def _expand(module: nn.Module, prefix: str) -> Iterator[str]:
    container = isinstance(module, _CONTAINERS)
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        inwards = isinstance(child, _CONTAINERS) or _is_stage(child) or not container
        if inwards and _holds_blocks(child):
            yield from _expand(child, f"{name}.")
        elif container and not isinstance(child, (nn.Identity, nn.Dropout)):
            yield name


def _holds_blocks(module: nn.Module) -> bool:
    return any(_blocks(part) for part in module.modules())


def _is_stage(module: nn.Module) -> bool:
    kinds = [[type(block) for block in _blocks(part)] for part in module.modules()]
    return any(len(kind) > len(set(kind)) for kind in kinds)


def _blocks(part: nn.Module) -> list[nn.Module]:
    """The blocks that stand in a container; none in any other module."""
    children = part.children() if isinstance(part, _CONTAINERS) else ()
    blocks = [child for child in children if not isinstance(child, _CONTAINERS)]
    return [block for block in blocks if any(next(inner.parameters(), None) is not None for inner in block.children())]
