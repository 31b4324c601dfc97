"""A folder of mesh files: which objects of which classes it holds, and reading one of them (by trimesh)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from equibench.errors import UserError
from equibench.render.meshes import Array, Mesh, make_mesh

SUFFIXES = (".obj", ".glb", ".gltf", ".stl", ".ply")
UPRIGHT_Y = (".obj", ".glb", ".gltf")  # by custom these have y upwards, the others z
GREY = 0.7  # of a mesh that brings no colours
LAYOUTS = (
    "Give FOLDER with FOLDER/<class>/<object>.obj (or .glb, .gltf, .stl, .ply), FOLDER/<class>/<object>/*.obj, "
    "or as ShapeNet has it FOLDER/<synset>/<object>/models/model_normalized.obj."
)


def list_meshes(folder: Path) -> dict[str, dict[str, Path]]:
    """The mesh file of every object by class and object, both sorted; what holds no mesh is passed over.

    Raises:
        UserError: the folder is missing or holds no mesh; an object has several files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.", LAYOUTS)
    found = {part.name: _objects(part) for part in _visible(folder) if part.is_dir()}
    found = {name: objects for name, objects in found.items() if objects}
    if not found:
        raise UserError(f"{folder} holds no meshes in folders of classes.", LAYOUTS)
    return found


def _objects(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in _visible(folder):
        path = _in_folder(entry) if entry.is_dir() else entry if _is_mesh(entry) else None
        if path is None:
            continue
        name = entry.name if entry.is_dir() else entry.stem
        if name in found:
            raise UserError(f"{found[name]} and {path} are two files of one object.", "Rename or remove one.")
        found[name] = path
    return dict(sorted(found.items()))


def _in_folder(folder: Path) -> Path | None:
    """The mesh of an object that has a folder of its own."""
    for place in (folder / "models", folder):
        files = [path for path in _visible(place) if _is_mesh(path)] if place.is_dir() else []
        normalised = [path for path in files if path.stem == "model_normalized"]
        if len(files) > 1 and len(normalised) != 1:
            raise UserError(
                f"{place} holds {len(files)} meshes: {files[0].name}, {files[1].name}, ...",
                "Leave one, or call one model_normalized.",
            )
        if files:
            return (normalised or files)[0]
    return None


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_mesh(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read_mesh(path: Path) -> Mesh:
    """All triangles of a mesh file in one mesh, z upwards, in the unit ball.

    A triangle's colours are those of its corners or its face; a texture's at its corners; a material's; else grey.

    Raises:
        UserError: trimesh is missing; the file cannot be read or holds no triangle with an area.
    """
    trimesh = import_trimesh()
    try:
        parts = [part for part in trimesh.load_scene(path).dump() if isinstance(part, trimesh.Trimesh)]
        corners = np.concatenate([np.empty((0, 3, 3)), *(np.asarray(part.triangles) for part in parts)])
        colours = np.concatenate([np.empty((0, 3, 3)), *(_colours(part) for part in parts)])
        if path.suffix.lower() in UPRIGHT_Y:
            corners = np.stack([corners[..., 0], -corners[..., 2], corners[..., 1]], axis=-1)
        return make_mesh(corners, colours)
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.fix) from error
    except Exception as error:  # trimesh raises nearly everything on damaged files
        raise UserError(
            f"{path} cannot be read as a mesh: {type(error).__name__}: {error}",
            "Replace or remove the file, or leave out such files with --skip-bad.",
        ) from error


def _colours(part: Any) -> Array:
    """(F, 3, 3) RGB in [0, 1] of the corners of a trimesh.Trimesh."""
    visual, faces = part.visual, np.asarray(part.faces)
    plain = np.full((len(faces), 3, 3), GREY)
    if visual is None or not visual.defined:
        return plain
    if visual.kind == "face":
        return np.repeat(visual.face_colors[:, None, :3] / 255.0, 3, axis=1)
    if visual.kind == "vertex":
        return visual.vertex_colors[faces][..., :3] / 255.0
    image = getattr(visual.material, "image", None) or getattr(visual.material, "baseColorTexture", None)
    if image is not None and visual.uv is not None:
        return np.asarray(visual.to_color().vertex_colors)[faces][..., :3] / 255.0
    return plain * 0 + np.asarray(visual.material.main_color)[:3] / 255.0


def import_trimesh() -> ModuleType:
    """The library that reads mesh files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import trimesh
    except ImportError as error:
        raise UserError("Reading mesh files needs trimesh.", 'pip install "equibench[meshes]"') from error
    return trimesh
