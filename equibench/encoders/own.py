"""Architectures of one's own: a Python file that builds one, transformers' AutoModel, open_clip's image tower.

    build_from_file("model.py:build")             # runs model.py and calls build()
    build_transformers("facebook/dinov2-small")   # or a folder: "./folder"
    build_open_clip("ViT-B-32@openai")            # NAME, or NAME@TAG where trained weights are wanted

Of a network from a library, its preprocessing (`pretrained_cfg`) and the number of its leading tokens that are no
patches (`num_prefix_tokens`) are written where timm's networks have them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from equibench.errors import UserError, closest

OWN_LIBRARIES = ("hf", "open_clip")
_PACKAGES = {"transformers": "transformers", "open_clip": "open-clip-torch"}
_FILE = re.compile(r"(.+\.py)(?::(.*))?", re.DOTALL)
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_DIGITS = 12


def is_python_file(arch: str) -> bool:
    """Whether an architecture is a Python file with a function, "FILE.py:FUNCTION", or such a file alone."""
    return _FILE.fullmatch(arch) is not None


def is_local(arch: str) -> bool:
    """Whether an architecture is what lies on this machine, so that its name says little to others."""
    return is_python_file(arch) or _local_folder(arch) is not None


def own_label(arch: str) -> str:
    """The architecture's name in records: a Python file's with a digest of its source, a folder's without its path."""
    if is_python_file(arch):
        path, function = _parted(arch)
        return f"{path.name}:{function} (Python file, run; sha256 {_source_sha256(path)[:_DIGITS]})"
    folder = _local_folder(arch)
    return f"hf:{folder.resolve().name}" if folder else arch


def build_from_file(arch: str) -> nn.Module:
    """Run a Python file and call its function without arguments: "FILE.py:FUNCTION" -> what it returns.

    The file's code is trusted: it is run. Its folder is on Python's path meanwhile, and what has not changed is run
    once. A UserError is raised where the file or the function is not there, where either raises (with the line), and
    where no nn.Module is returned.
    """
    path, function = _parted(arch)
    with _on_path(path.parent):
        module = _imported(path)
        build = getattr(module, function, None)
        if not callable(build):
            known = [
                n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
            ]
            problem = f"{path} has no function {function!r}{closest(function, known)}"
            raise UserError(problem, f"give {path}:NAME; it defines: {', '.join(known) or 'none'}")
        try:
            model = build()
        except (Exception, SystemExit) as error:
            raise _raised(path, error, f"{function}() ") from error
    if not isinstance(model, nn.Module):
        problem = f"{function}() of {path} returned {_article(model)}, not an nn.Module"
        raise UserError(problem, f"let it end with `return model`: {function}() takes nothing and returns the network")
    return model


@torch.no_grad()
def is_drawn_at_random(one: nn.Module, other: nn.Module) -> bool:
    """Whether a function draws all weights that it gives its network: `one` and `other` are of two seeds.

    Looked at are trainable weights of two or more dimensions that are not constant; False where there are none.
    """
    theirs = dict(other.named_parameters())
    looked = [
        (n, p) for n, p in one.named_parameters() if p.requires_grad and p.ndim > 1 and (p != p.flatten()[0]).any()
    ]
    return bool(looked) and not any(n in theirs and torch.equal(p, theirs[n]) for n, p in looked)


def build_transformers(name: str, pretrained: bool, size: int | None) -> nn.Module:
    """transformers' AutoModel of a name on the hub or of a folder; of a model with several towers the image tower.

    Its output is `last_hidden_state`: tokens (N, L, D), or a map (N, C, h, w). A pooler with weights is left out: its
    output is not looked at, and many files lack it. No code of the hub is run.

    Raises:
        UserError: transformers is not installed; the folder holds no configuration; it is no image model, or one that
            hides patches at random; a weight is not in the file.
    """
    library = _library("transformers")
    folder = _local_folder(f"hf:{name}")
    if folder is not None and not (folder / "config.json").is_file():
        problem = f"{folder} holds no config.json" if folder.is_dir() else f"folder not found: {folder}"
        raise UserError(problem, "give a folder that save_pretrained wrote: hf:./FOLDER, or hf:ORG/NAME of the hub")
    source = str(folder or name)
    config = library.AutoConfig.from_pretrained(source)
    if hasattr(config, "mask_ratio"):
        problem = f"hf:{name} ({config.model_type}) hides patches at random in every pass"
        raise UserError(problem, "give its file of weights with --arch timm:NAME of the same ViT")
    if pretrained:
        try:
            model, found = library.AutoModel.from_pretrained(source, config=config, output_loading_info=True)
        except OSError as error:
            if folder is None:
                raise
            problem = f"{folder} holds no weights that transformers reads ({str(error).splitlines()[0]})"
            raise UserError(problem, f"a file of weights goes with --arch hf:{name}") from error
    else:
        model, found = library.AutoModel.from_config(config), {}
    body = getattr(model, "vision_model", model)
    if getattr(body, "main_input_name", "pixel_values") != "pixel_values":
        raise UserError(f"hf:{name} ({type(body).__name__}) takes no images", "give an image model")
    _check_all_loaded(f"hf:{name}", found, "" if body is model else "vision_model.")
    pooler = getattr(body, "pooler", None)
    if isinstance(pooler, nn.Module) and next(pooler.parameters(), None) is not None:
        body.pooler = nn.Identity()
    own = _processor_config(library, source, getattr(config, "vision_config", config))
    takes_size = "interpolate_pos_encoding" in inspect.signature(body.forward).parameters
    if size is not None and size != own["input_size"][-1] and takes_size:
        body.forward = partial(body.forward, interpolate_pos_encoding=True)
    return _described(body.float(), own, _leading_tokens(body), library)


def build_open_clip(name: str, pretrained: bool, size: int | None) -> nn.Module:
    """The image tower of an open_clip model: NAME, or NAME@TAG, whose output is the image's embedding (N, D).

    Raises:
        UserError: open_clip is not installed, or has no such model or weights.
    """
    library = _library("open_clip")
    name, _, tag = name.partition("@")
    if not name.startswith("hf-hub:") and name not in library.list_models():
        problem = f"open_clip has no model {name!r}{closest(name, library.list_models())}"
        raise UserError(
            problem, "`python -c 'import open_clip; print(open_clip.list_models())'` lists those that it has"
        )
    tags = [t for n, t in library.list_pretrained() if n == name]
    if pretrained and tag not in tags and not name.startswith("hf-hub:"):
        problem = f"open_clip:{name} has no weights called {tag!r}{closest(tag, tags)}" if tag else ""
        problem = problem or f"open_clip:{name} does not say which of its weights are meant"
        raise UserError(
            problem, f"give open_clip:{name}@TAG with one of: {', '.join(tags) or 'none'}; or --no-pretrained"
        )
    options: dict[str, Any] = {"force_image_size": size} if size is not None else {}
    model = library.create_model(name, pretrained=(tag or None) if pretrained else None, **options)
    tower = model.visual
    side = tower.image_size
    own = {
        "input_size": (3, *([side] * 2 if isinstance(side, int) else side)),
        "mean": tuple(getattr(tower, "image_mean", None) or library.OPENAI_DATASET_MEAN),
        "std": tuple(getattr(tower, "image_std", None) or library.OPENAI_DATASET_STD),
        "interpolation": (getattr(tower, "preprocess_cfg", None) or {}).get("interpolation", "bicubic"),
    }
    trunk = getattr(tower, "trunk", None)  # a tower of timm's
    prefix = int(getattr(trunk, "num_prefix_tokens", 0)) if trunk is not None else _leading_tokens(tower)
    return _described(tower.float(), own, prefix, library)


# --- a Python file ----------------------------------------------------------------------------------------------------


def _parted(arch: str) -> tuple[Path, str]:
    """A file that is there, and the function's name."""
    found = _FILE.fullmatch(arch)
    assert found is not None
    path, function = Path(found[1]).expanduser(), found[2]
    if not path.is_file():
        raise UserError(f"Python file not found: {path}", "give the path of a file and its function: FILE.py:FUNCTION")
    if not function:
        raise UserError(f"{arch} does not say which function builds the network", f"give {path}:FUNCTION")
    return path, function


def _source_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _imported(path: Path) -> ModuleType:
    """The file as a module, run anew once it has changed."""
    source = path.resolve()
    # a class's module is part of an encoder's identity, to which the folder must not matter
    name = f"equibench_arch_{source.stem}_{_source_sha256(source)[:_DIGITS]}"
    if (known := sys.modules.get(name)) is not None and known.__file__ == str(source):
        return known
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, and the digest of a class's source, look for it there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _raised(path, error) from error
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Modules beside the file can be imported, as where the file is run as a script."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)


def _raised(path: Path, error: BaseException, what: str = "") -> UserError:
    source = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"{path}{f', line {line}' if line else ''}"
    return UserError(f"{where}: {what}raised {type(error).__name__}: {error}", "mend the file and run again")


def _article(value: object) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


# --- libraries --------------------------------------------------------------------------------------------------------


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        why = "is not installed" if getattr(error, "name", None) == name else f"cannot be imported ({error})"
        raise UserError(f"{name} {why}, which this architecture needs", f"pip install {_PACKAGES[name]}") from error


def _local_folder(arch: str) -> Path | None:
    """The folder that "hf:./folder" means; None for a name on the hub, and for other architectures."""
    library, _, name = arch.partition(":")
    path = Path(name).expanduser()
    return path if library == "hf" and name and (name[0] in "./~" or path.is_dir()) else None


def _check_all_loaded(arch: str, found: Mapping[str, Any], tower: str) -> None:
    """transformers leaves what a file lacks at random, with no more than a warning."""
    missing = [n for n in sorted(found.get("missing_keys") or ()) if n.startswith(tower) and "pooler." not in n]
    if missing:
        problem = f"{arch} lacks weights, which would stay random: {', '.join(missing[:6])}"
        raise UserError(
            problem + (f" and {len(missing) - 6} more" if len(missing) > 6 else ""), "get its weights again"
        )


def _leading_tokens(body: nn.Module) -> int:
    """How many tokens stand before the patches': class and distillation token, registers."""
    count = 0
    for name, value in body.named_parameters():
        last = name.rpartition(".")[2]
        if last in ("cls_token", "class_embedding", "class_token", "distillation_token"):
            count += 1
        elif last in ("register_tokens", "reg_token"):
            count += value.shape[-2]
    return count


def _processor_config(library: Any, source: str, config: Any) -> dict[str, Any]:
    """Size, mean, std and interpolation in timm's words; ImageNet's where no image processor is stored."""
    side = _side(getattr(config, "image_size", None)) or 224
    try:
        own = library.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError):
        return {"input_size": (3, side, side)}
    cut = getattr(own, "crop_size", None) if getattr(own, "do_center_crop", False) else None
    side = _side(cut) or _side(getattr(own, "size", None)) or side
    normal = getattr(own, "do_normalize", True)
    mean, std = (own.image_mean, own.image_std) if normal else ((0.0,) * 3, (1.0,) * 3)
    mode = _RESAMPLING.get(getattr(own, "resample", 2), "bicubic")
    return {"input_size": (3, side, side), "mean": tuple(mean), "std": tuple(std), "interpolation": mode}


def _side(value: Any) -> int | None:
    """Pixels of a size that is a number, a pair, or has a height or a shortest edge."""
    if isinstance(value, int | None):
        return value
    if isinstance(value, list | tuple):
        return int(value[0])
    get: Callable[..., Any] = value.get if isinstance(value, Mapping) else partial(getattr, value)
    for key in ("height", "shortest_edge"):
        if (found := get(key, None)) is not None:
            return int(found)
    return None


def _described(body: nn.Module, config: Mapping[str, Any], prefix: int, library: Any) -> nn.Module:
    whole: Any = body
    for part in body.modules():
        if hasattr(part, "name_or_path"):  # the folder's path, which says nothing of the network
            vars(part)["name_or_path"] = ""
    whole.pretrained_cfg, whole.num_prefix_tokens = dict(config), prefix
    # a plain setting of the network, and so a part of its digest: the library's functions are in no other
    whole.library = f"{library.__name__} {library.__version__}"
    return body
