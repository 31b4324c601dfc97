"""Where the time goes: the pretraining step and the six-task evaluation against their floor, in one run.

    python benchmarks/speed.py [--profile demo] [--steps 40]

Pretraining: the share of a run's wall time (views, log, held-out diagnostics and checkpoints included) that is
spent in the model (forward, backward, optimiser), and the step against the encoder's bare forward and backward on
the same batch. Evaluation: six tasks with three probe seeds and three feature sets, from an empty store, against the
bare forward passes of the views it needs. On a CPU all of it runs on one thread, as a table's workers do.
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

from equibench.config import RunConfig
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.evaluation.context import Context, Row, vit_identity
from equibench.evaluation.evaluator import evaluate
from equibench.pretrain.batches import PairStream
from equibench.pretrain.loop import build_step, run_pretraining
from equibench.pretrain.method import BASELINES
from equibench.profiles import Profile, get_profile
from equibench.runner.open import open_context
from equibench.task import TASKS, regression_tasks

ROWS = ("vicreg", "sie_all", "reconstruction")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    profile = get_profile(arguments.profile)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        context = open_context(RunConfig.of(profile=profile, runs=Path(folder)))
        facts: dict[str, object] = {
            "profile": profile.name,
            "data": context.dataset.name,
            "threads": torch.get_num_threads(),
            "precision": "bf16-mixed" if context.bf16 else "32-true",
            "torch": torch.__version__,
            "pretraining": {row: pretraining(row, profile, context, arguments.steps) for row in ROWS},
            "evaluation": evaluation(profile, context),
        }
    print(json.dumps(facts, indent=1))


def pretraining(row: str, profile: Profile, context: Context, steps: int) -> dict[str, float]:
    """Median milliseconds of each part of a step, and the floor's, on the same batches."""
    module = build_step(BASELINES.get(row), profile, "headline", 0, 10)
    stream = PairStream(context.dataset, "train", module.method, context.spec, 0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    wrapped, optimizer = context.fabric.setup(module, optimizer)
    bare = ViTEncoder(profile.encoder, profile.image_size, context.spec)
    batch = profile.pretraining.batch
    seconds: dict[str, list[float]] = {"views": [], "model": [], "floor": []}
    for step in range(steps + 5):
        views = timed(seconds["views"], lambda s=step: stream.batch(s * batch, batch, module.encoder))

        def model_step(views=views) -> None:
            losses, _ = wrapped(views)
            context.fabric.backward(losses["loss"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def floor_step(views=views) -> None:
            with context.fabric.autocast():
                features = bare(torch.cat([views.v1, views.v2]))
            features.float().square().mean().backward()

        timed(seconds["model"], model_step)
        timed(seconds["floor"], floor_step)
    views, model, floor = (statistics.median(seconds[name][5:]) for name in ("views", "model", "floor"))
    whole = run_step(row, profile, context, 4 * steps)
    return {
        "views_ms": round(1e3 * views, 2),
        "model_ms": round(1e3 * model, 2),
        "encoder_alone_ms": round(1e3 * floor, 2),
        "whole_step_ms": round(1e3 * whole, 2),
        "pairs_per_second": round(batch / whole, 1),
        "share_in_model": round(model / whole, 3),
        "times_encoder_alone": round(whole / floor, 2),
    }


def run_step(row: str, profile: Profile, context: Context, steps: int) -> float:
    """Seconds of a step of a real run, with all that the loop does beside the model."""
    pairs = steps * profile.pretraining.batch
    short = dataclasses.replace(profile, pretraining=dataclasses.replace(profile.pretraining, pairs=pairs))
    folder = context.work / "benchmark" / row
    return run_pretraining(BASELINES.get(row), short, context.dataset, folder, fabric=context.fabric).seconds / steps


def evaluation(profile: Profile, context: Context) -> dict[str, float]:
    """Seconds of the six-task evaluation from an empty store, and of its bare forward passes."""
    module = build_step(BASELINES.get("reconstruction"), profile, "headline", 0, 10)
    encoder = module.encoder.eval()
    tasks = [TASKS.get(name) for name in regression_tasks()]
    weights = weights_sha256(encoder)
    identity = vit_identity(weights, profile, context.spec)
    row = Row("reconstruction", lambda: encoder, identity, weights, half=encoder.invariant, seed=0)
    count = sum(profile.probing.pairs) * (1 + len(tasks))
    images = torch.rand(profile.encode_batch, 3, profile.image_size, profile.image_size)

    def forward() -> None:
        with torch.inference_mode(), context.fabric.autocast():
            for _ in range(-(-count // profile.encode_batch)):
                encoder.represent(images)

    with torch.inference_mode(), context.fabric.autocast():
        encoder.represent(images)
    floors: list[float] = []
    whole: list[float] = []
    timed(floors, forward)
    timed(whole, lambda: [evaluate(row, task, context) for task in tasks])
    # once the views of a table are rendered and one row's features are stored, what is left are the probes
    probes: list[float] = []
    timed(probes, lambda: [evaluate(row, task, context) for task in tasks])
    timed(floors, forward)
    floor = statistics.mean(floors)
    return {
        "views": count,
        "forward_seconds": round(floor, 2),
        "views_per_second": round(count / floor, 1),
        "evaluation_seconds": round(whole[0], 2),
        "of_it_probes_and_scores": round(probes[0], 2),
        "times_forward": round(whole[0] / floor, 2),
    }


def timed(seconds: list[float], work: Callable[[], object]) -> object:
    """Call and note how long it took."""
    started = time.perf_counter()
    value = work()
    seconds.append(time.perf_counter() - started)
    return value


if __name__ == "__main__":
    main()
