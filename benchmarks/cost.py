"""What six regression tasks cost beside the bare forward passes of their views, and where the time goes.

    python benchmarks/cost.py [--demo 4000,1000,3000] [--large 500,100,100] [--attentive] [--out FILE]

Both encoders are scored in one run on one thread: the demo profile's ViT on CIFAR-10 ($EQUIBENCH_DATA), and a ViT-S/16
at 224 px on generated images, with the demo's probe. All is in seconds of this process's CPU, which other work on the
machine changes less than wall time. Every feature set counts that a score has, class token and grid included; the
attentive probe, with --attentive, is told apart. "Times forward" should be at most 2 for the demo, 1.3 for the ViT-S.

`scoring.py` holds the same against the usual protocol; this is the short way to see what a change to the probes costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from scoring import LARGE, Case, bare_seconds, own_case, render, timm_case, with_probing

import equibench.evaluation.attentive as attentive
import equibench.evaluation.regression as regression
from equibench.data.load import load_dataset
from equibench.encoders.vit import TOKEN_SETS
from equibench.evaluation.evaluator import evaluate
from equibench.profiles import get_profile
from equibench.task import TASKS

Pairs = tuple[int, int, int]
_PARTS = {
    "closed_form": "fit_closed_form",
    "shrinkage": "choose_shrinkage",
    "mlp": "fit_mlp",
    "encoding": "_representations",
}
"""Parts of a task, by the function that is called for each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="4000,1000,3000", help="training, validation and test pairs; 0 for none")
    parser.add_argument("--large", default="500,100,100", help="the same for the ViT-S")
    parser.add_argument("--attentive", action="store_true", help="measure the attentive probe as well")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict[str, Any] = {"torch": torch.__version__}
    for name, make in (("demo", demo), ("large", large)):
        if getattr(arguments, name) != "0":
            train, val, test = map(int, getattr(arguments, name).split(","))
            with tempfile.TemporaryDirectory(prefix="equibench-benchmark-") as folder:
                facts[name] = cost(make((train, val, test), Path(folder)), arguments.attentive)
            print(f"{name}: {json.dumps(facts[name])}", file=sys.stderr, flush=True)
    text = json.dumps(facts, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def demo(pairs: Pairs, folder: Path) -> Case:
    case = own_case(with_probing(get_profile("demo"), pairs=pairs), load_dataset("cifar10"), folder)
    return replace(case, row=replace(case.row, token_sets=lambda: TOKEN_SETS))


def large(pairs: Pairs, folder: Path) -> Case:
    case = timm_case(LARGE, pairs, get_profile("demo").probing.epochs, folder)
    return replace(case, row=replace(case.row, token_sets=lambda: TOKEN_SETS))


def cost(case: Case, with_attentive: bool) -> dict[str, Any]:
    """CPU seconds of all tasks from nothing, of their parts, and of the bare forward passes of their views."""
    spent, whole, bare = Counter[str](), 0.0, 0.0
    batch = case.row.batch or case.context.profile.encode_batch
    with timed(spent):
        for task, views in zip(case.tasks, case.views, strict=True):
            with clocked(spent, "rendering"):
                render(case.context, case.context.pairs(task))
            with clocked(spent, "tasks"):
                evaluate(case.row, task, case.context)
            # right after the task, on one in eight of its views, so that a slower hour slows both
            started, some = time.process_time(), max(batch, views // 8)
            bare_seconds(case, batch, some)
            bare += (time.process_time() - started) * views / (some + batch)  # and one batch to warm up
        whole = spent["rendering"] + spent.pop("tasks")
        if with_attentive:
            for task in case.tasks:
                evaluate(case.row, TASKS.get(f"{task.transformation}.attentive"), case.context)
    probe = spent.pop("attentive", None)
    spent["scores_and_rest"] = round(whole - sum(spent.values()), 2)
    return {
        "pairs": list(case.context.probing.pairs),
        "views": sum(case.views),
        "tasks": len(case.tasks),
        "forward_seconds": round(bare, 2),
        "seconds": round(whole, 2),
        "times_forward": round(whole / bare, 2),
        "parts": {part: round(seconds, 2) for part, seconds in spent.items()},
        **({"attentive_probes": round(probe, 2), "attentive_times_forward": round(probe / bare, 2)} if probe else {}),
    }


@contextmanager
def clocked(spent: Counter[str], part: str) -> Iterator[None]:
    started = time.process_time()
    yield
    spent[part] += time.process_time() - started  # type: ignore[assignment]


@contextmanager
def timed(spent: Counter[str]) -> Iterator[None]:
    """Add up what the parts of a task take."""

    def wrapped(work: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with clocked(spent, part):
                return work(*args, **options)

        return call

    with ExitStack() as stack:
        for part, name in _PARTS.items():
            stack.enter_context(mock.patch.object(regression, name, wrapped(getattr(regression, name), part)))
        patched = wrapped(attentive.fit_attentive, "attentive")
        stack.enter_context(mock.patch.object(attentive, "fit_attentive", patched))
        yield


if __name__ == "__main__":
    main()
