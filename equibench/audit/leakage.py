"""What a small CNN, trained from scratch on pixels, reads from parts of a pair: how much a task leaks.

From both views it is a ceiling of what the pixels hold at that amount of data; from view 2 alone it is what leaks: a
task that claims to be clean must leak at most `CLEAN_LEAK`. Two more inputs tell where a leak comes from: the border of
view 2, and view 2 of noise pictures. Measured once per task version and kept with the tasks.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from equibench.data.dataset import SPLITS, Dataset, image_source
from equibench.data.load import FOLDER_PIXELS, load_dataset
from equibench.errors import UserError, closest
from equibench.metrics.regression import bootstrap_r2, r2_per_dimension
from equibench.pairs.manifest import Pairs, draw_pairs
from equibench.pretrain.loop import learning_rate, start_fabric
from equibench.registry import load_file
from equibench.report.definition import leakage_path
from equibench.runner.open import REPEATS, drawable
from equibench.task import TASKS, Task, regression_tasks
from equibench.transforms.transformation import (
    MEAN,
    STD,
    TRANSFORMATIONS,
    ViewSpec,
    transform_sequence,
    view_spec,
    visible_disc,
)
from equibench.utils.digests import __version__
from equibench.utils.files import write_text

INPUTS = ("both_views", "view2_alone", "border", "interpolation")
"""What a CNN is trained on: both views; view 2; the outermost visible ring of view 2; view 2 of white noise, which has
no upright and no middle, so that what is read from it comes from the resampling (geometric transformations only)."""
Sizes = tuple[int, int, int]
PAIRS = (20_000, 2_000, 5_000)
"""Training, validation and test pairs; the validation pairs choose the epoch."""
EPOCHS, BATCH, LR = 5, 128, 2e-3
STEPS = EPOCHS * (PAIRS[0] // BATCH)
"""Fewer pairs are seen in more epochs, for an undertrained CNN would find every task clean."""
BORDER = 2 / 32  # width of the ring over the image's side
LARGE = 64  # a side above which the first convolution strides


class SmallCNN(nn.Module):
    """Four convolutions and two linear layers; keeps the grid until the end, so that positions can be read."""

    def __init__(self, channels: int, targets: int, side: int = LARGE) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        first = -(-side // LARGE)  # brings any side to 64 px or less; the kernel grows with it, to see every pixel
        sizes = ((channels, 32, first, first + 2), (32, 64, 2, 3), (64, 96, 2, 3), (96, 96, 1, 3))
        for before, after, stride, kernel in sizes:
            layers += [nn.Conv2d(before, after, kernel, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(96 * 36, 256), nn.ReLU(), nn.Linear(256, targets))

    def forward(self, x: Tensor) -> Tensor:
        """Views (N, channels, S, S) -> standardised targets (N, K)."""
        return self.head(self.body(x))


@dataclass(frozen=True)
class _Trial:
    """What all inputs of a task share: the pairs, how they are seen, and how long is trained."""

    pairs: Pairs
    dataset: Dataset
    views: ViewSpec
    fabric: Fabric
    epochs: int
    batch: int
    side: int

    def rows(self, split: str) -> NDArray[np.int64]:
        return np.arange(*self.pairs.rows(split).indices(len(self.pairs.image)))


def measure_leak(source: str, trial: _Trial, after_step: Callable[[], object]) -> tuple[float, float, float]:
    """Train on one of `INPUTS`; test R² of the epoch that the validation pairs choose, and its interval's ends.

    A parameter of the transformation that does not vary is a UserError.
    """
    pairs, fabric = trial.pairs, trial.fabric
    coded = TRANSFORMATIONS[pairs.transformation].encode(pairs.theta, trial.side)
    train = coded[pairs.rows("train")]
    if not train.std(axis=0).all():
        raise UserError(f"θ of {pairs.transformation!r} does not vary over the pairs", "draw it from a range")
    targets = torch.from_numpy((coded - train.mean(axis=0)) / train.std(axis=0)).float()
    torch.manual_seed(0)
    model = SmallCNN(6 if source == "both_views" else 3, targets.shape[1], trial.side)
    module, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=LR, fused=True))
    rows, step = trial.rows("train"), 0
    steps = trial.epochs * (len(rows) // trial.batch)
    best, best_error = None, float("inf")
    for epoch in range(trial.epochs):
        module.train()
        order = np.random.default_rng(epoch).permutation(rows)
        for start in range(0, len(order) - trial.batch + 1, trial.batch):
            batch = order[start : start + trial.batch]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(LR, step, steps, 0.05)
            error = F.mse_loss(module(_input(source, trial, batch)), targets[batch].to(fabric.device))
            fabric.backward(error)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            after_step()
        error_val = float(np.square(_predict(module, source, trial, "val") - targets[pairs.rows("val")].numpy()).mean())
        if error_val < best_error:
            best, best_error = _predict(module, source, trial, "test"), error_val
    assert best is not None, "the validation error was never a number"
    truth = targets[pairs.rows("test")].double().numpy()
    low, high = bootstrap_r2(truth, best[None].astype(np.float64))
    return float(r2_per_dimension(truth, best.astype(np.float64)).mean()), low, high


@torch.no_grad()
def _predict(module: nn.Module, source: str, trial: _Trial, split: str) -> NDArray[np.float32]:
    module.eval()
    rows, most = trial.rows(split), 500 if trial.side <= LARGE else 64
    parts = [module(_input(source, trial, part)) for part in np.array_split(rows, -(-len(rows) // most))]
    return torch.cat(parts).float().cpu().numpy()


def _input(source: str, trial: _Trial, rows: NDArray[np.int64]) -> Tensor:
    """The views of these pairs, normalised and masked, as the CNN sees them (all rows of one split)."""
    pairs, views, size, device = trial.pairs, trial.views, trial.side, trial.fabric.device
    split = next(s for s in SPLITS if rows[0] < pairs.rows(s).stop)
    if source == "interpolation":
        pixels = noise_pictures(rows - pairs.rows(split).start, size, pairs.transformation, split)
    else:
        pixels = image_source(trial.dataset, split).images[pairs.image[rows]]
    images = torch.from_numpy(pixels).to(device).float() / 255
    second = transform_sequence(images, pairs.steps(rows, device), views.fill)
    mask = torch.ones(size, size) if views.radius is None else visible_disc(size, views.radius)
    mask = (outer_ring(size, views.radius) if source == "border" else mask).to(device)
    mean, std = (torch.tensor(m, device=device).view(3, 1, 1) for m in (MEAN, STD))
    return torch.cat([(v - mean) / std * mask for v in ([images] if source == "both_views" else []) + [second]], dim=1)


def outer_ring(size: int, radius: float | None) -> Tensor:
    """(S, S) float mask of the outermost visible pixels, 2 px wide at 32 px: a ring, or a frame where no disc hides."""
    if radius is not None:
        return visible_disc(size, radius) - visible_disc(size, radius - BORDER * size)
    width = max(1, round(BORDER * size))
    mask = torch.ones(size, size)
    mask[width : size - width, width : size - width] = 0
    return mask


def noise_pictures(rows: NDArray[np.int64], size: int, *key: object) -> NDArray[np.uint8]:
    """White noise (N, 3, S, S) uint8, one picture for each row number, which depends on it and on the key alone."""
    count = 3 * size * size
    pictures = np.empty((len(rows), count), np.uint8)
    for picture, row in zip(pictures, rows, strict=True):
        digest = hashlib.sha256("|".join(map(str, ("noise", *key, row))).encode()).digest()
        words = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")).random_raw(-(-count // 8))
        picture[:] = words.astype("<u8").view(np.uint8)[:count]
    return pictures.reshape(-1, 3, size, size)


def certify(
    tasks: Sequence[str | Path] | None = None,
    *,
    data: str | Path = "cifar10",
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    pairs: Sizes = PAIRS,
    inputs: Sequence[str] | None = None,
    size: int = FOLDER_PIXELS,
    again: bool = False,
) -> list[Path]:
    """Certify regression tasks and merge the results into a file, each number as soon as it is there.

    What a file already holds of the same recipe (task version, data, pairs, epochs) is kept and not measured again.

    Args:
        tasks: task ids, and Python files that register tasks; all registered regression tasks if None.
        data: "cifar10", whose folder is `data_root`, "solids" or a folder of images, resized to `size` pixels.
        out: file to write. By default the one that is kept with the tasks, for the package's own tasks, on CIFAR-10
            and with the default pairs; for all else `leakage.json` in the current folder. A file holds one
            measurement per task: one on other data takes its place.
        pairs: training, validation and test pairs; fewer where the data have fewer images (see `drawable`).
        inputs: which of `INPUTS` to measure; all if None.
        again: measure also what is on file already.

    Returns:
        The files written.

    Raises:
        UserError: an unknown task, or one that is no regression; a task's file, an input, the pairs or the data are
            wrong; a file cannot be read or written.
    """
    chosen = [task for name in (regression_tasks() if tasks is None else tasks) for task in _tasks_of(name)]
    for name in inputs or ():
        if name not in INPUTS:
            raise UserError(f"unknown input {name!r}{closest(name, INPUTS)}", f"some of {', '.join(INPUTS)}")
    if len(pairs) != 3 or min(pairs) < 2:
        raise UserError(f"pairs={pairs} cannot be drawn", "give three numbers: training, validation and test pairs")
    dataset = load_dataset(data, data_root=data_root, size=size)
    written: list[Path] = []
    for task in chosen:
        own = task.name in TASKS.built_in and dataset.name == "cifar10" and tuple(pairs) == PAIRS
        path = Path(out) if out else leakage_path() if own else Path("leakage.json")
        leakage = _read(path)
        for source in inputs or INPUTS:  # written one by one, so that an interruption costs one at most
            kept = leakage.get(task.name)
            leakage[task.name] = leakage_of(task, dataset, pairs, [source], kept=kept, again=again)
            write_text(path, json.dumps(leakage, indent=1) + "\n")
        written += [path] if path not in written else []
    return written


def leakage_of(
    task: Task,
    dataset: Dataset,
    sizes: Sizes,
    inputs: Sequence[str] = INPUTS,
    *,
    variant: str = "headline",
    kept: dict[str, Any] | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Train the CNN on the inputs of one task and report its test R² with 95 % intervals; None where not measured.

    Args:
        sizes: training, validation and test pairs asked for.
        kept: an earlier measurement; its numbers are kept where it is of the same recipe, unless `again` is asked for.
    """
    sizes = drawable(dataset, sizes)
    name = f"certificate of {task.name}"  # the key of the random numbers, which must stay
    named: dict[str, Any] = {"task": name, "version": task.version, "nuisance": task.nuisance}
    pairs = draw_pairs(dataset, task.transformation, sizes, repeats=REPEATS, **named)
    batch = min(BATCH, sizes[0])
    epochs = max(EPOCHS, math.ceil(STEPS / (sizes[0] // batch)))
    side = int(dataset.train.images.shape[-1])
    recipe: dict[str, Any] = {"task_version": task.version, "epochs": epochs, "pairs_sha256": pairs.sha256}
    recipe |= {"views": variant} if variant != "headline" else {}
    old = kept if kept and all(kept.get(key) == value for key, value in recipe.items()) else {}
    facts: dict[str, Any] = {
        "task_version": task.version,
        "data": dataset.name,
        "pairs": sizes[0],
        "validation_pairs": sizes[1],
        "test_pairs": sizes[2],
        **recipe,
        "package_version": old.get("package_version"),  # of the latest measurement
    }
    geometric = TRANSFORMATIONS[task.transformation].matrix is not None
    trial = _Trial(pairs, dataset, view_spec(variant, side), start_fabric(), epochs, batch, side)
    for source in INPUTS:
        keys = [f"{source}_{end}" for end in ("r2", "low", "high")]
        numbers = [old.get(key) for key in keys]
        if source in inputs and (again or numbers[0] is None) and (geometric or source != "interpolation"):
            facts["package_version"] = __version__
            with Progress(console=Console(stderr=True), transient=True) as shown:
                bar = shown.add_task(f"{task.name}: {source.replace('_', ' ')}", total=epochs * (sizes[0] // batch))
                numbers = [round(n, 4) for n in measure_leak(source, trial, partial(shown.advance, bar))]
        facts |= dict(zip(keys, numbers, strict=True))
    return facts


def _tasks_of(name: str | Path) -> list[Task]:
    """The task of that name, or those that the file registers."""
    is_file = isinstance(name, Path) or name.endswith(".py")
    tasks = [TASKS.get(one) for one in (load_file(name, "task") if is_file else [str(name)])]
    for task in tasks:
        if task.evaluator != "regression":
            problem = f"{task.name!r} is a task of {task.evaluator}, whose leakage is not measured"
            raise UserError(problem, f"one of {', '.join(regression_tasks())}")
    return tasks


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "move it away, or choose another file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no measured leakage", "move it away, or choose another file")
    return content
