"""Reading weights that someone else wrote: nothing in the file is ever executed, and every refusal says why.

Two readers only: safetensors, and the inert unpickler (`encoders/pickles.py`), which calls nothing that a file names. A
file is looked at (kind, declared size) before either is opened, so that a bomb costs nothing. Whatever the tensors are
nested in, they come out under one dotted name each ("teacher.backbone.conv1.weight"): an entry of a dictionary and a
prefix of a name are the same thing to those who look for a network among them (`encoders/coverage.py`).
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from equibench.encoders.pickles import Inert, Loaded, PickleError
from equibench.encoders.torchfile import MAGIC, read_torch_legacy, read_torch_zip
from equibench.errors import UserError

_MAX_RATIO = 10.0  # torch stores its entries as they are: a ratio of 1, and about 3 when someone zipped it again
_SMALL = 64 * 2**20  # below this many declared bytes a high ratio is harmless
_MAX_DEPTH = 64  # of containers within containers
_MAX_PARTS = 1_000_000  # containers and tensors that are visited

# what a pickle calls in order to run code where it is trusted; everything else that is named is data of some program
_CODE = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "pty", "ctypes", "commands",
    "pickle", "marshal", "timeit", "webbrowser", "code", "pip", "requests", "urllib", "http",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__")
      for name in ("eval", "exec", "execfile", "compile", "__import__", "getattr", "open", "apply", "breakpoint")),
}  # fmt: skip

_SAVE_AGAIN = (
    "save the weights alone, on the machine where the file was made and only if you trust it:\n"
    '  weights = torch.load("FILE", weights_only=False, map_location="cpu")  # or model.state_dict()\n'
    '  safetensors.torch.save_file({k: v.contiguous() for k, v in weights["state_dict"].items()}, "FILE.safetensors")'
)


@dataclass(frozen=True)
class FileFacts:
    """What can be said of a weights file without loading it."""

    path: Path
    format: str  # safetensors, shards, torch zip, torch legacy, pickle, torchscript, zip, damaged zip, text, ...
    bytes: int
    declared: int  # bytes that it claims to hold once unpacked (its size, unless it is a zip)
    start: str = ""  # its first characters, where it is text

    @property
    def bomb(self) -> bool:
        """Whether it claims to unpack to far more than weights do."""
        return self.declared > max(_SMALL, _MAX_RATIO * self.bytes)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by dotted name, the digest of the file that they came from, and what was found beside them."""

    path: Path
    format: str
    bytes: int
    sha256: str
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()  # names that the file calls: nothing of the kind was looked up or called

    @property
    def suspicious(self) -> tuple[str, ...]:
        """Those of the names that run code where a pickle is trusted."""
        return tuple(n for n in self.inert if n in _CODE or n.partition(".")[0] in _CODE)


def inspect_file(path: str | Path) -> FileFacts:
    """Look at a weights file without loading or unpacking it; a UserError if it is missing, a folder or unreadable."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a weights file", "give the file inside it (.safetensors, .pth, .pt)")
    try:
        with path.open("rb") as file:
            return _facts(path, path.stat().st_size, file)
    except FileNotFoundError as error:
        raise UserError(f"weights file not found: {path}", "check the path, or name a model: timm:NAME") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def read_file(path: str | Path) -> Checkpoint:
    """The tensors of one weights file.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds no tensors.
    """
    facts = inspect_file(path)
    _refuse(facts)
    try:
        if facts.format == "safetensors":
            loaded = Loaded(safetensors.torch.load_file(facts.path, device="cpu"))
        else:
            loaded = (read_torch_zip if facts.format == "torch zip" else read_torch_legacy)(facts.path)
        state, notes = _named_tensors(loaded.value)
        with facts.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except MemoryError as error:
        raise UserError(f"{facts.path} needs more memory than there is", "use a machine with more memory") from error
    except OSError as error:
        raise _unreadable(facts.path, error) from error
    except Exception as error:  # zipfile, zlib and safetensors raise all sorts on damaged bytes, and only there
        raise _damaged(facts, error) from error
    if not state:
        raise _no_weights(facts.path, loaded.value)
    made = Checkpoint(facts.path, facts.format, facts.bytes, digest, state, tuple(notes), tuple(sorted(loaded.inert)))
    if made.suspicious:
        listed = ", ".join(made.suspicious[:5])
        notes.append(f"the file asks for {listed}, which could run code elsewhere; it was not called")
    return replace(made, notes=tuple(notes))


def _facts(path: Path, size: int, file: IO[bytes]) -> FileFacts:
    head = file.read(512)
    if not head:
        return FileFacts(path, "empty", 0, 0)
    if head[:4] == b"PK\x03\x04":
        return _zip_facts(path, size)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100 * 2**20:
        return FileFacts(path, "safetensors", size, size)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        # torch's own legacy files begin with this number, pickled
        legacy = MAGIC.to_bytes(10, "little") in head[:32]
        return FileFacts(path, "torch legacy" if legacy else "pickle", size, size)
    try:
        text = head.decode("utf-8", errors="strict" if size <= 512 else "ignore")
    except UnicodeDecodeError:
        text = ""
    if len(text) > 0.8 * len(head) and all(c.isprintable() or c in "\r\n\t" for c in text):
        return FileFacts(path, "text", size, size, start=text[:60])
    return FileFacts(path, "unknown", size, size)


def _zip_facts(path: Path, size: int) -> FileFacts:
    """Sizes and names from the central directory."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {entry.filename.partition("/")[2] for entry in archive.infolist()}
            facts = FileFacts(path, "zip", size, sum(entry.file_size for entry in archive.infolist()))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return FileFacts(path, "damaged zip", size, size)  # cut short: the directory stands at the end
    if "constants.pkl" in inside:
        return replace(facts, format="torchscript")
    return replace(facts, format="torch zip") if "data.pkl" in inside else facts


def _refuse(facts: FileFacts) -> None:
    """Raise what is wrong with a file that must not be opened."""
    if facts.bomb:
        raise UserError(
            f"{facts.path} was not opened: its {facts.bytes:,} bytes claim to unpack to {facts.declared:,} "
            f"({facts.declared / facts.bytes:,.0f} times as many), and weights do not compress like that",
            "get the file from its authors again; a checkpoint written by torch.save is hardly compressed",
        )
    if facts.format == "damaged zip":
        raise _damaged(facts, "the zip's directory is missing or broken")
    other = "give a .safetensors file, or one that torch.save wrote"
    pointer = "an error page or a Git LFS pointer is often saved in place of the file: download it again"
    reasons = {
        "empty": ("is empty (0 bytes)", "copy or download it again"),
        "torchscript": ("is a TorchScript archive, which holds code; code is never run", _save_again(facts.path)),
        "text": (f"is a text file, not weights; it begins with {facts.start!r}", pointer),
        "zip": ("is a zip archive that torch.save did not write", other),
        "pickle": ("is a plain pickle, not a torch file", other),
        "unknown": ("is of a kind that is not known", other),
    }
    if reason := reasons.get(facts.format):
        raise UserError(f"{facts.path} {reason[0]}", reason[1])


def _named_tensors(loaded: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Every plain tensor in nested containers, by its dotted name, and notes on other kinds of tensors.

    A module that was pickled whole gives the names of its state_dict.
    """
    found: dict[str, Tensor] = {}
    odd: list[str] = []
    waiting: list[tuple[str, Any, int]] = [("", loaded, 0)]
    visited = 0
    while waiting:
        prefix, value, depth = waiting.pop()
        visited += 1
        if visited > _MAX_PARTS or depth > _MAX_DEPTH:
            raise PickleError("it is nested more deeply or more widely than weights are")
        inner: list[tuple[str, Any, int]] = []
        for key, part in _parts(value):
            name = f"{prefix}{key}"
            if isinstance(part, Tensor):
                while name in found:  # an entry and a dotted name may spell the same: neither replaces the other
                    name += " (again)"
                plain = part.layout == torch.strided and not part.is_quantized
                found[name] = part.detach() if plain else part
                odd += [] if plain else [name]
            elif isinstance(part, dict | list | tuple | Inert):
                inner.append((f"{name}.", part, depth + 1))
            visited += 1
        waiting += reversed(inner)  # taken from the end, so that names keep their order
    notes = [f"tensors of a kind that is not read were left out: {', '.join(odd[:5])}"] if odd else []
    for name in odd:
        del found[name]
    state, entry = _only_entry(found, loaded)
    return state, [*notes, f"weights taken from the entry {entry!r}"] if entry else notes


def _only_entry(state: dict[str, Tensor], loaded: Any) -> tuple[dict[str, Tensor], str]:
    """The tensors without the path of dictionaries that all of them are in, and that path."""
    path: list[str] = []
    while isinstance(loaded, dict) and state:
        key = next((key for key in loaded if next(iter(state)).startswith(f"{key}.")), None)
        if key is None or not isinstance(loaded[key], dict) or not all(n.startswith(f"{key}.") for n in state):
            break
        state = {name.removeprefix(f"{key}."): tensor for name, tensor in state.items()}
        path.append(str(key))
        loaded = loaded[key]
    return state, ".".join(path)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """The named parts of a container."""
    if isinstance(value, dict):
        return [(key, part) for key, part in value.items() if isinstance(key, str | int)]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if not isinstance(value, Inert):
        return []
    if isinstance(value.state, dict) and isinstance(value.state.get("_parameters"), dict):
        transient = value.state.get("_non_persistent_buffers_set") or ()
        parts = [*value.state["_parameters"].items()]
        for kind in ("_buffers", "_modules"):
            if isinstance(inner := value.state.get(kind), dict):
                parts += [(key, part) for key, part in inner.items() if key not in transient]
        return [(key, part) for key, part in parts if isinstance(key, str)]
    return [(key, part) for key, part in value.items.items() if isinstance(key, str)]


def _no_weights(path: Path, value: Any) -> UserError:
    keys = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else f"a {type(value).__name__}"
    return UserError(f"{path} holds no weights by name; it holds: {keys}", "save model.state_dict() and give that file")


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}", "check the file's permissions and its disk")


def _save_again(path: Path) -> str:
    return _SAVE_AGAIN.replace("FILE", path.name)


def _damaged(facts: FileFacts, why: object) -> UserError:
    first = (str(why).strip().splitlines() or [type(why).__name__])[0][:200]
    problem = f"{facts.path} is cut short or damaged ({facts.bytes:,} bytes): {first}"
    return UserError(problem, "copy or download it again, and compare its size or sha256 with the source's")
