"""How fast an encoder is scored: against its bare forward passes, and against the protocol that papers use.

    python benchmarks/scoring.py [--quick] [--only large,demo,...] [--threads N] [--out FILE]

Prints JSON; the parts, each a ratio taken within one run, are

large      six regression tasks of a ViT-S/16 at 224 px, 2,000 + 500 generated images, three probes of 50 epochs:
           times the bare forward passes of the views (at the best batch size), and times faster than the usual
           protocol (plain_protocol.py), of which one epoch is measured and the rest extrapolated
seeds      in the same run, from its stored features: what one more probe seed adds
demo       the same for the demo profile's ViT, pairs and probe on CIFAR-10 ($EQUIBENCH_DATA)
agreement  a small case, in which the usual protocol is run in full: the R² of both
linear     seconds for N, 2 N and 4 N pairs, and the exponent that fits them

About 20 minutes on two CPU cores that do nothing else; --quick tries every path in two minutes and claims nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from plain_protocol import PlainProtocol
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from equibench.data.dataset import Dataset, ImageSet
from equibench.data.load import load_dataset
from equibench.encoders.adapter import ImageEncoder
from equibench.encoders.open import open_encoder
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.evaluation.context import Context, Row, vit_identity
from equibench.evaluation.evaluator import evaluate
from equibench.metrics.regression import r2_per_dimension
from equibench.pairs.manifest import Pairs
from equibench.pretrain.loop import default_precision
from equibench.pretrain.runs import build_encoder
from equibench.profiles import Profile, get_profile
from equibench.runner.open import CPU_IMAGES
from equibench.task import TASKS, Task, regression_tasks
from equibench.transforms.transformation import TRANSFORMATIONS, view_spec

LARGE, MIDDLE = "timm:vit_small_patch16_224", "timm:vit_tiny_patch16_224"
SEEDS = (1, 2, 3, 6)
FLOOR_SHARE = 4
"""Of each task's views one in so many is passed through the bare encoder right after the task is scored."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    large: tuple[int, int, int] = (1700, 300, 500)
    large_epochs: int = 50
    demo: tuple[int, int, int] | None = None
    agreement: tuple[int, int, int] = (300, 80, 200)
    agreement_epochs: int = 12
    linear: tuple[int, int, int] = (140, 30, 30)
    rounds: int = 2


QUICK = Sizes((24, 8, 16), 10, (200, 100, 100), (100, 40, 60), 4, (14, 3, 3), 1)


@dataclass(frozen=True)
class Case:
    """An encoder, its tasks and the context in which it is scored."""

    row: Row
    tasks: list[Task]
    context: Context

    @property
    def encoder(self) -> ImageEncoder | ViTEncoder:
        assert isinstance(self.row.encoder, ImageEncoder | ViTEncoder)
        return self.row.encoder

    @property
    def views(self) -> list[int]:
        """Views that each task has to encode: its own, and the first one the untransformed ones for all."""
        own = sum(self.context.probing.pairs)
        return [2 * own] + [own] * (len(self.tasks) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="try every path; the numbers claim nothing")
    parser.add_argument("--only", default="large,demo,agreement,linear", help="parts; seeds come with large")
    parser.add_argument("--threads", type=int, help="torch's own number if not given, as `equibench score` uses")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else Sizes()
    parts = {"large": large, "demo": demo, "agreement": agreement, "linear": linear}
    facts: dict[str, Any] = {
        "quick": arguments.quick,
        "threads": torch.get_num_threads(),
        "precision": default_precision("cpu"),
        "torch": torch.__version__,
    }
    for name in arguments.only.split(","):
        with tempfile.TemporaryDirectory(prefix="equibench-benchmark-") as folder:
            started = time.perf_counter()
            facts[name] = parts[name](sizes, Path(folder))
            facts[name]["seconds_of_this_part"] = round(time.perf_counter() - started, 1)
            print(f"{name}: {json.dumps(facts[name])}", file=sys.stderr, flush=True)
    text = json.dumps(facts, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def large(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """A ViT-S/16 at 224 px on generated images, and what more probe seeds add."""
    case = timm_case(LARGE, sizes.large, sizes.large_epochs, folder)
    facts = {"encoder": LARGE, **against_floor_and_plain(case, batches=(1, 2, 4, 8, 16, 32)), "seeds": seeds(case)}
    facts["share_per_extra_seed"] = round(facts["seeds"]["seconds_per_extra_seed"] / facts["scoring_seconds"], 4)
    return facts


def demo(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """The demo profile's own encoder, pairs and probe."""
    profile = get_profile("demo")
    if sizes.demo:
        profile = with_probing(profile, pairs=sizes.demo)
    case = own_case(profile, load_dataset("cifar10"), folder)
    batches = (16, 32, 64, 128, 256, 512, 1024)
    return {"encoder": "demo", **against_floor_and_plain(case, batches)}


def against_floor_and_plain(case: Case, batches: Sequence[int]) -> dict[str, Any]:
    """Seconds of scoring on all tasks from nothing, of the bare forward passes, and of the usual protocol."""
    batch, found = best_batch(case, batches)
    rendering, scoring, floor, records = [], [], [], []
    for task, views in zip(case.tasks, case.views, strict=True):
        pairs = case.context.pairs(task)
        rendering.append(seconds(lambda p=pairs: render(case.context, p)))
        scoring.append(seconds(lambda t=task: records.extend(evaluate(case.row, t, case.context))))
        floor.append(bare_seconds(case, batch, max(batch, views // FLOOR_SHARE)) * views)
    probes = seconds(lambda: [evaluate(case.row, task, case.context) for task in case.tasks])
    whole, bare = sum(rendering) + sum(scoring), sum(floor)
    probing, best = case.context.probing, [e for r in records if r.features == "full" for e in r.probe["best_epochs"]]
    plain = plain_seconds(case, batch, sum(min(epoch + probing.patience, probing.epochs) for epoch in best))
    return {
        "pairs": list(case.context.probing.pairs),
        "views": sum(case.views),
        "tasks": len(case.tasks),
        "probe_epochs": case.context.probing.epochs,
        "probe_seeds": case.context.probing.seeds,
        "milliseconds_per_view_by_batch": found,
        "best_batch": batch,
        "forward_seconds": round(bare, 2),
        "scoring_seconds": round(whole, 2),
        "of_it_rendering": round(sum(rendering), 2),
        "of_it_probes_and_scores": round(probes, 2),
        "of_it_encoding": round(whole - sum(rendering) - probes, 2),
        "rendering_by_task": {t.name: round(s, 2) for t, s in zip(case.tasks, rendering, strict=True)},
        "times_forward": round(whole / bare, 3),
        "plain": {name: round(value, 1) for name, value in plain.items()},
        "times_faster_than_plain": round(plain["seconds"] / whole, 1),
    }


def render(context: Context, pairs: Pairs) -> None:
    """Make the views of these pairs that are not on the disk yet, which reading one of them does."""
    for views in (context.views.first(pairs), context.views.second(pairs)):
        assert views.images[slice(0, 1)].size


def best_batch(case: Case, batches: Sequence[int]) -> tuple[int, dict[int, float]]:
    """The batch size whose bare forward pass is the quickest for each image, and milliseconds for every size."""
    found = {batch: float("inf") for batch in batches}
    for _ in range(2):
        for batch in batches:
            found[batch] = min(found[batch], bare_seconds(case, batch, max(batch, batches[-1] // 2)))
    return min(found, key=lambda b: found[b]), {batch: round(1e3 * value, 2) for batch, value in found.items()}


def bare_seconds(case: Case, batch: int, count: int) -> float:
    """Seconds per image of the network alone, on normalised images that are there already."""
    context, encoder = case.context, case.encoder.eval()
    network: nn.Module = encoder.model if isinstance(encoder, ImageEncoder) else encoder
    images = torch.randn(batch, 3, context.size, context.size)
    passes = -(-count // batch)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=context.bf16):
        network(images)
        return seconds(lambda: [network(images) for _ in range(passes)]) / (passes * batch)


def plain_seconds(case: Case, batch: int, epochs: int) -> dict[str, float]:
    """One epoch of the usual protocol on one task, measured, and what all tasks, seeds and epochs make of it.

    The task is rotation, whose views are among the quickest to make. It is charged for the MLP on the representation
    alone: for as many epochs as the suite has trained on all tasks and seeds until its patience ended, and for one
    evaluation of the validation and of the test pairs, less than a choice of the epoch would cost. The suite's closed
    form, learning curve, literal probe, and probes of token sets and of the distance are not charged for.
    """
    task = next(t for t in case.tasks if t.transformation == "rotation")
    protocol = PlainProtocol(case.encoder, case.context.pairs(task), case.context, batch)
    inputs = protocol.features("val", torch.arange(2)).shape[1]
    probe = protocol.probe(0, torch.zeros(inputs), torch.eye(inputs))  # not charged for the pass that finds them
    probing = case.context.probing
    optimizer, averaged = torch.optim.Adam(probe.parameters(), lr=probing.lr, fused=True), AveragedModel(probe)
    epoch = seconds(lambda: protocol.train_epoch(probe, optimizer, torch.Generator().manual_seed(0), averaged))
    val = seconds(lambda: protocol.predict(probe, "val"))
    once = val * (1 + probing.pairs[2] / probing.pairs[1])
    runs = len(case.tasks) * probing.seeds
    return {
        "epoch_seconds": epoch,
        "validation_seconds": val,
        "epochs": epochs,
        "seconds": epochs * epoch + runs * once,
        "seconds_if_validated_in_every_epoch": epochs * (epoch + val) + runs * (once - val),
    }


def seeds(case: Case) -> dict[str, Any]:
    """Seconds of probes and scores on all tasks with more and more seeds, from stored features."""
    spent = {}
    for count in SEEDS:
        context = dataclasses.replace(case.context, profile=with_probing(case.context.profile, seeds=count))
        spent[count] = seconds(lambda s=context: [evaluate(case.row, task, s) for task in case.tasks])
    slope = float(np.polyfit(list(spent), list(spent.values()), 1)[0])
    return {"seconds_by_seeds": {n: round(s, 2) for n, s in spent.items()}, "seconds_per_extra_seed": round(slope, 2)}


def agreement(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """R² of the suite and of the usual protocol, run in full in float32, on the same pairs with the same probes.

    Nothing is dropped out, since each would draw masks of its own.

    The protocol runs twice: as it is, and with views and features rounded as the suite stores them.
    """
    data = load_dataset("solids", sizes=(10 * sizes.agreement[1], sizes.agreement[2]))
    profile = with_probing(get_profile("tiny"), pairs=sizes.agreement, epochs=sizes.agreement_epochs, dropout=0.0)
    case, found = own_case(profile, data, folder), {}
    case = dataclasses.replace(case, context=dataclasses.replace(case.context, bf16=False))
    for task in case.tasks:
        record = next(r for r in evaluate(case.row, task, case.context) if r.features == "full")
        r2 = record.metrics["r2"]
        assert r2.value is not None
        found[task.name] = {
            "suite": round(r2.value, 5),
            "std_over_probe_seeds": round(r2.std_probe or 0.0, 5),
            "plain": round(plain_r2(case, task, rounded=False), 5),
            "plain_rounded_as_stored": round(plain_r2(case, task, rounded=True), 5),
        }
    return {
        "pairs": list(sizes.agreement),
        "epochs": sizes.agreement_epochs,
        "r2": found,
        "largest_difference": round(max(abs(f["suite"] - f["plain"]) for f in found.values()), 5),
        "largest_difference_rounded_as_stored": round(
            max(abs(f["suite"] - f["plain_rounded_as_stored"]) for f in found.values()), 5
        ),
    }


def plain_r2(case: Case, task: Task, *, rounded: bool) -> float:
    """The probe seeds' mean R² on the test pairs, by the usual protocol."""
    pairs = case.context.pairs(task)
    protocol = PlainProtocol(case.encoder, pairs, case.context, batch=128, rounded=rounded)
    truth = TRANSFORMATIONS[task.transformation].encode(pairs.theta, case.context.size)[pairs.rows("test")]
    return float(np.mean([r2_per_dimension(truth, protocol.run(seed)) for seed in case.context.probe_seeds]))


def linear(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Seconds for N, 2 N and 4 N pairs of a middle-sized encoder on two tasks; the quickest of some rounds."""
    spent: dict[int, float] = {}
    for number in range(sizes.rounds):
        for times in (1, 2, 4):
            pairs = tuple(times * n for n in sizes.linear)
            case = timm_case(MIDDLE, (pairs[0], pairs[1], pairs[2]), 20, folder / f"{number}-{times}")
            tasks = [t for t in case.tasks if t.transformation in ("rotation", "color")]
            taken = seconds(lambda c=case, t=tasks: [evaluate(c.row, task, c.context) for task in t])
            spent[sum(pairs)] = min(taken, spent.get(sum(pairs), float("inf")))
    exponent = np.polyfit(np.log(list(spent)), np.log(list(spent.values())), 1)[0]
    return {
        "encoder": MIDDLE,
        "seconds_by_pairs": {n: round(s, 2) for n, s in spent.items()},
        "exponent": round(float(exponent), 3),
    }


# Cases


def timm_case(name: str, pairs: tuple[int, int, int], epochs: int, folder: Path) -> Case:
    """An untrained encoder of timm's on generated images of 224 px, as `equibench score` lays it out."""
    data = generated(pairs[0] + pairs[1], pairs[2], validation=pairs[1], side=224)
    profile = dataclasses.replace(with_probing(get_profile("demo"), pairs=pairs, epochs=epochs), image_size=224)
    encoder = open_encoder(name, pretrained=False, views=view_spec("headline", 224)).encoder
    identity = encoder.identity
    assert identity is not None
    row = Row(name, lambda: encoder, identity, str(identity["weights"]), batch=CPU_IMAGES)
    return Case(row, tasks(), context_of(profile, data, folder))


def own_case(profile: Profile, data: Dataset, folder: Path) -> Case:
    """A profile's untrained encoder, as a table lays it out."""
    encoder, context = build_encoder(profile, "headline", 0).eval(), context_of(profile, data, folder)
    weights = weights_sha256(encoder)
    row = Row("encoder", lambda: encoder, vit_identity(weights, profile, context.spec), weights, seed=0)
    return Case(row, tasks(), context)


def context_of(profile: Profile, data: Dataset, folder: Path) -> Context:
    return Context(profile, data, "headline", folder, torch.device("cpu"), bf16=bf16())


def tasks() -> list[Task]:
    return [TASKS.get(name) for name in regression_tasks()]


def bf16() -> bool:
    return default_precision("cpu") == "bf16-mixed"


def with_probing(profile: Profile, **changes: Any) -> Profile:
    return dataclasses.replace(profile, probing=dataclasses.replace(profile.probing, **changes))


def generated(train: int, test: int, *, validation: int, side: int) -> Dataset:
    """Smooth random colour images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([_smooth(min(100, train + test - n), side, generator) for n in range(0, train + test, 100)])
    sets = [ImageSet(part.numpy(), np.zeros(len(part), np.int64)) for part in images.split([train, test])]
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Dataset(
        "generated", "smooth random colour images", *sets, class_names=(), sha256=digest, validation=validation
    )


def _smooth(count: int, side: int, generator: torch.Generator) -> Tensor:
    small = torch.rand(count, 3, 14, 14, generator=generator)
    return torch.nn.functional.interpolate(small, size=side, mode="bicubic").mul(255).clamp(0, 255).to(torch.uint8)


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
