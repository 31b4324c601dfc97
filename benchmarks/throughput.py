"""Pretraining against a plain PyTorch loop of the same model fed from memory, and against the matrix-product peak.

    python benchmarks/throughput.py [--profile demo] [--blocks 6] [--out benchmarks/throughput.json]

A real run (`pretrain`: views, log, held-out diagnostics, checkpoints) and the plain loop (forward, backward and AdamW
under autocast on batches that lie in memory, nothing else) take turns in one process, one block between two lines of
the log each, so that whatever else the machine does falls on both. The peak is that of a square product in the same
precision on the same threads, in the same minutes. On a CPU all of it runs on one thread, as a table's workers do.
Prints JSON. About five minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.utils.flop_counter import FlopCounterMode

from equibench.config import RunConfig
from equibench.evaluation.context import Context
from equibench.pretrain.batches import PairStream
from equibench.pretrain.loop import build_step, default_precision, run_pretraining
from equibench.pretrain.method import BASELINES
from equibench.profiles import Profile, get_profile
from equibench.runner.open import open_context
from equibench.utils.files import write_text

ROWS = ("vicreg", "sie_all", "reconstruction")
GOAL = 0.95  # of the plain loop's throughput
BATCHES_IN_MEMORY = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--blocks", type=int, default=6, help="turns of each loop, after one to warm up")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    profile, load = get_profile(arguments.profile), os.getloadavg()[0]
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="equibench-benchmark-") as folder:
        context = open_context(RunConfig.of(profile=profile, runs=Path(folder)))
        rows = {row: compare(row, profile, context, arguments.blocks) for row in ROWS}
    facts = {
        "profile": profile.name,
        "data": context.dataset.name,
        "device": torch.cuda.get_device_name() if context.fabric.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": default_precision(context.fabric.device.type),
        "torch": torch.__version__,
        "load_average_before": round(load, 2),
        "goal": GOAL,
        "rows": rows,
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if arguments.out:
        write_text(arguments.out, text + "\n")


def compare(row: str, profile: Profile, context: Context, blocks: int) -> dict[str, float]:
    """Throughput of a run and of the plain loop, taken in turns of `log_every` steps."""
    entry, device = BASELINES.get(row), context.fabric.device
    steps, batch = profile.pretraining.log_every, profile.pretraining.batch
    plain, flops = plain_loop(row, profile, context)
    ours: list[float] = []
    theirs: list[float] = []
    peaks: list[float] = []
    since = 0.0

    def take_turns(step: int, of: int, scalars: dict[str, float]) -> None:
        nonlocal since
        ours.append(now(device) - since)
        started = now(device)
        for number in range(steps):
            plain(number)
        theirs.append(now(device) - started)
        peaks.append(matrix_product_peak(device))
        since = now(device)

    pairs = (blocks + 1) * steps * batch
    short = dataclasses.replace(profile, pretraining=dataclasses.replace(profile.pretraining, pairs=pairs))
    since = now(device)
    run_pretraining(entry, short, context.dataset, context.work / row, fabric=context.fabric, report=take_turns)
    seconds, floor = (statistics.median(turns[1:]) / steps for turns in (ours, theirs))
    peak = max(peaks)
    return {
        "images_per_second": round(2 * batch / seconds, 1),
        "plain_images_per_second": round(2 * batch / floor, 1),
        "of_the_plain_loop": round(statistics.median(b / a for a, b in zip(ours[1:], theirs[1:], strict=True)), 3),
        "gflop_per_step": round(flops / 1e9, 2),
        "gflop_per_second": round(flops / seconds / 1e9, 1),
        "peak_gflop_per_second": round(peak / 1e9, 1),
        "of_the_peak": round(flops / seconds / peak, 3),
    }


def plain_loop(row: str, profile: Profile, context: Context) -> tuple[Callable[[int], None], int]:
    """A step of plain PyTorch on batches that lie in memory, by number; and the operations of its matrix products."""
    device, dataset = context.fabric.device, context.dataset
    bf16 = default_precision(device.type) == "bf16-mixed"
    module = build_step(BASELINES.get(row), profile, "headline", 0, len(dataset.class_names)).to(device).train()
    stream = PairStream(dataset, "train", module.method, context.spec, 0)
    batch = profile.pretraining.batch
    batches = [stream.batch(number * batch, batch, module.encoder) for number in range(BATCHES_IN_MEMORY)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    @torch.enable_grad()  # a log line, at which turns change, is written without gradients
    def step(number: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            losses, _ = module(batches[number % BATCHES_IN_MEMORY])
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as counter:
        step(0)
    return step, counter.get_total_flops()


def matrix_product_peak(device: torch.device) -> float:
    """Operations a second of the best of five square products, in bf16 where runs use it."""
    dtype = torch.bfloat16 if default_precision(device.type) == "bf16-mixed" else torch.float32
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        started = now(device)
        torch.mm(a, b)
        seconds.append(now(device) - started)
    return 2 * side**3 / min(seconds[1:])


def now(device: torch.device) -> float:
    """The clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
