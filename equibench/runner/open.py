"""From what was asked to where it is done: data, device and folders, and any encoder with its controls as rows."""

from __future__ import annotations

import fnmatch
import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from equibench.config import SCORE_OPTIONS, RunConfig
from equibench.data.dataset import Dataset, split_indices
from equibench.data.load import load_dataset, load_or_generate, root_of_cifar10
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.controls import CONTROLS
from equibench.pairs.manifest import choose_images
from equibench.pretrain.loop import default_precision
from equibench.profiles import Probing
from equibench.records import with_digest
from equibench.registry import load_file
from equibench.runner.exchange import MANIFEST, asked_with, check_views, read_features
from equibench.task import TASKS, Task, object_tasks, regression_tasks
from equibench.transforms.transformation import RENDERED, view_spec

if TYPE_CHECKING:
    from equibench.encoders.adapter import ImageEncoder
    from equibench.encoders.open import Opened
    from equibench.runner.plan import Place

REPEATS = 4
"""A training or validation image is used so often at most, with other θ, where the data are fewer than asked for; a
test image is used once."""
CPU_IMAGES, GPU_IMAGES = 8, 128
"""Images of 224 px per forward pass; on a CPU the activations of more are slower to allocate than to compute."""
_SETTLING_IMAGES, _SETTLING_BATCH = 256, 32
_SETTLED = f", BatchNorm statistics (if any) of {_SETTLING_IMAGES} training images"

_ENCODER_OPTIONS = (
    "arch", "pretrained", "size", "mean", "std", "interpolation", "pooling", "branch", "rename",
    "allow_random", "allow_partial", "seed",
)  # fmt: skip

EncoderSource = str | Path | nn.Module | Callable[[torch.Tensor], torch.Tensor]
"""A run folder or baseline of equibench; "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME", "hf:ORG/NAME",
"open_clip:NAME@TAG"; "FILE.py:FUNCTION", which builds a network; a file of weights (with `arch`); an `nn.Module` or a
callable on a batch of normalised images (N, 3, S, S)."""


def open_context(config: RunConfig) -> Context:
    """Load the data, find the device, register the baselines of the user's files; what is wrong is a UserError."""
    for file in config.baseline_files:
        load_file(file, "baseline")
    for file in config.plugins:
        load_file(file, "dataset")
    dataset = _load_data(config)
    if dataset.has_objects and config.variant != "headline":
        problem = f"{dataset.name} brings its views along, so there is no variant {config.variant!r} of them"
        raise UserError(problem, "leave --variant out for this table")
    profile, variant = config.sizes, RENDERED if dataset.has_objects else config.variant
    device = find_device(config.device)
    context = Context(
        profile,
        dataset,
        variant,
        config.runs / profile.name / f"{dataset.name}-{variant}",
        device,
        default_precision(device.type) == "bf16-mixed",
        devices=config.devices,
        known_fraction=config.known_fraction,
        data_root=config.data_root,
        rendered=profile.rendered is not None,
        skip_bad=config.skip_bad,
    )
    context.barrier()  # under a launcher all processes start together
    return context


def find_device(name: str) -> torch.device:
    """The device of that name, where "auto" is CUDA if there is one; a UserError if it is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found", "use --device cpu or --device auto")
    return torch.device(name)


@contextmanager
def one_thread(context: Context) -> Iterator[None]:
    """On a CPU, compute on one thread, so that a number does not depend on cores, jobs, or which job came last."""
    if context.device.type != "cpu":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _load_data(config: RunConfig) -> Dataset:
    """The profile's data; the demo alone falls back to generated images, since it has to run on any machine."""
    profile, name, root = config.sizes, config.pretraining_data, config.data_root
    if name == "3diebench":
        return _load_objects(config)
    if name not in (None, profile.dataset):
        return load_dataset(str(name), data_root=root, skip_bad=config.skip_bad)
    if profile.dataset_sizes:
        return load_dataset(profile.dataset, sizes=profile.dataset_sizes)
    root = root_of_cifar10(root, others=config.shared_root)
    if config.dataset != profile.dataset and profile.name == "demo":
        return load_dataset(config.dataset) if config.dataset else load_or_generate(profile.dataset, data_root=root)
    return load_dataset(profile.dataset, data_root=root)


def _load_objects(config: RunConfig) -> Dataset:
    """3DIEBench; in the small profiles, objects that are rendered in its layout."""
    from equibench.data.object_layout import find_object_data
    from equibench.data.objects import load_object_folder
    from equibench.render.generate import ensure_rendered_objects
    from equibench.utils.arrays import writing_to_cache

    size, sizes, name = config.sizes.image_size, config.sizes.rendered, "rendered-objects"
    if sizes is None:
        return load_object_folder(find_object_data(config.data_root), size=size, skip_bad=config.skip_bad)
    with writing_to_cache() as cache:
        root = ensure_rendered_objects(cache / name, objects=sizes.objects, views=sizes.views, size=size)
    return load_object_folder(root, size=size, name=name)


def drawable(dataset: Dataset, pairs: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of so many training, validation and test pairs, those that the data's images allow (see `REPEATS`)."""
    there = [len(indices) for indices in split_indices(dataset).values()]
    train, val, test = (min(n, k * have) for n, k, have in zip(pairs, (REPEATS, REPEATS, 1), there, strict=True))
    return train, val, test


@dataclass(frozen=True)
class OpenedScore:
    """A score that is ready to be made; rows are the encoder and its controls, notes what was found on opening it."""

    rows: list[Row]
    tasks: list[Task]
    context: Context
    notes: list[str]

    def find(self, place: Place) -> Row:
        return next(row for row in self.rows if row.name == place.row)


def open_score(source: EncoderSource | None, config: RunConfig, stack: ExitStack) -> OpenedScore:
    """Open the encoder and the data and lay out the work; nothing is scored yet.

    The stack keeps the temporary folder of an encoder whose weights have no digest, for which nothing is cached.

    Raises:
        UserError: a name, file, folder or device is wrong, or the weights do not fit; there is not one encoder.
    """
    from equibench.encoders.zoo import settle_batch_norm

    if (source is None) == (config.features is None):
        what = "neither an encoder nor features of one were" if source is None else "both an encoder and features were"
        raise UserError(f"{what} given", "equibench score ENCODER, or equibench score --features FOLDER")
    if source is None:
        return _open_features(config)
    dataset, chosen, variant = _open_data(config)
    opened = _open(source, config, dataset, variant)
    if config.tasks is None and "grid" in opened.encoder.token_sets:
        chosen = _with_attentive(chosen)
    if not opened.pretrained:
        settle_batch_norm(opened.encoder, _settling_images(dataset))
    notes, work = list(opened.notes), _work(config, dataset, variant)
    name = _name(source, opened, config)
    if opened.encoder.identity is None:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="equibench-")))
        notes.append("its weights cannot be told from others', so nothing of it is kept but the score")
    context = _score_context(config, dataset, variant, work, opened.encoder.preprocessing.size)
    encoder = shlex.quote(str(source)) if isinstance(source, str | Path) else "ENCODER"
    row = _row(name, opened, config, context, _score_command(encoder, config))
    rows = [row, *(_controls(opened, row, dataset, config.seed) if config.controls else ())]
    return OpenedScore([_with_files(one, config) for one in rows], chosen, context, notes)


def open_views(config: RunConfig, stack: ExitStack) -> tuple[Context, list[Task]]:
    """The data and the tasks of a score without an encoder, for views alone; they are kept in a temporary folder."""
    dataset, chosen, variant = _open_data(config)
    work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="equibench-")))
    return _score_context(config, dataset, variant, work), chosen


def _open_features(config: RunConfig) -> OpenedScore:
    """Features of other code in the place of an encoder."""
    assert config.features is not None
    folder = config.features
    features = read_features(folder)
    config = asked_with(features, config)
    dataset, chosen, variant = _open_data(config)
    context = _score_context(config, dataset, variant, _work(config, dataset, variant))
    check_views(features, chosen, context)

    def refuse() -> nn.Module:
        problem = f"{folder} holds features of single vectors, and there is no encoder to ask for more"
        raise UserError(problem, "leave out tasks that look at maps, gradients or further images")

    name = config.name or with_digest(folder.resolve().name, features.sha256)
    width = next(iter(features.arrays.values())).shape[1]
    row = Row(
        name,
        refuse,
        {"weights": features.sha256, "views": features.manifest.sha256},
        features.sha256,
        description=f"{width} features that other code made of the exported views {features.manifest.sha256[:8]}",
        command=_score_command("", config),
        given=features.of,
    )
    controls = [Row(c.name, command=row.command) for c in CONTROLS.values() if not c.has_encoder and config.controls]
    notes = [f"features, pairs and views are those of {folder / MANIFEST}"]
    return OpenedScore([_with_files(one, config) for one in (row, *controls)], chosen, context, notes)


def _open_data(config: RunConfig) -> tuple[Dataset, list[Task], str]:
    """The data of a score, its tasks, and the variant of its views."""
    for file in config.plugins:
        load_file(file, "dataset")
    others = any(TASKS.get(name).data for name in config.tasks or () if name in TASKS.names())
    root = root_of_cifar10(config.data_root, others)
    dataset = load_dataset(config.data, data_root=root, size=config.image_size, skip_bad=config.skip_bad)
    chosen = choose_tasks(config.tasks, objects=dataset.has_objects)
    return dataset, chosen, RENDERED if dataset.has_objects else config.variant


def _work(config: RunConfig, dataset: Dataset, variant: str) -> Path:
    return config.runs / "score" / f"{dataset.name}-{variant}"


def _score_context(
    config: RunConfig, dataset: Dataset, variant: str, work: Path, data_size: int | None = None
) -> Context:
    probing, repeats = _probing(dataset, config)
    device = find_device(config.device)
    return Context(
        replace(config.sizes, probing=probing, image_size=int(dataset.train.images.shape[-1])),
        dataset,
        variant,
        work,
        device,
        default_precision(device.type) == "bf16-mixed",
        repeats=repeats,
        data_root=config.data_root,
        data_size=data_size,
        skip_bad=config.skip_bad,
    )


def _score_command(encoder: str, config: RunConfig) -> str:
    """The command that makes a score again: what is as by default, or only says where, is left out."""
    places = ("tasks", "data_root", "device", "runs", "controls")
    flags = config.flags([option for option in SCORE_OPTIONS if option not in places])
    return " ".join(filter(None, ["equibench score", encoder, "--tasks {task}", *flags]))


def _with_files(row: Row, config: RunConfig) -> Row:
    files = {task: f for f in config.tasks or () if f.endswith(".py") for task in load_file(f, "task")}
    return replace(row, task_files=files)


def choose_tasks(wanted: Sequence[str] | None, objects: bool = False) -> list[Task]:
    """Tasks by name, pattern, evaluator, "all", or the file that registers them; the regression tasks if None.

    Of data in which several views show one object, "all" and None mean the tasks on such views. Tasks that bring data
    of their own along are named, or their evaluator is. A name that fits nothing is a UserError.
    """
    names: list[str] = []
    for entry in wanted if wanted is not None else ["regression"]:
        # evaluators register tasks in the order in which they happen to be imported
        known = sorted(TASKS.names(), key=lambda n: (TASKS.get(n).evaluator != "regression", TASKS.get(n).evaluator))
        if entry.endswith(".py"):
            found = load_file(entry, "task")
        elif entry in ("regression", "all") and objects:
            found = [n for n in object_tasks() if entry == "all" or TASKS.get(n).evaluator == entry]
        elif entry == "regression":
            found = regression_tasks()
        elif entry == "all":
            found = [n for n in known if TASKS.get(n).data is None and not TASKS.get(n).observed]
        else:
            found = [n for n in known if fnmatch.fnmatch(n, entry) or TASKS.get(n).evaluator == entry]
        if not found:
            TASKS.get(entry)  # raises, with the nearest name
        names += found
    return [TASKS.get(n) for n in dict.fromkeys(names)]


def _with_attentive(tasks: Sequence[Task]) -> list[Task]:
    """Regression tasks, and before each the attentive one on the same pairs, whose pass gives the others' features."""
    beside = {task.transformation: task for task in choose_tasks(["attentive"])}
    return [one for task in tasks for one in (beside.get(task.transformation), task) if one is not None]


def _open(source: EncoderSource, config: RunConfig, dataset: Dataset, variant: str) -> Opened:
    """An encoder of our own where the source is a run folder or a baseline's name, else any other."""
    from equibench.encoders.checkpoint import find_weights
    from equibench.encoders.open import open_encoder
    from equibench.pretrain.runs import open_run

    views = view_spec(variant, int(dataset.train.images.shape[-1]))
    if isinstance(source, str | Path):
        source = find_weights(source) or source
        own = open_run(
            source,
            runs=config.runs,
            profile=config.sizes.name,
            data=dataset.name,
            variant=variant,
            seed=config.seed,
            views=views,
            pooling=config.pooling,
        )
        if own is not None:
            return own
    return open_encoder(source, views=views, **{name: getattr(config, name) for name in _ENCODER_OPTIONS})


def _name(source: EncoderSource, opened: Opened, config: RunConfig) -> str:
    """The row's name: as asked for; a run's or a public model's own; else with a digest, as files share their names.

    A UserError if it cannot be printed in a line, or is a control's.
    """
    from equibench.encoders.own import is_local

    name = config.name or opened.name
    if name in CONTROLS or not name.isprintable():
        what = "is the name of a control" if name in CONTROLS else "cannot be printed in one line"
        raise UserError(f"{name!r} {what}", "give the encoder another name: --name")
    is_file = isinstance(source, str | Path) and Path(source).expanduser().exists()
    public = not is_file and isinstance(source, str) and ":" in source and not is_local(source)
    if config.name or public or opened.architecture.startswith("equibench:"):
        return name
    return with_digest(name, _identity(opened.encoder)["encoder_sha256"])


def _row(name: str, opened: Opened, config: RunConfig, context: Context, command: str) -> Row:
    encoder, layers = opened.encoder, config.layers or ()
    side = encoder.preprocessing.size or context.size
    batch = GPU_IMAGES if context.device.type == "cuda" else CPU_IMAGES
    return Row(
        name,
        lambda: encoder,
        **_identity(encoder),
        half=opened.half,
        layers=("default", *(encoder.layers if layers == ("all",) else layers)),
        token_sets=lambda: encoder.token_sets,
        batch=max(1, min(512, round(batch * (224 / side) ** 2))),
        seed=opened.seed,
        description=_description(opened),
        command=command,
    )


def _identity(encoder: ImageEncoder) -> dict[str, Any]:
    """What tells an encoder from others: where nothing does, a number that is never drawn twice."""
    identity = encoder.identity or {"weights": None, "call": uuid.uuid4().hex}
    return {"identity": identity, "encoder_sha256": str(identity["weights"]) if identity["weights"] else None}


def _description(opened: Opened) -> str:
    """The encoder in words: architecture, where its weights are from, preprocessing, pooling."""
    encoder, own = opened.encoder, opened.encoder.preprocessing
    weights = "trained" if opened.pretrained else "untrained" + _SETTLED
    if opened.coverage is not None:
        weights = f"{opened.coverage.share:.1%} of its parameters from {opened.name}"
        weights += f", branch {opened.coverage.prefix.rstrip('.')}" if opened.coverage.prefix else ""
    sides = f"resized to {own.size} px ({own.interpolation})" if own.size else "images of the data's own size"
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (own.mean, own.std))
    return f"{opened.architecture}, {weights}; {sides}, mean {mean}, std {std}; pooling {encoder.pooling}"


def _settling_images(dataset: Dataset) -> list[torch.Tensor]:
    """Batches of training images for the BatchNorm statistics of an untrained network."""
    count = min(_SETTLING_IMAGES, len(split_indices(dataset)["train"]))
    images = torch.from_numpy(np.array(dataset.train.images[np.sort(choose_images(dataset, "train", count))]))
    return [batch.float() / 255 for batch in images.split(_SETTLING_BATCH)]


def _controls(opened: Opened, row: Row, dataset: Dataset, seed: int) -> list[Row]:
    from equibench.encoders.zoo import settle_batch_norm

    controls = [Row(c.name, command=row.command) for c in CONTROLS.values() if not c.has_encoder]
    if opened.fresh is None or not opened.pretrained:  # an untrained encoder is its own control
        return controls
    untrained = opened.fresh(seed)
    settled = _SETTLED if settle_batch_norm(untrained, _settling_images(dataset)) else ""
    twin = replace(
        row,
        name="random_init",
        open=lambda: untrained,
        seed=seed,
        description=f"{opened.architecture}, untrained, seed {seed}{settled}",
        **_identity(untrained),
    )
    return [twin, *controls]


def _probing(dataset: Dataset, config: RunConfig) -> tuple[Probing, int]:
    """The probe with the pairs asked for, or as many as the data allow, and how often an image is used for them."""
    train, val, test = config.pairs or config.sizes.probing.pairs
    pairs = drawable(dataset, (train, val, test))
    there = split_indices(dataset)
    again = pairs[0] > len(there["train"]) or pairs[1] > len(there["val"])
    return replace(config.sizes.probing, pairs=pairs), REPEATS if again else 1
