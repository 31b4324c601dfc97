"""Weights that are spread over several files, with an index that says which tensor is in which."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from torch import Tensor

from equibench.encoders.weightfile import Checkpoint, read_file
from equibench.errors import UserError

_INDEX = ".index.json"
_ONE = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")


def find_weights(folder: str | Path) -> Path | None:
    """What to read in a folder of weights: its index of shards, or its only file of a usual name.

    None where it holds neither, or is no folder; a UserError where it holds several indices.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        return None
    for found in (sorted(folder.glob(f"*.safetensors{_INDEX}")), sorted(folder.glob(f"*{_INDEX}"))):
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(one.name for one in found[:4])
            raise UserError(f"{folder} holds several indices of shards: {listed}", f"give one of them: {found[0]}")
    return next((folder / name for name in _ONE if (folder / name).is_file()), None)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a weights file, of a folder that holds one, or of the shards that an index lists.

    The digest of shards is that of their names and digests. A UserError is raised as by `read_file`, and for shards
    that are missing or lack what the index says.
    """
    path = find_weights(path) or Path(path).expanduser()
    if not path.name.endswith(_INDEX):
        checkpoint = read_file(path)
        if _SHARD.search(path.name):
            folder, note = path.parent, "this file is one shard of several"
            note += f"; the whole is read with {folder}" if any(folder.glob(f"*{_INDEX}")) else ""
            return Checkpoint(**{**vars(checkpoint), "notes": (*checkpoint.notes, note)})
        return checkpoint
    places = _weight_map(path)
    names = sorted(set(places.values()))
    if absent := [name for name in names if not (path.parent / name).is_file()]:
        listed = ", ".join(absent[:4])
        raise UserError(
            f"{path} lists shards that are not beside it: {listed}", "copy or download them into its folder"
        )
    shards = {name: read_file(path.parent / name) for name in names}
    state: dict[str, Tensor] = {}
    for tensor, name in places.items():
        if tensor not in shards[name].state:
            problem = f"{path} says that {tensor!r} is in the shard {name}, which does not hold it"
            raise UserError(problem, "the shards are of another version than the index: download all of them again")
        state[tensor] = shards[name].state[tensor]
    digest = hashlib.sha256("\n".join(f"{name} {shard.sha256}" for name, shard in shards.items()).encode()).hexdigest()
    notes = dict.fromkeys(note for shard in shards.values() for note in shard.notes)
    notes |= {f"{len(shards)} shards, as {path.name} lists them": None}
    inert = sorted({name for shard in shards.values() for name in shard.inert})
    size = sum(shard.bytes for shard in shards.values())
    return Checkpoint(path, "shards", size, digest, state, tuple(notes), tuple(inert))


def _weight_map(path: Path) -> dict[str, str]:
    """Shard by tensor, from the index."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        valid = places and all(isinstance(k, str) and isinstance(v, str) for k, v in places.items())
    except FileNotFoundError as error:
        raise UserError(f"weights file not found: {path}", "check the path, or name a model: timm:NAME") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no index of shards ({type(error).__name__})", "download it again") from error
    # a name that leads out of the folder would read another file than the one beside it
    if not valid or any(Path(name).name != name for name in places.values()):
        raise UserError(f"{path} is no index of shards: it must name files beside it", "download it again")
    return dict(places)
