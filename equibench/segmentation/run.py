"""Training a decode head on an encoder and scoring it on ADE20K's validation images, resumable at any moment.

A run from a file: `torchrun --standalone --nproc-per-node 8 -m equibench.segmentation.run JOB.json`. The file holds the
arguments of `train_and_score_head` by name: {"encoder": "timm:vit_small_patch16_224", "data_root": "ade", "work_dir":
"runs/ade", "settings": {"head": "linear"}}. The first process prints the scores as one line of JSON.
"""

import gc
import inspect
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
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import distributed

from equibench.data.ade20k import CheckedTree, check_tree
from equibench.encoders.vit import weights_sha256
from equibench.errors import UserError
from equibench.metrics.segmentation import Areas, SegmentationScores, constant_areas, scores_from_areas
from equibench.segmentation import require_mmseg
from equibench.segmentation.backbone import Encoder, Source
from equibench.segmentation.config import IMAGE_LISTS, SegmentationSettings, build_config
from equibench.utils.files import digest_of, writable_folder, write_atomically, write_text

_Report = Callable[[float, str], None]
_JOB, _AREAS = "job.json", "areas.npz"
_REQUIRED, _OPTIONAL = ("encoder", "data_root", "work_dir"), ("settings", "arch", "pretrained", "skip_bad")


@dataclass(frozen=True)
class SegmentationResult:
    """What a trained head makes of the validation images."""

    areas: Areas  # of every image and class; all scores can be computed from them again
    names: tuple[str, ...]  # of the images, in the same order
    scores: SegmentationScores  # of the head
    floor: SegmentationScores  # of always predicting the class that has most pixels in the training annotations
    most_frequent: int  # that class, from 0
    left_out: tuple[tuple[str, str], ...]  # (file, what is wrong) of images that were left out


def train_and_score_head(
    encoder: Source, data_root: Path | str | None, work_dir: Path | str, settings: SegmentationSettings, *,
    arch: str | None = None, pretrained: bool = True, report: _Report | None = None, skip_bad: bool = False,
) -> SegmentationResult:  # fmt: skip
    """Train a head for an encoder on ADE20K's training images and score it on its validation images.

    A run that was interrupted goes on from its last checkpoint in `work_dir` and gives what it would have given (to
    the last bit on a CPU); one that is finished is read. Under torchrun the batch is shared by its processes, and
    every one of them returns the result.

    Args:
        encoder, arch, pretrained: see `Encoder`.
        data_root: a folder with ADE20K, see `find_ade20k`.
        work_dir: checkpoints, logs and the config go there; one folder for one run.
        settings: the recipe.
        report: called with the fraction that is done and what is going on, in the first process.
        skip_bad: leave out bad images instead of refusing them.

    Raises:
        UserError: mmsegmentation is not installed; the encoder or the data cannot be used; `work_dir` holds another
            run; the loss is no longer finite.
    """
    require_mmseg()
    tree = check_tree(data_root, classes=settings.classes, skip_bad=skip_bad)
    work_dir = writable_folder(Path(work_dir).expanduser()).resolve()
    stored = work_dir / _AREAS
    with _processes() as (rank, count, wait), _own_random_state(settings.seed):
        backbone = Encoder(
            encoder, arch=arch, frozen=settings.frozen, size=settings.size, pretrained=pretrained, seed=settings.seed
        )
        config = build_config(backbone, tree, work_dir, settings, processes=count, cuda=torch.cuda.is_available())
        if rank == 0:
            _claim(work_dir, backbone, tree, settings)
        wait()
        if not stored.exists():
            if areas := _train(backbone, config, work_dir, report if rank == 0 else None):
                write_atomically(stored, partial(np.savez_compressed, **areas.arrays()))  # type: ignore[arg-type]
            wait()
    with np.load(stored) as arrays:
        areas = Areas(**arrays)
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
    path = work_dir / _JOB
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if other := sorted(key for key, value in job.items() if before.get(key) != value):
            problem = f"{work_dir} holds a run with other {', '.join(other)}"
            raise UserError(problem, "choose another folder, or delete this one")
    for split, images in tree.images.items():
        write_text(work_dir / IMAGE_LISTS[split], "".join(f"{image}\n" for image in images))
    write_text(path, json.dumps(job, indent=1, sort_keys=True))


def _train(backbone: Encoder, config: dict[str, Any], work_dir: Path, report: _Report | None) -> Areas | None:
    """Run mmengine's Runner; the areas in the first process, None in the others."""
    from mmengine.runner import Runner

    from equibench.segmentation.engine import PlainConfig, ReportHook

    checkpoint = newest_checkpoint(work_dir)
    whole = PlainConfig({**config, "load_from": checkpoint, "resume": checkpoint is not None})
    known = inspect.signature(Runner).parameters
    arguments = {key: value for key, value in whole.items() if key in known}
    arguments["model"] = {**whole.model, "backbone": {"type": lambda: backbone}}  # open already
    with warnings.catch_warnings():
        # mmsegmentation warns of its own deprecated calls, and that ignored pixels count in the loss's mean: its recipe
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mmseg\.")
        processes = {"mp_start_method": multiprocessing.get_start_method(), "opencv_num_threads": 0}
        # without a name of its own, a run would share its loggers and counters with another of the same second
        runner = Runner(**arguments, cfg=whole, experiment_name=uuid4().hex, env_cfg={"mp_cfg": processes})
        runner.register_hook(ReportHook(report))
        runner.train()
    areas = runner.val_evaluator.metrics[0].areas
    # with the wrapper alive, destroying the process group now and then aborts the process
    del runner
    gc.collect()
    return areas


def newest_checkpoint(work_dir: Path) -> str | None:
    """The whole checkpoint of the most iterations, if any; the one that mmengine notes may have been cut by a kill."""
    found = sorted(work_dir.glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")), reverse=True)
    return next((str(path) for path in found if zipfile.is_zipfile(path)), None)


@contextmanager
def _processes() -> Iterator[tuple[int, int, Callable[[], object]]]:
    """This process's rank, how many there are, and what waits for all; made where torchrun gave us no group yet."""
    ours = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized()
    if ours:
        # mmengine's init_dist calls CUDA on a CPU too
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        if distributed.is_initialized():
            yield distributed.get_rank(), distributed.get_world_size(), distributed.barrier
        else:
            yield 0, 1, lambda: None
    finally:
        if ours:
            distributed.destroy_process_group()


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


def read_job(path: Path) -> dict[str, Any]:
    """The arguments of `train_and_score_head` from a JSON file; a UserError where one is missing, unknown or wrong."""
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _REQUIRED if key not in job]
        unknown = [key for key in job if key not in _REQUIRED + _OPTIONAL]
        if missing or unknown:
            raise ValueError(f"missing: {missing}, unknown: {unknown}")
        job["settings"] = SegmentationSettings(**job.get("settings", {}))
    except (OSError, ValueError, TypeError) as error:
        expected = f"give a JSON object with {', '.join(_REQUIRED)}; optional: {', '.join(_OPTIONAL)}"
        raise UserError(f"{path} is not a job: {error}", expected) from error
    return job


def run_job(arguments: list[str]) -> int:
    """Exit status: 0, or 2 where the user's input is at fault."""
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        if len(arguments) != 1:
            raise UserError("one argument is needed", "python -m equibench.segmentation.run JOB.json")
        result = train_and_score_head(**read_job(Path(arguments[0])))
    except UserError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if first:
        scores = {"miou": result.scores.miou, "macc": result.scores.macc, "aacc": result.scores.aacc}
        counts = {"images": len(result.names), "left_out": len(result.left_out)}
        print(json.dumps({**scores, "miou_floor": result.floor.miou, **counts}))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1:]))
