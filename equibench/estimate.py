"""How long units will take: what the same unit took before, else a short measurement of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from equibench.controls import CONTROLS
from equibench.encoders.vit import ViTEncoder, view_spec
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import build, encode_pair
from equibench.probes.mlp import FusedProbes
from equibench.records import Record
from equibench.registry import BASELINES
from equibench.runner import Unit
from equibench.setting import Setting

PIXEL_CONTROL_SECONDS = 5 / 8000
"""For each pair of a task, where there is no encoder to measure."""


def estimate_seconds(
    units: Sequence[Unit], records: Sequence[Record], setting: Setting
) -> dict[tuple[str, str], float]:
    """Seconds of each kind of unit still to be done, by ("pretrain" or "score", row)."""
    past = {r.baseline: r.pretraining_seconds for r in records if r.pretraining_seconds}
    per_task = [r.seconds for r in records if r.encoder_sha256 and r.features == "full"]
    score = statistics.median(per_task) if per_task else None
    estimates: dict[tuple[str, str], float] = {}
    for unit in units:
        if unit.pretrain and ("pretrain", unit.row) not in estimates:
            estimates["pretrain", unit.row] = past.get(unit.row) or _time_pretraining(unit.row, setting)
        if unit.tasks:
            if unit.row in CONTROLS and not CONTROLS[unit.row].has_encoder:
                seconds = PIXEL_CONTROL_SECONDS * sum(setting.profile.probing.pairs)
            else:
                score = score if score is not None else _time_scoring(setting)
                seconds = score
            estimates["score", unit.row] = seconds * len(unit.tasks)
    return estimates


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


def _time_scoring(setting: Setting) -> float:
    """Time one forward pass and one probe step, and scale to one task."""
    profile = setting.profile
    encoder = ViTEncoder(profile.encoder, profile.image_size, setting.spec).eval().to(setting.device)
    images = torch.rand(min(profile.encode_batch, 128), 3, profile.image_size, profile.image_size)
    probing = profile.probing
    columns = {
        "full": slice(None),
        "invariant": slice(0, encoder.invariant),
        "equivariant": slice(encoder.invariant, None),
    }
    probes = FusedProbes(columns, encoder.features, 2, probing.width, setting.probe_seeds)
    inputs = torch.randn(probing.batch, 2, encoder.features)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.bf16):
            encoder.represent(images.to(setting.device))

    def probe_step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16):
            probes(inputs).square().mean().backward()

    # one task encodes its second views, and a share of the first ones
    views = sum(probing.pairs) * 1.2
    steps = probing.epochs * probing.pairs[0] / probing.batch
    return _seconds(forward) / len(images) * views + _seconds(probe_step) * steps * 1.5


def _seconds(work: object) -> float:
    """Seconds of one call after a warm-up call."""
    assert callable(work)
    work()
    started = time.perf_counter()
    for _ in range(2):
        work()
    return (time.perf_counter() - started) / 2
