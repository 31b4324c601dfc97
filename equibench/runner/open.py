"""Where a table's work is done: data, device and folders. A worker process opens its own from an order."""

from __future__ import annotations

import fnmatch
import shlex
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from threadpoolctl import threadpool_limits
from torch import nn

from equibench.data.dataset import Dataset, split_indices
from equibench.data.load import load_dataset, load_or_generate, root_of_cifar10
from equibench.data.object_layout import find_object_data
from equibench.data.objects import load_object_folder
from equibench.encoders.adapter import ImageEncoder
from equibench.encoders.open import Opened, open_encoder, open_native
from equibench.encoders.zoo import settle_batch_norm
from equibench.errors import UserError, closest
from equibench.evaluation.context import OwnData, Setting, Subject
from equibench.evaluation.controls import CONTROLS
from equibench.pairs.manifest import choose_images
from equibench.pretrain.loop import default_precision, start_fabric
from equibench.profiles import Probing, Profile, get_profile
from equibench.registry import BASELINES, TASKS, load_baseline_file, load_task_file
from equibench.render.generate import ensure_stand_in
from equibench.task import Task, object_tasks, regression_tasks
from equibench.transforms.transformation import RENDERED, view_spec
from equibench.utils.arrays import writing_to_cache

VARIANTS = ("headline", "paper_like")
OBJECTS = "3diebench"


@dataclass(frozen=True)
class Order:
    """Everything from which a workplace is opened; small enough to be sent to another process.

    Attributes:
        runs: folder that holds all work in progress.
        baseline_files: files that register further baselines.
        dataset: the data set that has been found already, if so; it is not searched for again.
        table: name or CSV of the table that is worked on, for the commands that records hold.
        data: what rows are pretrained on; the profile's data unless a table says otherwise.
        known: the share of training images whose θ is known.
        skip_bad: whether to leave out images that cannot be read.
        own_root: folder of the data that tasks bring along; `data_root` unless told.
    """

    profile: Profile
    variant: str = "headline"
    data_root: Path | None = None
    device: str = "auto"
    devices: int = 1
    runs: Path = Path("runs")
    baseline_files: tuple[Path, ...] = ()
    dataset: str | None = None
    table: str = "table2"
    data: str | None = None
    known: float = 1.0
    skip_bad: bool = False
    own_root: Path | None = None


@dataclass(frozen=True)
class Workplace:
    """Where a profile's work on one data set and variant is kept."""

    order: Order
    setting: Setting
    fabric: Fabric

    @property
    def journal(self) -> Path:
        return self.setting.work / "records.jsonl"

    def run_folder(self, row: str, seed: int) -> Path:
        share = self.known(row)
        name = row if share == 1 else f"{row}-known{share:g}"
        return self.setting.work / "pretraining" / name / f"seed{seed}"

    def known(self, row: str) -> float:
        """The share of training images whose θ a row can see; all, where it makes no use of θ."""
        return 1.0 if BASELINES.get(row).use_of_theta == "unused" else self.order.known


def open_workplace(order: Order) -> Workplace:
    """Load the data, find the device, register the order's baselines.

    Raises:
        UserError: the variant, the data, the device or a baseline file is wrong.
    """
    if order.variant not in VARIANTS:
        hint = closest(order.variant, VARIANTS)
        raise UserError(f"unknown variant {order.variant!r}{hint}", f"one of {', '.join(VARIANTS)}")
    for file in order.baseline_files:
        load_baseline_file(file)
    dataset = load_data(order)
    if dataset.has_objects and order.variant != "headline":
        raise UserError(
            f"{dataset.name} brings its views along, so there is no variant {order.variant!r} of them",
            "leave --variant out for this table",
        )
    variant = RENDERED if dataset.has_objects else order.variant
    fabric = start_fabric(order.device, order.devices)
    setting = Setting(
        profile=order.profile,
        dataset=dataset,
        variant=variant,
        work=order.runs / order.profile.name / f"{dataset.name}-{variant}",
        device=fabric.device,
        bf16=default_precision(fabric.device.type) == "bf16-mixed",
        own_data=OwnData(
            root=order.own_root or order.data_root,
            stand_ins=order.profile.stand_ins is not None,
            skip_bad=order.skip_bad,
        ),
    )
    return Workplace(replace(order, dataset=dataset.name), setting, fabric)


@contextmanager
def one_thread(place: Workplace) -> Iterator[None]:
    """On a CPU, compute on one thread, so that a number does not depend on cores, jobs, or which unit came last."""
    if place.fabric.device.type != "cpu":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def load_data(order: Order) -> Dataset:
    """The profile's data; the demo alone falls back to generated images, since it has to run on any machine."""
    profile = order.profile
    if order.data not in (None, profile.dataset):
        return _load_named(str(order.data), order)
    if profile.dataset_sizes:
        return load_dataset(profile.dataset, sizes=profile.dataset_sizes)
    if order.dataset != profile.dataset and profile.name == "demo":
        return (
            load_dataset(order.dataset)
            if order.dataset
            else load_or_generate(profile.dataset, data_root=order.data_root)
        )
    return load_dataset(profile.dataset, data_root=order.data_root)


def _load_named(name: str, order: Order) -> Dataset:
    """The data that a table names; in the small profiles, for 3DIEBench, generated data in its layout."""
    if name != OBJECTS:
        return load_dataset(name, data_root=order.data_root, skip_bad=order.skip_bad)
    size, stand_ins = order.profile.image_size, order.profile.stand_ins
    if stand_ins is None:
        return load_object_folder(find_object_data(order.data_root), size=size, skip_bad=order.skip_bad)
    name = f"{OBJECTS}-generated"
    with writing_to_cache() as cache:
        root = ensure_stand_in(cache / name, objects=stand_ins.objects, views=stand_ins.views, size=size)
    return load_object_folder(root, size=size, name=name)


REPEATS = 4
"""A training or validation image is used so often, with other θ, where the data are smaller than the profile asks."""
CPU_BATCH, GPU_BATCH = 8, 128
"""Images of 224 px per forward pass; on a CPU the activations of more are slower to allocate than to compute."""

SETTLING_IMAGES, SETTLING_BATCH = 256, 32
SETTLED = f", BatchNorm statistics (if any) of {SETTLING_IMAGES} training images"

Source = str | Path | nn.Module | Callable[[torch.Tensor], torch.Tensor]
"""A run folder or baseline of equibench; "timm:NAME", "torchvision:NAME", "hf-hub:ORG/NAME"; a file of weights (with
`arch`); an `nn.Module` or a callable on a batch of normalised images (N, 3, S, S)."""


@dataclass(frozen=True)
class ScoreOptions:
    """How an encoder is scored.

    Attributes:
        tasks: task names, patterns ("rotation*"), families ("retrieval"), "all", or Python files that register
            tasks; the regression tasks if None.
        data: "cifar10", "solids", or a folder of images.
        data_root: folder that holds CIFAR-10.
        image_size: to which the images of a folder are resized and cropped.
        skip_bad: leave out images that do not decode, and count them.
        profile: whose probe and whose number of pairs are used.
        pairs: other numbers of training, validation and test pairs.
        variant: "headline" or "paper_like" views.
        arch: "timm:NAME" or "torchvision:NAME", for a file of weights.
        name: the encoder's id in the records; made from the source by default.
        pretrained: False for the untrained architecture.
        size, mean, std, interpolation: override the model's own preprocessing.
        pooling: "default" (the model's), "cls", "mean", or a layer's name.
        layers: inner layers to score as well, or ("all",).
        allow_partial: score although some keys are missing, unexpected or of another shape.
        allow_random: score although less than 99 % of the parameters were loaded.
        controls: score the untrained architecture, pixels, constant and oracle as well.
        seed: of the untrained architecture, and of the run of a baseline.
        device: "auto", "cpu" or "cuda".
        runs: folder for work in progress: features, predictions, the journal.
    """

    tasks: Sequence[str] | None = None
    data: str | Path = "cifar10"
    data_root: str | Path | None = None
    image_size: int = 224
    skip_bad: bool = False
    profile: str = "demo"
    pairs: tuple[int, int, int] | None = None
    variant: str = "headline"
    arch: str | None = None
    name: str | None = None
    pretrained: bool = True
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    interpolation: str | None = None
    pooling: str = "default"
    layers: Sequence[str] | None = None
    allow_partial: bool = False
    allow_random: bool = False
    controls: bool = True
    seed: int = 0
    device: str = "auto"
    runs: str | Path = "runs"


@dataclass(frozen=True)
class Prepared:
    """A score that is ready to be made.

    Attributes:
        subjects: the encoder first, then its controls.
        files: by task, the Python file that registers it, where it was named by one.
    """

    subjects: list[Subject]
    tasks: list[Task]
    setting: Setting
    notes: list[str]
    files: dict[str, str]

    @property
    def name(self) -> str:
        """The encoder's id in the records."""
        return self.subjects[0].name


def prepare(source: Source, options: ScoreOptions, stack: ExitStack) -> Prepared:
    """Open the encoder and the data and lay out the work; nothing is scored yet.

    Args:
        stack: keeps the temporary folder of an encoder whose weights have no digest, for which nothing is cached.

    Raises:
        UserError: a name, file, folder or device is wrong, or the weights do not fit.
    """
    _check(options)
    variant = options.variant
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}{closest(variant, VARIANTS)}", f"one of {', '.join(VARIANTS)}")
    profile = get_profile(options.profile)
    others = any(TASKS.get(name).data for name in options.tasks or () if name in TASKS.names())
    root = root_of_cifar10(options.data_root, others)
    dataset = load_dataset(options.data, data_root=root, size=options.image_size, skip_bad=options.skip_bad)
    chosen = choose_tasks(options.tasks, objects=dataset.has_objects)
    if dataset.has_objects:
        variant = RENDERED
    opened = _open(source, options, dataset, variant)
    if not opened.pretrained:
        settle_batch_norm(opened.encoder, settling_images(dataset))
    notes, runs = list(opened.notes), Path(options.runs) / "score" / f"{dataset.name}-{variant}"
    name = options.name or opened.name
    if name in CONTROLS:
        raise UserError(f"{name!r} is the name of a control", "give the encoder another one: --name")
    if opened.encoder.identity is None:
        runs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="equibench-")))
        notes.append("its weights cannot be told from others', so nothing of it is kept but the score")
    probing, repeats = _sizes(dataset, profile.probing, options.pairs)
    fabric = start_fabric(options.device)
    setting = Setting(
        profile=replace(profile, probing=probing, image_size=int(dataset.train.images.shape[-1])),
        dataset=dataset,
        variant=variant,
        work=runs,
        device=fabric.device,
        bf16=default_precision(fabric.device.type) == "bf16-mixed",
        repeats=repeats,
        own_data=OwnData(
            size=opened.encoder.preprocessing.size,
            root=Path(options.data_root) if options.data_root else None,
            skip_bad=options.skip_bad,
        ),
    )
    command = command_of(source, options)
    subject = _subject(name, opened, options, setting, command)
    controls = _controls(opened, subject, dataset, options.seed) if options.controls else []
    files = {task: f for f in options.tasks or () if f.endswith(".py") for task in load_task_file(f)}
    return Prepared([subject, *controls], chosen, setting, notes, files)


def choose_tasks(wanted: Sequence[str] | None, objects: bool = False) -> list[Task]:
    """Tasks by name, pattern, family, "all", or the file that registers them; the regression tasks if None.

    Of data in which several views show one object, "all" and None mean the tasks on such views. Tasks that bring data
    of their own along are named, or their family is.

    Raises:
        UserError: a name that fits nothing.
    """
    names: list[str] = []
    for entry in wanted if wanted is not None else ["regression"]:
        if entry.endswith(".py"):
            found = load_task_file(entry)
        elif entry in ("regression", "all") and objects:
            found = [n for n in object_tasks() if entry == "all" or TASKS.get(n).family == entry]
        elif entry == "regression":
            found = regression_tasks()
        elif entry == "all":
            found = [n for n in TASKS.names() if TASKS.get(n).data is None and not TASKS.get(n).observed]
        else:
            found = [n for n in TASKS.names() if fnmatch.fnmatch(n, entry) or TASKS.get(n).family == entry]
        if not found:
            TASKS.get(entry)  # raises, with the nearest name
        names += found
    return [TASKS.get(n) for n in dict.fromkeys(names)]


def _check(options: ScoreOptions) -> None:
    """See that lists are lists, and that there are pairs of each kind."""
    for name in ("tasks", "layers"):
        if isinstance(given := getattr(options, name), str):
            raise UserError(f"{name} is a list of names, not the text {given!r}", f"{name}=[{given!r}]")
    if options.pairs is not None and (len(options.pairs) != 3 or min(options.pairs) < 1):
        raise UserError(
            f"pairs {options.pairs} are not numbers of training, validation and test pairs", "--pairs 4000,1000,3000"
        )


def command_of(source: Source, options: ScoreOptions) -> str:
    """The command line that makes the score again; what is as by default is left out."""
    named = shlex.quote(str(source)) if isinstance(source, str | Path) else "ENCODER"
    parts = ["equibench score", named, "--tasks {task}"]
    places = {"tasks", "data_root", "device", "runs", "controls"}
    for field in fields(options):
        value, flag = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
        if field.name in places or value == field.default:
            continue
        if isinstance(value, bool):
            parts.append(flag if value else f"--no-{field.name}")
        elif isinstance(value, str | Path | int):
            parts.append(f"{flag} {shlex.quote(str(value))}")
        else:
            parts.append(f"{flag} {shlex.quote(','.join(map(str, value)))}")
    return " ".join(parts)


def _open(source: Source, options: ScoreOptions, dataset: Dataset, variant: str) -> Opened:
    """An encoder of our own where the source is a run folder or a baseline's name, else any other."""
    views = view_spec(variant, int(dataset.train.images.shape[-1]))
    if isinstance(source, str | Path):
        native = open_native(
            source,
            runs=Path(options.runs),
            profile=options.profile,
            data=dataset.name,
            variant=variant,
            seed=options.seed,
            views=views,
            pooling=options.pooling,
        )
        if native is not None:
            return native
    return open_encoder(
        source,
        arch=options.arch,
        views=views,
        pretrained=options.pretrained,
        size=options.size,
        mean=options.mean,
        std=options.std,
        interpolation=options.interpolation,
        pooling=options.pooling,
        allow_partial=options.allow_partial,
        allow_random=options.allow_random,
        seed=options.seed,
    )


def _subject(name: str, opened: Opened, options: ScoreOptions, setting: Setting, command: str) -> Subject:
    encoder: ImageEncoder = opened.encoder
    layers = tuple(options.layers or ())
    identity = _identity(encoder)
    return Subject(
        name,
        encoder,
        identity,
        str(identity["weights"]) if identity["weights"] else None,
        half=opened.half,
        layers=("default", *(encoder.layers if layers == ("all",) else layers)),
        batch=_batch(encoder, setting),
        seed=opened.seed,
        description=_description(opened),
        command=command,
    )


def _identity(encoder: ImageEncoder) -> dict[str, object]:
    """What tells the encoder from all others; where that cannot be known, a number that is never drawn twice."""
    return encoder.identity or {"weights": None, "call": uuid.uuid4().hex}


def _batch(encoder: ImageEncoder, setting: Setting) -> int:
    """Images per forward pass, by the pixels of one."""
    side = encoder.preprocessing.size or setting.size
    batch = GPU_BATCH if setting.device.type == "cuda" else CPU_BATCH
    return max(1, min(512, round(batch * (224 / side) ** 2)))


def _description(opened: Opened) -> str:
    """The encoder in words: architecture, where its weights are from, preprocessing, pooling."""
    encoder, own = opened.encoder, opened.encoder.preprocessing
    weights = "trained" if opened.pretrained else "untrained" + SETTLED
    if opened.coverage is not None:
        weights = f"{opened.coverage.share:.1%} of its parameters from {opened.name}"
    sides = f"resized to {own.size} px ({own.interpolation})" if own.size else "images of the data's own size"
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (own.mean, own.std))
    return f"{opened.architecture}, {weights}; {sides}, mean {mean}, std {std}; pooling {encoder.pooling}"


def settling_images(dataset: Dataset) -> list[torch.Tensor]:
    """Batches of training images for the BatchNorm statistics of an untrained network."""
    count = min(SETTLING_IMAGES, len(split_indices(dataset)["train"]))
    images = torch.from_numpy(np.array(dataset.train.images[np.sort(choose_images(dataset, "train", count))]))
    return [batch.float() / 255 for batch in images.split(SETTLING_BATCH)]


def _controls(opened: Opened, subject: Subject, dataset: Dataset, seed: int) -> list[Subject]:
    controls = [Subject(c.name, command=subject.command) for c in CONTROLS.values() if not c.has_encoder]
    if opened.fresh is None or not opened.pretrained:  # an untrained encoder is its own control
        return controls
    untrained = opened.fresh(seed)
    norms = settle_batch_norm(untrained, settling_images(dataset))
    identity = _identity(untrained)
    twin = replace(
        subject,
        name="random_init",
        encoder=untrained,
        identity=identity,
        encoder_sha256=str(identity["weights"]) if identity["weights"] else None,
        seed=seed,
        description=f"{opened.architecture}, untrained, seed {seed}" + (SETTLED if norms else ""),
    )
    return [twin, *controls]


def _sizes(dataset: Dataset, probing: Probing, pairs: tuple[int, int, int] | None) -> tuple[Probing, int]:
    """The pairs asked for, or as many as the data allow with repeated training and validation images."""
    wanted = pairs or probing.pairs
    there = [len(indices) for indices in split_indices(dataset).values()]
    if all(want <= have for want, have in zip(wanted, there, strict=True)):
        return replace(probing, pairs=wanted), 1
    train, val, test = (min(n, have * k) for n, have, k in zip(wanted, there, (REPEATS, REPEATS, 1), strict=True))
    return replace(probing, pairs=(train, val, test)), REPEATS if train > there[0] or val > there[1] else 1
