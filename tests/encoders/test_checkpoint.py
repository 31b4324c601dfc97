"""Weights files that are whole, wrapped, damaged or hostile: what is read, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from equibench.encoders.checkpoint import inspect_file, read_checkpoint
from equibench.errors import UserError


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.rand(4, 3), "a.bias": torch.rand(4)}


class Trap:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Shell:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["safetensors", "torch zip", "torch legacy"])
def test_the_three_formats_give_the_same_tensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w"
    if kind == "safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=kind == "torch zip")
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == kind
    assert inspect_file(path).safe
    assert checkpoint.bytes == len(path.read_bytes())
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.state.keys() == weights().keys()
    for name, value in weights().items():
        assert torch.equal(checkpoint.state[name], value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("trap", [Trap, Shell])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path: Path, zipped: bool, trap: type) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    torch.save({"state_dict": weights(), "extra": trap(marker)}, path, _use_new_zipfile_serialization=zipped)
    blocked = inspect_file(path).blocked
    assert len(blocked) >= 1
    with pytest.raises(UserError, match="could run code") as caught:
        read_checkpoint(path)
    assert any(name in str(caught.value) for name in blocked)
    assert ("system" if trap is Shell else "pathlib") in str(caught.value)
    assert "safetensors" in caught.value.fix
    assert not marker.exists()
    # the trap does work where pickles are trusted, so its not having sprung means something
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_is_refused_without_running(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Shell(marker), protocol=protocol))
    with pytest.raises(UserError, match="system"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(UserError, match="plain pickle"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "w.pth")


def test_an_environment_that_allows_pickles_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Trap(tmp_path / "marker")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "marker").exists()


def test_a_bomb_of_zeros_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    inner = tmp_path / "small.pth"
    torch.save(weights(), inner)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bomb:
        with zipfile.ZipFile(inner) as real:
            bomb.writestr("small/data.pkl", real.read("small/data.pkl"))
        bomb.writestr("small/data/0", bytes(4_205_821))
    # the directory is made to declare 4 GiB: packing that many zeros would take the test half a minute
    raw = path.read_bytes().replace((4_205_821).to_bytes(4, "little"), (2**32 - 2**20).to_bytes(4, "little"))
    path.write_bytes(raw)
    tracemalloc.start()
    begun = time.perf_counter()
    with pytest.raises(UserError, match="claim to unpack to 4,29"):
        read_checkpoint(path)
    assert time.perf_counter() - begun < 0.5
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    tracemalloc.stop()
    assert len(raw) < 10_000
    assert not inspect_file(path).safe


def test_a_zipped_again_checkpoint_is_still_read(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "again.pth", "w", zipfile.ZIP_DEFLATED) as again,
        zipfile.ZipFile(tmp_path / "w.pth") as real,
    ):
        for entry in real.infolist():
            again.writestr(entry.filename, real.read(entry))
    assert torch.equal(read_checkpoint(tmp_path / "again.pth").state["a.bias"], weights()["a.bias"])


def test_what_is_no_weights_file(tmp_path: Path) -> None:
    def refused(name: str, content: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=match):
            read_checkpoint(tmp_path / name)

    refused("empty.pth", b"", "is empty")
    refused("page.pth", b"<!DOCTYPE html>\n<html><body>Not found", "text file.*<!DOCTYPE html>")
    refused("noise.pth", np.random.default_rng(0).bytes(5000), "of a kind that is not known")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme.txt", "hello")
    refused("zip.pth", (tmp_path / "other.zip").read_bytes(), "zip archive that torch.save did not write")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="not found"):
        read_checkpoint(tmp_path / "absent.pth")


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as script:
        script.writestr("s/constants.pkl", b"\x80\x02).")
        script.writestr("s/data.pkl", b"\x80\x02).")
    with pytest.raises(UserError, match="TorchScript"):
        read_checkpoint(tmp_path / "s.pt")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_said_to_be_damaged(tmp_path: Path, kind: str, keep: float) -> None:
    path, state = tmp_path / "w", {f"layer{i}.weight": torch.rand(64, 64) for i in range(4)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match="cut short or damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (lambda w: {"state_dict": w, "epoch": 3}, "'state_dict'"),
        (lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)}, "'model'"),
        (lambda w: {"student": {"x.y": torch.zeros(1)}, "teacher": w}, "'teacher'.*unused: student"),
        (lambda w: {"teacher": {"backbone": w, "head": {"z": torch.zeros(1)}}}, "'backbone'"),
        (lambda w: {"my_weights": w}, "'my_weights'"),
    ],
)
def test_wrapped_state_dicts_are_found(tmp_path: Path, wrapped: Any, said: str) -> None:
    torch.save(wrapped(weights()), tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    assert checkpoint.state.keys() == weights().keys()
    assert re.search(said, " | ".join(checkpoint.notes))


def test_entries_that_are_no_tensors_are_counted(tmp_path: Path) -> None:
    torch.save({**weights(), "epoch": 7, "name": "x"}, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    assert checkpoint.state.keys() == weights().keys()
    assert checkpoint.notes == ("2 entries that are not plain tensors were left out",)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, torch.zeros(3), [1, 2], {"a": {"b": {"c": 1}}}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no (tensors|weights)"):
        read_checkpoint(tmp_path / "w.pth")
