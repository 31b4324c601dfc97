"""Triangle meshes in the unit ball, with normals and colours: the ten solids, and those that are read from files.

Every solid object differs from its class by a stretch along its axes, and wears patches of colour that no rotation
maps onto each other, so that its pose can be seen even if it is a sphere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy import ndarray as Array
from scipy import sparse

from equibench.data import solids
from equibench.errors import UserError

_CREASE = np.cos(np.radians(35))  # faces that meet at a larger angle keep an edge between them; others look round
_NO_AREA = 1e-14  # twice the area of a triangle in the unit ball that has no normal to speak of

_SEGMENTS = 64  # of a solid of revolution, around its axis
_STRETCH = 0.12  # most by which an axis of a solid is stretched or shrunk; more would make a cube a box
_PATCHES = (7, 12)  # least and most patches of colour
_EDGE = 28.0  # how sharply patches meet: their colours mix over about 1 / _EDGE of the unit
OBJECT_DRAWS = 6 + 5 * _PATCHES[1]  # uniform numbers that an object is made from

_SUFFIXES = (".obj", ".glb", ".gltf", ".stl", ".ply")
_UPRIGHT_Y = _SUFFIXES[:3]  # by custom these have y upwards, the others z
_GREY = 0.7  # of a mesh that brings no colours
_LAYOUTS = (
    "give FOLDER with FOLDER/<class>/<object>.obj (or .glb, .gltf, .stl, .ply), FOLDER/<class>/<object>/*.obj, "
    "or as ShapeNet has it FOLDER/<synset>/<object>/models/model_normalized.obj"
)


@dataclass(frozen=True)
class Mesh:
    """Triangles, each with corners of its own."""

    corners: Array  # (F, 3, 3) float64
    normals: Array  # (F, 3, 3) float64 unit vectors, to the same side of a face as its corners' order says
    colours: Array  # (F, 3, 3) float32 RGB in [0, 1], as on a screen


def make_mesh(corners: Array, colours: Array) -> Mesh:
    """Triangles (F, 3, 3) with a colour (RGB in [0, 1]) at each corner, centred and scaled to touch the unit sphere.

    A UserError tells that no triangle has an area, or a coordinate is not finite.
    """
    if not np.isfinite(corners).all():
        raise UserError("the mesh has coordinates that are not finite", "mend the file")
    if len(corners):
        corners = corners - (corners.min(axis=(0, 1)) + corners.max(axis=(0, 1))) / 2
        corners = corners / max(np.linalg.norm(corners, axis=-1).max(), 1e-300)
    kept = _doubled_areas(corners) > _NO_AREA
    corners, colours = corners[kept], colours[kept]
    if not len(corners):
        raise UserError("the mesh has no triangle with an area", "give a mesh of triangles or polygons")
    return Mesh(corners, _corner_normals(corners), colours.astype(np.float32))


def _doubled_areas(corners: Array) -> Array:
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)


def _corner_normals(corners: Array) -> Array:
    """(F, 3, 3) unit normals: at a corner, the mean over the faces that meet there at less than the crease's angle.

    Faces count by their angle at the corner, so that it does not matter how a polygon was cut into triangles. Corners
    of the unit ball meet where they agree to two millionths.
    """
    ahead, back = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
    flat = np.cross(ahead[:, 0], back[:, 0])
    flat = np.repeat(flat / np.linalg.norm(flat, axis=1, keepdims=True), 3, axis=0)  # of each corner's face
    across = np.linalg.norm(np.cross(ahead, back), axis=-1)
    angles = np.arctan2(across, (ahead * back).sum(axis=-1)).reshape(-1, 1)
    cells = np.rint((corners.reshape(-1, 3) + 1) * 2**19).astype(np.int64)  # 21 bits each, for they lie in the ball
    _, place = np.unique((cells[:, 0] << 42) + (cells[:, 1] << 21) + cells[:, 2], return_inverse=True)
    at_place = sparse.csr_matrix((np.ones(len(flat)), (np.arange(len(flat)), place.ravel())))
    beside = sparse.coo_matrix(at_place @ at_place.T)
    smooth = (flat[beside.row] * flat[beside.col]).sum(axis=1) > _CREASE
    pairs = (np.ones(int(smooth.sum())), (beside.row[smooth], beside.col[smooth]))
    total = sparse.csr_matrix(pairs, shape=beside.shape) @ (angles * flat)
    return (total / np.linalg.norm(total, axis=1, keepdims=True)).reshape(-1, 3, 3)


# The ten solids


def solid_object(name: str, uniform: Array) -> Mesh:
    """One object of a class of solids; (OBJECT_DRAWS,) numbers in [0, 1) decide its stretch and its patches."""
    corners = TRIANGLES[name]()
    return make_mesh(corners * (1 + _STRETCH * (2 * uniform[:3] - 1)), _patch_colours(corners, uniform[3:]))


def _patch_colours(corners: Array, uniform: Array) -> Array:
    """(F, 3, 3) RGB: each corner has the colour of the nearest of a few points on the sphere, mixed at the borders.

    The patches differ in brightness too, since under a light of one colour no hue can be told from another.
    """
    least, most = _PATCHES
    count = least + int((most - least + 1) * uniform[0])
    height, turn, *ranks, tint = uniform[3 : 3 + 5 * count].reshape(5, count)
    brightness, family = (np.argsort(np.argsort(rank)) / (count - 1) for rank in ranks)  # evenly spread, shuffled
    ring = np.sqrt(1 - (2 * height - 1) ** 2)
    sites = np.stack([ring * np.cos(2 * np.pi * turn), ring * np.sin(2 * np.pi * turn), 2 * height - 1], axis=1)
    hue = uniform[1] + np.where(family < 0.5, 0, 0.25 + 0.5 * uniform[2]) + 0.1 * (tint - 0.5)
    colours = solids.hsv(hue, 0.8 - 0.5 * family, 0.4 + 0.6 * brightness)
    points = corners.reshape(-1, 3) / np.linalg.norm(corners.reshape(-1, 3), axis=1, keepdims=True)
    closeness = _EDGE * (points @ sites.T)
    share = np.exp(closeness - closeness.max(axis=1, keepdims=True))
    return (share @ colours / share.sum(axis=1, keepdims=True)).reshape(corners.shape)


def _subdivide(corners: Array, times: int) -> Array:
    """(F, 3, 3) -> (4^times F, 3, 3): every triangle cut into four at the middles of its edges."""
    for _ in range(times):
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        corners = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3, 3)
    return corners


def _revolve(curve: Array) -> Array:
    """(F, 3, 3) the surface that a curve (P, 2) of radii and heights leaves as it turns around the z-axis."""
    radius, height = curve.T
    turn = 2 * np.pi * (np.arange(_SEGMENTS + 1) % _SEGMENTS) / _SEGMENTS  # closes exactly
    upright = np.broadcast_to(height[:, None], (len(height), _SEGMENTS + 1))
    grid = np.stack([radius[:, None] * np.cos(turn), radius[:, None] * np.sin(turn), upright], axis=-1)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    quads = np.stack([a, b, c, a, c, d], axis=2).reshape(-1, 3, 3)
    return quads[_doubled_areas(quads) >= 1e-12]  # on the axis a quad is one triangle


def _line(points: list[tuple[float, float]], steps: list[int]) -> Array:
    """(P, 2) radii and heights along a line of straight pieces, each cut into so many steps."""
    pieces = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(points[:-1], points[1:], steps, strict=True)]
    return np.concatenate([*pieces, [points[-1]]])


def _octahedron() -> Array:
    signs = [(x, y, z) for x in (1.0, -1.0) for y in (1.0, -1.0) for z in (1.0, -1.0)]
    faces = np.array([np.diag(s)[:: int(np.prod(s))] for s in signs])  # seen from outside, all turn the same way
    return _subdivide(faces, 5)


def _sphere() -> Array:
    corners = _octahedron()
    return corners / np.linalg.norm(corners, axis=-1, keepdims=True)


def _block(half: tuple[float, float, float]) -> Array:
    square = np.array([[[-1.0, -1, 1], [1, -1, 1], [1, 1, 1]], [[-1, -1, 1], [1, 1, 1], [-1, 1, 1]]])
    turned = np.concatenate([np.roll(square, shift, axis=-1) for shift in range(3)])
    return _subdivide(np.concatenate([turned, -turned[:, ::-1]]), 4) * half


def _torus() -> Array:
    ring, tube = solids.TORUS
    turn = 2 * np.pi * (np.arange(41) % 40) / 40
    return _revolve(np.stack([ring + tube * np.cos(turn), tube * np.sin(turn)], axis=1))


def _capsule() -> Array:
    radius, half = solids.CAPSULE
    angle = np.linspace(-np.pi / 2, 0, 12)
    low = np.stack([radius * np.cos(angle), radius * np.sin(angle) - half], axis=1)
    side = np.stack([np.full(16, radius), np.linspace(-half, half, 18)[1:-1]], axis=1)
    curve = np.concatenate([low, side, low[::-1] * (1, -1)])
    curve[[0, -1], 0] = 0.0
    return _revolve(curve)


def _tetrahedron() -> Array:
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    return _subdivide(corners[[[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]]], 5)


(_RADIUS, _HALF), (_WIDTH, _BASE) = solids.CYLINDER, solids.CONE
TRIANGLES: dict[str, Callable[[], Array]] = {
    "sphere": _sphere,
    "ellipsoid": lambda: _sphere() * solids.ELLIPSOID_AXES,
    "cube": lambda: _block(solids.CUBE_HALF),
    "box": lambda: _block(solids.BOX_HALF),
    "cylinder": lambda: _revolve(_line([(0, -_HALF), (_RADIUS, -_HALF), (_RADIUS, _HALF), (0, _HALF)], [8, 24, 8])),
    "cone": lambda: _revolve(_line([(0, _BASE), (_WIDTH, _BASE), (0, 1)], [10, 30])),
    "torus": _torus,
    "octahedron": _octahedron,
    "capsule": _capsule,
    "tetrahedron": _tetrahedron,
}


# Mesh files


def list_meshes(folder: Path) -> dict[str, dict[str, Path]]:
    """The mesh file of every object by class and object, both sorted; what holds no mesh is passed over.

    A UserError tells that the folder is missing or holds no mesh, or an object has several files.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", _LAYOUTS)
    found: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(path for pattern in ("*/*", "*/*/*", "*/*/models/*") for path in folder.glob(pattern)):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not any(part.startswith(".") for part in parts):
            name = parts[1] if len(parts) > 2 else path.stem
            found.setdefault(parts[0], {}).setdefault(name, []).append(path)
    if not found:
        raise UserError(f"{folder} holds no meshes in folders of classes", _LAYOUTS)
    return {key: {name: _only(files) for name, files in sorted(found[key].items())} for key in sorted(found)}


def _only(files: list[Path]) -> Path:
    """The mesh of an object among its files; what lies beside a folder models is passed over."""
    places = {path.parent for path in files}
    files = [path for path in files if path.parent / "models" not in places]
    chosen = files if len(files) == 1 else [path for path in files if path.stem == "model_normalized"]
    if len(chosen) != 1:
        raise UserError(f"{files[0]} and {files[1]} are two meshes of one object", "call one model_normalized")
    return chosen[0]


def read_mesh(path: Path) -> Mesh:
    """All triangles of a mesh file in one mesh, z upwards, in the unit ball.

    A triangle's colours are those of its corners or its face; a texture's at its corners; a material's; else grey.
    A UserError tells that trimesh is missing, or the file cannot be read or holds no triangle with an area.
    """
    trimesh = import_trimesh()
    try:
        parts = [part for part in trimesh.load_scene(path).dump() if isinstance(part, trimesh.Trimesh)]
        corners = np.concatenate([np.empty((0, 3, 3)), *(np.asarray(part.triangles) for part in parts)])
        colours = np.concatenate([np.empty((0, 3, 3)), *(_colours(part) for part in parts)])
        if path.suffix.lower() in _UPRIGHT_Y:
            corners = np.stack([corners[..., 0], -corners[..., 2], corners[..., 1]], axis=-1)
        return make_mesh(corners, colours)
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.fix) from error
    except Exception as error:  # trimesh raises nearly everything on damaged files
        problem = f"{path} cannot be read as a mesh: {type(error).__name__}: {error}"
        raise UserError(problem, "replace or remove the file, or leave out such files with --skip-bad") from error


def _colours(part: Any) -> Array:
    """(F, 3, 3) RGB in [0, 1] of the corners of a trimesh.Trimesh."""
    visual, faces = part.visual, np.asarray(part.faces)
    if visual is None or not visual.defined:
        return np.full((len(faces), 3, 3), _GREY)
    if visual.kind == "face":
        return np.repeat(visual.face_colors[:, None, :3] / 255.0, 3, axis=1)
    if visual.kind == "vertex":
        return visual.vertex_colors[faces][..., :3] / 255.0
    image = getattr(visual.material, "image", None) or getattr(visual.material, "baseColorTexture", None)
    if image is not None and visual.uv is not None:
        return np.asarray(visual.to_color().vertex_colors)[faces][..., :3] / 255.0
    return np.broadcast_to(np.asarray(visual.material.main_color)[:3] / 255.0, (len(faces), 3, 3))


def import_trimesh() -> ModuleType:
    """The library that reads mesh files; a UserError where it is not installed."""
    try:
        import trimesh
    except ImportError as error:
        raise UserError("reading mesh files needs trimesh", 'pip install "equibench[meshes]"') from error
    return trimesh
