"""Finding, checking and preparing datasets, on small files in the official formats made here."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from equibench.data import cifar, solids
from equibench.data import load as datasets
from equibench.data.dataset import Dataset
from equibench.data.load import load_dataset, load_or_generate
from equibench.errors import UserError
from equibench.utils.arrays import cache_folder
from equibench.utils.digests import definitions_of
from equibench.utils.download import Unavailable

PER_BATCH = 4
REAL_DATA = os.environ.get("EQUIBENCH_DATA")
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no data named by the environment, and a network without the official server."""
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EQUIBENCH_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(datasets, "SOLIDS_SIZES", (20, 10))
    return tmp_path / "cache"


def content() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per batch (PER_BATCH, 3, 32, 32) uint8 images and (PER_BATCH,) labels."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(256, size=(PER_BATCH, 3, 32, 32), dtype=np.uint8), rng.integers(10, size=PER_BATCH))
        for name in BATCHES
    }


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a small binary version whose checksums are the published ones."""
    folder = tmp_path / "root" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    table = {}
    for name, (images, labels) in content().items():
        data = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
        (folder / f"{name}.bin").write_bytes(data)
        table[f"{name}.bin"] = md5(data)
    monkeypatch.setattr(cifar, "BINARY_MD5", table)
    return folder.parent


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a small python version whose checksums are the published ones."""
    folder = tmp_path / "root_py" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    table = {}
    for name, (images, labels) in content().items():
        data = pickle.dumps({"data": images.reshape(PER_BATCH, -1), "labels": labels.tolist()})
        (folder / name).write_bytes(data)
        table[name] = md5(data)
    meta = pickle.dumps({"label_names": list(cifar.CIFAR10_CLASSES)})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(cifar, "PYTHON_MD5", table | {"batches.meta": md5(meta)})
    return folder.parent


@pytest.fixture
def served(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The small binary version as an archive on a server; yields the archive."""
    archive = tmp_path / "www" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(binary / "cifar-10-batches-bin", "cifar-10-batches-bin")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(archive.parent))) as server:
        monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{server.server_address[1]}/{archive.name}")
        monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5(archive.read_bytes()))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield archive
        server.shutdown()
        thread.join()


def assert_is_the_content(dataset: Dataset) -> None:
    batches = content()
    train, test = [batches[name] for name in BATCHES[:5]], [batches["test_batch"]]
    for part, expected in ((dataset.train, train), (dataset.test, test)):
        np.testing.assert_array_equal(part.images, np.concatenate([images for images, _ in expected]))
        np.testing.assert_array_equal(part.labels, np.concatenate([labels for _, labels in expected]))
        assert isinstance(part.images, np.memmap)
        assert not part.images.flags.writeable
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: cifar.CifarFiles) -> None:
        raise AssertionError("prepared data must not be read again")

    monkeypatch.setattr(cifar.CifarFiles, "check", refuse)
    monkeypatch.setattr(cifar, "read_cifar10", refuse)


def test_both_versions_give_the_same_dataset(binary: Path, python: Path) -> None:
    one, two = load_dataset("cifar10", data_root=binary), load_dataset("cifar10", data_root=python)
    assert_is_the_content(one)
    assert_is_the_content(two)
    assert one.sha256 == two.sha256
    assert one.description == "CIFAR-10 (20 + 4 real images)"
    assert one.class_names == cifar.CIFAR10_CLASSES


@pytest.mark.parametrize("version", ["binary", "python"])
def test_root_may_be_the_folder_of_the_batches_under_any_name(
    version: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    inner = next(request.getfixturevalue(version).iterdir())
    inner.rename(tmp_path / "mine")
    assert_is_the_content(load_dataset("cifar10", data_root=str(tmp_path / "mine")))


def test_digest_covers_images_and_labels(binary: Path) -> None:
    dataset = load_dataset("cifar10", data_root=binary)
    digest = hashlib.sha256()
    for half in ("train", "test"):
        for kind in ("images", "labels"):
            array = np.asarray(getattr(getattr(dataset, half), kind))
            digest.update(f"{half}_{kind} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    assert dataset.sha256 == digest.hexdigest()


def test_second_opening_reads_no_batch_and_is_quick(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_dataset("cifar10", data_root=binary)
    forbid_reading(monkeypatch)
    began = time.perf_counter()
    assert_is_the_content(load_dataset("cifar10", data_root=binary))
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("version", ["binary", "python"])
def test_damage_after_the_first_check_is_found(version: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(version)
    load_dataset("cifar10", data_root=root)
    path = sorted(root.glob("*/data_batch_3*"))[0]
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError) as caught:
        load_or_generate("cifar10", data_root=root)
    for part in (str(path), md5(good), md5(path.read_bytes()), "replace it"):
        assert part in str(caught.value)


@pytest.mark.parametrize("version", ["binary", "python"])
def test_missing_file_is_named(version: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(version)
    path = sorted(root.glob("*/data_batch_3*"))[0]
    expected = md5(path.read_bytes())
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing.*{expected}"):
        load_dataset("cifar10", data_root=root)


def test_unchecked_pickle_is_never_loaded(python: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    for path in (python / "cifar-10-batches-py").iterdir():
        path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="is damaged"):
        load_dataset("cifar10", data_root=python)
    assert not (tmp_path / "sprung").exists()


def test_explicit_root_without_the_data(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIBENCH_DATA", str(binary))
    (tmp_path / "empty").mkdir()
    for load in (load_dataset, load_or_generate):
        with pytest.raises(UserError, match="empty holds no CIFAR-10"):
            load("cifar10", data_root=tmp_path / "empty")
        with pytest.raises(UserError, match="nowhere is not a folder"):
            load("cifar10", data_root=tmp_path / "nowhere")


def test_order_of_the_places(
    binary: Path, python: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []
    check = cifar.CifarFiles.check

    def noting(source: cifar.CifarFiles) -> None:
        seen.append(source.folder.parent)
        check(source)

    monkeypatch.setattr(cifar.CifarFiles, "check", noting)
    monkeypatch.setenv("EQUIBENCH_DATA", str(python))
    load_dataset("cifar10", data_root=binary)
    load_dataset("cifar10")
    assert capsys.readouterr().err == ""
    binary.rename(cache / "moved")
    (cache / "moved" / "cifar-10-batches-bin").rename(cache / "cifar-10-batches-bin")
    monkeypatch.setenv("EQUIBENCH_DATA", str(cache / "moved"))
    load_dataset("cifar10")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "EQUIBENCH_DATA" in warning
    assert seen == [binary, python, cache]


def test_prepared_official_data_are_found_without_their_source(binary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CIFAR10_SHA256", load_dataset("cifar10", data_root=binary).sha256)
    forbid_reading(monkeypatch)
    assert_is_the_content(load_dataset("cifar10", download=False))


def test_download_into_the_cache(served: Path, cache: Path) -> None:
    assert_is_the_content(load_dataset("cifar10"))
    assert (cache / "cifar-10-batches-bin" / "test_batch.bin").is_file()
    assert not list(cache.glob("cifar-10-binary*"))
    served.unlink()
    assert_is_the_content(load_dataset("cifar10"))


def test_archive_put_into_the_cache_by_hand(served: Path, cache: Path) -> None:
    cache.mkdir()
    served.rename(cache / served.name)
    assert_is_the_content(load_dataset("cifar10", download=False))


def test_nothing_here_and_no_network(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        load_dataset("cifar10")
    assert cifar.URL in caught.value.problem
    assert str(cache / "cifar-10-binary.tar.gz") in caught.value.fix
    with pytest.raises(Unavailable, match="download is off"):
        load_dataset("cifar10", download=False)
    load_dataset("solids")  # so that no progress of rendering is shown below
    capsys.readouterr()
    dataset = load_or_generate("cifar10", download=False)
    assert dataset.name == "solids"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "not real" in told[0]
    assert load_or_generate("cifar10").name == "solids"


def test_solids_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("solids", sizes=(30, 10))
    for part, seed, count in ((dataset.train, 0, 30), (dataset.test, 1, 10)):
        expected = solids.render_solids(count, seed=seed)
        np.testing.assert_array_equal(part.images, expected.images)
        np.testing.assert_array_equal(part.labels, expected.labels)
        assert isinstance(part.images, np.memmap)
    assert dataset.class_names == solids.CLASS_NAMES
    assert "30 + 10" in dataset.description
    assert "generated" in dataset.description
    assert "not real" in dataset.description
    monkeypatch.setattr(solids, "render_scene", None)
    assert load_dataset("solids", sizes=(30, 10)).sha256 == dataset.sha256


def test_cache_key_covers_all_that_decides_a_picture() -> None:
    covered = {name for module, name in definitions_of(solids.render_solids) if module == solids.__name__}
    shapes = {getattr(distance, "func", distance).__name__ for distance in solids.SHAPES.values()}
    assert len(shapes) == 9  # a cube is a box
    assert shapes | {"SHAPES", "TORUS", "SUPERSAMPLING", "draw_scene", "render_scene", "_background"} <= covered


def test_two_processes_at_once(cache: Path) -> None:
    code = "from equibench.data.load import *; print(load_dataset('solids', sizes=(300, 100)).sha256)"
    command = [sys.executable, "-c", code]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert outputs[0] == outputs[1] != b""
    assert not list((cache / "arrays").glob(".unfinished-*"))


def test_remains_of_a_killed_process_do_no_harm(binary: Path, cache: Path) -> None:
    load_dataset("cifar10", data_root=binary)
    (folder,) = (cache / "arrays").glob("cifar10-*")
    images = folder / "train_images.npy"
    images.write_bytes(images.read_bytes()[:100])
    stale, fresh = cache / "arrays" / ".unfinished-old", cache / "arrays" / ".unfinished-new"
    stale.mkdir()
    fresh.mkdir()
    os.utime(stale, (0, 0))
    assert_is_the_content(load_dataset("cifar10", data_root=binary))
    assert not stale.exists()
    assert fresh.exists(), "it may belong to a process at work"
    for record in (cache / "checked").iterdir():
        record.write_text("{")
    (folder / "meta.json").write_text(json.dumps([1]))
    assert_is_the_content(load_dataset("cifar10", data_root=binary))


def test_cache_that_cannot_be_written(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EQUIBENCH_CACHE", str(tmp_path / "file" / "cache"))
    for load in (partial(load_dataset, "cifar10", data_root=binary), partial(load_or_generate, "cifar10"),
                 partial(load_dataset, "solids")):  # fmt: skip
        with pytest.raises(UserError, match=str(cache_folder())) as caught:
            load()
        assert "EQUIBENCH_CACHE" in caught.value.fix


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="cifar100.*\n.*cifar10, solids"):
        load_dataset("cifar100")
    with pytest.raises(UserError, match="sizes"):
        load_dataset("cifar10", sizes=(1, 1))
    with pytest.raises(UserError, match="sizes"):
        load_dataset("solids", sizes=(0, 1))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIBENCH_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("EQUIBENCH_CACHE")
    assert cache_folder().name == "equibench"


@pytest.mark.skipif(
    not REAL_DATA or cifar.find_cifar10(Path(REAL_DATA)) is None, reason="$EQUIBENCH_DATA holds no CIFAR-10"
)
def test_the_real_thing() -> None:
    dataset = load_dataset("cifar10", data_root=REAL_DATA)
    assert dataset.train.images.shape == (50_000, 3, 32, 32)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), np.full(10, 5000))
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), np.full(10, 1000))
    # The means of the training set's channels, as published in countless training recipes.
    np.testing.assert_allclose(dataset.train.images.mean((0, 2, 3)) / 255, (0.4914, 0.4822, 0.4465), atol=1e-4)
    assert dataset.sha256 == datasets.CIFAR10_SHA256
