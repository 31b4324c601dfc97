"""The inert unpickler: values as Python's own gives them, names never looked up, and no bytes that hang or burst it."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pickle
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equibench.encoders.pickles import Inert, Name, PickleError, read_pickle

FUZZ = Path(__file__).parents[2] / "benchmarks/fuzz_pickles.py"
PLAIN = [
    None, True, False, 0, -1, 255, 65536, 2**31, -(2**80), 1.5, float("inf"), "", "ü\n\\x", "x" * 300, b"", b"\0\xff",
    (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2, [3]]], {}, {"a": {1: (None, "b")}},
]  # fmt: skip


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data)).value


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_as_python_reads_them(protocol: int) -> None:
    shared: list[Any] = ["shared"]
    values: list[Any] = [*PLAIN, shared, shared]
    if protocol >= 1:
        values += [collections.OrderedDict(a=1), collections.defaultdict(list, a=[1])]
    if protocol >= 4:
        values += [{"a", "b"}, frozenset({1})]
    if protocol < 3:
        values = [value for value in values if not isinstance(value, bytes)]  # a call of codecs.encode there
    data = pickle.dumps(values, protocol=protocol)
    found = read(data)
    expected = pickle.loads(data)
    assert [set(v) if isinstance(v, frozenset) else v for v in expected] == found
    where = values.index(shared)
    assert found[where] is found[where + 1]


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_not_known_holds_its_parts_and_does_nothing(protocol: int) -> None:
    when = datetime.datetime(2025, 1, 1)
    values = [
        argparse.Namespace(lr=0.1),
        np.float64(1.5),
        np.arange(3),
        when,
        Path("/x"),
        collections.deque([1]),
        int,
        1j,
    ]
    loaded = read_pickle(io.BytesIO(pickle.dumps(values, protocol=protocol)))
    assert all(isinstance(value, Inert | Name) for value in loaded.value)
    assert loaded.value[6].name in ("int", "long")
    assert loaded.value[0].state == {"lr": 0.1}
    assert any("deque" in name for name in loaded.inert) or protocol < 2
    kept = collections.UserDict(a=1)
    assert read(pickle.dumps(kept, protocol=protocol)).state == {"data": {"a": 1}}


def test_the_file_is_left_behind_the_pickle() -> None:
    file = io.BytesIO(pickle.dumps("one") + pickle.dumps("two") + b"rest")
    assert (read_pickle(file).value, read_pickle(file).value, file.read()) == ("one", "two", b"rest")


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"garbage", b"\x80\x04", b"\x80\x04]", b"(.", b"t.", b"0.", b"2.", b"R.", b"]a.", b"}s.", b"g9\n.",
        b"(lp0\nI1\na", b"\x8a\xff.", b"}(I1\nu.", b"I1\nI2\n\x93.", b"b.", b"\x85.", b"e.", b"\xffx",
        b"I" + b"9" * 9999 + b"\n.",
    ],
)  # fmt: skip
def test_bytes_that_contradict_themselves_are_refused(data: bytes) -> None:
    with pytest.raises(PickleError):
        read(data)


BOMBS = {
    "a long of 2 GiB": b"\x8b\xff\xff\xff\x7f1.",
    "bytes of 8 EiB": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "a text of 4 GiB": b"X\xff\xff\xff\xffx.",
    "a frame of 8 EiB": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "a memo of 2**32 places": b"Nr\xff\xff\xff\xff0.",
    "a bytearray of 8 EiB": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fx.",
    "100,000 tuples in each other": b")" + b"\x85" * 100_000 + b".",
    "a tuple of 100,000 levels as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "100,000 lists in each other": b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list that holds itself": b"]q\0h\0a.",
    "doubling references": b"]" + b"(22l" * 20_000 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_few_bytes_take_much_memory_or_time(name: str) -> None:
    tracemalloc.start()
    begun = time.process_time()
    try:
        read(BOMBS[name])
    except PickleError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20
    assert time.process_time() - begun < 5


def test_a_pickle_of_too_many_opcodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = b"(" + b"]" * 50 + b"l."
    assert len(read(many)) == 50
    monkeypatch.setattr("equibench.encoders.pickles._MAX_OPCODES", 40)
    with pytest.raises(PickleError, match="opcodes"):
        read(many)


def fuzz(code: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(FUZZ.parent)!r})\nimport fuzz_pickles as f\n{code}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mutated_pickles_are_read_or_refused_and_do_nothing_else() -> None:
    """A short run of benchmarks/fuzz_pickles.py, whose audit hook cannot be taken off again: hence a process."""
    done = fuzz(
        "found = f.run(2000, seed=7)\nassert found['bare, read'] > 50, found\nassert found['zip, read'] > 0, found"
    )
    assert done.returncode == 0, done.stderr[:2000]


def test_the_hook_does_end_a_run_in_which_a_name_is_called() -> None:
    done = fuzz(
        "import pickle\n"
        "f.read_pickle = lambda file, _=None: pickle.loads(file.getvalue())\n"
        "f.seeds = lambda: [('bare', pickle.dumps([f.Call(eval, '1')]))]\n"
        "f.mutated = lambda data, **_: data\n"
        "f.run(10, 0)"
    )
    assert done.returncode == 1
    assert "forbidden" in done.stderr
