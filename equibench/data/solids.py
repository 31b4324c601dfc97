"""The built-in generator: rendered pictures of ten textured 3-D solids, for want of real images.

``draw_scene`` turns (seed, index) into a ``Scene``, which ``render_scene`` turns into pixels by sphere tracing: a ray
advances by its distance to the solid, which cannot overshoot, until it touches it.

Coordinates: x to the right, y up, z towards the viewer. The picture is the square [-1, 1] x [-1, 1] of the plane z = 0,
seen in perspective from (0, 0, CAMERA_DISTANCE). Every solid fits in the unit ball of its own coordinates; its point p
stands at ``centre + radius * R p``, where R is the rotation of the scene's pose.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy import ndarray as Array

from equibench.errors import UserError

CAMERA_DISTANCE = 5.0
SUPERSAMPLING = 2  # rays per pixel along each side
LATTICE = 32  # cells after which the background's noise repeats; its finest octave spans about 8 to 30
MARCH_STEPS, MARCH_ROUNDS = 5, 8  # steps between two clearings of the finished rays, and such rounds
TOUCH = 2e-3  # a ray nearer than this to the surface (in units of the solid) has hit it
BEYOND = 4.0  # a step, in these units, that leads out of the ball from anywhere in it
SCENE_DRAWS = 24  # all from uniform numbers: NumPy's other distributions may change from one release to the next
LABEL_STREAM, SCENE_STREAM = 0, 1
Distance = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Scene:
    """All that decides one picture, save its size in pixels. Lengths are in half widths of the picture."""

    label: int  # which solid, an index into CLASS_NAMES
    pose: Array  # (4,) unit quaternion xyzw: from the solid's coordinates to the viewer's
    centre: tuple[float, float]
    radius: float  # of the ball around the solid
    hue: tuple[float, float]  # in [0, 1): of the object, of the background
    light: Array  # (3,) unit vector towards the light
    ambient: float  # in [0, 1]
    texture: int  # 0 stripes, 1 checks, 2 spots
    frequency: float  # of the texture, radians per unit of the solid
    grain: tuple[float, float, float, float]  # of the background: angle, stretch, shift along x and y
    lattice: Array  # (LATTICE, LATTICE) in [0, 1), what the background's noise interpolates


@dataclass(frozen=True)
class Solids:
    """Rendered solids and what they were rendered from, sample by sample."""

    images: Array  # (N, 3, S, S) uint8
    labels: Array  # (N,) int64, which solid
    pose: Array  # (N, 4) float32 unit quaternion, scipy's xyzw order
    hue: Array  # (N, 2) float32 in [0, 1): of the object, of the background
    masks: Array  # (N, S, S) bool: where the object covers at least half a pixel


def _uniform(seed: int, stream: int, index: int, count: int) -> Array:
    """``count`` uniform numbers in [0, 1) that depend on nothing but the first three arguments."""
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, index, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)


def draw_scene(seed: int, index: int) -> Scene:
    """The scene of sample ``index``; samples 10 k to 10 k + 9 show each of the ten solids once."""
    group, place = divmod(index, len(CLASS_NAMES))
    label = int(np.argsort(_uniform(seed, LABEL_STREAM, group, len(CLASS_NAMES)))[place])
    u = _uniform(seed, SCENE_STREAM, index, SCENE_DRAWS + LATTICE * LATTICE)
    # A uniformly distributed rotation: two angles and the share between their planes (Shoemake 1992).
    low, high, a, b = np.sqrt(1 - u[0]), np.sqrt(u[0]), 2 * np.pi * u[1], 2 * np.pi * u[2]
    pose = np.array([low * np.sin(a), low * np.cos(a), high * np.sin(b), high * np.cos(b)])
    radius = 0.55 + 0.25 * float(u[3])
    room = 0.95 - radius  # keeps the whole solid in the picture, perspective included
    # The light stands before the picture, at 15 to 65 degrees from the line of sight.
    tilt, turn = np.radians(15 + 50 * u[6]), 2 * np.pi * u[7]
    light = np.array([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)])
    # Each hue is uniform, but the two are kept apart: an object must be told from its background.
    hue = float(u[8])
    return Scene(
        label=label,
        pose=pose,
        centre=(room * float(2 * u[4] - 1), room * float(2 * u[5] - 1)),
        radius=radius,
        hue=(hue, (hue + 0.15 + 0.7 * float(u[9])) % 1.0),
        light=light,
        ambient=0.4 + 0.2 * float(u[10]),
        texture=int(3 * u[11]),
        frequency=5 + 4 * float(u[12]),
        grain=(np.pi * float(u[13]), 1 + 2 * float(u[14]), LATTICE * float(u[15]), LATTICE * float(u[16])),
        lattice=u[SCENE_DRAWS:].reshape(LATTICE, LATTICE).astype(np.float32),
    )


def hsv(hue: Array | float, saturation: Array | float, value: Array | float) -> Array:
    """(..., 3) RGB in [0, 1] of colours given by hue in turns, saturation and value."""
    hue, saturation, value = (np.asarray(part, float)[..., None] for part in (hue, saturation, value))
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 - saturation + saturation * np.clip(ramp, 0, 1))


def _background(scene: Scene, size: int) -> Array:
    """(3, size, size) float32 in [0, 1]: four octaves of value noise between two shades of a hue."""
    across = ((np.arange(size, dtype=np.float32) + 0.5) / size)[None, :]
    down = across.T
    angle, stretch, shift_x, shift_y = scene.grain
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, aside = across * cos + down * sin, (down * cos - across * sin) * np.float32(stretch)
    flat = scene.lattice.ravel()
    noise = np.zeros((size, size), np.float32)
    for octave in range(4):
        # Each octave starts at another place of the lattice, so that its cells do not line up with the last.
        x = along * np.float32(2**octave) + np.float32(shift_x + 7.3 * octave)
        y = aside * np.float32(2**octave) + np.float32(shift_y + 3.1 * octave)
        left, top = np.floor(x), np.floor(y)
        x, y = x - left, y - top
        x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
        column, row = left.astype(np.int32) % LATTICE, top.astype(np.int32) % LATTICE * LATTICE
        right, bottom = (column + 1) % LATTICE, (row + LATTICE) % (LATTICE * LATTICE)
        upper = flat[row + column] * (1 - x) + flat[row + right] * x
        lower = flat[bottom + column] * (1 - x) + flat[bottom + right] * x
        noise += (upper * (1 - y) + lower * y) * np.float32(0.55**octave)
    noise = np.clip((noise / np.float32(sum(0.55**k for k in range(4))) - 0.5) * 1.9 + 0.5, 0, 1)
    dark = hsv(scene.hue[1] - 0.06, 0.75, 0.18).astype(np.float32)[:, None, None]
    bright = hsv(scene.hue[1] + 0.01, 0.45, 0.8).astype(np.float32)[:, None, None]
    return dark + noise * (bright - dark)


def _march(distance: Distance, convex: bool, origin: Array, ray: Array, start: Array, end: Array) -> Array:
    """(n,) how far along each ray (3, n) the solid is touched between start and end (n,); infinity where it is missed.

    By steps of its distance alone, a ray that skims a flat face would take hundreds. But the distance to a convex solid
    is convex along the ray: it lies above the line through its last two values, so that a step to where that line meets
    zero cannot overshoot, and once it grows it never shrinks.
    """
    hit = np.full(start.shape, np.inf, np.float32)
    alive = np.arange(len(start))
    (dx, dy, dz), t, (ox, oy, oz) = ray, start, origin
    last, step = np.full_like(t, np.inf), np.zeros_like(t)
    for _ in range(MARCH_ROUNDS):
        for _ in range(MARCH_STEPS):
            gap = distance(ox + t * dx, oy + t * dy, oz + t * dz)
            if convex:
                line = gap * step / np.maximum(last - gap, 1e-9)
                step = np.where(gap > TOUCH, np.clip(line, gap, BEYOND), gap)
                last = gap
            else:
                step = gap
            t = t + step
        touched = gap < TOUCH
        hit[alive[touched]] = t[touched]
        going = ~touched & (t < end)
        if not going.any():
            break
        alive, end, t, last, step, dx, dy, dz = (v[going] for v in (alive, end, t, last, step, dx, dy, dz))
    return hit


def _normal(distance: Distance, point: Array) -> Array:
    """(3, n) unit normals at ``point`` (3, n) on the surface: the slope of the distance, by differences."""
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)
    slope = np.zeros_like(point)
    for corner in corners[..., None]:
        slope += corner * distance(*(point + corner * np.float32(2e-3)))
    return slope / np.maximum(np.sqrt((slope * slope).sum(0)), 1e-12)


def _paint(scene: Scene, point: Array) -> tuple[Array, Array]:
    """How much of its own colour and how much white the surface shows at ``point`` (3, n): two arrays (n,).

    The pattern alone would look the same after some rotations; with a white cap off the axes and a shade along y, the
    pose of even the sphere can be seen.
    """
    (x, y, z), f = point, np.float32(scene.frequency)
    if scene.texture == 0:
        wave = np.sin(f * z)
    elif scene.texture == 1:
        wave = np.sin(f * x) * np.sin(f * y + 1) * np.sin(f * z + 2) * 2
    else:
        wave = np.cos(f * x) + np.cos(f * y) + np.cos(f * z) - 0.4
    pattern = np.clip(wave * 4 + 0.5, 0, 1)
    cap = np.clip(((x + 0.3 * y + 0.15 * z) - 0.35) * 10, 0, 1)
    own = (0.45 + 0.55 * pattern) * (0.85 + 0.3 * y)
    return own * (1 - 0.75 * cap), 0.7 * cap * (0.6 + 0.4 * pattern)


def _rays(scene: Scene, rotation: Array, size: int) -> tuple[Array, Array, Array, Array, Array]:
    """The rays that meet the ball around the solid, in the solid's coordinates.

    Returns the number of each ray's point in the finer grid (n,), the camera (3,), the rays' directions (3, n), and
    the distances at which they enter and leave the ball (n,), (n,).
    """
    fine = size * SUPERSAMPLING
    side = (np.arange(fine, dtype=np.float32) + 0.5) * np.float32(2 / fine) - 1
    x, y = np.broadcast_to(side, (fine, fine)).ravel(), np.repeat(-side, fine)
    length = np.sqrt(x * x + y * y + CAMERA_DISTANCE**2)
    towards = np.array([*scene.centre, -CAMERA_DISTANCE], np.float32)
    nearest = (x * towards[0] + y * towards[1] - CAMERA_DISTANCE * towards[2]) / length
    half_chord = np.float32(scene.radius**2) - ((towards * towards).sum() - nearest * nearest)
    number = np.flatnonzero(half_chord > 0)
    x, y, length, nearest = x[number], y[number], length[number], nearest[number]
    half_chord = np.sqrt(half_chord[number])
    ray = np.stack([x / length, y / length, -CAMERA_DISTANCE / length]).astype(np.float32)
    scale = np.float32(1 / scene.radius)
    start, end = (nearest - half_chord) * scale, (nearest + half_chord) * scale
    return number, rotation.T @ -towards * scale, rotation.T @ ray, start, end


def render_scene(scene: Scene, size: int) -> tuple[Array, Array]:
    """The picture (3, size, size) uint8 of a scene, and the mask (size, size) bool of its solid."""
    from scipy.spatial.transform import Rotation  # takes a second, for which whoever renders nothing need not wait

    name, rotation = CLASS_NAMES[scene.label], Rotation.from_quat(scene.pose)
    number, origin, ray, start, end = _rays(scene, rotation.as_matrix().astype(np.float32), size)
    t = _march(SHAPES[name], name not in CURVED, origin, ray, start, end)
    hit = np.isfinite(t)
    number, ray = number[hit], ray[:, hit]
    point = origin[:, None] + t[hit] * ray
    normal = _normal(SHAPES[name], point)
    light = rotation.inv().apply(scene.light).astype(np.float32)
    halfway = light[:, None] - ray
    halfway /= np.sqrt((halfway * halfway).sum(0))
    lit = np.maximum((normal * light[:, None]).sum(0), 0)
    gloss = np.maximum((normal * halfway).sum(0), 0) ** 32
    brightness = np.float32(scene.ambient) + np.float32(1 - scene.ambient) * lit
    own, white = _paint(scene, point)
    tinted = hsv(scene.hue[0], 0.8, 1.0).astype(np.float32)[:, None] * (own * brightness)
    colour = tinted + white * brightness + 0.3 * gloss
    fine = np.zeros((4, (size * SUPERSAMPLING) ** 2), np.float32)
    fine[:3, number] = np.clip(colour, 0, 1)
    fine[3, number] = 1
    pixels = fine.reshape(4, size, SUPERSAMPLING, size, SUPERSAMPLING).mean((2, 4))
    picture = pixels[:3] + (1 - pixels[3]) * _background(scene, size)
    return np.rint(picture * 255).astype(np.uint8), pixels[3] >= 0.5


def render_solids(count: int, *, size: int = 32, seed: int = 0, start: int = 0) -> Solids:
    """Samples ``start`` to ``start + count`` of the stream that ``seed`` names.

    Each depends on nothing but (seed, its number, size in pixels): a slice renders the same however it is cut. Between
    machines a few bytes may differ by one, where their sines round differently. A UserError names a number below its
    limit: 1 for the size, 0 for the others.
    """
    for name, value in (("count", count), ("size", size - 1), ("seed", seed), ("start", start)):
        if value < 0:
            limits = "count, seed and start must be at least 0, size at least 1."
            raise UserError(f"Solids cannot be rendered with {name} out of range.", limits)
    images, masks = np.empty((count, 3, size, size), np.uint8), np.empty((count, size, size), bool)
    labels, pose, hue = np.empty(count, np.int64), np.empty((count, 4), np.float32), np.empty((count, 2), np.float32)
    for row in range(count):
        scene = draw_scene(seed, start + row)
        images[row], masks[row] = render_scene(scene, size)
        labels[row], pose[row], hue[row] = scene.label, scene.pose, scene.hue
    return Solids(images, labels, pose, hue, masks)


def _sphere(x: Array, y: Array, z: Array) -> Array:
    return np.sqrt(x * x + y * y + z * z) - 1


def _ellipsoid(x: Array, y: Array, z: Array) -> Array:
    # not the distance, which has no closed form, but a bound of it to first order near the surface
    a, b, c = ELLIPSOID_AXES
    scaled = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
    return scaled * (scaled - 1) / np.maximum(slope, 1e-6)


def _block(x: Array, y: Array, z: Array, half: tuple[float, float, float]) -> Array:
    dx, dy, dz = np.abs(x) - half[0], np.abs(y) - half[1], np.abs(z) - half[2]
    inside = np.minimum(np.maximum(np.maximum(dx, dy), dz), 0)
    dx, dy, dz = np.maximum(dx, 0), np.maximum(dy, 0), np.maximum(dz, 0)
    return np.sqrt(dx * dx + dy * dy + dz * dz) + inside


def _cylinder(x: Array, y: Array, z: Array) -> Array:
    radius, half = CYLINDER
    side, end = np.sqrt(x * x + y * y) - radius, np.abs(z) - half
    outside = np.sqrt(np.maximum(side, 0) ** 2 + np.maximum(end, 0) ** 2)
    return outside + np.minimum(np.maximum(side, end), 0)


def _cone(x: Array, y: Array, z: Array) -> Array:
    # The larger of the distances to its mantle (tip at z = 1) and to the plane of its base: never too large.
    radius, base = CONE
    height = 1 - base
    mantle = (np.sqrt(x * x + y * y) * height + (z - 1) * radius) / float(np.hypot(radius, height))
    return np.maximum(mantle, base - z)


def _torus(x: Array, y: Array, z: Array) -> Array:
    ring, tube = TORUS
    return np.sqrt((np.sqrt(x * x + y * y) - ring) ** 2 + z * z) - tube


def _octahedron(x: Array, y: Array, z: Array) -> Array:
    return (np.abs(x) + np.abs(y) + np.abs(z) - 1) * float(3**-0.5)


def _capsule(x: Array, y: Array, z: Array) -> Array:
    radius, half = CAPSULE
    beyond = z - np.clip(z, -half, half)
    return np.sqrt(x * x + y * y + beyond * beyond) - radius


def _tetrahedron(x: Array, y: Array, z: Array) -> Array:
    # Corners at (1,1,1), (1,-1,-1), (-1,1,-1), (-1,-1,1) over sqrt 3; each face lies opposite to one of them.
    far = np.maximum(np.maximum(-x - y - z, -x + y + z), np.maximum(x - y + z, x + y - z))
    return (far - float(3**-0.5)) * float(3**-0.5)


ELLIPSOID_AXES = (0.5, 0.72, 1.0)
CUBE_HALF = (0.577, 0.577, 0.577)
BOX_HALF = (0.3, 0.5, 0.8)
CYLINDER = (0.55, 0.8)  # radius, half the height
CONE = (0.75, -0.65)  # radius of the base, z of the base
TORUS = (0.68, 0.3)  # radius of the ring, of the tube
CAPSULE = (0.42, 0.58)  # radius, half the length between the centres of its ends

SHAPES: dict[str, Distance] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "cube": partial(_block, half=CUBE_HALF),
    "box": partial(_block, half=BOX_HALF),
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "octahedron": _octahedron,
    "capsule": _capsule,
    "tetrahedron": _tetrahedron,
}
CLASS_NAMES: tuple[str, ...] = tuple(SHAPES)
# Not convex, or (the ellipsoid) with no more than a bound for its distance; both curve away from every ray.
CURVED = ("torus", "ellipsoid")
