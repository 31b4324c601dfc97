"""How much memory the probes need on a large store: 1,000,000 pairs of 512 stored features, two files of 1 GB.

    python benchmarks/memory.py [--quick] [--threads N] [--out FILE]

Prints JSON: the peak memory of a process that whitens 900,000 pairs, fits the closed form to them, trains three probes
for one epoch and scores 50,000 test pairs with their bootstrap. It may not allocate 2 GiB (RLIMIT_DATA), and its peak
is given with the pages of the mapped files that it has touched (peak_gib) and without them (peak_anonymous_gib). On two
CPU cores the closed form takes most of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from equibench.metrics.regression import Targets, r2_scores
from equibench.pretrain.loop import default_precision
from equibench.probes.mlp import fit_mlp
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import Split, Whitening
from equibench.profiles import Probing
from equibench.transforms.transformation import TRANSFORMATIONS

Sizes = tuple[int, int, int]

FULL: Sizes = (900_000, 50_000, 50_000)
QUICK: Sizes = (9_000, 500, 500)
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the pairs; the numbers claim nothing")
    parser.add_argument("--threads", type=int, help="torch's own number if not given")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--stored", type=Path, help=argparse.SUPPRESS)  # what is run in a process of its own
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else FULL
    if arguments.stored:
        print(json.dumps(probe(arguments.stored, sizes)))
        return
    with tempfile.TemporaryDirectory(prefix="equibench-benchmark-") as folder:
        store(Path(folder), sum(sizes))
        done = subprocess.run(
            [sys.executable, *sys.argv, "--stored", folder], capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"the probes failed: {done.stderr[-500:]}")
    text = json.dumps({"torch": torch.__version__, **json.loads(done.stdout)}, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def store(folder: Path, count: int) -> None:
    """Write features of both views and targets, all of them noise."""
    rng = np.random.default_rng(0)
    np.save(folder / "targets.npy", rng.standard_normal((count, 1)))
    for name in ("first", "second"):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (count, 512))
        for start in range(0, count, 10_000):
            rows = min(10_000, count - start)
            array[start : start + rows] = rng.standard_normal((rows, 512), dtype=np.float32)
        array.flush()
        del array


def probe(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """What the process does: whitening, closed form, three probes of width 256 for one epoch, scores of test pairs."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 * GIB, 2 * GIB))
    anonymous = [0.0]
    threading.Thread(target=watch, args=(anonymous,), daemon=True).start()
    facts: dict[str, Any] = {"pairs": list(sizes), "after_imports_gib": status("VmHWM")}
    first, second = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("first", "second"))
    targets = np.load(folder / "targets.npy")
    starts = np.cumsum([0, *sizes])
    rows = {s: slice(a, b) for s, a, b in zip(("train", "val", "test"), starts[:-1], starts[1:], strict=True)}
    splits = {s: Split(first[r], second[r], targets[r]) for s, r in rows.items()}
    settings = Probing(sizes, width=256, epochs=1, batch=256, lr=1e-3)
    started = time.perf_counter()
    whitening = Whitening.of(splits["train"])
    facts |= {"whitening_seconds": round(time.perf_counter() - started, 1), "whitening_peak_gib": status("VmHWM")}
    started = time.perf_counter()
    closed = fit_closed_form(splits, whitening)
    facts |= {"closed_form_seconds": round(time.perf_counter() - started, 1), "closed_form_peak_gib": status("VmHWM")}
    started, bf16 = time.perf_counter(), default_precision("cpu") == "bf16-mixed"
    result = fit_mlp(splits, whitening.shrunk(closed.shrinkage), settings, seeds=[0, 1, 2], bf16=bf16)
    facts |= {"probes_seconds": round(time.perf_counter() - started, 1), "probes_peak_gib": status("VmHWM")}
    started = time.perf_counter()
    train = targets[rows["train"]]
    scores = r2_scores(
        Targets(TRANSFORMATIONS["rotation"], 32, targets[rows["test"]], train.mean(axis=0), train.std(axis=0)),
        result.predictions,
    )
    facts |= {"scores_seconds": round(time.perf_counter() - started, 1), "r2": round(scores.r2, 4)}
    return facts | {
        "peak_gib": status("VmHWM"),
        "peak_anonymous_gib": round(anonymous[0], 3),
        "allowed_to_allocate_gib": 2.0,
    }


def watch(anonymous: list[float]) -> None:
    """Keep the largest anonymous memory seen, a hundred times a second."""
    while True:
        anonymous[0] = max(anonymous[0], status("RssAnon"))
        time.sleep(0.01)


def status(field: str) -> float:
    """A number of /proc/self/status in GiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / GIB, 3)


if __name__ == "__main__":
    main()
