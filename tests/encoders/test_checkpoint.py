"""Weights files that are whole, wrapped, damaged or hostile: what is read, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
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

from equibench.encoders.checkpoint import read_checkpoint
from equibench.encoders.weightfile import inspect_file
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
    checkpoint = read_checkpoint(path)
    assert torch.equal(checkpoint.state["a.weight"], weights()["a.weight"])
    (name,) = checkpoint.suspicious
    assert ("system" if trap is Shell else "getattr") in name
    assert any(name in note and "not called" in note for note in checkpoint.notes)
    assert not marker.exists()
    # the trap does work where pickles are trusted, so its not having sprung means something
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_plain_pickle_is_refused_without_running(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(Shell(marker), protocol=protocol))
    with pytest.raises(UserError, match="plain pickle"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(UserError, match="plain pickle"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_whole_pickled_module_gives_its_state_dict_and_no_code_runs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(2, 2)))
    model.register_buffer("transient", torch.rand(3), persistent=False)
    torch.save({"model": model}, tmp_path / "w.pth")
    checkpoint = read_checkpoint(tmp_path / "w.pth")
    state = {name.removeprefix("model."): value for name, value in checkpoint.state.items()}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert "torch.nn.modules.linear.Linear" in checkpoint.inert
    assert checkpoint.suspicious == ()


def test_what_torch_is_told_by_the_environment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Trap(tmp_path / "marker"), "w": torch.ones(2)}, tmp_path / "w.pth")
    assert torch.equal(read_checkpoint(tmp_path / "w.pth").state["w"], torch.ones(2))
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
    assert inspect_file(path).bomb


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
    ("wrapped", "prefix"),
    [
        (lambda w: {"state_dict": w, "epoch": 3}, ""),
        (lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)}, ""),
        (lambda w: {"a": {"b": w}}, ""),
        (lambda w: {"student": {"x.y": torch.zeros(1)}, "teacher": w}, "teacher."),
        (lambda w: {"teacher": {"backbone": w, "head": {"z": torch.zeros(1)}}}, "backbone."),
        (lambda w: {"list": [w, {"z": torch.zeros(1)}]}, "list.0."),
    ],
)
def test_an_entry_is_a_prefix_and_the_only_one_is_taken_off(tmp_path: Path, wrapped: Any, prefix: str) -> None:
    torch.save(wrapped(weights()), tmp_path / "w.pth")
    state = read_checkpoint(tmp_path / "w.pth").state
    for name, value in weights().items():
        assert torch.equal(state[prefix + name], value)
    assert (len(state) == len(weights())) == (prefix == "")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_entries_that_are_no_tensors_are_not_read(tmp_path: Path) -> None:
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8),
    }
    torch.save({**weights(), "epoch": 7, "name": "x", **odd}, tmp_path / "w.pth")
    assert read_checkpoint(tmp_path / "w.pth").state.keys() == weights().keys()


def strided() -> dict[str, Tensor]:
    """Tensors that share storages, in every order of memory."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    return {
        "whole": base, "part": base[:, 1:], "transposed": base.transpose(0, 2), "expanded": base[0, :1].expand(5, 4),
        "scalar": base[1, 2, 3], "empty": torch.empty(0, 3), "bool": base > 3, "half": base.half(),
        "bfloat16": base.bfloat16(), "double": base.double(), "int8": base.to(torch.int8), "complex": base + 1j * base,
        "uint16": base.to(torch.uint16), "float8": base.to(torch.float8_e4m3fn), "parameter": nn.Parameter(base + 1),
        "channels_last": torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path: Path, zipped: bool, protocol: int) -> None:
    # what an older torch never wrote, a newer one writes in its format and cannot read
    path, made = tmp_path / "w.pth", {n: v for n, v in strided().items() if zipped or n not in {"uint16", "float8"}}
    torch.save(made, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    expected, state = torch.load(path, weights_only=False), read_checkpoint(path).state
    assert list(state) == list(made)
    for name, value in expected.items():
        ours = state[name]
        assert (ours.dtype, ours.shape, ours.stride()) == (value.dtype, value.shape, value.stride())
        assert torch.equal(
            ours.contiguous().reshape(-1).view(torch.uint8), value.detach().contiguous().reshape(-1).view(torch.uint8)
        )
    assert state["whole"].untyped_storage().data_ptr() == state["part"].untyped_storage().data_ptr()


def test_a_tensor_on_the_meta_device_has_no_values(tmp_path: Path) -> None:
    torch.save({"w": torch.empty(2, 3, device="meta"), **weights()}, tmp_path / "w.pth")
    state = read_checkpoint(tmp_path / "w.pth").state
    assert state["w"].is_meta
    assert state["w"].shape == (2, 3)


def test_a_flipped_bit_in_the_numbers_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.full((256,), 1.5)}, path)
    raw, pattern = bytearray(path.read_bytes()), np.full(4, 1.5, np.float32).tobytes()
    raw[raw.index(pattern)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(tmp_path / "w.pth").state["a.bias"], weights()["a.bias"])


def test_an_entry_and_a_dotted_name_that_spell_the_same_are_both_kept(tmp_path: Path) -> None:
    torch.save({"model.w": torch.zeros(2), "model": {"w": torch.ones(2)}}, tmp_path / "w.pth")
    state = read_checkpoint(tmp_path / "w.pth").state
    assert sorted(value[0].item() for value in state.values()) == [0.0, 1.0]


def test_a_length_that_the_file_does_not_hold_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    header = whole.index(b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_version")
    path.write_bytes(whole[:header] + b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.")  # bytes of 1 TiB
    tracemalloc.start()
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def sharded(folder: Path) -> Path:
    """Weights in two files and their index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = dict(zip(weights(), names, strict=True))
    for tensor, name in places.items():
        save_file({tensor: weights()[tensor]}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_shards_are_read_by_their_index_or_folder(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for source in (index, tmp_path):
        checkpoint = read_checkpoint(source)
        assert checkpoint.format == "shards"
        assert {n: v.tolist() for n, v in checkpoint.state.items()} == {n: v.tolist() for n, v in weights().items()}
        assert any("2 shards" in note for note in checkpoint.notes)
    digest = checkpoint.sha256
    save_file({"a.bias": weights()["a.bias"] + 1}, tmp_path / "model-00002-of-00002.safetensors")
    assert read_checkpoint(index).sha256 != digest
    one = read_checkpoint(tmp_path / "model-00001-of-00002.safetensors")
    assert any("one shard of several" in note for note in one.notes)


@pytest.mark.parametrize(
    ("places", "match"),
    [
        ({"a.weight": "model-00003-of-00002.safetensors"}, "lists shards that are not beside it"),
        ({"b": "model-00001-of-00002.safetensors"}, "which does not hold it"),
        ({"a.weight": "../x.safetensors"}, "must name files beside it"),
        ({}, "no index of shards"),
        ([], "no index of shards"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path: Path, places: Any, match: str) -> None:
    index = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=match):
        read_checkpoint(index)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, 3, [1, 2], {"a": {"b": {"c": 1}}}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no (tensors|weights)"):
        read_checkpoint(tmp_path / "w.pth")
