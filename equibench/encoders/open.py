"""Opening an encoder: by name, from a file of weights, from Python, or from a pretraining run of our own."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from equibench.encoders import own, zoo
from equibench.encoders.adapter import NO_MASK, ImageEncoder
from equibench.encoders.checkpoint import read_checkpoint
from equibench.encoders.coverage import Coverage, check_finite, fit_names, full_coverage, load_strictly
from equibench.encoders.guess import candidates
from equibench.encoders.weightfile import Checkpoint
from equibench.errors import UserError, closest
from equibench.transforms.transformation import ViewSpec

_LIBRARIES = ("timm", "torchvision", "hf-hub", *own.OWN_LIBRARIES)
_ARCHITECTURES = ("timm", "torchvision", *own.OWN_LIBRARIES)
_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")
_OBVIOUS = 0.99
_ARCHS = "timm:NAME, torchvision:NAME, hf:ORG/NAME, open_clip:NAME or FILE.py:FUNCTION"
_POOLED = "global_pool=avg"
_Network = nn.Module | Callable[[Tensor], Tensor]
_Adapt = Callable[[_Network, str], ImageEncoder]


@dataclass(frozen=True)
class Opened:
    """An encoder that is ready, and how it came to be."""

    encoder: ImageEncoder  # frozen, in eval mode, on the CPU unless it was elsewhere
    name: str  # for a table: "timm:resnet50", a file's name, a class
    architecture: str  # "timm:NAME", "hf-hub:ORG/NAME", ..., "python:MODULE.CLASS", or what `own_label` makes of it
    pretrained: bool  # False where the weights are those of an untrained network
    coverage: Coverage | None  # how the loaded weights fitted; None where none were loaded (untrained, or from Python)
    notes: tuple[str, ...]  # what was done, a sentence each
    # seed -> the same architecture, untrained, with the same preprocessing; None where that cannot be built
    fresh: Callable[[int], ImageEncoder] | None
    half: int | None = None  # channels of the invariant half, for an encoder of the suite's own that has two
    seed: int | None = None  # pretraining seed of such an encoder


def open_encoder(
    source: str | Path | _Network, *, arch: str | None = None, views: ViewSpec | None = None, pretrained: bool = True,
    size: int | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
    interpolation: str | None = None, pooling: str = "default", branch: str | None = None,
    rename: str | None = None, allow_random: Sequence[str] = (), allow_partial: bool = False, seed: int = 0,
) -> Opened:  # fmt: skip
    """Open any encoder, with its own preprocessing unless told otherwise.

    Args:
        source: "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME", "hf:ORG/NAME", "open_clip:NAME@TAG"; a Python file
            and its function that builds the network, "FILE.py:FUNCTION"; a weights file, an index of shards or a folder
            that holds one (with `arch`); in Python an nn.Module, of which a copy is taken, or any function, both on
            normalised images (N, 3, s, s).
        arch: a file's architecture, "timm:NAME", "torchvision:NAME", "hf:ORG/NAME" or "hf:./FOLDER" (transformers),
            "open_clip:NAME" (its image tower) or "FILE.py:FUNCTION", which is run; options of timm's may follow, as in
            "timm:vit_small_patch16_224,reg_tokens=4".
        views: the views' mask; None: no mask.
        pretrained: False builds the architecture untrained, seeded by `seed`; no effect on files and Python objects.
        size, mean, std, interpolation: override the preprocessing (pixels; units of [0, 1]).
        pooling: see `ImageEncoder`.
        branch, rename, allow_random: see `load_strictly`.
        allow_partial: an option of former versions; to give it is an error that says what has taken its place.

    Raises:
        UserError: an unknown name, weights that cannot be had, do not fit, are unsafe or not finite; a Python file that
            is not there, raises, or builds no network; a library that is not installed.
    """
    _check_former(allow_partial, allow_random)
    given: dict[str, object] = {"size": size} if size is not None else {}
    given |= {"interpolation": interpolation} if interpolation is not None else {}
    given |= {name: tuple(map(float, v)) for name, v in (("mean", mean), ("std", std)) if v is not None}
    adapt = partial(adapted, views=views or NO_MASK, pooling=pooling, given=given)
    if not isinstance(source, (str, Path)):
        return _open_object(source, adapt)
    text = str(source)
    if own.is_python_file(text):
        return _open_python_file(text, arch, adapt, pretrained, seed)
    coverage: Coverage | None = None
    notes: tuple[str, ...] = ("untrained: random weights",)
    if ":" in text and text.split(":")[0] in _LIBRARIES:
        model, name, arch = zoo.build_network(text, pretrained, size, seed), own.own_label(text), text
        if pretrained:
            classifier = zoo.classifier_of(model)
            check_finite(model.state_dict(), text, classifier)
            coverage, notes = full_coverage(model, classifier), ("all weights are the library's own",)
    else:
        checkpoint = _checkpoint(text)
        if arch is None:
            raise _no_arch(checkpoint)
        if arch.split(":")[0] not in _ARCHITECTURES and not own.is_python_file(arch):
            raise UserError(f"unknown architecture {arch!r}", f"give --arch {_ARCHS}")
        model, arch, coverage, notes = _loaded(checkpoint, arch, size, seed, allow_random, branch, rename)
        name, pretrained = checkpoint.path.name, True
        notes = (*notes, _was_run(arch)) if own.is_python_file(arch) else notes
    label = own.own_label(arch)
    fresh, _ = _fresh(arch, label, size, adapt)
    return Opened(adapt(model, label), name, label, pretrained, coverage, notes, fresh)


def _open_python_file(text: str, arch: str | None, adapt: _Adapt, pretrained: bool, seed: int) -> Opened:
    """The network that a Python file builds, with the weights that it has then."""
    if arch is not None:
        problem = f"{text} builds a network, and --arch {arch} names another"
        raise UserError(problem, f"leave --arch out; or, to load a file into it: WEIGHTS --arch {text}")
    label = own.own_label(text)
    model = _built(text, None, seed)
    check_finite(model.state_dict(), text, zoo.classifier_of(model))
    fresh, untrained = _fresh(text, label, None, adapt)
    if not pretrained and not untrained:
        problem = f"{text} does not draw all weights at random, so it cannot be had untrained"
        raise UserError(problem, "leave --no-pretrained out, or let the function build the network without loading any")
    state = "untrained: it draws its weights at random" if untrained else "its weights are those that the file gave it"
    name = label.partition(" ")[0]
    return Opened(adapt(model, label), name, label, not untrained, None, (_was_run(text), state), fresh)


def _built(arch: str, size: int | None, seed: int) -> nn.Module:
    return _unwrapped(zoo.build_network(arch, False, size, seed))


def _fresh(arch: str, label: str, size: int | None, adapt: _Adapt) -> tuple[Callable[[int], ImageEncoder] | None, bool]:
    """What builds the architecture untrained, and whether the architecture's own builder does.

    A function of the user's may load weights: where not all of them change with the seed, they are drawn afresh by
    the parts' own methods, if all parts have such.
    """
    if own.is_python_file(arch):
        first = _built(arch, size, 0)
        if not own.is_drawn_at_random(first, _built(arch, size, 1)):
            return _redrawn(first, label, adapt), False
    return (lambda seed: adapt(_built(arch, size, seed), label)), True


def _was_run(arch: str) -> str:
    return f"code was run: {own.own_label(arch)}"


def _loaded(
    checkpoint: Checkpoint, arch: str, size: int | None, seed: int, allow_random: Sequence[str], branch: str | None,
    rename: str | None,
) -> tuple[nn.Module, str, Coverage, tuple[str, ...]]:  # fmt: skip
    """The architecture with a file's weights, and its name.

    A file of a ViT that was fine-tuned on the mean of its patch tokens has its last norm behind the pooling, and no
    other. That is the same body with timm's `global_pool=avg`, which is built for it; the name then says so.
    """
    model = _built(arch, size, seed)
    classifier = zoo.classifier_of(model)
    options = {"classifier": classifier, "allow_random": allow_random, "branch": branch, "rename": rename}
    twin = arch.replace("_clip_", "_clip_quickgelu_")
    try:
        coverage, notes = load_strictly(model, checkpoint, **options)  # type: ignore[arg-type]
        if twin != arch and "quickgelu" not in arch and zoo.is_known(twin):
            notes = (*notes, f"OpenAI's own CLIP weights are those of {twin}: names cannot tell the two apart")
        return model, arch, coverage, notes
    except UserError:
        if not arch.startswith("timm:"):
            raise
        coverage = fit_names(model, checkpoint.state, classifier)[0]
        if coverage.variant != (_POOLED,) or set(coverage.missing) != {"norm.weight", "norm.bias"}:
            raise
    arch = f"{arch},{_POOLED}"
    model = zoo.build_network(arch, False, size, seed)
    coverage, notes = load_strictly(model, checkpoint, **options)  # type: ignore[arg-type]
    return model, arch, coverage, (*notes, f"the last norm is behind average pooling: built as {arch}")


def _check_former(allow_partial: bool, allow_random: object) -> None:
    """Point from options of former versions to what has taken their place."""
    if allow_partial:
        problem = "--allow-partial is gone: heads, decoders and mask tokens of pretraining are left out by themselves"
        raise UserError(problem, "leave it out; --allow-random NAME,... names weights that may stay random")
    if isinstance(allow_random, bool | str):
        problem = f"allow_random takes the names of the weights that may stay random, not {allow_random!r}"
        raise UserError(problem, "allow_random=['conv1.weight'], or --allow-random conv1.weight,bn1")


def adapted(model: _Network, arch: str, *, views: ViewSpec, pooling: str, given: dict[str, object]) -> ImageEncoder:
    """The encoder with what is given in place of its own preprocessing; all but a user's module lose the classifier."""
    preprocessing = replace(zoo.own_preprocessing(arch, model), **given)  # type: ignore[arg-type]
    classifier = zoo.classifier_of(model)
    if isinstance(model, nn.Module) and not arch.startswith("python:"):
        for prefix in classifier:  # its weights, random ones perhaps, are no part of the encoder's digest
            model.set_submodule(prefix.rstrip("."), nn.Identity())
    return ImageEncoder(
        model, architecture=arch, preprocessing=preprocessing, views=views, pooling=pooling, classifier=classifier
    )


def _open_object(source: _Network, adapt: _Adapt) -> Opened:
    if not callable(source):
        problem = f"an object of type {type(source).__name__} is no encoder"
        raise UserError(problem, "give a name, a file, an nn.Module or a function")
    if not isinstance(source, nn.Module):
        name = f"python:{getattr(source, '__qualname__', type(source).__qualname__)}"
        note = "a function's weights are unknown, so nothing is cached"
        return Opened(adapt(source, name), name, name, True, None, (note,), None)
    source = _unwrapped(source)
    try:
        # it may be trained further: its mode, gradients and weights must not change here, nor ours with it
        model = copy.deepcopy(source)
    except Exception as error:
        fix = "pass a function, or a module without a graph"
        raise UserError(f"the module cannot be copied: {error}", fix) from error
    name = f"python:{type(source).__module__}.{type(source).__qualname__}"
    notes = ["a copy was taken; it may have been trained or not"]
    if getattr(source, "pretrained_cfg", None):
        notes.append("preprocessing from the model's own timm configuration")
    check_finite(model.state_dict(), name)
    return Opened(adapt(model, name), name, name, True, None, tuple(notes), _redrawn(model, name, adapt))


def _redrawn(model: nn.Module, name: str, adapt: _Adapt) -> Callable[[int], ImageEncoder] | None:
    """Copies of a network whose parts have drawn their weights afresh; None where a part does not know how to."""
    if not all(_reset(part) for part in model.modules() if next(part.parameters(recurse=False), None) is not None):
        return None

    def drawn_afresh(seed: int) -> ImageEncoder:
        blank = copy.deepcopy(model)
        with zoo.seeded(seed):
            for part in blank.modules():
                if reset := _reset(part):
                    reset()
        return adapt(blank, name)

    return drawn_afresh


def _reset(part: nn.Module) -> Callable[[], object] | None:
    # nn.MultiheadAttention calls it with an underscore
    return getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel."""
    parallel = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = getattr(module, "module" if parallel else "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _checkpoint(text: str) -> Checkpoint:
    path = Path(text).expanduser()
    if not path.exists() and path.suffix not in _SUFFIXES and os.sep not in text:
        known = [f"{library}:{name}" for library in ("timm", "torchvision") for name in zoo.known_names(library)]
        near = closest(f"timm:{text}", known) or closest(f"torchvision:{text}", known)
        fix = "give timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, FILE.py:FUNCTION or the path of a weights file"
        raise UserError(f"{text!r} is neither a model's name nor a file{near}", fix)
    return read_checkpoint(path)


def _no_arch(checkpoint: Checkpoint) -> UserError:
    """What to say of a file whose architecture was not named; the names inside may make it obvious."""
    best = candidates(checkpoint.state, limit=1)
    problem = f"{checkpoint.path} holds weights and not the architecture that they belong to"
    doctor = f"`equibench doctor {checkpoint.path}` shows which ones fit"
    if best and best[0].share >= _OBVIOUS:
        return UserError(f"{problem}; its names fit {best[0].arch}", f"give --arch {best[0].arch}; {doctor}")
    return UserError(problem, f"give --arch {_ARCHS}; {doctor}")
