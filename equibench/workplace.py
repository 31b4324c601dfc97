"""Where a table's work is done: data, device and folders. A worker process opens its own from an order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from threadpoolctl import threadpool_limits

from equibench.data.datasets import Dataset, load_dataset, load_or_generate
from equibench.errors import UserError
from equibench.pretrain.loop import default_precision, start_fabric
from equibench.profiles import Profile
from equibench.registry import closest, load_baseline_file
from equibench.setting import Setting

VARIANTS = ("headline", "paper_like")


@dataclass(frozen=True)
class Order:
    """Everything from which a workplace is opened; small enough to be sent to another process.

    Attributes:
        runs: folder that holds all work in progress.
        baseline_files: files that register further baselines.
        dataset: the data set that has been found already, if so; it is not searched for again.
        table: name or CSV of the table that is worked on, for the commands that records hold.
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
        return self.setting.work / "pretraining" / row / f"seed{seed}"


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
    fabric = start_fabric(order.device, order.devices)
    setting = Setting(
        profile=order.profile,
        dataset=dataset,
        variant=order.variant,
        work=order.runs / order.profile.name / f"{dataset.name}-{order.variant}",
        device=fabric.device,
        bf16=default_precision(fabric.device.type) == "bf16-mixed",
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
    if profile.dataset_sizes:
        return load_dataset(profile.dataset, sizes=profile.dataset_sizes)
    if order.dataset != profile.dataset and profile.name == "demo":
        return (
            load_dataset(order.dataset)
            if order.dataset
            else load_or_generate(profile.dataset, data_root=order.data_root)
        )
    return load_dataset(profile.dataset, data_root=order.data_root)
