"""Where a table's work is done: data, device and folders. A worker process opens its own from an order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from threadpoolctl import threadpool_limits

from equibench.data.array_cache import writing_to_cache
from equibench.data.datasets import Dataset, load_dataset, load_or_generate
from equibench.data.object_folder import find_object_data, load_object_folder
from equibench.encoders.vit import RENDERED
from equibench.errors import UserError
from equibench.pretrain.loop import default_precision, start_fabric
from equibench.profiles import Profile
from equibench.registry import BASELINES, closest, load_baseline_file
from equibench.render.generator import ensure_stand_in
from equibench.setting import OwnData, Setting

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
