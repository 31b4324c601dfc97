"""The two containers that torch.save writes, a zip and an older sequence of pickles, read with the inert unpickler."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from equibench.encoders.pickles import Loaded, PickleError, StorageRef, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that begins a file of torch's older format, pickled."""
_MAX_PICKLE = 2**30  # bytes of data.pkl, which holds names and no numbers


def read_torch_zip(path: Path) -> Loaded:
    """What a file of torch.save's present format holds; a PickleError or BadZipFile if it is damaged."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if records["data.pkl"].file_size > _MAX_PICKLE:
            raise PickleError("its pickle is larger than 1 GiB")
        storages = _ZipStorages(archive, records)
        pickled = io.BytesIO(storages.record("data.pkl").numpy().tobytes())
        if "byteorder" in records and storages.record("byteorder").numpy().tobytes() == b"big":
            raise PickleError("it was written on a big-endian machine")
        return read_pickle(pickled, storages)


def read_torch_legacy(path: Path) -> Loaded:
    """What a file of torch.save's format before 1.6 holds; a PickleError if it is damaged."""
    with _Bounded(io.FileIO(path)) as file:
        if read_pickle(file).value != MAGIC:
            raise PickleError("it does not begin with torch's number")
        read_pickle(file)  # the format's version, 1001 since the first
        about = read_pickle(file).value
        if isinstance(about, dict) and about.get("little_endian") is False:
            raise PickleError("it was written on a big-endian machine")
        storages = _LegacyStorages(file.size)
        loaded = read_pickle(file, storages)
        keys = read_pickle(file).value
        storages.fill(file, keys if isinstance(keys, list) else [])
        return loaded


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than it holds: memory for a claimed length is taken before it is read."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = raw.seek(0, io.SEEK_END)
        raw.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


class _ZipStorages:
    """Storages that are records of a zip, read when a tensor first asks for one."""

    def __init__(self, archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo]) -> None:
        self.archive, self.records = archive, records
        self.found: dict[str, Tensor] = {}
        self.checked = True

    def seen(self, ref: StorageRef) -> None:
        """A zip's records are found by name: nothing to prepare."""

    def read(self, ref: StorageRef) -> Tensor:
        if ref.key not in self.found:
            if f"data/{ref.key}" not in self.records:
                raise PickleError(f"the numbers of storage {ref.key[:40]!r} are not in the file")
            self.found[ref.key] = self.record(f"data/{ref.key}")
        return self.found[ref.key]

    def record(self, name: str) -> Tensor:
        """A record's bytes, after comparing them with its checksum, unless the file was written without checksums."""
        entry = self.records[name]
        try:
            return self._read(entry)
        except zipfile.BadZipFile as error:
            # torch can be told to write no checksums; then the first record, the pickle, has none either
            if name != "data.pkl" or "CRC" not in str(error):
                raise
            self.checked = False
            return self._read(entry)

    def _read(self, entry: zipfile.ZipInfo) -> Tensor:
        made = torch.empty(entry.file_size, dtype=torch.uint8)
        view, position = made.numpy().data, 0
        with self.archive.open(entry) as stream:
            if not self.checked:
                stream._expected_crc = None  # type: ignore[attr-defined]
            while count := stream.readinto(view[position:]):  # type: ignore[attr-defined]
                position += count
        if position < entry.file_size:
            raise PickleError(f"record {entry.filename[:60]!r} is cut short")
        return made


class _LegacyStorages:
    """Storages that stand behind the pickle: made when they are mentioned, filled afterwards."""

    def __init__(self, size: int) -> None:
        self.left = size  # bytes: all storages together are not larger than the file
        self.found: dict[str, tuple[StorageRef, Tensor]] = {}

    def seen(self, ref: StorageRef) -> None:
        if ref.key in self.found:
            return
        count = ref.whole * ref.dtype.itemsize
        self.left -= count
        if self.left < 0:
            raise PickleError("its tensors claim more numbers than the file holds")
        self.found[ref.key] = (ref, torch.empty(count, dtype=torch.uint8))

    def read(self, ref: StorageRef) -> Tensor:
        return self.found[ref.key][1]

    def fill(self, file: IO[bytes], keys: list[Any]) -> None:
        """Read the numbers, in the order of their keys, each stretch behind its length."""
        for key in keys:
            if str(key) not in self.found:
                raise PickleError(f"it holds a storage {str(key)[:40]!r} that nothing refers to")
            ref, made = self.found.pop(str(key))
            head = file.read(8)
            if len(head) < 8 or struct.unpack("<q", head)[0] != ref.whole:
                raise PickleError(f"the numbers of storage {ref.key[:40]!r} are cut short")
            if file.readinto(made.numpy().data) < made.numel():  # type: ignore[attr-defined]
                raise PickleError(f"the numbers of storage {ref.key[:40]!r} are cut short")
        if self.found:
            raise PickleError("some of its tensors have no numbers")
