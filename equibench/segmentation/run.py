"""Training a decode head on an encoder and scoring it on ADE20K's validation images, resumable at any moment."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import distributed, nn

from equibench.data.ade20k import CheckedTree, check_tree
from equibench.encoders.vit import weights_sha256
from equibench.errors import UserError
from equibench.metrics.segmentation import Areas, SegmentationScores, constant_areas, scores_from_areas
from equibench.segmentation.backbone import Encoder, Source
from equibench.segmentation.config import LISTS, SegmentationSettings, build_config
from equibench.segmentation.stub import require_mmseg
from equibench.utils.files import digest_of, writable_folder, write_atomically, write_text

Report = Callable[[float, str], None]
JOB, AREAS = "job.json", "areas.npz"
RUNNER_KEYS = (
    "work_dir", "train_dataloader", "val_dataloader", "train_cfg", "val_cfg", "optim_wrapper", "param_scheduler",
    "val_evaluator", "default_hooks", "launcher", "log_processor", "log_level", "default_scope", "randomness",
    "load_from", "resume",
)  # fmt: skip


@dataclass(frozen=True)
class SegmentationResult:
    """What a trained head makes of the validation images.

    Attributes:
        areas: of every image and class; all scores can be computed from them again.
        names: of the images, in the same order.
        scores: of the head.
        floor: of always predicting the class that has most pixels in the training annotations.
        most_frequent: that class, from 0.
        left_out: (file, what is wrong) of images that were left out.
    """

    areas: Areas
    names: tuple[str, ...]
    scores: SegmentationScores
    floor: SegmentationScores
    most_frequent: int
    left_out: tuple[tuple[str, str], ...]


def train_and_score(
    encoder: Source,
    data_root: Path | str | None,
    work_dir: Path | str,
    settings: SegmentationSettings,
    *,
    arch: str | None = None,
    pretrained: bool = True,
    report: Report | None = None,
    skip_bad: bool = False,
) -> SegmentationResult:
    """Train a head for an encoder on ADE20K's training images and score it on its validation images.

    A run that was interrupted goes on from its last checkpoint in `work_dir` and gives what it would have given (to
    the last bit on a CPU); one that is finished is read. Under torchrun the batch is shared by its processes, and
    every one of them returns the result.

    Args:
        encoder: see `Encoder`.
        data_root: a folder with ADE20K, see `find_ade20k`.
        work_dir: checkpoints, logs and the config go there; one folder for one run.
        settings: the recipe.
        arch, pretrained: see `Encoder`.
        report: called with the fraction that is done and what is going on, in the first process.
        skip_bad: leave out bad images instead of refusing them.

    Raises:
        UserError: mmsegmentation is not installed; the encoder or the data cannot be used; `work_dir` holds another
            run; the loss is no longer finite.
    """
    require_mmseg()
    tree = check_tree(data_root, classes=settings.classes, skip_bad=skip_bad)
    work_dir = writable_folder(Path(work_dir).expanduser()).resolve()
    with _processes() as (rank, count), _own_random_state(settings.seed):
        backbone = Encoder(
            encoder, arch=arch, frozen=settings.frozen, size=settings.size, pretrained=pretrained, seed=settings.seed
        )
        source = {"encoder": str(encoder), "arch": arch, "pretrained": pretrained}
        if isinstance(encoder, nn.Module):
            source = {"encoder": backbone.architecture}
        config = build_config(
            backbone, source, tree, work_dir, settings, processes=count, cuda=torch.cuda.is_available()
        )
        if rank == 0:
            _claim(work_dir, backbone, tree, settings)
        _wait()
        if not (work_dir / AREAS).exists():
            areas = _train(backbone, config, work_dir, report if rank == 0 else None)
            if areas is not None:
                write_atomically(work_dir / AREAS, lambda file: _store(file, areas))
            _wait()
        with np.load(work_dir / AREAS) as stored:
            return _result(Areas(**stored), tree)


def _store(path: Path, areas: Areas) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **areas.arrays())  # type: ignore[arg-type]


def _result(areas: Areas, tree: CheckedTree) -> SegmentationResult:
    frequent = int(tree.pixels.argmax())
    floor = scores_from_areas(constant_areas(areas.label, frequent))
    return SegmentationResult(areas, tree.names["validation"], scores_from_areas(areas), floor, frequent, tree.bad)


def _claim(work_dir: Path, backbone: Encoder, tree: CheckedTree, settings: SegmentationSettings) -> None:
    """See that the folder holds this run or none, and write what the run is told from."""
    job = {
        "settings": asdict(settings),
        "encoder": weights_sha256(backbone),
        "architecture": backbone.architecture,
        "normalisation": [list(backbone.mean), list(backbone.std)],
        "data": tree.sha256,
        "images": {split: digest_of(list(names)) for split, names in tree.names.items()},
    }
    text = json.dumps(job, indent=1, sort_keys=True)
    path = work_dir / JOB
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key, value in json.loads(text).items() if before.get(key) != value]
        if other:
            raise UserError(
                f"{work_dir} holds a run with other {', '.join(other)}", "choose another folder, or delete this one"
            )
    for split, names in tree.names.items():
        write_text(work_dir / LISTS[split], "".join(f"{name}\n" for name in names))
    write_text(path, text)


def _train(backbone: Encoder, config: dict[str, Any], work_dir: Path, report: Report | None) -> Areas | None:
    """Run mmengine's Runner; the areas in the first process, None in the others."""
    from mmengine.runner import Runner

    from equibench.segmentation.engine import PlainConfig, ReportHook

    checkpoint = newest_checkpoint(work_dir)
    whole = PlainConfig({**config, "load_from": checkpoint, "resume": checkpoint is not None})
    with warnings.catch_warnings():
        # mmsegmentation warns of its own deprecated calls, and that ignored pixels count in the loss's mean: its recipe
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mmseg\.")
        runner = Runner(
            model={**whole.model, "backbone": {"type": lambda: backbone}},  # open already; the config says where from
            cfg=whole,
            # a run in the same second would otherwise share its loggers and counters
            experiment_name=uuid4().hex,
            env_cfg={"mp_cfg": {"mp_start_method": multiprocessing.get_start_method(), "opencv_num_threads": 0}},
            **{key: whole.get(key) for key in RUNNER_KEYS},
        )
        runner.register_hook(ReportHook(report))
        runner.train()
    areas = runner.val_evaluator.metrics[0].areas
    # with the wrapper alive, destroying the process group now and then aborts the process
    del runner
    gc.collect()
    return areas


def newest_checkpoint(work_dir: Path) -> str | None:
    """The checkpoint of the most iterations that is whole; None where there is none.

    mmengine's own note of the last one may name a file that a kill cut short.
    """
    found = sorted(work_dir.glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")), reverse=True)
    return next((str(path) for path in found if zipfile.is_zipfile(path)), None)


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are; the group is made where torchrun started us and there is none."""
    if distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        return
    # mmengine's init_dist calls CUDA on a CPU too
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def _wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """mmengine and mmsegmentation draw from the global generators: seed them, and put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


REQUIRED = ("encoder", "data_root", "work_dir")
OPTIONAL = ("settings", "arch", "pretrained", "skip_bad")


def read_job(path: Path) -> dict[str, Any]:
    """The arguments of `train_and_score` from a JSON file.

    Raises:
        UserError: the file cannot be read, lacks an argument or has one that does not exist.
    """
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in REQUIRED if key not in job]
        unknown = [key for key in job if key not in REQUIRED + OPTIONAL]
        if missing or unknown:
            raise ValueError(f"missing: {missing}, unknown: {unknown}")
        job["settings"] = SegmentationSettings(**job.get("settings", {}))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a job: {error}",
            f"a JSON object with {', '.join(REQUIRED)}; optional: {', '.join(OPTIONAL)}",
        ) from error
    return job


def summary(result: SegmentationResult) -> dict[str, Any]:
    """The scores that a line of JSON can hold."""
    return {
        "miou": result.scores.miou,
        "macc": result.scores.macc,
        "aacc": result.scores.aacc,
        "miou_floor": result.floor.miou,
        "images": len(result.names),
        "left_out": len(result.left_out),
    }


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 where the user's input is at fault."""
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        if len(arguments) != 1:
            raise UserError("one argument is needed", "python -m equibench.segmentation.run JOB.json")
        result = train_and_score(**read_job(Path(arguments[0])))
    except UserError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if first:
        print(json.dumps(summary(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
