"""Reading weights that someone else wrote: nothing in the file is ever executed, and every refusal says why.

Two doors only: safetensors, and `torch.load(weights_only=True)`. A file is looked at (kind, declared size, names that
its pickle asks for) before either is opened, so that a bomb costs nothing and a hostile pickle is named.
"""

import argparse
import hashlib
import io
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from equibench.errors import UserError

_MAX_RATIO = 10.0  # torch stores its entries as they are: a ratio of 1, and about 3 when someone zipped it again
_SMALL = 64 * 2**20  # below this many declared bytes a high ratio is harmless
_MAX_DEPTH = 6  # of dictionaries within dictionaries

_WRAPPERS = (
    "state_dict", "model_state_dict", "model", "teacher", "student", "network", "net", "encoder", "backbone",
    "module", "state_dict_ema", "model_ema", "ema",
)  # fmt: skip

# the training options that many papers' checkpoints hold beside the weights; it has attributes and no behaviour
_HARMLESS = argparse.Namespace

_SAVE_AGAIN = (
    "save the weights alone, on the machine where the file was made and only if you trust it:\n"
    '  weights = torch.load("FILE", weights_only=False, map_location="cpu")  # or model.state_dict()\n'
    '  safetensors.torch.save_file({k: v.contiguous() for k, v in weights["state_dict"].items()}, "FILE.safetensors")'
)


@dataclass(frozen=True)
class FileFacts:
    """What can be said of a weights file without loading it."""

    path: Path
    format: str  # safetensors, torch zip, torch legacy, pickle, torchscript, zip, damaged zip, text, empty or unknown
    bytes: int
    declared: int  # bytes that it claims to hold once unpacked (its size, unless it is a zip)
    blocked: tuple[str, ...] = ()  # names that its pickle asks for and that the safe reader refuses
    start: str = ""  # its first characters, where it is text

    @property
    def bomb(self) -> bool:
        """Whether it claims to unpack to far more than weights do."""
        return self.declared > max(_SMALL, _MAX_RATIO * self.bytes)

    @property
    def safe(self) -> bool:
        """Whether one of the two safe readers takes it."""
        return self.format in {"safetensors", "torch zip", "torch legacy"} and not self.blocked and not self.bomb


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, the digest of the file that they came from, and what was done to find them."""

    path: Path
    format: str
    bytes: int
    sha256: str
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


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


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a weights file, taken out of whatever dictionaries they are wrapped in.

    Raises:
        UserError: the file is missing, damaged, unsafe, of another kind, or holds no tensors.
    """
    facts = inspect_file(path)
    _refuse(facts)
    loaded: object
    try:
        if facts.format == "safetensors":
            loaded = safetensors.torch.load_file(facts.path, device="cpu")
        else:
            # opened by us: torch takes a path that ends in .safetensors for one whatever it holds
            with torch.serialization.safe_globals([_HARMLESS]), facts.path.open("rb") as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(facts.path, error) from error
    except Exception as error:  # the readers raise all sorts on damaged bytes, and only there
        if isinstance(error, pickle.UnpicklingError) and "nvalid magic number" not in str(error):
            raise _unsafe(facts, ("something that torch's safe reader does not know",), str(error)) from error
        raise _damaged(facts, error) from error
    state, notes = _unwrapped(loaded, facts.path)
    with facts.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(facts.path, facts.format, facts.bytes, digest, state, tuple(notes))


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
        legacy = (0x1950A86A20F9469CFC6C).to_bytes(10, "little") in head[:20]
        file.seek(0)
        blocked = _blocked(file, pickles=5 if legacy else 1)
        return FileFacts(path, "torch legacy" if legacy else "pickle", size, size, blocked)
    try:
        text = head.decode("utf-8", errors="strict" if size <= 512 else "ignore")
    except UnicodeDecodeError:
        text = ""
    if len(text) > 0.8 * len(head) and all(c.isprintable() or c in "\r\n\t" for c in text):
        return FileFacts(path, "text", size, size, start=text[:60])
    return FileFacts(path, "unknown", size, size)


def _zip_facts(path: Path, size: int) -> FileFacts:
    """Sizes from the central directory, and the names in data.pkl if it is small enough to be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            facts = FileFacts(path, "zip", size, sum(entry.file_size for entry in archive.infolist()))
            if "constants.pkl" in inside:
                return replace(facts, format="torchscript")
            if "data.pkl" not in inside or facts.bomb:
                return facts
            return replace(facts, format="torch zip", blocked=_blocked(io.BytesIO(archive.read(inside["data.pkl"]))))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return FileFacts(path, "damaged zip", size, size)  # cut short: the directory stands at the end


def _blocked(file: IO[bytes], pickles: int = 1) -> tuple[str, ...]:
    """Names that pickles would import and torch's safe reader refuses, from their opcodes without running any."""
    names: set[str] = set()
    strings: list[str] = []
    try:
        for _ in range(pickles):
            for code, argument, _position in pickletools.genops(file):
                if code.name in {"GLOBAL", "INST"}:
                    names.add(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":  # its two strings were pushed before it
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str) and "UNICODE" in code.name:
                    strings.append(argument)
    except Exception:  # damaged or cut short: torch's reader will say so
        pass
    try:  # the list that the safe reader itself goes by
        from torch._weights_only_unpickler import _get_allowed_globals, _get_user_allowed_globals
    except ImportError:  # it has moved: no name is reported in advance, and torch still refuses
        return ()
    allowed = {*_get_allowed_globals(), *_get_user_allowed_globals()}
    return tuple(sorted(names - allowed - {f"{_HARMLESS.__module__}.{_HARMLESS.__qualname__}"}))


def _refuse(facts: FileFacts) -> None:
    """Raise what is wrong with a file that must not be opened."""
    if facts.bomb:
        raise UserError(
            f"{facts.path} was not opened: its {facts.bytes:,} bytes claim to unpack to {facts.declared:,} "
            f"({facts.declared / facts.bytes:,.0f} times as many), and weights do not compress like that",
            "get the file from its authors again; a checkpoint written by torch.save is hardly compressed",
        )
    if facts.blocked:
        raise _unsafe(facts, facts.blocked)
    if facts.format == "damaged zip":
        raise _damaged(facts, "the zip's directory is missing or broken")
    other = "give a .safetensors file, or one that torch.save wrote"
    pointer = "an error page or a Git LFS pointer is often saved in place of the file: download it again"
    reasons = {
        "empty": ("is empty (0 bytes)", "copy or download it again"),
        "torchscript": ("is a TorchScript archive, which holds code; code is never run", _SAVE_AGAIN),
        "text": (f"is a text file, not weights; it begins with {facts.start!r}", pointer),
        "zip": ("is a zip archive that torch.save did not write", other),
        "pickle": ("is a plain pickle, not a torch file", other),
        "unknown": ("is of a kind that is not known", other),
    }
    if reason := reasons.get(facts.format):
        raise UserError(f"{facts.path} {reason[0]}", reason[1])


def _unwrapped(loaded: object, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside nested dictionaries such as {"epoch": 3, "teacher": {"backbone": {...}}}, and notes."""
    notes: list[str] = []
    for _ in range(_MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        inner = [key for key, value in loaded.items() if isinstance(value, Mapping) and _holds_tensors(value)]
        known = [key for key in _WRAPPERS if key in inner]
        direct = any(isinstance(value, Tensor) for value in loaded.values())
        if not inner or (direct and not known):
            return _tensors(loaded, path, notes), notes
        if not known and len(inner) > 1:
            break
        chosen = (known or inner)[0]
        others = [str(key) for key in inner if key != chosen]
        beside = f" (beside it, unused: {', '.join(others[:5])})" if others else ""
        notes.append(f"weights taken from the entry {str(chosen)!r}{beside}")
        loaded = loaded[chosen]
    keys = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
    raise UserError(f"{path} holds no weights by name; it holds: {keys}", "save model.state_dict() and give that file")


def _tensors(loaded: Mapping[Any, Any], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The plain tensors of a dictionary; a note says how much else it held."""
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
    plain = {n: value for n, value in tensors.items() if value.layout == torch.strided and not value.is_quantized}
    if not plain:
        raise UserError(f"{path} holds no tensors", "save model.state_dict() and give that file")
    if len(plain) < len(loaded):
        notes.append(f"{len(loaded) - len(plain)} entries that are not plain tensors were left out")
    return plain


def _holds_tensors(value: Mapping[Any, Any], depth: int = _MAX_DEPTH) -> bool:
    inner = [v for v in value.values() if isinstance(v, Mapping)]
    direct = any(isinstance(v, Tensor) for v in value.values())
    return direct or (depth > 0 and any(_holds_tensors(v, depth - 1) for v in inner))


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}", "check the file's permissions and its disk")


def _unsafe(facts: FileFacts, blocked: tuple[str, ...], detail: str = "") -> UserError:
    listed = ", ".join(blocked[:6]) + (f" and {len(blocked) - 6} more" if len(blocked) > 6 else "")
    tail = f" ({detail.strip().splitlines()[-1][:200]})" if detail.strip() else ""
    problem = f"{facts.path} was not loaded: it asks for more than tensors, which could run code: {listed}{tail}"
    return UserError(problem, _SAVE_AGAIN.replace("FILE", facts.path.name))


def _damaged(facts: FileFacts, why: object) -> UserError:
    first = (str(why).strip().splitlines() or [type(why).__name__])[0][:200]
    problem = f"{facts.path} is cut short or damaged ({facts.bytes:,} bytes): {first}"
    return UserError(problem, "copy or download it again, and compare its size or sha256 with the source's")
