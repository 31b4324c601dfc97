"""Triangle meshes: the solids' own, and those read from files."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from equibench.data import solids
from equibench.errors import UserError
from equibench.render import meshes
from equibench.render.generate import estimate_rendering, render_objects
from equibench.render.jobs import RenderSettings

SETTINGS: dict[str, Any] = {"objects": 2, "views": 2, "size": 32, "seed": 5}
BOX: dict[str, list[tuple[int, ...]]] = {  # a box of 1 x 2 x 4: vertices from 1, faces
    "vertices": [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 4)],
    "faces": [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)],
}


def white(corners: np.ndarray) -> meshes.Mesh:
    return meshes.make_mesh(corners, np.ones_like(corners))


def volume(corners: np.ndarray) -> float:
    """Of a closed surface whose triangles turn anticlockwise, seen from outside (the divergence theorem)."""
    return float(np.linalg.det(corners).sum() / 6)


def test_solids_have_their_surfaces_and_volumes() -> None:
    box, cube = solids.BOX_HALF, solids.CUBE_HALF
    (r, h), (cone, base) = solids.CYLINDER, solids.CONE
    (ring, tube), (cap, half) = solids.TORUS, solids.CAPSULE
    ball = 4 / 3 * np.pi
    volumes = {
        "sphere": ball,
        "ellipsoid": ball * np.prod(solids.ELLIPSOID_AXES),
        "cube": 8 * np.prod(cube),
        "box": 8 * np.prod(box),
        "cylinder": 2 * np.pi * r**2 * h,
        "cone": np.pi * cone**2 * (1 - base) / 3,
        "torus": 2 * np.pi**2 * ring * tube**2,
        "octahedron": 4 / 3,
        "capsule": ball * cap**3 + 2 * np.pi * cap**2 * half,
        "tetrahedron": 8 / 3 / 3**1.5,
    }
    for name, distance in solids.SHAPES.items():
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
    done = render_objects(tmp_path / "data", RenderSettings(meshes=mesh_folder, jobs=1, **SETTINGS))
    assert done.classes == {"02691156": 2, "crate": 2}  # two of each at most
    folders = {path.parent.relative_to(done.root).as_posix() for path in done.root.rglob("image_1.jpg")}
    assert folders == {"02691156/object0", "02691156/object1", "crate/a", "crate/b"}
    assert render_objects(tmp_path / "data", RenderSettings(meshes=mesh_folder, jobs=1, **SETTINGS)).new == 0
    os.utime(mesh_folder / "crate" / "b.obj", (time.time() + 60, time.time() + 60))
    assert estimate_rendering(tmp_path / "data", RenderSettings(meshes=mesh_folder, **SETTINGS)).missing == 1
    write_obj(mesh_folder / "crate" / "ab.obj")
    with pytest.raises(UserError, match="other settings: source"):
        render_objects(tmp_path / "data", RenderSettings(meshes=mesh_folder, jobs=1, **SETTINGS))


def test_axes_colours_and_normals_of_mesh_files(mesh_folder: Path) -> None:
    """Files with y upwards are set upright; colours come along; polygons become triangles."""
    ply = meshes.read_mesh(mesh_folder / "crate" / "a.ply")
    extent = np.ptp(ply.corners.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(extent / extent[0], [1, 2, 4])
    np.testing.assert_allclose(ply.colours.reshape(-1, 3), [[1, 0, 0.2]] * 36)
    obj = meshes.read_mesh(mesh_folder / "crate" / "b.obj")
    extent = np.ptp(obj.corners.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(extent / extent[0], [1, 4, 2])
    np.testing.assert_allclose(obj.colours, 0.7)
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
        colours = np.rint(meshes.read_mesh(file).colours.reshape(-1, 3) * 255).astype(int)
        assert {tuple(map(int, colour)) for colour in colours} == expected


def test_a_file_that_is_no_mesh_is_named_or_left_out(mesh_folder: Path, tmp_path: Path) -> None:
    bad = mesh_folder / "crate" / "b.obj"
    bad.write_bytes(b"\x00no mesh")
    settings = {**SETTINGS, "objects": 3, "meshes": mesh_folder, "jobs": 1}
    with pytest.raises(UserError, match=r"crate/b\.obj"):
        render_objects(tmp_path / "data", RenderSettings(**settings))
    done = render_objects(tmp_path / "data", RenderSettings(skip_bad=True, **settings))
    assert done.classes == {"02691156": 2, "crate": 2}
    assert list(done.left_out) == ["crate/b"]
    assert "b.obj" in json.loads((done.root / "render.json").read_text())["left_out"]["crate/b"]
    entries = [*np.load(done.root / "train_images.npy"), *np.load(done.root / "val_images.npy")]
    assert sorted(map(str, entries)) == ["/02691156/object0/", "/02691156/object1/", "/crate/a/", "/crate/c/"]
    write_obj(bad)  # mended, it is rendered with the same command
    assert render_objects(tmp_path / "data", RenderSettings(**settings)).new == 1
    bad.write_bytes(b"")
    (mesh_folder / "crate" / "a.ply").write_bytes(b"ply")
    with pytest.raises(UserError, match="class crate 1 object"):
        render_objects(tmp_path / "data2", RenderSettings(skip_bad=True, **settings))


def test_folders_that_hold_no_meshes_are_told(mesh_folder: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "is not a folder"), (mesh_folder / "crate" / "c", "holds no meshes")):
        with pytest.raises(UserError, match=words):
            render_objects(tmp_path / "data", RenderSettings(meshes=folder, **SETTINGS))
    write_obj(mesh_folder / "crate" / "a.obj")
    with pytest.raises(UserError, match="two meshes of one object"):
        render_objects(tmp_path / "data", RenderSettings(meshes=mesh_folder, **SETTINGS))
    (mesh_folder / "crate" / "a.obj").unlink()
    write_obj(mesh_folder / "crate" / "c" / "other.obj")
    with pytest.raises(UserError, match="two meshes of one object"):
        render_objects(tmp_path / "data", RenderSettings(meshes=mesh_folder, **SETTINGS))
    shutil.rmtree(mesh_folder / "crate")
    shutil.rmtree(mesh_folder / "02691156" / "object1")
    with pytest.raises(UserError, match="02691156 has one object"):
        render_objects(tmp_path / "data", RenderSettings(meshes=mesh_folder, **SETTINGS))


def test_trimesh_is_asked_for_only_with_meshes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(UserError) as caught:
        render_objects(tmp_path / "data", RenderSettings(meshes=tmp_path, **SETTINGS))
    assert caught.value.fix == 'pip install "equibench[meshes]"'
    assert render_objects(tmp_path / "data", RenderSettings(jobs=1, **{**SETTINGS, "size": 16})).new == 20
