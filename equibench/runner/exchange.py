"""Views for other code, and its features back: what no architecture here can run is scored on the same pairs.

    equibench export-pairs views/ --tasks rotation,color --data photographs/
    ... other code reads views/*.npy and writes features/*.npy, row by row, beside a copy of views/manifest.json ...
    equibench score --features features/

The folder of views holds, for each set of views, `NAME.npy` (N, 3, S, S) uint8; for each task `TASK.npz` with image,
split, theta (N, P) and which row of which set each pair sees; `mask.npy` (S, S); and `manifest.json`, whose digest
covers pairs, views and counts. The disc of the views (docs/protocol.md 4.2) is painted in: outside it all pixels have
ImageNet's mean colour, and an encoder of one's own multiplies what it has normalised by the mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from equibench.config import VIEW_OPTIONS, RunConfig
from equibench.data.dataset import SPLITS
from equibench.errors import UserError
from equibench.evaluation.context import Context
from equibench.evaluation.evaluator import evaluator_of
from equibench.evaluation.features import SMALLEST
from equibench.pairs.manifest import Pairs
from equibench.pairs.views import Views
from equibench.probes.whitening import Features
from equibench.records import with_digest
from equibench.task import Task
from equibench.transforms.transformation import MEAN, visible_disc
from equibench.utils.arrays import Gathered, progress, update_digest
from equibench.utils.digests import __version__
from equibench.utils.files import digest_of, writable_folder, write_atomically, write_text

MANIFEST = "manifest.json"
_AT_ONCE = 256  # views


class ViewSet(BaseModel):
    """One array of views."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int
    digest: str  # of everything that the views depend on
    what: str


class ExportManifest(BaseModel):
    """What an export holds; `sha256` is the digest of all the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    package_version: str
    options: dict[str, Any]  # of `RunConfig`, by name: those that differ from the default
    tasks: list[str]
    data: str  # the data set's name with its digest
    size: int  # side of the views in pixels
    mask_radius: float | None  # of the disc beyond which nothing is to be seen, in pixels
    views: dict[str, ViewSet]  # by the file's name without suffix
    pairs: dict[str, str]  # digest of the pairs in each NAME.npz
    sha256: str = ""

    def digest(self) -> str:
        return digest_of(self.model_dump(exclude={"sha256"}))


@dataclass(frozen=True)
class GivenFeatures:
    """Features that other code has made, by the digest of the views that they are of."""

    folder: Path
    manifest: ExportManifest
    arrays: Mapping[str, NDArray[np.float16]]
    sha256: str  # of the features' bytes

    def of(self, views: Views) -> Features:
        """The features (N, D) of these views; a UserError where the export did not hold them."""
        if views.digest not in self.arrays:
            known = ", ".join(self.manifest.tasks)
            problem = f"{self.folder} holds no features of the views that this asks for; it is an export of {known}"
            raise UserError(problem, f"choose from these: --tasks {known.replace(' ', '')}; or export again")
        array = self.arrays[views.digest]
        return array if views.row is None else Gathered(array, views.row)


def export_pairs(out: Path | str, *, png: bool = False, **options: Any) -> list[Path]:
    """Write the views and parameters of tasks for other code; the files are returned, the manifest last.

    Args:
        out: the folder to write; it is empty, or not there.
        png: whether to write each view as NAME/000000.png besides.
        options: fields of `equibench.config.RunConfig`: tasks (regression by default), data, profile, pairs, ...

    Raises:
        UserError: the folder is not empty or cannot be written; a task has no views that could be exported, since it
            brings data along; a name or a file is wrong.
    """
    from equibench.runner.open import open_views

    out, config = Path(out), RunConfig.of(**options)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder", "choose another folder")
    with ExitStack() as stack:
        context, tasks = open_views(config, stack)
        named = _named_views(tasks, context)
        writable_folder(out)
        disc = None if context.spec.radius is None else visible_disc(context.size, context.spec.radius).numpy()
        mask = np.ones((context.size, context.size), bool) if disc is None else disc.reshape(disc.shape[-2:]) > 0
        files = [out / "mask.npy"]
        np.save(files[0], mask.astype(np.uint8))
        for name, (views, _) in named.items():
            files.append(out / f"{name}.npy")
            write_atomically(files[-1], partial(_write_views, views, mask))
            if png:
                _write_pngs(files[-1])
        places = {views.digest: name for name, (views, _) in named.items()}
        digests = {}
        for name, pairs in _named_pairs(tasks, context).items():
            files.append(out / f"{name}.npz")
            write_atomically(files[-1], partial(_write_pairs, pairs, context, places))
            digests[name] = pairs.sha256
        manifest = ExportManifest(
            package_version=__version__,
            options=_plain_options(config),
            tasks=[task.name for task in tasks],
            data=with_digest(context.dataset.name, context.dataset.sha256),
            size=context.size,
            mask_radius=context.spec.radius,
            views={n: ViewSet(count=len(v.images), digest=v.digest, what=what) for n, (v, what) in named.items()},
            pairs=digests,
        )
    manifest = manifest.model_copy(update={"sha256": manifest.digest()})
    files.append(out / MANIFEST)
    write_text(files[-1], manifest.model_dump_json(indent=1))
    return files


def read_features(folder: Path) -> GivenFeatures:
    """The features in a folder, with the manifest of the views that they were made of.

    Raises:
        UserError: the manifest is absent or changed; a file is absent, no array of numbers (N, D), or has another
            number of rows than there are views; a feature is not finite, or beyond float16's range.
    """
    again = f"copy {MANIFEST} from the folder that `equibench export-pairs` wrote"
    try:
        manifest = ExportManifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(
            f"{folder / MANIFEST} is absent or no manifest of views: {_first_line(error)}", again
        ) from error
    if manifest.sha256 != manifest.digest():
        raise UserError(f"{folder / MANIFEST} was changed: its digest is not that of what it holds", again)
    arrays, total, width = {}, hashlib.sha256(), 0
    for name, views in manifest.views.items():
        array = _read_array(folder / f"{name}.npy", views, manifest)
        if width and array.shape[1] != width:
            problem = f"{folder / name}.npy has {array.shape[1]} columns, the files before it {width}"
            raise UserError(problem, "take all features from one encoder")
        width = array.shape[1]
        update_digest(total, name, array)
        arrays[views.digest] = array
    return GivenFeatures(folder, manifest, arrays, total.hexdigest())


def asked_with(features: GivenFeatures, config: RunConfig) -> RunConfig:
    """The configuration with data, pairs and views of the manifest; a UserError where another one was asked for."""
    theirs = RunConfig.of(**features.manifest.options)
    for name in VIEW_OPTIONS:
        mine, default = getattr(config, name), getattr(RunConfig(), name)
        if mine not in (default, getattr(theirs, name)) and name not in ("data_root", "plugins"):
            problem = f"{name}={mine} was asked for, and the features are of views with {getattr(theirs, name)}"
            raise UserError(
                problem, f"leave --{name.replace('_', '-')} out, or export such views and make features anew"
            )
    here = {name: getattr(config, name) or getattr(theirs, name) for name in ("data_root", "plugins")}
    tasks = config.tasks or tuple(features.manifest.tasks)
    return config.with_(**{name: getattr(theirs, name) for name in VIEW_OPTIONS}, tasks=tasks).with_(**here)


def check_views(features: GivenFeatures, tasks: Sequence[Task], context: Context) -> None:
    """Refuse features of other pictures or pairs than the tasks ask for now."""
    data = with_digest(context.dataset.name, context.dataset.sha256)
    if data != features.manifest.data:
        problem = f"the features are of views of {features.manifest.data}, and the data are {data} now"
        raise UserError(problem, "export the views again, and make features of them")
    for name, pairs in _named_pairs(tasks, context).items():
        known = features.manifest.pairs.get(name)
        if known not in (None, pairs.sha256):
            problem = f"the pairs of {name} are not those of the export any more ({known[:8]}, now {pairs.sha256[:8]})"
            raise UserError(problem, "export the views again, and make features of them")
        for views in (context.views.first(pairs), context.views.second(pairs)):
            features.of(views)


def _plain_options(config: RunConfig) -> dict[str, Any]:
    """The options of `VIEW_OPTIONS` that are not as by default, as JSON values."""
    if not isinstance(config.profile, str):
        raise UserError(
            "a profile made in Python has no name to be found by", "write it as a TOML file: --profile x.toml"
        )
    found = {name: value for name in VIEW_OPTIONS if (value := getattr(config, name)) != getattr(RunConfig(), name)}
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


def _named_pairs(tasks: Sequence[Task], context: Context) -> dict[str, Pairs]:
    """All pairs that tasks look at, under the tasks' names; what tasks share under the first one's."""
    found: dict[str, Pairs] = {}
    for task in tasks:
        all_pairs = evaluator_of(task).pairs(task, context)
        if task.data is not None or not all_pairs:
            fix = "choose tasks on transformations: `equibench list tasks`"
            raise UserError(f"{task.name} has no pairs to export: it brings data of its own along", fix)
        for number, pairs in enumerate(all_pairs, start=1):
            if all(pairs.sha256 != other.sha256 for other in found.values()):
                found[task.name if number == 1 else f"{task.name}-{number}"] = pairs
    return found


def _named_views(tasks: Sequence[Task], context: Context) -> dict[str, tuple[Views, str]]:
    """Each set of views once, with what it is, under the names of the files."""
    found: dict[str, tuple[Views, str]] = {}
    for name, pairs in _named_pairs(tasks, context).items():
        both = (("first", context.views.first(pairs)), ("second", context.views.second(pairs)))
        for which, views in both:
            if any(views.digest == other.digest for other, _ in found.values()):
                continue
            label = (
                "first" if which == "first" and "first" not in found else name if which == "second" else f"{name}-first"
            )
            found[label] = views, f"{which} views of the pairs of {name}"
    return found


def _write_views(views: Views, mask: NDArray[np.bool_], file: Path) -> None:
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=views.images.shape)
    colour = np.rint(255 * np.array(MEAN)).astype(np.uint8)
    with progress("writing views", len(views.images)) as advance:
        for start in range(0, len(views.images), _AT_ONCE):
            rows = slice(start, min(start + _AT_ONCE, len(views.images)))
            images = np.array(views.images[rows])
            images[:, :, ~mask] = colour[None, :, None]
            array[rows] = images
            advance(len(images))
    array.flush()


def _write_pngs(file: Path) -> None:
    folder = writable_folder(file.with_suffix(""))
    for number, pixels in enumerate(np.load(file, mmap_mode="r")):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number:06d}.png")


def _write_pairs(pairs: Pairs, context: Context, places: Mapping[str, str], file: Path) -> None:
    first, second = context.views.first(pairs), context.views.second(pairs)
    every = np.arange(len(pairs.image))
    arrays: dict[str, Any] = {
        "image": pairs.image,
        "split": np.repeat(np.array(SPLITS), pairs.sizes),
        "theta": pairs.theta,
        "first": np.array(places[first.digest]),
        "first_row": every if first.row is None else first.row,
        "second": np.array(places[second.digest]),
        "second_row": every if second.row is None else second.row,
    }
    arrays |= {} if pairs.then is None else {"then": pairs.then}
    arrays |= {f"nuisance_{name}": theta for name, theta in pairs.nuisance.items()}
    np.savez_compressed(file, **arrays)


def _read_array(file: Path, views: ViewSet, manifest: ExportManifest) -> NDArray[np.float16]:
    expected = f"expected numbers (N, D), a row for each of the {views.count:,} {views.what}, saved by numpy.save"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the features {file} cannot be read: {_first_line(error)}", expected) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        if isinstance(array, np.ndarray) and array.shape == (views.count, 3, manifest.size, manifest.size):
            found += ", the views themselves"
        raise UserError(f"{file} holds {found}", expected)
    if len(array) != views.count:
        raise UserError(f"{file} holds {len(array):,} rows for {views.count:,} views", expected)
    parts = (array[at : at + 4096].astype(np.float64) for at in range(0, len(array), 4096))
    largest = float(np.max([np.abs(part).max() for part in parts]))
    if not largest <= float(np.finfo(np.float16).max) or 0 < largest < SMALLEST:  # the first is false for nan
        problem = f"{file}: features are not finite, beyond 65,504 or all below {SMALLEST} (largest: {largest:.3g})"
        raise UserError(problem, "features are kept as float16: multiply them by a constant, and look for NaN")
    return np.asarray(array, dtype=np.float16)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    return str(error).partition("\n")[0]
