"""How fast the linear probe of Table 5 is, against scikit-learn's logistic regression on the same features.

    python benchmarks/logistic.py [--images N] [--tolerances 1e-4,...] [--max-iter N] [--threads N] [--out FILE]

Prints JSON. Both fit the protocol's 45 penalties on N training images, choose one by top-1 on N/9 validation images,
fit it again on both and predict 2 N/9 test images: features of CIFAR-10 ($EQUIBENCH_DATA) from the demo profile's
untrained encoder, stored in float16. scikit-learn runs as the field does: float64, lbfgs with a warm start from strong
to weak penalties, at most --max-iter steps a fit, once for each tolerance. Its own, 1e-4, leaves weak penalties short
of their optimum: excess_loss is how far above the lowest objective of all runs each penalty's fit ends, as a share of
it. Times are of one run: their ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from equibench.data.dataset import SPLITS, image_source, split_indices
from equibench.data.load import load_dataset
from equibench.evaluation.classification import top1
from equibench.pretrain.runs import build_encoder
from equibench.probes.logistic import GRID, fit_logistic, fit_path
from equibench.profiles import get_profile

BATCH = 250

Labelled = tuple[NDArray[np.float16], NDArray[np.int64]]


@dataclass(frozen=True)
class Found:
    """What one run chose and predicted; scores and objectives reached in the order of the grid."""

    penalty: float
    validation: NDArray[np.float64]
    objective: NDArray[np.float64]
    predictions: NDArray[np.int64]
    facts: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=45_000, help="training images, 45,000 at most")
    parser.add_argument("--tolerances", default="1e-4,1e-6", help="scikit-learn's; 1e-4 is its own")
    parser.add_argument("--max-iter", type=int, default=1000, help="scikit-learn's steps a fit")
    parser.add_argument("--threads", type=int, help="torch's own number if not given")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    splits = features(arguments.images)
    facts = {
        "images": {name: len(labels) for name, (_, labels) in splits.items()},
        "features": splits["train"][0].shape[1],
        "penalties": len(GRID),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "scikit_learn": sklearn.__version__,
    }
    with threadpool_limits(torch.get_num_threads()):
        runs = {"ours": ours(splits)}
        for tolerance in arguments.tolerances.split(","):
            runs[f"scikit_learn_{tolerance}"] = theirs(splits, float(tolerance), arguments.max_iter)
    lowest = np.min([found.objective for _, found in runs.values()], axis=0)
    for name, (seconds, found) in runs.items():
        excess = found.objective / lowest - 1
        facts[name] = {
            "seconds": round(seconds, 1),
            "times_ours": round(seconds / runs["ours"][0], 1),
            "penalty": float(f"{found.penalty:.3g}"),
            "validation_top1": round(float(found.validation.max()), 4),
            "test_top1": round(top1(splits["test"][1], found.predictions), 4),
            "predicted_as_ours": round(float(np.mean(found.predictions == runs["ours"][1].predictions)), 4),
            "excess_loss": {"median": float(f"{np.median(excess):.1e}"), "largest": float(f"{excess.max():.1e}")},
            **found.facts,
        }
    facts["test_majority_share"] = round(np.bincount(splits["test"][1]).max() / len(splits["test"][1]), 4)
    text = json.dumps(facts, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def features(images: int) -> dict[str, Labelled]:
    """Features (n, D) and labels (n,) of each split."""
    dataset = load_dataset("cifar10")
    encoder = build_encoder(get_profile("demo"), "headline", 0).eval()
    index, counts = split_indices(dataset), dict(zip(SPLITS, (images, images // 9, 2 * images // 9), strict=True))
    found = {}
    for name, count in counts.items():
        source, rows = image_source(dataset, name), index[name][:count]
        print(f"encoding {len(rows):,} images ({name})", file=sys.stderr, flush=True)
        with torch.inference_mode():
            parts = [
                encoder.represent(torch.from_numpy(np.array(source.images[rows[i : i + BATCH]])).float().div_(255))
                for i in range(0, len(rows), BATCH)
            ]
        labels = np.asarray(source.labels)[rows].astype(np.int64)
        found[name] = (torch.cat(parts).to(torch.float16).numpy(), labels)
    return found


def ours(splits: dict[str, Labelled]) -> tuple[float, Found]:
    started = time.perf_counter()
    result = fit_logistic(splits["train"], splits["val"], splits["test"][0], classes=10, select=top1)
    seconds = time.perf_counter() - started
    models = fit_path([splits["train"]], GRID[::-1], classes=10)  # the same fits again, for what they reached
    reached = [objective(m.weights, m.bias, splits["train"], w) for m, w in zip(models, GRID[::-1], strict=True)]
    facts = {"steps": result.iterations, "all_converged": result.converged}
    return seconds, Found(result.penalty, result.validation_scores, np.array(reached[::-1]), result.predictions, facts)


def theirs(splits: dict[str, Labelled], tolerance: float, max_iter: int) -> tuple[float, Found]:
    """The same with scikit-learn; of penalties that score alike the strongest here too."""
    options: dict[str, Any] = {"solver": "lbfgs", "tol": tolerance, "max_iter": max_iter}
    model, steps, fitted = LogisticRegression(warm_start=True, **options), [], []
    scores = np.empty(len(GRID))
    started = time.perf_counter()
    x, y = ({name: part[i] for name, part in splits.items()} for i in (0, 1))
    x = {name: part.astype(np.float64) for name, part in x.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for number in reversed(range(len(GRID))):
            model.set_params(C=1 / GRID[number]).fit(x["train"], y["train"])
            scores[number] = top1(y["val"], model.predict(x["val"]))
            steps.append(int(model.n_iter_[0]))
            fitted.append((model.coef_.copy(), model.intercept_.copy()))
            print(f"scikit-learn: penalty {GRID[number]:.1e}, {steps[-1]} steps", file=sys.stderr, flush=True)
        penalty = float(GRID[::-1][scores[::-1].argmax()])
        final = LogisticRegression(C=1 / penalty, **options)
        final.fit(np.concatenate([x["train"], x["val"]]), np.concatenate([y["train"], y["val"]]))
    steps.append(int(final.n_iter_[0]))
    predictions = final.predict(x["test"])
    seconds = time.perf_counter() - started
    reached = [objective(*model, splits["train"], w) for model, w in zip(fitted, GRID[::-1], strict=True)]
    facts = {
        "steps": sum(steps),
        "fits_without_a_step": sum(step == 0 for step in steps),
        "fits_at_the_limit": sum(step >= max_iter for step in steps),
    }
    return seconds, Found(penalty, scores, np.array(reached[::-1]), predictions, facts)


def objective(weights: NDArray[np.float64], bias: NDArray[np.float64], data: Labelled, penalty: float) -> float:
    """Sum of cross-entropies + penalty / 2 ||W||², in float64."""
    scores = data[0].astype(np.float64) @ weights.T + bias
    entropies = logsumexp(scores, axis=1) - scores[np.arange(len(scores)), data[1]]
    return float(entropies.sum() + penalty / 2 * np.square(weights).sum())


if __name__ == "__main__":
    main()
