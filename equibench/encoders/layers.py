"""What the layers of a network give, taken by forward hooks from one pass, and pooled to one vector an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from equibench.errors import UserError, closest

CONTAINERS = (nn.Sequential, nn.ModuleList)
POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)


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
    containers = [(n, m) for n, m in module.named_modules() if isinstance(m, CONTAINERS) and len(m) > 1]
    name, longest = max(containers, key=lambda item: len(item[1]), default=("", module))
    return tuple(f"{name}.{child}".lstrip(".") for child, _ in longest.named_children())


def record_layers(
    module: nn.Module, names: Sequence[str], run: Callable[[], object], keep: Callable[[Tensor], Tensor] = torch.clone
) -> dict[str, Tensor]:
    """Outputs of named modules while `run()` calls the network once.

    Args:
        module: the network.
        names: names as in `module.named_modules()`.
        run: makes the forward pass.
        keep: what to keep of an output, taken at once: a later layer may work in place on the same memory.

    Returns:
        Name -> output (of several, the first tensor; of a module that is called twice, the last call's).

    Raises:
        UserError: no such module, a module that was not called, or one that gives no tensor.
    """
    known = dict(module.named_modules())
    for name in names:
        if name not in known or not name:
            raise UserError(
                f"the encoder has no layer {name!r}{closest(name, [n for n in known if n])}",
                f"its blocks are: {_shown(layer_names(module))}",
            )
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def take(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                outputs[name] = keep(tensor)

        return take

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(known[name].register_forward_hook(hook(name)).remove)
        run()
    for name in names:
        if name not in outputs:
            raise UserError(
                f"the layer {name!r} gives no tensor in a forward pass", "name a module that the pass calls"
            )
    return outputs


def final_features(module: nn.Module, run: Callable[[], object], skip: tuple[str, ...] = ()) -> Tensor | None:
    """The last output with 3 or 4 dimensions that a module gives: the final tokens (N, L, D) or map (N, C, h, w).

    The whole network's own output counts if it has them. Poolings do not count, nor modules whose name begins with a
    prefix in `skip` (a classifier's own layers). None if there is no such output.
    """
    last: list[Tensor] = []
    pooled: list[object] = [None]

    def take(part: nn.Module, _inputs: object, output: object) -> None:
        tensor = first_tensor(output)
        if isinstance(part, POOLS):
            pooled[0] = tensor
        elif tensor is not None and tensor.ndim in (3, 4) and tensor is not pooled[0]:
            last[:] = [tensor]

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if not (skip and f"{name}.".startswith(skip)):
                hooks.callback(part.register_forward_hook(take).remove)
        run()
    return last[0] if last else None


def pool(output: Tensor, prefix_tokens: int = 0, channels_last: bool = False) -> Tensor:
    """One vector an image, (N, D) float32.

    Args:
        output: (N, D), kept; tokens (N, L, D), their mean without the first `prefix_tokens` (with them, where there
            are no others); a map (N, C, h, w), its spatial mean, or (N, h, w, C) with `channels_last`.

    Raises:
        UserError: another number of dimensions.
    """
    if output.ndim == 2:
        return output.float()
    if output.ndim == 3:
        first = prefix_tokens if output.shape[1] > prefix_tokens else 0
        return output[:, first:].float().mean(dim=1)
    if output.ndim == 4:
        return output.float().mean(dim=(1, 2) if channels_last else (2, 3))
    raise UserError(
        f"an output of shape {tuple(output.shape)} cannot be pooled to one vector an image",
        "choose a layer that gives (N, D), tokens (N, L, D) or a map (N, C, h, w)",
    )


def first_bad_layer(module: nn.Module, run: Callable[[], object]) -> str | None:
    """Name of the first module without parts, in order of execution, whose output is not finite; None if none is."""
    bad: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = first_tensor(output)
            if not bad and tensor is not None and not torch.isfinite(tensor).all():
                bad.append(name)

        return look

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if next(part.children(), None) is None:
                hooks.callback(part.register_forward_hook(hook(name)).remove)
        run()
    return bad[0] if bad else None


def first_tensor(output: object) -> Tensor | None:
    """The tensor in an output: itself, or the first one in a tuple, list or dictionary."""
    if isinstance(output, Tensor):
        return output
    values: Iterator[Any] = iter(())
    if isinstance(output, Mapping):
        values = iter(output.values())
    elif isinstance(output, (tuple, list)):
        values = iter(output)
    return next((found for value in values if (found := first_tensor(value)) is not None), None)


def _expand(module: nn.Module, prefix: str) -> Iterator[str]:
    container = isinstance(module, CONTAINERS)
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        inwards = isinstance(child, CONTAINERS) or _is_stage(child) or not container
        if inwards and _holds_blocks(child):
            yield from _expand(child, f"{name}.")
        elif container and not isinstance(child, (nn.Identity, nn.Dropout)):
            yield name


def _holds_blocks(module: nn.Module) -> bool:
    return any(
        _is_block(child) for part in module.modules() if isinstance(part, CONTAINERS) for child in part.children()
    )


def _is_stage(module: nn.Module) -> bool:
    for part in module.modules():
        if isinstance(part, CONTAINERS):
            kinds = [type(child) for child in part.children() if _is_block(child)]
            if len(kinds) > len(set(kinds)):
                return True
    return False


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, CONTAINERS):
        return False
    return any(next(child.parameters(), None) is not None for child in module.children())


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:5])}, ..., {', '.join(names[-2:])}"
