"""Mutated pickles through the inert reader, under an audit hook that ends the run if anything but reading happens.

    python benchmarks/fuzz_pickles.py --count 100000

Each mutant of pickles of protocols 0 to 5 (weights, configurations, random states, hostile objects; bare, in torch's
zip and in its older format) must be read or be refused with the reader's own error. Any import, exec, compile, call
into the system, socket, or opening of a file for writing while it is read fails the run, as do another exception, a
mutant that takes longer than a second of the processor's time, and one that makes the process 256 MiB larger.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import contextlib
import datetime
import io
import json
import os
import pathlib
import pickle
import pickletools
import random
import resource
import sys
import tempfile
import time
import zipfile
from functools import partial
from typing import Any

import numpy as np
import torch

from equibench.encoders.pickles import PickleError, StorageRef, read_pickle
from equibench.encoders.weightfile import read_file
from equibench.errors import UserError

FORBIDDEN = (
    "import", "exec", "compile", "subprocess.", "socket.", "os.", "shutil.", "ctypes.", "pickle.find_class", "code.",
    "marshal.", "pty.", "webbrowser.", "urllib.", "ftplib.", "smtplib.", "sqlite3.", "mmap.", "tempfile.",
)  # fmt: skip
HOSTILE = (b"cos\nsystem\n", b"c__builtin__\neval\n", b"\x8c\x02os\x8c\x06system\x93", b"R", b"b", b"(", b"o", b"\x81")
HARMLESS = ("os.listdir", "os.scandir", "os.fspath")
SECONDS, GROWTH = 1.0, 256 * 2**20
armed = False
broken: list[str] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not armed:
        return
    writes = event == "open" and (
        any(mode in str(arguments[1]) for mode in "wax+") or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
    )
    if writes or (event.startswith(FORBIDDEN) and event not in HARMLESS):
        broken.append(f"{event} {str(arguments)[:200]}")
        raise SystemExit(f"forbidden: {broken[-1]}")


class Call:
    """Pickles as a call of what it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what


class Memory:
    """Storages of zeros, up to 64 KiB each."""

    def seen(self, ref: StorageRef) -> None:
        """Nothing to prepare."""

    def read(self, ref: StorageRef) -> torch.Tensor:
        return torch.zeros(min(ref.whole * ref.dtype.itemsize, 65536), dtype=torch.uint8)


def objects() -> list[Any]:
    """What checkpoints hold, and what hostile ones do."""
    weights = collections.OrderedDict((f"layer{i}.weight", torch.rand(3, 2)) for i in range(3))
    return [
        {"state_dict": weights, "epoch": 3, "best": np.float64(0.7), "rng": np.arange(4), "names": {"a", "b"}},
        {"args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")), "when": datetime.datetime(2025, 1, 1)},
        {"log": collections.deque([1.0, 2.0], maxlen=5), "d": collections.defaultdict(list, a=[1]), "c": 1j},
        [
            None,
            True,
            -1,
            2**40,
            -(2**80),
            1.5,
            "text",
            "ü\n",
            b"bytes",
            bytearray(b"x"),
            (1, (2, (3,))),
            frozenset({1}),
        ],
        {"evil": Call(os.system, "true"), "w": torch.rand(2)},
        [
            Call(eval, "1"),
            Call(exec, "x=1"),
            Call(getattr, "x", "upper"),
            Call(__import__, "this"),
            Call(open, "/tmp/x"),
        ],
        torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)),
    ]


def seeds() -> list[tuple[str, bytes]]:
    """Whole pickles by the container that they stand in."""
    found: list[tuple[str, bytes]] = []
    for value in objects():
        for protocol in range(6):
            found.append(("bare", pickle.dumps(value, protocol=protocol)))
            if protocol < 2:
                continue
            for zipped in (True, False):
                buffer = io.BytesIO()
                torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
                found.append(("zip" if zipped else "legacy", buffer.getvalue()))
    return found


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to six small changes: bits, bytes, opcodes, slices, lengths, splices."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(made) + 1) if made else 0
        kind = rng.randrange(9)
        if kind == 0 and made:
            made[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 1 and made:
            made[at - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            made[at:at] = rng.choice(OPCODES) + rng.randbytes(rng.randrange(5))
        elif kind == 3:
            del made[at : at + rng.randrange(1, 20)]
        elif kind == 4:
            made[at:at] = made[at : at + rng.randrange(1, 40)] * rng.randrange(1, 4)
        elif kind == 5 and len(made) > 8:
            made[at : at + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0"))
        elif kind == 6:
            made = made[:at] + other[rng.randrange(len(other) + 1) :]
        elif kind == 7:
            made[at:at] = rng.choice(HOSTILE)
        else:
            del made[at:]
    return bytes(made)


OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]


def rezipped(whole: bytes, mutate: Any) -> bytes:
    """A torch zip with its pickle changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, mutate(data) if entry.filename.endswith("data.pkl") else data)
    return buffer.getvalue()


def read_one(kind: str, data: bytes, path: pathlib.Path) -> str:
    """Read a mutant while the hook is armed: "read" or "refused"."""
    global armed
    file = io.BytesIO(data)
    armed = True
    try:
        if kind == "bare":
            read_pickle(file, Memory())
        else:
            read_file(path)
    except (PickleError, UserError):
        return "refused"
    finally:
        armed = False
    return "read"


def run(count: int, seed: int) -> dict[str, Any]:
    """Read `count` mutants; what happened, by container."""
    rng, corpus = random.Random(seed), seeds()
    bare = [one for one in corpus if one[0] == "bare"]
    found: collections.Counter[str] = collections.Counter()
    slowest, begun = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.pth"
        _warm(corpus, path)
        sys.addaudithook(hook)
        before = _memory()
        for number in range(count):
            # whole files cost a hundred times as much as bare pickles
            kind, data = rng.choice(corpus if number % 10 == 0 else bare)
            mutate = partial(mutated, other=rng.choice(corpus)[1], rng=rng)
            mutant = rezipped(data, mutate) if kind == "zip" else mutate(data)
            if kind != "bare":
                path.write_bytes(mutant)
            started, where = time.process_time(), f"mutant {number} of seed {seed} ({kind})"
            try:
                found[f"{kind}, {read_one(kind, mutant, path)}"] += 1
            except BaseException as error:
                raise SystemExit(f"{where}: {error!r}\n{mutant[:2000]!r}") from error
            took, grown = time.process_time() - started, _memory() - before
            slowest = max(slowest, took)
            if took > SECONDS or grown > GROWTH:
                raise SystemExit(f"{where}: {took:.1f} s, {grown >> 20} MiB\n{mutant[:2000]!r}")
    if broken:
        raise SystemExit(f"forbidden: {broken[0]}")
    seconds = time.perf_counter() - begun
    return {"mutants": count, "seed": seed, "seconds": round(seconds, 1), "slowest_s": round(slowest, 3), **found}


def _warm(corpus: list[tuple[str, bytes]], path: pathlib.Path) -> None:
    """Read all once: codecs and lazy parts of libraries are imported here, and not under the hook."""
    for codec in ("ascii", "cp437", "latin-1", "raw_unicode_escape", "unicode_escape"):
        codecs.lookup(codec)  # the standard library imports them when it first needs them
    for kind, data in corpus:
        path.write_bytes(data)
        with contextlib.suppress(UserError):
            read_pickle(io.BytesIO(data), Memory()) if kind == "bare" else read_file(path)


def _memory() -> int:
    """The largest size that the process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(run(given.count, given.seed)))
