"""How long units will take: what the same unit took before, else a short measurement of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import cached_property

import torch

from equibench.controls import CONTROLS
from equibench.encoders.vit import ViTEncoder, view_spec
from equibench.families import family_of
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import build, encode_pair
from equibench.probes.mlp import FusedProbes
from equibench.records import Record
from equibench.registry import BASELINES
from equibench.runner import Unit
from equibench.setting import Setting
from equibench.task import Task

PIXEL_CONTROL_SECONDS = 5 / 8000
"""For each pair of a task, where there is no encoder to measure."""
CLASSIFIER_SECONDS = 3e-4
"""For each image of a classification: 45 fits of ten classes on 512 features."""
SEGMENTATION_TIMES = 12
"""How many forward passes of the bare encoder a training step of the segmentation head takes."""


def estimate_seconds(
    units: Sequence[Unit], records: Sequence[Record], setting: Setting
) -> dict[tuple[str, str], float]:
    """Seconds of each kind of unit still to be done, by ("pretrain" or "score", row)."""
    past = {r.baseline: r.pretraining_seconds for r in records if r.pretraining_seconds}
    scored: dict[str, list[float]] = {}
    for record in records:
        if record.encoder_sha256 and record.features == "full":
            scored.setdefault(record.task, []).append(record.seconds)
    speed = _Speed(setting)
    estimates: dict[tuple[str, str], float] = {}
    for unit in units:
        if unit.pretrain and ("pretrain", unit.row) not in estimates:
            estimates["pretrain", unit.row] = past.get(unit.row) or _time_pretraining(unit.row, setting)
        if unit.tasks:
            seconds = 0.0
            for task in unit.tasks:
                if unit.row in CONTROLS and not CONTROLS[unit.row].has_encoder:
                    seconds += PIXEL_CONTROL_SECONDS * sum(setting.profile.probing.pairs)
                elif task.name in scored:
                    seconds += statistics.median(scored[task.name])
                else:
                    seconds += speed.seconds(task)
            estimates["score", unit.row] = seconds
    return estimates


class _Speed:
    """Seconds of tasks that were never scored here, from one measured forward pass and probe step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @cached_property
    def image(self) -> float:
        return _time_image(self.setting)

    @cached_property
    def regression(self) -> float:
        # one task encodes its second views, and a share of the first ones
        return self.image * sum(self.setting.probing.pairs) * 1.2 + _time_probe(self.setting)

    def seconds(self, task: Task) -> float:
        if task.family == "segmentation":
            size = self.setting.profile.segmentation
            images = size.iterations * size.batch * (size.crop / self.setting.size) ** 2
            return SEGMENTATION_TIMES * images * self.image
        if task.family == "classification":
            images = sum(family_of(task).manifests(task, self.setting)[0])
            return images * (self.image + CLASSIFIER_SECONDS)
        return self.regression


def total_seconds(units: Sequence[Unit], estimates: dict[tuple[str, str], float]) -> float:
    """Sum over the units that are not done."""
    return sum(
        (estimates["pretrain", u.row] if u.pretrain else 0.0) + (estimates["score", u.row] if u.tasks else 0.0)
        for u in units
    )


def _time_pretraining(row: str, setting: Setting) -> float:
    """Time two steps on a small batch and scale by the pairs of a run."""
    profile = setting.profile
    batch = min(profile.pretraining.batch, 64)
    classes = len(setting.dataset.class_names)
    module = build(BASELINES.get(row), profile, setting.variant, 0, classes).to(setting.device)
    spec = view_spec(setting.variant, profile.image_size)
    stream = open_stream(setting.dataset, "train", module.method, spec, 0)

    def step() -> None:
        views = stream.batch(0, batch, module.encoder)
        with torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
            loss = module.method.loss(views, encode_pair(module.encoder, views))["loss"]
        loss.backward()  # type: ignore[no-untyped-call]

    return _seconds(step) / batch * profile.pretraining.pairs


def _time_image(setting: Setting) -> float:
    """Seconds of a forward pass per image."""
    profile = setting.profile
    encoder = ViTEncoder(profile.encoder, profile.image_size, setting.spec).eval().to(setting.device)
    images = torch.rand(min(profile.encode_batch, 128), 3, profile.image_size, profile.image_size)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
            encoder.represent(images.to(setting.device))

    return _seconds(forward) / len(images)


def _time_probe(setting: Setting) -> float:
    """Seconds of training a task's probes."""
    encoder, probing = setting.profile.encoder, setting.profile.probing
    columns = {
        "full": slice(None),
        "invariant": slice(0, encoder.half),
        "equivariant": slice(encoder.half, None),
    }
    probes = FusedProbes(columns, encoder.features, 2, probing.width, setting.probe_seeds)
    inputs = torch.randn(probing.batch, 2, encoder.features)

    def probe_step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16):
            probes(inputs).square().mean().backward()

    steps = probing.epochs * probing.pairs[0] / probing.batch
    return _seconds(probe_step) * steps * 1.5


def _seconds(work: object) -> float:
    """Seconds of one call after a warm-up call."""
    assert callable(work)
    work()
    started = time.perf_counter()
    for _ in range(2):
        work()
    return (time.perf_counter() - started) / 2
