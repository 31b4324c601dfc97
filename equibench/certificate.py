"""Certificates: what a small CNN, trained from scratch on pixels, reads from both views and from view 2 alone.

The first is a ceiling of what the pixels hold at that amount of data, the second is what leaks: a task that claims
to be clean must leak at most `CLEAN_LEAK`. Made once per task version and kept with the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import equibench
from equibench.data.datasets import Dataset, load_dataset
from equibench.data.pairs import SPLITS, Pairs, draw_pairs, image_source
from equibench.encoders.vit import MEAN, STD, ViewSpec, view_spec
from equibench.files import write_text
from equibench.metrics.regression import bootstrap_r2, r2_per_dimension
from equibench.pretrain.loop import learning_rate, start_fabric
from equibench.registry import TASKS
from equibench.task import Task
from equibench.transforms import TRANSFORMATIONS, transform, visible_disc

PAIRS = (20_000, 2_000, 5_000)
"""Training, validation and test pairs; the validation pairs choose the epoch."""
EPOCHS, BATCH, LR = 5, 128, 2e-3
INPUTS = ("both_views", "view2_alone")


class SmallCNN(nn.Module):
    """Four convolutions and two linear layers; keeps the grid until the end, so that positions can be read."""

    def __init__(self, channels: int, targets: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((channels, 32, 1), (32, 64, 2), (64, 96, 2), (96, 96, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(96 * 36, 256), nn.ReLU(), nn.Linear(256, targets))

    def forward(self, x: Tensor) -> Tensor:
        """Views (N, channels, S, S) -> standardised targets (N, K)."""
        return self.head(self.body(x))


def certify(
    tasks: Sequence[str] | None = None, *, data_root: str | Path | None = None, out: str | Path | None = None
) -> Path:
    """Certify tasks on CIFAR-10 and merge the results into a file.

    Args:
        tasks: task ids; all registered tasks if None.
        data_root: folder that holds the data.
        out: file to write; by default the one that is kept with the tasks.

    Returns:
        The file's path.

    Raises:
        UserError: an unknown task, missing data, or a file that cannot be written.
    """
    chosen = [TASKS.get(name) for name in tasks or TASKS.names()]
    dataset = load_dataset("cifar10", data_root=data_root)
    path = Path(out) if out else certificates_path()
    certificates = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for task in chosen:
        certificates[task.name] = certificate_of(task, dataset, PAIRS)
        write_text(path, json.dumps(certificates, indent=1) + "\n")
    return path


def certificates_path() -> Path:
    """Where the certificates of the registered tasks are kept."""
    import equibench.tasks

    return Path(next(iter(equibench.tasks.__path__))) / "certificates.json"


def certificate_of(task: Task, dataset: Dataset, sizes: tuple[int, int, int]) -> dict[str, object]:
    """Train the CNN on both inputs of one task and report its test R² with 95 % intervals."""
    size = dataset.train.images.shape[-1]
    pairs = draw_pairs(dataset, task.transformation, sizes, task=f"certificate of {task.name}", version=task.version)
    facts: dict[str, object] = {
        "task_version": task.version,
        "data": dataset.name,
        "pairs": sizes[0],
        "test_pairs": sizes[2],
        "epochs": EPOCHS,
        "pairs_sha256": pairs.sha256,
        "package_version": equibench.__version__,
    }
    for name in INPUTS:
        score, low, high = _train_and_score(name, pairs, dataset, view_spec("headline", size))
        facts |= {f"{name}_r2": round(score, 4), f"{name}_low": round(low, 4), f"{name}_high": round(high, 4)}
    return facts


def _train_and_score(inputs: str, pairs: Pairs, dataset: Dataset, spec: ViewSpec) -> tuple[float, float, float]:
    fabric = start_fabric()
    transformation = TRANSFORMATIONS[pairs.transformation]
    size = dataset.train.images.shape[-1]
    coded = transformation.encode(pairs.theta, size)
    train = coded[pairs.rows("train")]
    targets = torch.from_numpy((coded - train.mean(axis=0)) / train.std(axis=0)).float()
    torch.manual_seed(0)
    model = SmallCNN(6 if inputs == "both_views" else 3, targets.shape[1])
    module, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=LR, fused=True))
    rows, steps, step = np.arange(*pairs.rows("train").indices(len(targets))), 0, 0
    steps = EPOCHS * (len(rows) // BATCH)
    best, best_error = None, float("inf")
    for epoch in range(EPOCHS):
        module.train()
        order = np.random.default_rng(epoch).permutation(rows)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(LR, step, steps, 0.05)
            error = F.mse_loss(module(_input(inputs, pairs, batch, dataset, spec)), targets[batch])
            fabric.backward(error)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        predicted = {s: _predict(module, inputs, pairs, s, dataset, spec) for s in ("val", "test")}
        error_val = float(np.square(predicted["val"] - targets[pairs.rows("val")].numpy()).mean())
        if error_val < best_error:
            best, best_error = predicted["test"], error_val
    assert best is not None
    truth = targets[pairs.rows("test")].double().numpy()
    low, high = bootstrap_r2(truth, best[None].astype(np.float64))
    return float(r2_per_dimension(truth, best.astype(np.float64)).mean()), low, high


@torch.no_grad()
def _predict(
    module: nn.Module, inputs: str, pairs: Pairs, split: str, dataset: Dataset, spec: ViewSpec
) -> NDArray[np.float32]:
    module.eval()
    rows = np.arange(*pairs.rows(split).indices(len(pairs.image)))
    parts = [module(_input(inputs, pairs, part, dataset, spec)) for part in np.array_split(rows, -(-len(rows) // 500))]
    return torch.cat(parts).float().numpy()


def _input(inputs: str, pairs: Pairs, rows: NDArray[np.int64], dataset: Dataset, spec: ViewSpec) -> Tensor:
    """The views of these pairs, normalised and masked, as the CNN sees them (all rows of one split)."""
    split = next(s for s in SPLITS if rows[0] < pairs.rows(s).stop)
    images = torch.from_numpy(image_source(dataset, split).images[pairs.image[rows]]).float() / 255
    theta = {pairs.transformation: torch.from_numpy(pairs.theta[rows]).float()}
    second = transform(images, theta, spec.fill)
    size = images.shape[-1]
    mask = torch.ones(size, size) if spec.radius is None else visible_disc(size, spec.radius)
    views = [second] if inputs == "view2_alone" else [images, second]
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (MEAN, STD))
    return torch.cat([(v - mean) / std * mask for v in views], dim=1)
