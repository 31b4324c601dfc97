"""Certificates: what a small CNN, trained from scratch on pixels, reads from parts of a pair.

From both views it is a ceiling of what the pixels hold at that amount of data; from view 2 alone it is what leaks: a
task that claims to be clean must leak at most `CLEAN_LEAK`. Two more inputs tell where a leak comes from: the border of
view 2, and view 2 of noise pictures. Made once per task version and kept with the tasks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import equibench
from equibench.data.datasets import FOLDER_PIXELS, Dataset, load_dataset
from equibench.data.pairs import SPLITS, draw_pairs, split_indices
from equibench.encoders.vit import view_spec
from equibench.errors import UserError
from equibench.files import write_text
from equibench.leak_cnn import INPUTS, Subject, train_and_score
from equibench.pretrain.loop import start_fabric
from equibench.registry import TASKS, closest, load_task_file
from equibench.task import Task, regression_tasks
from equibench.transforms import TRANSFORMATIONS

PAIRS = (20_000, 2_000, 5_000)
"""Training, validation and test pairs; the validation pairs choose the epoch."""
REPEATS = 4
"""How often a training or validation image may be used where the data are smaller; a test image is used once."""
EPOCHS, BATCH = 5, 128
STEPS = EPOCHS * (PAIRS[0] // BATCH)
"""Fewer pairs are seen in more epochs, for an undertrained CNN would find every task clean."""
FOREIGN = "certificates.json"

Sizes = tuple[int, int, int]


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
        data: "cifar10", "solids" or a folder of images.
        data_root: folder that holds CIFAR-10.
        out: file to write. By default the one that is kept with the tasks, for the package's own tasks, on CIFAR-10
            and with the default pairs; for all else `certificates.json` in the current folder. A file holds one
            certificate per task: one on other data takes its place.
        pairs: training, validation and test pairs; fewer where the data have fewer images (see `REPEATS`).
        inputs: which of `INPUTS` to measure; all if None.
        size: side of the images of a folder, in pixels.
        again: measure also what is on file already.

    Returns:
        The files written.

    Raises:
        UserError: an unknown task, or one that is no regression; a task's file, an input, the pairs or the data are
            wrong; a file cannot be read or written.
    """
    chosen = _chosen_tasks(tasks)
    asked = _chosen_inputs(inputs)
    if len(pairs) != 3 or min(pairs) < 2:
        raise UserError(f"pairs={pairs} cannot be drawn", "give three numbers: training, validation and test pairs")
    dataset = load_dataset(data, data_root=data_root, size=size)
    written: list[Path] = []
    for task in chosen:
        own = task.name in TASKS.built_in and dataset.name == "cifar10" and tuple(pairs) == PAIRS
        path = Path(out) if out else certificates_path() if own else Path(FOREIGN)
        certificates = _read(path)
        for source in asked:  # written one by one, so that an interruption costs one at most
            kept = certificates.get(task.name)
            certificates[task.name] = certificate_of(task, dataset, pairs, [source], kept=kept, again=again)
            write_text(path, json.dumps(certificates, indent=1) + "\n")
        written += [path] if path not in written else []
    return written


def certificates_path() -> Path:
    """Where the certificates of the registered tasks are kept."""
    import equibench.tasks

    return Path(next(iter(equibench.tasks.__path__))) / "certificates.json"


def certificate_of(
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
        variant: the views' fill and mask.
        kept: an earlier certificate; its numbers are kept where it is of the same recipe.
        again: measure the inputs that `kept` has, too.
    """
    indices, most = split_indices(dataset), (REPEATS, REPEATS, 1)
    sizes = tuple(min(n, m * len(indices[s])) for n, m, s in zip(sizes, most, SPLITS, strict=True))  # type: ignore[assignment]
    name = f"certificate of {task.name}"
    pairs = draw_pairs(dataset, task.transformation, sizes, task=name, version=task.version, repeats=REPEATS)
    batch = min(BATCH, sizes[0])
    epochs = max(EPOCHS, math.ceil(STEPS / (sizes[0] // batch)))
    views = view_spec(variant, dataset.train.images.shape[-1])
    recipe: dict[str, Any] = {"task_version": task.version, "epochs": epochs, "pairs_sha256": pairs.sha256}
    if variant != "headline":
        recipe["views"] = variant
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
    subject = Subject(pairs, dataset, views, start_fabric(), epochs, batch)
    for source in INPUTS:
        keys = [f"{source}_{end}" for end in ("r2", "low", "high")]
        numbers = [old.get(key) for key in keys]
        if source in inputs and (again or numbers[0] is None) and (geometric or source != "interpolation"):
            facts["package_version"] = equibench.__version__
            with _progress(f"{task.name}: {source.replace('_', ' ')}", epochs * (sizes[0] // batch)) as advance:
                numbers = [round(number, 4) for number in train_and_score(source, subject, advance)]
        facts |= dict(zip(keys, numbers, strict=True))
    return facts


# What is asked for, and the file


def _chosen_tasks(names: Sequence[str | Path] | None) -> list[Task]:
    if names is None:
        return [TASKS.get(name) for name in regression_tasks()]
    chosen: list[Task] = []
    for name in names:
        added = load_task_file(name) if isinstance(name, Path) or name.endswith(".py") else [name]
        chosen += [TASKS.get(one) for one in added]
    for task in chosen:
        if task.family != "regression":
            known = ", ".join(regression_tasks())
            raise UserError(f"{task.name!r} is a task of {task.family}, which has no certificate", f"one of {known}")
    return chosen


def _chosen_inputs(names: Sequence[str] | None) -> Sequence[str]:
    for name in names or ():
        if name not in INPUTS:
            raise UserError(f"unknown input {name!r}{closest(name, INPUTS)}", f"some of {', '.join(INPUTS)}")
    return names or INPUTS


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "move it away, or choose another file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no certificates", "move it away, or choose another file")
    return content


@contextmanager
def _progress(title: str, steps: int) -> Iterator[Callable[[], object]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        one = progress.add_task(title, total=steps)
        yield lambda: progress.advance(one)
