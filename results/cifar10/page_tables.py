"""The tables of results/cifar10/README.md: each function makes one of the tables and records beside the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import kendalltau

from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS, RIVALS, row_title
from equibench.records import read_records
from equibench.report.definition import Cell, cells_of
from equibench.report.table import plain
from equibench.task import TASKS
from equibench.utils.files import read_lines

TASK_NAMES = ("rotation", "color", "blur", "translation", "crop", "flip")
OWN = dict(zip(("sie_rot", "sie_color", "sie_blur", "sie_trans", "sie_crop", "sie_flip"), TASK_NAMES, strict=True))
THREE = ("vicreg", "sie_all", "reconstruction")
COMPARISONS = "comparisons.csv"
COLOR_FACTORS = ("brightness", "contrast", "saturation", "hue")


def scores(folder: Path) -> list[str]:
    """Table 2's grid as its own page has it."""
    text = (folder / "table2/table2.md").read_text(encoding="utf-8")
    grid = text.partition("## Published | ours")[2].partition("\n\n†")[0]
    return [line for line in grid.splitlines() if line.startswith("|")]


def recipe(folder: Path) -> list[str]:
    """The header of Table 2."""
    text = (folder / "table2/table2.md").read_text(encoding="utf-8")
    return [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("- ")]


def three_seeds(folder: Path) -> list[str]:
    """Mean over three pretraining seeds ± half the interval over test images, and the deviation over seeds."""
    cells = _cells(folder / "three_seeds")

    def text(row: str, task: str) -> str:
        cell = cells[row, task]
        scatter = f" ({cell.std_seeds:.3f})" if cell.std_seeds is not None else ""
        return f"{plain(cell.value)} ±{(cell.high - cell.low) / 2:.3f}{scatter}"

    return _grid(TASK_NAMES, [*THREE, "random_init", "pixels", "image_statistics"], text)


def differences(folder: Path) -> list[str]:
    """Paired differences of the three rows and from the untrained encoder, with each seed's own."""
    frame = _comparisons(folder)
    return _difference_lines(frame[frame.part == "three_seeds"])


def own_columns(folder: Path) -> list[str]:
    """Each SIE(x) in column x, against the best other SIE row and against the untrained encoder."""
    frame = _comparisons(folder)
    return _difference_lines(frame[(frame.part == "table2") & frame.row_a.isin(OWN)])


def ablations(folder: Path) -> list[str]:
    """R² of each variant, mean over two seeds with both, and what its runs say of view 1 and view 2."""
    table = read_table(folder, "ablations")
    return _grid(
        TASK_NAMES[:4],
        [row for row in table.index if row not in CONTROLS] + ["random_init"],
        lambda row, task: _with_seeds(folder / "ablations", row, task),
    )


def ablation_differences(folder: Path) -> list[str]:
    """Each variant minus the method as it is."""
    frame = _comparisons(folder)
    return _difference_lines(frame[frame.part == "ablations"])


def swaps(folder: Path) -> list[str]:
    """Held-out reconstruction error of finished runs, and what it gains when a view is taken from another image."""
    lines = ["| | profile | seed | error | gap of view 1 | gap of view 2 |", "|---|---|---|---|---|---|"]
    for part, profile in (("three_seeds", "cifar10_cpu"), ("ablations", "demo")):
        for run in read_lines(folder / part / "pretraining.jsonl"):
            if "held_out/view1_swap_gap" in run:
                error, one, two = (run[f"held_out/{k}"] for k in ("reconstruction", "view1_swap_gap", "view2_swap_gap"))
                name = row_title(run["baseline"])
                lines.append(f"| {name} | {profile} | {run['seed']} | {error:.4f} | {one:.4f} | {two:.3f} |")
    return lines


def codes(folder: Path) -> list[str]:
    """How much worse SIE's predictor does on held-out images with the code of another sample: 1 if it ignores it."""
    lines = ["| | error of the predictor | with another sample's code, times |", "|---|---|---|"]
    for run in read_lines(folder / "table2/pretraining.jsonl"):
        if "held_out/shuffled_code_ratio" in run:
            error, ratio = run["held_out/equivariance"], run["held_out/shuffled_code_ratio"]
            lines.append(f"| {row_title(run['baseline'])} | {error:.3f} | {ratio:.2f} |")
    return lines


def halves(folder: Path) -> list[str]:
    """R² from the invariant | the equivariant half, of the rows that have two."""
    sides = [
        _cells(folder / "table2", half) | _cells(folder / "three_seeds", half) for half in ("invariant", "equivariant")
    ]
    rows = [row for row in read_table(folder, "table2").index if (row, "rotation") in sides[0]]
    return _grid(TASK_NAMES, rows, lambda row, task: " \\| ".join(plain(cells[row, task].value) for cells in sides))


def colors(folder: Path) -> list[str]:
    """Color by its factors, the headline, and the pooled R² with the floor of a constant."""
    records = [r for r in read_records(folder / "table2/records.jsonl") if r.task == "color" and r.features == "full"]
    lines = ["| | " + " | ".join(COLOR_FACTORS) + " | R² | pooled R² |", "|---|---|---|---|---|---|---|"]
    for record in records:
        r2, pooled = record.metrics["r2"], record.metrics["r2_pooled"]
        each = " | ".join(plain(value) for value in r2.per_dimension or ())
        lines.append(f"| {_name(record.baseline)} | {each} | {plain(r2.value or 0)} | {plain(pooled.value or 0)} |")
    return lines


def beaten(folder: Path) -> list[str]:
    """For each column the rows whose interval lies above the best control's."""
    cells = _cells(folder / "table2")
    methods = [row for row in read_table(folder, "table2").index if row not in CONTROLS]
    lines = ["| | best control | rows above it | of |", "|---|---|---|---|"]
    for task in TASK_NAMES:
        control = max(RIVALS, key=lambda row: cells[row, task].value)
        above = [row_title(row) for row in methods if cells[row, task].beats_controls]
        best = f"{row_title(control)} {plain(cells[control, task].value)}"
        lines.append(f"| {TASKS.get(task).title} | {best} | {', '.join(above) or 'none'} | {len(methods)} |")
    return lines


def corners(folder: Path) -> list[str]:
    """R² with mirrored fill and disc | with black corners, and how far the two rankings of the rows agree."""
    sides = [_cells(place) for place in (folder / "mirrored_fill", folder / "black_corners")]
    index = read_table(folder, "black_corners", "table2").index
    rows = [row for row in index if row not in ("constant", "oracle")]

    def values(row: str, task: str) -> list[float]:
        return [cells[row, task].value for cells in sides]

    lines = _grid(TASK_NAMES, rows, lambda row, task: " \\| ".join(plain(value) for value in values(row, task)))
    taus = [kendalltau(*zip(*(values(row, task) for row in rows), strict=True)).statistic for task in TASK_NAMES]
    return [*lines, "| Kendall's τ of the two columns | " + " | ".join(f"{tau:.2f}" for tau in taus) + " |"]


def class_token(folder: Path) -> list[str]:
    """Runs whose invariant loss saw the mean or the class token, probed on either."""
    lines = ["| trained on | probed on | seed | " + " | ".join(TASKS.get(t).title for t in TASK_NAMES[:4]) + " |"]
    lines.append("|---|" + "---|" * 6)
    for trained, row in (("mean", "reconstruction"), ("class token", "ours_class_token")):
        for probed in ("mean", "class token"):
            for seed in (0, 1):
                part = "class_token" if probed == "class token" else "ablations"
                place = folder / part / (f"{row}_seed{seed}" if part == "class_token" else "")
                found = [_of(place, row if part == "ablations" else None, seed, task) for task in TASK_NAMES[:4]]
                lines.append(f"| {trained} | {probed} | {seed} | " + " | ".join(map(plain, found)) + " |")
    return lines


def curve(folder: Path) -> list[str]:
    """R² by epochs of pretraining."""
    frame = pd.read_csv(folder / "curve/curve.csv")
    tasks = list(dict.fromkeys(frame.task))
    lines = [
        "| | epochs | " + " | ".join(TASKS.get(task).title for task in tasks) + " |",
        "|---|" + "---|" * (1 + len(tasks)),
    ]
    for (row, epochs), group in frame.groupby(["baseline", "epochs"], sort=False):
        value = group.set_index("task").r2
        lines.append(f"| {_name(str(row))} | {epochs:g} | " + " | ".join(plain(value[task]) for task in tasks) + " |")
    return lines


BLOCKS: dict[str, Callable[[Path], list[str]]] = {
    f.__name__: f
    for f in (
        recipe, scores, three_seeds, differences, own_columns, codes, colors, beaten, swaps, halves, corners, ablations,
        ablation_differences, class_token, curve,
    )
}  # fmt: skip


def read_table(folder: Path, part: str, name: str | None = None) -> pd.DataFrame:
    """A part's CSV by row, as text."""
    frame = pd.read_csv(folder / part / f"{name or part}.csv", dtype=str, keep_default_na=False)
    return frame.set_index("baseline")


def _cells(folder: Path, features: str = "full") -> dict[tuple[str, str], Cell]:
    return cells_of(read_records(folder / "records.jsonl"), features)


def _comparisons(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / COMPARISONS, dtype={"per_seed": str}, keep_default_na=False)


def _difference_lines(frame: pd.DataFrame) -> list[str]:
    lines = [
        "| A | B | | A | B | A - B, 95 % interval | better | A - B of each seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for d in frame.itertuples():
        better = {"A": _name(d.row_a), "B": _name(d.row_b)}.get(str(d.verdict), "tie")
        seeds = ", ".join(f"{float(value):+.3f}" for value in str(d.per_seed).split())
        interval = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        names = f"{_name(d.row_a)} | {_name(d.row_b)} | {TASKS.get(str(d.task)).title}"
        lines.append(f"| {names} | {d.a:.3f} | {d.b:.3f} | {interval} | {better} | {seeds} |")
    return lines


def _with_seeds(folder: Path, row: str, task: str) -> str:
    found = [_of(folder, row, seed, task) for seed in (0, 1)]
    return f"{plain(sum(found) / 2)} ({', '.join(map(plain, found))})"


def _of(folder: Path, row: str | None, seed: int, task: str) -> float:
    """The R² of one run on one task; of a score's folder, the one encoder's."""
    for record in read_records(folder / "records.jsonl"):
        asked = record.baseline == row or (row is None and record.baseline not in CONTROLS)
        if asked and (record.task, record.features, record.seeds.pretraining) == (task, "full", seed):
            value = record.metrics["r2"].value
            assert value is not None
            return value
    raise UserError(f"{folder} has no score of {row or 'the encoder'}, seed {seed}, on {task}", "run: make study")


def _name(row: object) -> str:
    return f"*{row_title(str(row))}*" if row in CONTROLS else row_title(str(row))


def _grid(tasks: Sequence[str], rows: Sequence[str], text: Callable[[str, str], str]) -> list[str]:
    lines = ["| | " + " | ".join(TASKS.get(task).title for task in tasks) + " |", "|---|" + "---|" * len(tasks)]
    return lines + [f"| {_name(row)} | " + " | ".join(text(row, task) for task in tasks) + " |" for row in rows]
