"""Pictures for the report, where the data and a run's folder are at hand: views, redrawn views, retrieved transforms.

All are of the first test images, in the profile's own size, and stand in the page as PNG.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from equibench.baselines.reconstruction import Reconstruction, patches_of
from equibench.data.dataset import Dataset
from equibench.data.load import load_dataset
from equibench.encoders.vit import ViTEncoder
from equibench.errors import UserError
from equibench.evaluation.action import fit_action
from equibench.evaluation.evaluator import Triple
from equibench.pairs.manifest import draw_theta
from equibench.pretrain.loop import build_step
from equibench.pretrain.method import BASELINES, ViewPair, encode_pair
from equibench.pretrain.runs import FACTS
from equibench.profiles import PROFILES, Profile, get_profile
from equibench.records import Record
from equibench.report.html_tables import ReportSource
from equibench.task import TASKS
from equibench.transforms.transformation import BUILT_IN, TRANSFORMATIONS, ViewSpec, transform, view_spec, visible_disc

VIEWS_OF_EACH, IMAGES = 5, 3
"""Values of θ, and test images, that the views of a transformation are shown of."""
_REDRAWN, _BANK, _NEAREST, _FIT = 6, 50, 5, 1000
_GAP = 2  # pixels between two views


@dataclass(frozen=True)
class Picture:
    """A grid of views: `data` is its address in the page, `width` that of one view in pixels."""

    title: str
    caption: str
    data: str
    columns: int
    width: int
    height: int


@dataclass(frozen=True)
class _Scene:
    """What the views are made of."""

    dataset: Dataset
    profile: Profile
    spec: ViewSpec

    @cached_property
    def mask(self) -> Tensor:
        """(S, S) 1 where a pixel is visible."""
        size = self.profile.image_size
        return torch.ones(size, size) if self.spec.radius is None else visible_disc(size, self.spec.radius)

    def images(self, start: int, count: int, train: bool = False) -> Tensor:
        """Images (count, 3, S, S) in [0, 1]."""
        images = (self.dataset.train if train else self.dataset.test).images[start : start + count]
        return torch.from_numpy(np.array(images)).float() / 255

    def moved(self, images: Tensor, name: str, theta: NDArray[np.float64]) -> Tensor:
        """Masked g(x, θ) of images (N, 3, S, S) with θ (N, P)."""
        return transform(images, {name: torch.from_numpy(theta).float()}, self.spec.fill) * self.mask

    def row(self, image: Tensor, name: str, theta: NDArray[np.float64]) -> Tensor:
        """One image (3, S, S) under several θ (M, P) -> (M, 3, S, S)."""
        return self.moved(image.expand(len(theta), -1, -1, -1), name, theta)


def report_pictures(
    sources: Sequence[ReportSource], logs: Mapping[str, Path], data_root: Path | None
) -> tuple[list[Picture], list[str]]:
    """The pictures that can be made, and for the others why not."""
    try:
        scene = _scene([record for source in sources for record in source.records], data_root)
    except UserError as error:
        return [], [f"pictures: {error.problem}"]
    pictures, left_out = _views(scene), []
    runs = _runs(sources, logs, scene)
    makers: Sequence[tuple[str, Callable[[_Scene, Mapping[str, Path]], Picture]]] = [
        ("reconstructions", _redrawn), ("retrieved transforms", _retrieved),
    ]  # fmt: skip
    for what, make in makers:
        try:
            pictures.append(make(scene, runs))
        except UserError as error:
            left_out.append(f"{what}: {error.problem}")
    return pictures, left_out


def _scene(records: Sequence[Record], data_root: Path | None) -> _Scene:
    """Data, size and views of the first record whose data can be opened without the network."""
    problems = {}
    for name, data, variant in dict.fromkeys((r.profile, r.data, r.variant) for r in records):
        task_like = variant in ("headline", "paper_like") and name in PROFILES
        if not task_like or data not in ("cifar10", "solids"):
            problems[data] = f"{data} is not transformed by equibench, or was given by its folder"
            continue
        profile = get_profile(name)
        try:
            sizes = profile.dataset_sizes if data == profile.dataset else None
            root = data_root if data == "cifar10" else None
            dataset = load_dataset(data, data_root=root, download=False, sizes=sizes)
            return _Scene(dataset, profile, view_spec(variant, profile.image_size))
        except UserError as error:
            problems[data] = error.problem
    raise UserError("; ".join(problems.values()) or "there are no records")


def _runs(sources: Sequence[ReportSource], logs: Mapping[str, Path], scene: _Scene) -> dict[str, Path]:
    """Folders of finished runs of the scene's profile, by row, as far as they are here."""
    found: dict[str, Path] = {}
    for record in (record for source in sources for record in source.records):
        log = logs.get(record.encoder_sha256 or "")
        if log and record.baseline in BASELINES.names() and record.profile == scene.profile.name:
            found.setdefault(record.baseline, log.parent)
    return found


def _views(scene: _Scene) -> list[Picture]:
    """View 1, and view 2 at five values of θ, of each transformation that is applied to images."""
    pictures = []
    for name in BUILT_IN:
        transformation = TRANSFORMATIONS[name]
        spread = np.linspace(0, 1 - 1e-9, VIEWS_OF_EACH)
        theta = transformation.draw(
            np.repeat(spread[:, None], transformation.uniforms, axis=1), scene.profile.image_size
        )
        rows = [torch.cat([(x * scene.mask)[None], scene.row(x, name, theta)]) for x in scene.images(0, IMAGES)]
        said = "; ".join(", ".join(f"{round(value, 3) + 0.0:.2g}" for value in one) for one in theta)
        title = TASKS.get(name).title if name in TASKS.names() else name
        caption = f"View 1, then view 2 at θ = {said} ({', '.join(transformation.parameters)})."
        pictures.append(_picture(f"Views: {title}", caption, rows))
    return pictures


def _redrawn(scene: _Scene, runs: Mapping[str, Path]) -> Picture:
    """What the decoder of a reconstruction method makes of view 2, by a composed transformation of test images."""
    rows = [row for row in runs if issubclass(BASELINES.get(row).method, Reconstruction)]
    if not rows:
        raise UserError("no folder of a finished run of the reconstruction method is here")
    folder, profile, size = runs[rows[0]], scene.profile, scene.profile.image_size
    step = build_step(BASELINES.get(rows[0]), profile, scene.spec.name, 0, len(scene.dataset.class_names)).eval()
    method = step.method
    assert isinstance(method, Reconstruction)
    try:
        step.encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
        method.load_state_dict(load_file(folder / "method.safetensors"))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} lacks the weights of its decoder: {error}") from error
    images = scene.images(0, _REDRAWN)
    theta = {name: torch.from_numpy(draw_theta(name, _REDRAWN, size, "report")).float() for name in BUILT_IN}
    second = transform(images, theta, scene.spec.fill)
    first, moved = step.encoder.normalise(images), step.encoder.normalise(second)
    pair = ViewPair(first, moved, theta={}, known={}, mask=scene.mask)
    with torch.inference_mode():
        tokens = encode_pair(step.encoder, pair)
        patches = method.decoder(method.equivariant(tokens.v2), method.equivariant(tokens.v1)).float()
    blank = patches_of(moved, method.patch)
    blank[:, method.visible] = patches
    redrawn = _unpatched(blank, method.patch, size) * step.encoder.std + step.encoder.mean
    shown = [each * scene.mask for each in (images, second, redrawn.clamp(0, 1))]
    steps = json.loads((folder / FACTS).read_text(encoding="utf-8"))["steps"]
    caption = (
        f"{BASELINES.get(rows[0]).title} after {steps:,} steps. From above: view 1, view 2, view 2 as the decoder "
        "redraws it. A run keeps its decoder when it ends and not on its way, so earlier steps cannot be shown."
    )
    return _picture("Reconstruction of view 2", caption, list(shown))


def _unpatched(patches: Tensor, patch: int, size: int) -> Tensor:
    """The inverse of `patches_of`: (N, L, 3 * patch²) -> (N, 3, S, S)."""
    n, grid = len(patches), size // patch
    blocks = patches.reshape(n, grid, grid, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n, 3, size, size)


def _retrieved(scene: _Scene, runs: Mapping[str, Path], name: str = "rotation") -> Picture:
    """For some test images the view that is asked for, and the nearest ones to W(θ) f(x) among many of the image."""
    if not runs:
        raise UserError("no folder of a finished run is here")
    row, folder = next(iter(runs.items()))
    encoder = ViTEncoder(scene.profile.encoder, scene.profile.image_size, scene.spec)
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    encoder.eval()
    size, parts = scene.profile.image_size, []
    fit = min(_FIT, len(scene.dataset.train.images) * 4 // 5)
    for start, count, what in ((0, fit, "fit"), (fit, fit // 4, "choose")):
        images = scene.images(start, count, train=True)
        theta = draw_theta(name, len(images), size, "report", what)
        second = scene.moved(images, name, theta)
        parts.append(Triple(_encoded(encoder, images * scene.mask), _encoded(encoder, second), theta))
    action = fit_action(parts[0], parts[1], TRANSFORMATIONS[name].periods)
    bank, rows = draw_theta(name, _BANK, size, "report", "bank"), []
    for image in scene.images(0, IMAGES):
        views = scene.row(image, name, bank)
        asked = action.predict(bank[0], action.project(_encoded(encoder, (image * scene.mask)[None])))
        distance = np.square(action.project(_encoded(encoder, views)) - asked).sum(axis=1)
        rows.append(torch.cat([(image * scene.mask)[None], views[:1], views[np.argsort(distance)[:_NEAREST].copy()]]))
    caption = (
        f"{BASELINES.get(row).title}, {name} by {bank[0, 0]:.0f}°: view 1, the view asked for, and the {_NEAREST} of "
        f"{_BANK} views of the same image that are nearest to what W(θ) f(x) predicts, W fitted on {fit:,} pairs."
    )
    return _picture("Retrieved transforms", caption, rows)


def _encoded(encoder: ViTEncoder, images: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [encoder.represent(batch) for batch in images.split(128)]
    return torch.cat(parts).float().numpy()


def _picture(title: str, caption: str, rows: Sequence[Tensor]) -> Picture:
    """Rows of views (M, 3, S, S) in [0, 1], with a gap between them, outside of which nothing is drawn."""
    from PIL import Image

    size, across = rows[0].shape[-1], len(rows[0])
    sheet = np.zeros((len(rows) * (size + _GAP) - _GAP, across * (size + _GAP) - _GAP, 4), dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, view in enumerate(row):
            top, left = i * (size + _GAP), j * (size + _GAP)
            pixels = (view.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            sheet[top : top + size, left : left + size, :3] = pixels
            sheet[top : top + size, left : left + size, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(title, caption, data, across, sheet.shape[1], sheet.shape[0])
