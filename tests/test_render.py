"""Generated data in the layout of 3DIEBench: pictures against closed forms, folders against their description."""

from __future__ import annotations

import colorsys
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from equibench import cli_data
from equibench.data import solid_shapes
from equibench.data.pairs import uniforms
from equibench.errors import UserError
from equibench.render import (
    contact_sheet,
    ensure_stand_in,
    estimate,
    generator,
    mesh_files,
    meshes,
    raster,
    render,
    scene,
)
from equibench.render.plan import make_work, split_objects

SETTINGS = {"objects": 2, "views": 2, "size": 32, "seed": 5}
HIGHEST = [np.pi / 2, np.pi / 2, np.pi / 2, 1, np.pi / 4, 2 * np.pi, 1]  # PROTOCOL 1.1
LOWEST = [-np.pi / 2, -np.pi / 2, -np.pi / 2, 0, 0, 0, 0]
BOX = {  # a box of 1 x 2 x 4: vertices from 1, faces
    "vertices": [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 4)],
    "faces": [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)],
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> generator.Rendered:
    return render(tmp_path_factory.mktemp("rendered") / "data", jobs=1, **SETTINGS)


def content(root: Path) -> dict[str, bytes]:
    """All files by their path, without those that are no part of the data."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def white(corners: np.ndarray) -> meshes.Mesh:
    return meshes.make_mesh(corners, np.ones_like(corners))


def linear(pixel: np.ndarray) -> np.ndarray:
    """sRGB's definition, IEC 61966-2-1."""
    value = np.asarray(pixel, float) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


# Layout


def test_layout_and_types(rendered: generator.Rendered) -> None:
    root = rendered.root
    synsets = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert synsets == sorted(solid_shapes.CLASS_NAMES) == list(rendered.classes)
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
    split = split_objects(0, "cube", names)
    assert (len(split["train"]), len(split["val"])) == (32, 8)
    assert sorted(split["train"] + split["val"]) == names
    assert split == split_objects(0, "cube", names[::-1])
    assert split["val"] != split_objects(1, "cube", names)["val"]
    assert split["val"] != split_objects(0, "cone", names)["val"]
    for count in (2, 3, 5):
        assert len(split_objects(0, "cube", names[:count])["val"]) == 1


# Determinism, interruption


def test_bytes_do_not_depend_on_processes(rendered: generator.Rendered, tmp_path: Path) -> None:
    render(tmp_path / "data", jobs=2, **SETTINGS)
    assert content(tmp_path / "data") == content(rendered.root)


def test_views_do_not_depend_on_how_many_there_are(rendered: generator.Rendered, tmp_path: Path) -> None:
    render(tmp_path, jobs=1, **{**SETTINGS, "objects": 3, "views": 3})
    more, fewer = content(tmp_path), content(rendered.root)
    views = {name for name in fewer if name.endswith(".jpg") or "latent" in name}
    assert {name: more[name] for name in views} == {name: fewer[name] for name in views}


def test_the_seed_decides_object_and_views(tmp_path: Path) -> None:
    first, again, other = (make_work(tmp_path, None, 2, 2, 32, seed).job("cube", "00001") for seed in (5, 5, 6))
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
    assert estimate(root, **SETTINGS).missing == 3
    assert render(root, jobs=1, **SETTINGS).new == 3
    assert content(root) == content(rendered.root)
    assert whole.stat().st_mtime_ns == before
    assert not list(root.glob(".unfinished*"))
    assert render(root, jobs=1, **SETTINGS).new == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_is_gone_on_with(rendered: generator.Rendered, tmp_path: Path) -> None:
    root = tmp_path / "data"
    code = f"from equibench.render import render\nrender({str(root)!r}, jobs=2, **{SETTINGS!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(root.glob("*/*/image_1.jpg"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = render(root, jobs=1, **SETTINGS)
    assert again.new < 20
    assert content(root) == content(rendered.root)
    assert not list(root.glob(".unfinished*"))


def test_other_settings_and_other_folders_are_refused(rendered: generator.Rendered, tmp_path: Path) -> None:
    for change in ({"views": 3}, {"size": 48}, {"seed": 6}, {"objects": 3}):
        with pytest.raises(UserError, match=rf"rendered with other settings: {next(iter(change))} "):
            render(rendered.root, **{**SETTINGS, **change})
    (tmp_path / "photograph.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="not empty"):
        render(tmp_path, **SETTINGS)
    for change in ({"views": 1}, {"size": 8}, {"seed": -1}, {"objects": 1}, {"jobs": 0}):
        with pytest.raises(UserError, match="too small"):
            render(tmp_path / "new", **{**SETTINGS, **change})
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_seen_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(UserError, match="GB free"):
        render(tmp_path, jobs=1, **SETTINGS)
    assert not list(tmp_path.glob("*/*/image_0.jpg"))


def test_estimate_is_near_the_truth_and_writes_nothing(rendered: generator.Rendered, tmp_path: Path) -> None:
    found = estimate(tmp_path / "data", **SETTINGS)
    assert not (tmp_path / "data").exists()
    assert (found.missing, found.views) == (20, 2)
    assert found.seconds > 0
    blocks = sum(-(-len(data) // 4096) for name, data in content(rendered.root).items() if name.count("/") == 2)
    assert found.bytes == pytest.approx(blocks * 4096, rel=0.3)


def test_the_stand_in_is_rendered_once(tmp_path: Path) -> None:
    first = ensure_stand_in(tmp_path, objects=2, views=2, size=16, seed=0, jobs=1)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.*")}
    assert len(times) > 80
    assert ensure_stand_in(tmp_path, objects=2, views=2, size=16, seed=0, jobs=1) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.*")} == times


# The scene


def view(mesh: meshes.Mesh, size: int = 64, **latents: float) -> np.ndarray:
    given = {name: latents.get(name, 0.0) for name in scene.LATENTS}
    return scene.render_view(mesh, np.array(list(given.values())), size)


@pytest.mark.parametrize("hue", [0.05, 0.3, 0.55, 0.9])
def test_the_floor_has_its_colour(hue: float) -> None:
    """Far from the spot, under white light: hue as given, saturation 0.6."""
    picture = view(white(meshes.TRIANGLES["cube"]()), floor_hue=hue, spot_theta=0.0)
    found = colorsys.rgb_to_hsv(*linear(picture[0, 0]))
    assert found[0] == pytest.approx(hue, abs=0.01)
    assert found[1] == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("hue", [0.0, 0.2, 0.6, 0.8])
def test_the_spot_has_its_colour_and_the_object_its_shadow(hue: float) -> None:
    """The light that the spot adds to the floor has its hue; a ray through the object adds nothing."""
    size, theta, phi = 128, 0.6, 0.0  # from the picture's left: the shadow falls beside the object
    latents = {"spot_theta": theta, "spot_phi": phi, "floor_hue": 0.4, "spot_hue": hue}
    picture = view(white(meshes.TRIANGLES["sphere"]() * [0.3, 0.3, 1]), size, **latents)
    spot = 4 * np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    below = -spot / spot[2]  # where the ray through the origin meets the floor z = -1
    x, y, _ = scene.camera().project(below, size)
    shadowed = linear(picture[int(y), int(x)])
    far = linear(picture[0, 0])
    np.testing.assert_allclose(shadowed, far, atol=0.01)
    x, y, _ = scene.camera().project(below - [0, 0.6, 0], size)
    added = (linear(picture[int(y), int(x)]) - far) / np.array(colorsys.hsv_to_rgb(0.4, 0.6, 0.6))
    found = colorsys.rgb_to_hsv(*np.maximum(added, 0))
    assert min(abs(found[0] - hue), 1 - abs(found[0] - hue)) < 0.02
    assert found[1] > 0.9
    assert found[2] > 0.1


def test_a_ball_is_as_large_as_it_is_seen() -> None:
    """A ball of radius 0.6 at 2.5: seen under asin(0.6 / 2.5), and the picture's half under atan(18 / 50)."""
    corners = scene.RADIUS * white(meshes.TRIANGLES["sphere"]()).corners
    covered = raster.cover(scene.camera().project(corners, 300), 300)
    radius = 300 * 50 / 36 * np.tan(np.arcsin(0.6 / 2.5))
    assert covered.sum() == pytest.approx(np.pi * radius**2, rel=5e-3)


@pytest.mark.parametrize("name", solid_shapes.CLASS_NAMES)
def test_the_pose_shows_whatever_the_symmetry(name: str) -> None:
    """Turns that map all or some of these solids onto themselves change the picture of every one of them."""
    solid = meshes.solid_object(name, uniforms((1, meshes.OBJECT_DRAWS), "test", name)[0])
    upright = view(solid, floor_hue=0.3, spot_hue=0.1).astype(int)
    for turn in (
        {"roll": np.pi / 2},
        {"roll": -np.pi / 2},
        {"yaw": np.pi / 2},
        {"pitch": np.pi / 2},
        {"yaw": 1, "roll": -1},
    ):
        turned = view(solid, floor_hue=0.3, spot_hue=0.1, **turn).astype(int)
        assert (np.abs(turned - upright).max(axis=2) > 25).mean() > 0.04
    again = view(solid, floor_hue=0.3, spot_hue=0.1).astype(int)
    np.testing.assert_array_equal(again, upright)


# Meshes


def volume(corners: np.ndarray) -> float:
    """Of a closed surface whose triangles turn anticlockwise, seen from outside (the divergence theorem)."""
    return float(np.linalg.det(corners).sum() / 6)


def test_solids_have_their_surfaces_and_volumes() -> None:
    box, cube = solid_shapes.BOX_HALF, solid_shapes.CUBE_HALF
    (r, h), (cone, base) = solid_shapes.CYLINDER, solid_shapes.CONE
    (ring, tube), (cap, half) = solid_shapes.TORUS, solid_shapes.CAPSULE
    ball = 4 / 3 * np.pi
    volumes = {
        "sphere": ball,
        "ellipsoid": ball * np.prod(solid_shapes.ELLIPSOID_AXES),
        "cube": 8 * np.prod(cube),
        "box": 8 * np.prod(box),
        "cylinder": 2 * np.pi * r**2 * h,
        "cone": np.pi * cone**2 * (1 - base) / 3,
        "torus": 2 * np.pi**2 * ring * tube**2,
        "octahedron": 4 / 3,
        "capsule": ball * cap**3 + 2 * np.pi * cap**2 * half,
        "tetrahedron": 8 / 3 / 3**1.5,
    }
    for name, distance in solid_shapes.SHAPES.items():
        corners = meshes.TRIANGLES[name]()
        np.testing.assert_allclose(distance(*corners.reshape(-1, 3).T), 0, atol=1e-9, err_msg=name)
        assert volume(corners) == pytest.approx(volumes[name], rel=0.01), name
        assert 3000 <= len(corners) <= 8192


def test_every_edge_of_a_solid_is_shared_by_two_triangles() -> None:
    for name, make in meshes.TRIANGLES.items():
        points = np.round(make() * 1e6).astype(int)
        edges = np.stack([points, np.roll(points, -1, axis=1)], axis=2).reshape(-1, 2, 3)
        _, ahead = np.unique(edges.reshape(-1, 6), axis=0, return_counts=True)
        assert (ahead == 1).all(), name
        assert {tuple(e) for e in edges.reshape(-1, 6)} == {tuple(e) for e in edges[:, ::-1].reshape(-1, 6)}, name


def test_normals_are_round_where_the_surface_is_and_sharp_at_creases() -> None:
    sphere = white(meshes.TRIANGLES["sphere"]())
    np.testing.assert_allclose(sphere.normals, sphere.corners, atol=0.02)
    cube = white(meshes.TRIANGLES["cube"]())
    np.testing.assert_allclose(np.abs(cube.normals).max(axis=-1), 1, atol=1e-9)
    cylinder = white(meshes.TRIANGLES["cylinder"]())
    sides = np.abs(cylinder.normals[..., 2]) < 0.5
    outward = cylinder.corners[sides] * [1, 1, 0]
    np.testing.assert_allclose(
        cylinder.normals[sides], outward / np.linalg.norm(outward, axis=1, keepdims=True), atol=1e-3
    )


def test_a_mesh_is_brought_to_the_unit_ball() -> None:
    corners = np.random.default_rng(0).uniform(5, 9, (30, 3, 3)) * [1, 2, 3]
    mesh = meshes.make_mesh(corners, np.ones_like(corners))
    assert np.linalg.norm(mesh.corners, axis=-1).max() == pytest.approx(1)
    np.testing.assert_allclose(mesh.corners.min(axis=(0, 1)), -mesh.corners.max(axis=(0, 1)), atol=1e-12)
    for bad in (np.zeros((4, 3, 3)), np.empty((0, 3, 3)), np.full((1, 3, 3), np.nan)):
        with pytest.raises(UserError):
            meshes.make_mesh(bad, bad)


# Mesh files


def write_obj(path: Path, scale: tuple[float, float, float] = (1, 1, 1), colour: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    vertices = [f"v {x * scale[0]} {y * scale[1]} {z * scale[2]} {colour}" for x, y, z in BOX["vertices"]]
    path.write_text("\n".join([*vertices, *(f"f {' '.join(map(str, face))}" for face in BOX["faces"])]) + "\n")


def write_ply(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = ["ply", "format ascii 1.0", f"element vertex {len(BOX['vertices'])}"]
    head += [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    head += [f"element face {len(BOX['faces'])}", "property list uchar int vertex_indices", "end_header"]
    lines = [" ".join(map(str, (*vertex, *colour))) for vertex in BOX["vertices"]]
    lines += [" ".join(map(str, (4, *(k - 1 for k in face)))) for face in BOX["faces"]]
    path.write_text("\n".join(head + lines) + "\n")


@pytest.fixture
def mesh_folder(tmp_path: Path) -> Path:
    """Two classes: one as ShapeNet lays them out, one of plain files."""
    pytest.importorskip("trimesh")
    root = tmp_path / "meshes"
    for number in range(2):
        write_obj(root / "02691156" / f"object{number}" / "models" / "model_normalized.obj", (1, 1 + number, 1))
    write_ply(root / "crate" / "a.ply", (255, 0, 51))
    write_obj(root / "crate" / "b.obj")
    write_obj(root / "crate" / "c" / "any.obj")
    return root


def test_mesh_files_are_rendered(mesh_folder: Path, tmp_path: Path) -> None:
    done = render(tmp_path / "data", meshes=mesh_folder, jobs=1, **SETTINGS)
    assert done.classes == {"02691156": 2, "crate": 2}  # two of each at most
    folders = {path.parent.relative_to(done.root).as_posix() for path in done.root.rglob("image_1.jpg")}
    assert folders == {"02691156/object0", "02691156/object1", "crate/a", "crate/b"}
    assert render(tmp_path / "data", meshes=mesh_folder, jobs=1, **SETTINGS).new == 0
    os.utime(mesh_folder / "crate" / "b.obj", (time.time() + 60, time.time() + 60))
    assert estimate(tmp_path / "data", meshes=mesh_folder, **SETTINGS).missing == 1
    write_obj(mesh_folder / "crate" / "ab.obj")
    with pytest.raises(UserError, match="other settings: source"):
        render(tmp_path / "data", meshes=mesh_folder, jobs=1, **SETTINGS)


def test_axes_colours_and_normals_of_mesh_files(mesh_folder: Path) -> None:
    """Files with y upwards are set upright; colours come along; polygons become triangles."""
    ply = mesh_files.read_mesh(mesh_folder / "crate" / "a.ply")
    extent = np.ptp(ply.corners.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(extent / extent[0], [1, 2, 4])
    np.testing.assert_allclose(ply.colours.reshape(-1, 3), [[1, 0, 0.2]] * 36)
    obj = mesh_files.read_mesh(mesh_folder / "crate" / "b.obj")
    extent = np.ptp(obj.corners.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(extent / extent[0], [1, 4, 2])
    np.testing.assert_allclose(obj.colours, mesh_files.GREY)
    np.testing.assert_allclose(np.linalg.norm(obj.normals, axis=-1), 1)


def test_materials_and_textures_of_an_obj(tmp_path: Path) -> None:
    """A material's diffuse colour; and a texture of four texels, at whose middles the corners lie."""
    pytest.importorskip("trimesh")
    texels = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    Image.fromarray(np.kron(texels, np.ones((8, 8, 1), np.uint8))).save(tmp_path / "map.png")
    (tmp_path / "paint.mtl").write_text("newmtl plain\nKd 0.2 0.4 0.6\nnewmtl picture\nmap_Kd map.png\n")
    square = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt .25 .25\nvt .75 .25\nvt .75 .75\nvt .25 .75\n"
    for name, expected in (
        ("plain", {(51, 102, 153)}),
        ("picture", {(0, 0, 255), (255, 255, 0), (0, 255, 0), (255, 0, 0)}),
    ):
        file = tmp_path / f"{name}.obj"
        file.write_text(f"mtllib paint.mtl\n{square}usemtl {name}\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n")
        colours = np.rint(mesh_files.read_mesh(file).colours.reshape(-1, 3) * 255).astype(int)
        assert {tuple(map(int, colour)) for colour in colours} == expected


def test_a_file_that_is_no_mesh_is_named_or_left_out(mesh_folder: Path, tmp_path: Path) -> None:
    bad = mesh_folder / "crate" / "b.obj"
    bad.write_bytes(b"\x00no mesh")
    settings = {**SETTINGS, "objects": 3, "meshes": mesh_folder, "jobs": 1}
    with pytest.raises(UserError, match=r"crate/b\.obj"):
        render(tmp_path / "data", **settings)
    done = render(tmp_path / "data", skip_bad=True, **settings)
    assert done.classes == {"02691156": 2, "crate": 2}
    assert list(done.left_out) == ["crate/b"]
    assert "b.obj" in json.loads((done.root / "render.json").read_text())["left_out"]["crate/b"]
    entries = [*np.load(done.root / "train_images.npy"), *np.load(done.root / "val_images.npy")]
    assert sorted(map(str, entries)) == ["/02691156/object0/", "/02691156/object1/", "/crate/a/", "/crate/c/"]
    write_obj(bad)  # mended, it is rendered with the same command
    assert render(tmp_path / "data", **settings).new == 1
    bad.write_bytes(b"")
    (mesh_folder / "crate" / "a.ply").write_bytes(b"ply")
    with pytest.raises(UserError, match="class crate 1 object"):
        render(tmp_path / "data2", skip_bad=True, **settings)


def test_folders_that_hold_no_meshes_are_told(mesh_folder: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "is not a folder"), (mesh_folder / "crate" / "c", "holds no meshes")):
        with pytest.raises(UserError, match=words):
            render(tmp_path / "data", meshes=folder, **SETTINGS)
    write_obj(mesh_folder / "crate" / "a.obj")
    with pytest.raises(UserError, match="two files of one object"):
        render(tmp_path / "data", meshes=mesh_folder, **SETTINGS)
    (mesh_folder / "crate" / "a.obj").unlink()
    write_obj(mesh_folder / "crate" / "c" / "other.obj")
    with pytest.raises(UserError, match="holds 2 meshes"):
        render(tmp_path / "data", meshes=mesh_folder, **SETTINGS)
    shutil.rmtree(mesh_folder / "crate")
    shutil.rmtree(mesh_folder / "02691156" / "object1")
    with pytest.raises(UserError, match="02691156 has one object"):
        render(tmp_path / "data", meshes=mesh_folder, **SETTINGS)


def test_trimesh_is_asked_for_only_with_meshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(UserError) as caught:
        render(tmp_path / "data", meshes=tmp_path, **SETTINGS)
    assert caught.value.fix == 'pip install "equibench[meshes]"'
    assert render(tmp_path / "data", jobs=1, **{**SETTINGS, "size": 16}).new == 20


# Contact sheet, commands


def test_contact_sheet_shows_the_pictures(rendered: generator.Rendered, tmp_path: Path) -> None:
    path = contact_sheet(rendered.root, tmp_path / "sheet.png", objects=10, views=2)
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (3 + 10 * 35, 3 + 2 * 35, 3)
    shown = sheet[3 + 35 : 35 + 35, 3 + 35 : 35 + 35]
    candidates = [np.asarray(Image.open(path)) for path in rendered.root.glob("capsule/*/image_1.jpg")]
    assert any(np.array_equal(shown, one) for one in candidates)
    with pytest.raises(UserError, match=r"image_2\.jpg"):
        contact_sheet(rendered.root, tmp_path / "sheet.png", views=3)
    with pytest.raises(UserError, match=r"train_images\.npy"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")


def test_commands(rendered: generator.Rendered, tmp_path: Path) -> None:
    app = typer.Typer()
    cli_data.add_to(app)
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
