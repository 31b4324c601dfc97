"""Generated data in the layout of 3DIEBench: pictures against closed forms, folders against their description."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from equibench.cli import data as cli_data
from equibench.data import solids
from equibench.errors import UserError
from equibench.render import generate as generator
from equibench.render import scene
from equibench.render.generate import ensure_rendered_objects, estimate_rendering, render_objects, write_contact_sheet
from equibench.render.jobs import RenderSettings, make_work
from equibench.utils.random import uniforms

SETTINGS: dict[str, Any] = {"objects": 2, "views": 2, "size": 32, "seed": 5}
HIGHEST = [np.pi / 2, np.pi / 2, np.pi / 2, 1, np.pi / 4, 2 * np.pi, 1]  # docs/protocol.md 2.4
LOWEST = [-np.pi / 2, -np.pi / 2, -np.pi / 2, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> generator.Rendered:
    return render_objects(tmp_path_factory.mktemp("rendered") / "data", RenderSettings(jobs=1, **SETTINGS))


def content(root: Path) -> dict[str, bytes]:
    """All files by their path, without those that are no part of the data."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


# Layout


def test_layout_and_types(rendered: generator.Rendered) -> None:
    root = rendered.root
    synsets = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert synsets == sorted(solids.CLASS_NAMES) == list(rendered.classes)
    for synset in synsets:
        for folder in (root / synset).iterdir():
            assert {path.name for path in folder.iterdir()} == {
                f"{kind}_{k}.{end}" for k in range(2) for kind, end in (("image", "jpg"), ("latent", "npy"))
            }
            for k in range(2):
                with Image.open(folder / f"image_{k}.jpg") as image:
                    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
                latent = np.load(folder / f"latent_{k}.npy", allow_pickle=False)
                assert (latent.dtype, latent.shape) == (np.float64, (7,))
                assert np.all((latent >= LOWEST) & (latent <= HIGHEST))


def test_latents_fill_their_ranges_evenly() -> None:
    latents = scene.draw_latents(uniforms((20_000, 7), "test"))
    low, high = np.array(LOWEST), np.array(HIGHEST)
    shares = (latents - low) / (high - low)
    assert shares.min() >= 0
    assert shares.max() <= 1
    np.testing.assert_allclose(
        np.quantile(shares, [0, 0.25, 0.5, 0.75, 1], axis=0).T, [[0, 0.25, 0.5, 0.75, 1]] * 7, atol=0.02
    )
    np.testing.assert_allclose(np.corrcoef(shares.T), np.eye(7), atol=0.03)


def test_lists_are_consistent(rendered: generator.Rendered) -> None:
    root = rendered.root
    lists = {name: np.load(root / f"{name}.npy", allow_pickle=False) for name in
             ("train_images", "train_labels", "val_images", "val_labels")}  # fmt: skip
    entries = np.concatenate([lists["train_images"], lists["val_images"]])
    labels = np.concatenate([lists["train_labels"], lists["val_labels"]])
    assert labels.dtype == np.int64
    assert len(set(entries)) == len(entries) == 20
    synsets = sorted({str(entry).split("/")[1] for entry in entries})
    for entry, label in zip(entries, labels, strict=True):
        assert str(entry).startswith("/")
        assert str(entry).endswith("/")
        assert (root / str(entry).strip("/")).is_dir()
        assert synsets[label] == str(entry).split("/")[1]
    for split in ("train", "val"):
        assert set(lists[f"{split}_labels"]) == set(range(10))
    plan = json.loads((root / "render.json").read_text())
    assert plan["complete"]
    assert plan["settings"] == {"version": 1, "source": "solids", **SETTINGS}
    assert (plan["train"], plan["val"]) == (rendered.train, rendered.val) == (10, 10)
    assert plan["classes"] == dict.fromkeys(synsets, 2)


def test_a_fifth_of_each_class_is_for_validation() -> None:
    names = [f"{k:05d}" for k in range(40)]
    split = generator._split_objects(0, "cube", names)
    assert (len(split["train"]), len(split["val"])) == (32, 8)
    assert sorted(split["train"] + split["val"]) == names
    assert split == generator._split_objects(0, "cube", names[::-1])
    assert split["val"] != generator._split_objects(1, "cube", names)["val"]
    assert split["val"] != generator._split_objects(0, "cone", names)["val"]
    for count in (2, 3, 5):
        assert len(generator._split_objects(0, "cube", names[:count])["val"]) == 1


# Determinism, interruption


def test_bytes_do_not_depend_on_processes(rendered: generator.Rendered, tmp_path: Path) -> None:
    render_objects(tmp_path / "data", RenderSettings(jobs=2, **SETTINGS))
    assert content(tmp_path / "data") == content(rendered.root)


def test_views_do_not_depend_on_how_many_there_are(rendered: generator.Rendered, tmp_path: Path) -> None:
    render_objects(tmp_path, RenderSettings(jobs=1, **{**SETTINGS, "objects": 3, "views": 3}))
    more, fewer = content(tmp_path), content(rendered.root)
    views = {name for name in fewer if name.endswith(".jpg") or "latent" in name}
    assert {name: more[name] for name in views} == {name: fewer[name] for name in views}


def test_the_seed_decides_object_and_views(tmp_path: Path) -> None:
    first, again, other = (
        make_work(tmp_path, RenderSettings(**{**SETTINGS, "seed": seed})).job("cube", "00001") for seed in (5, 5, 6)
    )
    for field in ("source", "latents"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
        assert not np.isclose(getattr(first, field), getattr(other, field)).any()


def test_what_is_damaged_is_rendered_again_and_nothing_else(rendered: generator.Rendered, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(rendered.root, root)
    shutil.rmtree(root / "cone" / "00001")
    image = root / "cube" / "00000" / "image_1.jpg"
    image.write_bytes(image.read_bytes()[:-30])
    (root / "torus" / "00000" / "latent_0.npy").unlink()
    (root / ".unfinished-of-a-killed-run").mkdir()
    (root / ".unfinished-of-a-killed-run" / "image_0.jpg").write_bytes(b"half")
    (root / "val_labels.npy").unlink()
    whole = root / "box" / "00000" / "image_0.jpg"
    before = whole.stat().st_mtime_ns
    assert estimate_rendering(root, RenderSettings(**SETTINGS)).missing == 3
    assert render_objects(root, RenderSettings(jobs=1, **SETTINGS)).new == 3
    assert content(root) == content(rendered.root)
    assert whole.stat().st_mtime_ns == before
    assert not list(root.glob(".unfinished*"))
    assert render_objects(root, RenderSettings(jobs=1, **SETTINGS)).new == 0


def test_a_rendering_process_starts_without_torch() -> None:
    code = (
        "import sys, equibench.render.generate as g\nassert not {'torch', 'trimesh', 'timm', 'mmseg'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_is_gone_on_with(rendered: generator.Rendered, tmp_path: Path) -> None:
    root = tmp_path / "data"
    code = "from equibench.render.generate import render_objects\nfrom equibench.render.jobs import RenderSettings\n"
    code += f"render_objects({str(root)!r}, RenderSettings(jobs=2, **{SETTINGS!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(root.glob("*/*/image_1.jpg"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = render_objects(root, RenderSettings(jobs=1, **SETTINGS))
    assert again.new < 20
    assert content(root) == content(rendered.root)
    assert not list(root.glob(".unfinished*"))


def test_other_settings_and_other_folders_are_refused(rendered: generator.Rendered, tmp_path: Path) -> None:
    for change in ({"views": 3}, {"size": 48}, {"seed": 6}, {"objects": 3}):
        with pytest.raises(UserError, match=rf"rendered with other settings: {next(iter(change))} "):
            render_objects(rendered.root, RenderSettings(**{**SETTINGS, **change}))
    (tmp_path / "photograph.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="not empty"):
        render_objects(tmp_path, RenderSettings(**SETTINGS))
    for change in ({"views": 1}, {"size": 8}, {"seed": -1}, {"objects": 1}, {"jobs": 0}):
        with pytest.raises(UserError, match="too small"):
            render_objects(tmp_path / "new", RenderSettings(**{**SETTINGS, **change}))
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_seen_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(UserError, match="GB free"):
        render_objects(tmp_path, RenderSettings(jobs=1, **SETTINGS))
    assert not list(tmp_path.glob("*/*/image_0.jpg"))


def test_estimate_is_near_the_truth_and_writes_nothing(rendered: generator.Rendered, tmp_path: Path) -> None:
    found = estimate_rendering(tmp_path / "data", RenderSettings(**SETTINGS))
    assert not (tmp_path / "data").exists()
    assert (found.missing, found.views) == (20, 2)
    assert found.seconds > 0
    blocks = sum(-(-len(data) // 4096) for name, data in content(rendered.root).items() if name.count("/") == 2)
    assert found.bytes == pytest.approx(blocks * 4096, rel=0.3)


def test_rendered_objects_are_rendered_once(tmp_path: Path) -> None:
    first = ensure_rendered_objects(tmp_path, objects=2, views=2, size=16, seed=0, jobs=1)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.*")}
    assert len(times) > 80
    assert ensure_rendered_objects(tmp_path, objects=2, views=2, size=16, seed=0, jobs=1) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.*")} == times


# Contact sheet, commands


def test_contact_sheet_shows_the_pictures(rendered: generator.Rendered, tmp_path: Path) -> None:
    path = write_contact_sheet(rendered.root, tmp_path / "sheet.png", objects=10, views=2)
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (3 + 10 * 35, 3 + 2 * 35, 3)
    shown = sheet[3 + 35 : 35 + 35, 3 + 35 : 35 + 35]
    candidates = [np.asarray(Image.open(path)) for path in rendered.root.glob("capsule/*/image_1.jpg")]
    assert any(np.array_equal(shown, one) for one in candidates)
    with pytest.raises(UserError, match=r"image_2\.jpg"):
        write_contact_sheet(rendered.root, tmp_path / "sheet.png", views=3)
    with pytest.raises(UserError, match=r"train_images\.npy"):
        write_contact_sheet(tmp_path, tmp_path / "sheet.png")


def test_commands(rendered: generator.Rendered, tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(cli_data.data_commands, name="data")
    options = ["--objects", "2", "--views", "2", "--size", "32", "--seed", "5", "--jobs", "1"]
    out = str(tmp_path / "data")
    dry = CliRunner().invoke(app, ["data", "render", out, *options, "--dry-run"])
    assert "20 objects, 40 views" in dry.output
    assert not Path(out).exists()
    done = CliRunner().invoke(app, ["data", "render", out, *options])
    assert done.exit_code == 0, done.output
    assert "10 objects for training, 10 for validation" in done.output
    assert content(Path(out)) == content(rendered.root)
    sheet = CliRunner().invoke(app, ["data", "contact-sheet", out, str(tmp_path / "s.png"), "--views", "2"])
    assert sheet.exit_code == 0, sheet.output
    assert (tmp_path / "s.png").exists()
