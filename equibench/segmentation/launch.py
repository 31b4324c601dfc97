"""A run from a file: `torchrun --standalone --nproc-per-node 8 -m equibench.segmentation.launch job.json`.

The file holds the arguments of `train_and_score` by name: {"encoder": "timm:vit_small_patch16_224", "data_root": "ade",
"work_dir": "runs/ade", "settings": {"head": "linear"}}. The first process prints the scores as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from equibench.errors import UserError
from equibench.segmentation.config import SegmentationSettings
from equibench.segmentation.run import SegmentationResult, train_and_score

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
            raise UserError("one argument is needed", "python -m equibench.segmentation.launch job.json")
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
