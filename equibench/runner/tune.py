"""The same search for every row of a table: learning rate, batch and each method's one weight (docs/protocol.md 6.12).

All rows are pretrained with the same settings, as many runs each, and looked at on validation images alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from equibench.config import RESULTS, RunConfig
from equibench.data.dataset import Dataset, ImageSet, split_indices
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.pretrain.method import BASELINES
from equibench.pretrain.runs import FACTS
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import Split, Whitening
from equibench.profiles import Pretraining
from equibench.registry import load_file
from equibench.report.definition import load_definition
from equibench.runner.open import REPEATS, drawable, open_context
from equibench.runner.plan import Place, TableRows, places_of, plan
from equibench.runner.workers import run_jobs
from equibench.task import TASKS
from equibench.transforms.transformation import TRANSFORMATIONS
from equibench.utils.files import read_lines, writable_folder, write_text

FACTORS = {"lr": (1, 2, 4), "batch": (1,), "weight": (0.25, 1, 4)}
"""What a profile's settings are multiplied by. On a CPU half the batch takes twice the time, and twice as much leaves a
small profile a few hundred steps, so the batch stays the profile's."""
SEEN = ("rotation", "translation", "color")
"""Regression tasks by which settings are told apart: where, where to, and how the picture looks."""
_PAIRS = (2000, 250, 1000)


@dataclass(frozen=True)
class TuneResult:
    frame: pd.DataFrame  # a line for each row and trial
    chosen: dict[str, dict[str, Any]]  # settings of each row, fields of `Pretraining`
    files: list[Path]


def trials(base: Pretraining, count: int) -> list[Pretraining]:
    """The settings that every row is tried with: the profile's own, then points of the grid as Halton's sequence has
    them, which spreads few of them evenly.

    A UserError if more are asked for than the grid has.
    """
    from scipy.stats.qmc import Halton

    size = math.prod(map(len, FACTORS.values()))
    if not 1 <= count <= size:
        raise UserError(f"{count} trials are not to be had", f"give a number from 1 to {size}: --trials 6")
    spread = Halton(len(FACTORS), scramble=False).random(100 * size)[1:]
    grid = [tuple(v[int(u * len(v))] for u, v in zip(point, FACTORS.values(), strict=True)) for point in spread]
    points = list(dict.fromkeys([(1, 1, 1), *grid]))[:count]
    return [
        replace(base, lr=base.lr * lr, batch=round(base.batch * batch), weight=base.weight * weight)
        for lr, batch, weight in points
    ]


def tune(
    name: str | Path = "table2",
    *,
    count: int = 6,
    out: str | Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> TuneResult:
    """Pretrain every row of a table with the same settings, and choose one of them for each; write the log.

    Of the runs in which a method has learned what it is for, by its own criteria, the one whose encoder has the highest
    mean R² on validation images is taken; where none has, the one that is nearest to its criteria. R² alone would
    choose the settings that train least, since untrained encoders tell transformations well.

    Args:
        name: a table's name, or a CSV that defines one: its rows are tuned.
        count: how many settings each row is tried with.
        out: folder for log and choice; by default results/<profile>/tune.
        options: fields of `equibench.config.RunConfig`: profile, rows, baseline_files, data_root, device, jobs, runs.

    Raises:
        UserError: a name, file, folder or device is wrong, or the data are views of objects.
    """
    config = RunConfig.of(**options)
    for file in config.baseline_files:
        load_file(file, "baseline")
    rows = [BASELINES.get(row).name for row in config.rows or load_definition(name).rows]
    profile = replace(config.sizes, tuned={}, snapshots=())
    folder = writable_folder(Path(out) if out else RESULTS / profile.name / "tune")
    console, lines = console or Console(stderr=True), []
    settings = trials(profile.pretraining, count)
    for number, pretraining in enumerate(settings):
        console.print(f"trial {number + 1} of {count}: {_words(pretraining)}", highlight=False)
        own = replace(profile, pretraining=pretraining)
        trial = config.with_(profile=own, runs=config.runs / "tune" / f"trial{number}", table=str(name))
        context = open_context(trial)
        if context.dataset.has_objects:
            raise UserError("views of objects come with the data, and this search draws its own", "choose other data")
        found, places = TableRows(trial, context), places_of(rows, [0])
        run_jobs(plan(places, (), found), found, console)
        looked_at = _validation(context, config.runs / "tune" / "validation")
        lines += [_line(place, number, found, looked_at) for place in places]
    frame, chosen = choose(pd.DataFrame(lines), settings)
    files = [folder / "log.csv", folder / "chosen.json"]
    write_text(files[0], frame.round(4).to_csv(index=False))
    write_text(files[1], json.dumps(chosen, indent=1) + "\n")
    return TuneResult(frame, chosen, files)


def choose(frame: pd.DataFrame, settings: Sequence[Pretraining]) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """The log with a column that says which line was chosen, and each row's chosen settings.

    The lowest shortfall is taken, which is 1 wherever all criteria are met, and of equal ones the highest R².
    """
    ordered = frame.sort_values(["shortfall", "r2"], ascending=[True, False], kind="stable")
    best = ordered.groupby("row", sort=False).head(1)
    chosen = {row: _settings(settings[int(trial)]) for row, trial in zip(best["row"], best["trial"], strict=True)}
    marked = frame.assign(chosen=frame.index.isin(best.index)).sort_values(["row", "trial"], kind="stable")
    return marked, {row: chosen[row] for row in dict.fromkeys(frame["row"])}


def _settings(pretraining: Pretraining) -> dict[str, Any]:
    return {name: asdict(pretraining)[name] for name in FACTORS}


def _words(pretraining: Pretraining) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in _settings(pretraining).items())


def _validation(context: Context, work: Path) -> Context:
    """The context in which the validation images are the test set, and the official test set is not there."""
    data, split = context.dataset, split_indices(context.dataset)
    train, val = (ImageSet(data.train.images[split[s]], data.train.labels[split[s]]) for s in ("train", "val"))
    held_out = Dataset(f"{data.name}-validation", data.description, train, val, data.class_names, f"{data.sha256}|val")
    probing = replace(context.probing, pairs=drawable(held_out, _PAIRS))
    profile = replace(context.profile, probing=probing)
    return replace(context, dataset=held_out, profile=profile, work=work, repeats=REPEATS, _shared={})


def _line(place: Place, number: int, found: TableRows, context: Context) -> dict[str, Any]:
    """One row's run: what its method says of itself on held-out pairs, and R² of the closed form."""
    row = found.find(place)
    assert row is not None
    learned, diagnostics = BASELINES.get(place.row).method.learned, dict(row.diagnostics or {})
    shortfall = max([1.0, *(one.shortfall(diagnostics.get(name, math.nan)) for name, one in learned.items())])
    facts = json.loads((found.folder(place) / FACTS).read_text())
    last = read_lines(found.folder(place) / "log.jsonl")[-1]
    scores = {f"r2_{name}": validation_r2(row, name, context) for name in SEEN}
    return {
        "row": place.row,
        "trial": number,
        **_settings(found.context.profile.pretraining),
        "shortfall": shortfall,
        **{name: diagnostics.get(name) for name in learned},
        "feature_std": last["feature_std"],
        "r2": float(np.mean(list(scores.values()))),
        **scores,
        "seconds": facts["seconds"],
    }


def validation_r2(row: Row, task_name: str, context: Context) -> float:
    """R² of a task on the context's test images, by the closed form: per dimension, then the mean."""
    from sklearn.metrics import r2_score

    task = TASKS.get(task_name)
    pairs = context.pairs(task)
    coded = TRANSFORMATIONS[task.transformation].encode(pairs.theta, context.size)
    first, second = (
        context.encode(row, v)["default"] for v in (context.views.first(pairs), context.views.second(pairs))
    )
    rows = {split: pairs.rows(split) for split in ("train", "val", "test")}
    splits = {split: Split(first[r], second[r], coded[r]) for split, r in rows.items()}
    return float(r2_score(splits["test"].targets, fit_closed_form(splits, Whitening.of(splits["train"])).predictions))
