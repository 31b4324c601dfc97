"""Reading a pickle without importing or calling anything that it names: unknown names become inert placeholders.

Python's own unpickler resolves names and calls what it finds. This one is a stack machine over `pickletools.genops`,
the standard library's parser of opcodes. Of the names in a file it knows only those with which torch builds tensors,
and what it does for them is written here. All else (a Namespace, a date, `os.system`) becomes an `Inert` value, which
holds the name, and the items and state that the pickle put into it, and does nothing.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import torch
from torch import Tensor

_MAX_OPCODES = 10_000_000  # an opcode of one byte can make an object of 64
_MAX_VIEW = 2**24  # elements of a view larger than its storage (an expanded tensor): more would be a bomb once copied

DTYPES: dict[str, torch.dtype] = {
    **{str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
}
"""Kinds of numbers by torch's names for them."""
STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
"""Kinds of numbers by the classes of storage that files name; an untyped storage counts bytes."""


class PickleError(ValueError):
    """The bytes are no pickle, or one that its own opcodes contradict."""


@dataclass(frozen=True)
class Name:
    """A name that a pickle mentions ("module", "qualified.name"); it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """What stands for an object of a kind that is not known: what the pickle put into it, and no behaviour."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict)  # if it was filled like a dictionary
    state: Any = None  # what its class would have got as `__setstate__`'s argument


@dataclass(frozen=True)
class StorageRef:
    """A stretch of numbers kept outside the pickle; `key` is its name in the file."""

    key: str
    dtype: torch.dtype
    whole: int  # number of elements of `dtype` that are stored, as the pickle claims
    start: int = 0  # first element, where it is a view of another storage
    numel: int = 0  # number of elements from there


class Storages(Protocol):
    """Where the numbers of a pickle's tensors are."""

    def seen(self, ref: StorageRef) -> None:
        """The pickle has mentioned a storage."""

    def read(self, ref: StorageRef) -> Tensor:
        """The stored bytes as a flat uint8 tensor, the same one at each call; a PickleError if they are not there."""


@dataclass
class Loaded:
    """What a pickle holds."""

    value: Any
    inert: dict[str, int] = field(default_factory=dict)  # names that were called or filled, and that nothing stands for


class _Machine:
    """The state of one pickle being read."""

    def __init__(self, storages: Storages | None) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages
        self.inert: dict[str, int] = {}

    def pop(self) -> Any:
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise PickleError("the pickle takes more from its stack than it put there")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise PickleError("the pickle uses a value that is not there")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("the pickle ends a group that it did not begin")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def note(self, name: object) -> Inert:
        text = str(name)[:200] if isinstance(name, Name) else "a call of no name"
        if text in self.inert or len(self.inert) < 10_000:
            self.inert[text] = self.inert.get(text, 0) + 1
        return Inert(text)

    def call(self, function: Any, arguments: Any) -> Any:
        """What stands for `function(*arguments)`: a tensor, a dictionary, or a placeholder."""
        arguments = arguments if isinstance(arguments, tuple) else ()
        if isinstance(function, Name) and (build := _BUILDERS.get(str(function))) is not None:
            try:
                return build(self, *arguments)
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                if isinstance(error, PickleError):
                    raise
                # a tensor whose description makes no sense is none
        return self.note(function)


def read_pickle(file: IO[bytes], storages: Storages | None = None) -> Loaded:
    """Read one pickle of any protocol; the file is left at the byte behind it.

    Values are None, numbers, texts, bytes, tuples, lists, dictionaries, sets, tensors, `Name`, `Inert`, `StorageRef`.

    Args:
        file: open for reading in binary, at the beginning of the pickle.
        storages: where the tensors' numbers are; None: tensors become placeholders.

    Raises:
        PickleError: what is there is no pickle, is cut short, or contradicts itself.
    """
    machine = _Machine(storages)
    try:
        for count, (code, argument, _position) in enumerate(pickletools.genops(file)):
            if count > _MAX_OPCODES:
                raise PickleError(f"the pickle has more than {_MAX_OPCODES:,} opcodes, far more than weights need")
            if code.name == "STOP":
                return Loaded(machine.pop(), machine.inert)
            _OPCODES[code.name](machine, argument)
    except PickleError:
        raise
    except KeyError as error:
        raise PickleError(f"the pickle refers to {str(error)[:80]}, which it does not hold") from error
    except (ValueError, TypeError, IndexError, OverflowError, UnicodeError, AttributeError) as error:
        raise PickleError(str(error)[:200] or type(error).__name__) from error
    raise PickleError("the pickle does not end")


# --- what opcodes do ------------------------------------------------------------------------------------------------


def _key(value: Any) -> Hashable | None:
    """A value that may be a dictionary's key: deep ones are not, since hashing them recurses without a bound."""
    simple = (str, bytes, int, float, complex, bool, type(None))
    if isinstance(value, tuple):
        return value if len(value) < 16 and all(isinstance(part, simple) for part in value) else None
    return value if isinstance(value, (*simple, Name)) else None


def _set_items(m: _Machine, target: Any, pairs: list[Any]) -> None:
    if len(pairs) % 2:
        raise PickleError("a dictionary's keys and values do not pair up")
    items = target if isinstance(target, dict) else target.items if isinstance(target, Inert) else None
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if items is not None and (_key(key) is not None or key is None):
            items[key] = value


def _append(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif isinstance(target, set):
        target.update(value for value in values if _key(value) is not None)


def _dictionary(m: _Machine, pairs: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(m, made, pairs)
    return made


def _build(m: _Machine) -> None:
    state, target = m.pop(), m.top()
    if isinstance(target, Inert):
        target.state = state


def _global(m: _Machine, text: str) -> None:
    module, _, name = text.partition(" ")
    m.stack.append(Name(module, name))


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError("a name is not a text")
    m.stack.append(Name(module, name))


def _persistent(m: _Machine, identifier: Any) -> None:
    """torch's reference to a storage: ("storage", class, key, device, number of elements[, view])."""
    if not (isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage"):
        m.stack.append(m.note(None))
        return
    _, kind, key, _device, numel, *rest = identifier
    if isinstance(kind, Inert):  # older files describe the class with its source
        kind = kind.state
    dtype = STORAGES.get(kind.name.rpartition(".")[2]) if isinstance(kind, Name) else None
    if dtype is None or not isinstance(numel, int) or numel < 0 or not isinstance(key, str | int):
        m.stack.append(m.note(kind))
        return
    start, whole = 0, numel
    if rest and isinstance(rest[0], tuple) and len(rest[0]) == 3:  # a view: (its own key, offset, size)
        _, start, numel = rest[0]
        if not (isinstance(start, int) and isinstance(numel, int) and start >= 0 and numel >= 0):
            raise PickleError("a storage's view makes no sense")
    ref = StorageRef(str(key), dtype, whole, start, numel)
    if m.storages is not None:
        m.storages.seen(ref)
    m.stack.append(ref)


def _reduce(m: _Machine) -> None:
    arguments, function = m.pop(), m.pop()
    m.stack.append(m.call(function, arguments))


def _new_object_with_names(m: _Machine) -> None:
    m.pop(), m.pop()
    m.stack.append(m.call(m.pop(), None))


def _object(m: _Machine) -> None:
    kind, *arguments = m.since_mark() or [None]
    m.stack.append(m.call(kind, tuple(arguments)))


def _inst(m: _Machine, text: str) -> None:
    arguments = m.since_mark()
    module, _, name = text.partition(" ")
    m.stack.append(m.call(Name(module, name), tuple(arguments)))


def _take(m: _Machine, count: int) -> tuple[Any, ...]:
    values = [m.pop() for _ in range(count)]
    return tuple(reversed(values))


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.top()


def _pop(m: _Machine) -> None:
    if m.marks and len(m.stack) == m.marks[-1]:  # a mark stands on the stack like a value
        m.marks.pop()
    else:
        m.pop()


def _set_item(m: _Machine) -> None:
    key, value = _take(m, 2)
    _set_items(m, m.top(), [key, value])


def _append_one(m: _Machine) -> None:
    value = m.pop()
    _append(m.top(), [value])


def _many(act: Callable[[_Machine, Any, list[Any]], None]) -> Callable[[_Machine, Any], None]:
    def run(m: _Machine, _: Any) -> None:
        values = m.since_mark()
        act(m, m.top(), values)

    return run


def _push(make: Callable[[_Machine, Any], Any]) -> Callable[[_Machine, Any], None]:
    return lambda m, argument: m.stack.append(make(m, argument))


_Step = Callable[[_Machine, Any], None]
_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
)  # fmt: skip
_OPCODES: dict[str, _Step] = {
    **dict.fromkeys(_VALUES, lambda m, value: m.stack.append(value)),
    **dict.fromkeys(("PROTO", "FRAME", "READONLY_BUFFER"), lambda m, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.stack.append(m.memo[index])),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER"), _push(lambda m, _: m.note(None))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: _reduce(m)),
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    "NONE": _push(lambda m, _: None),
    "NEWTRUE": _push(lambda m, _: True),
    "NEWFALSE": _push(lambda m, _: False),
    "EMPTY_LIST": _push(lambda m, _: []),
    "EMPTY_TUPLE": _push(lambda m, _: ()),
    "EMPTY_DICT": _push(lambda m, _: {}),
    "EMPTY_SET": _push(lambda m, _: set()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "LIST": _push(lambda m, _: m.since_mark()),
    "TUPLE": _push(lambda m, _: tuple(m.since_mark())),
    "DICT": _push(lambda m, _: _dictionary(m, m.since_mark())),
    "FROZENSET": _push(lambda m, _: {v for v in m.since_mark() if _key(v) is not None}),
    "TUPLE1": _push(lambda m, _: _take(m, 1)),
    "TUPLE2": _push(lambda m, _: _take(m, 2)),
    "TUPLE3": _push(lambda m, _: _take(m, 3)),
    "APPEND": lambda m, _: _append_one(m),
    "APPENDS": _many(lambda m, target, values: _append(target, values)),
    "ADDITEMS": _many(lambda m, target, values: _append(target, values)),
    "SETITEM": lambda m, _: _set_item(m),
    "SETITEMS": _many(_set_items),
    "POP": lambda m, _: _pop(m),
    "POP_MARK": lambda m, _: m.since_mark().clear(),
    "DUP": _push(lambda m, _: m.top()),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda m, _: _stack_global(m),
    "BUILD": lambda m, _: _build(m),
    "INST": _inst,
    "OBJ": lambda m, _: _object(m),
    "NEWOBJ_EX": lambda m, _: _new_object_with_names(m),
    "PERSID": _push(lambda m, _: m.note(None)),
    "BINPERSID": lambda m, _: _persistent(m, m.pop()),
}


# --- what the known names build -------------------------------------------------------------------------------------


def _view(m: _Machine, ref: Any, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    """A strided view of a storage, after checking that it lies within it."""
    if m.storages is None or not isinstance(ref, StorageRef):
        raise ValueError("no storage")
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in (*size, *stride, offset)):
        raise ValueError("sizes and strides make no sense")
    raw, width = m.storages.read(ref), dtype.itemsize
    start = ref.start * ref.dtype.itemsize
    raw = raw[start : start + ref.numel * ref.dtype.itemsize]
    if raw.numel() < ref.numel * ref.dtype.itemsize:
        raise PickleError(f"the numbers of storage {ref.key[:40]!r} are cut short")
    numel = 1
    for n in size:
        numel *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else offset - 1
    if last >= raw.numel() // width or numel > max(raw.numel() // width, _MAX_VIEW):
        raise PickleError(f"a tensor reaches beyond its storage {ref.key[:40]!r}")
    if start % width:
        raw = raw.clone()
    flat = raw[: raw.numel() // width * width].view(dtype)
    return flat.as_strided(size, stride, flat.storage_offset() + offset)


def _tensor(m: _Machine, ref: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(ref, StorageRef):
        raise ValueError("no storage")
    return _view(m, ref, ref.dtype, offset, size, stride)


def _tensor_of_dtype(
    m: _Machine, ref: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    return _view(m, ref, _dtype(dtype), offset, size, stride)


def _dtype(name: Any) -> torch.dtype:
    if not isinstance(name, Name) or name.module != "torch" or name.name not in DTYPES:
        raise ValueError("no kind of number")
    return DTYPES[name.name]


def _meta(m: _Machine, dtype: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    size = tuple(size)
    if not all(type(n) is int and 0 <= n < 2**40 for n in size):
        raise ValueError("sizes make no sense")
    return torch.empty(size, dtype=_dtype(dtype), device="meta")


def _inner(m: _Machine, data: Any, *_: Any) -> Any:
    """A parameter: what matters is its data."""
    if not isinstance(data, Tensor):
        raise ValueError("no tensor")
    return data


def _from_type(m: _Machine, function: Any, _kind: Any = None, arguments: Any = (), *_: Any) -> Any:
    """A tensor of a subclass, or one with attributes."""
    return m.call(function, arguments)


def _mapping(m: _Machine, *arguments: Any) -> dict[Any, Any]:
    """An ordered or default dictionary; one of its arguments may be the pairs."""
    made: dict[Any, Any] = {}
    for given in arguments:
        if isinstance(given, Mapping):
            made.update(given)
        elif isinstance(given, list | tuple):
            for pair in given:
                if isinstance(pair, list | tuple) and len(pair) == 2:
                    _set_items(m, made, list(pair))
    return made


def _size(m: _Machine, size: Any = (), *_: Any) -> tuple[Any, ...]:
    return tuple(size)


def _set(m: _Machine, values: Any = (), *_: Any) -> set[Any]:
    return {value for value in values if _key(value) is not None}


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _inner,
    "torch._utils._rebuild_parameter_with_state": _inner,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch.Size": _size,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "__builtin__.set": _set,
}
