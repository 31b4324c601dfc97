"""P2's figures from stored records: each is a frame, which is written beside the drawing, and the published points.

- invariance: R² of color against that of rotation, a point for each encoder (P2 Figure 3);
- differences: accuracy minus that of a base, with paired intervals (P2, arXiv v1, Figures 3 and 4);
- dimensions: mean accuracy and mean rank against d_equi, a line for each lambda (P2 Figures 4 and 5).

In every frame `source` is "measured" or "published".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.evaluation.evaluator import metric_info
from equibench.pretrain.method import BASELINES
from equibench.records import Record
from equibench.report.definition import PUBLISHED, Cells, cells_of
from equibench.task import TASKS
from equibench.utils.files import writable_folder, write_atomically, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME_COLUMNS = ("encoder", "method", "backbone", "lambda", "d_equi")
"""Of the file that says what the encoders are; all but the first may be missing."""
DENSE = ("segmentation", "propagation", "homography")
"""Evaluators over whose tasks ranks are averaged, as P2's Figure 5 does over its dense tasks."""
_MARKERS, _GREY = "os^Dv<>Pp*hX", "0.55"
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "equibench", "font.size": 8}
_ZOOM = {"rotation": (0.86, 1.01), "color": (0.9, 0.96)}
"""The corner that P2 enlarges in an inset."""

RecordsByFolder = Mapping[str, Sequence[Record]]
"""Records by the folder that they come from."""


def published_points(name: str) -> pd.DataFrame:
    """The published points of a figure, from `results/published/figures/<name>.csv`."""
    with PUBLISHED.joinpath("figures", f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#").assign(source="published")


def read_names(path: Path | str) -> pd.DataFrame:
    """What encoders are called in figures: a CSV with the column encoder, and any of method, backbone, lambda, d_equi.

    Raises:
        UserError: there is no such file, it has other columns, or names an encoder twice.
    """
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as a CSV: {error}", f"columns: {', '.join(NAME_COLUMNS)}") from error
    if "encoder" not in frame or not set(frame).issubset(NAME_COLUMNS) or frame["encoder"].duplicated().any():
        problem = f"{path} does not say what the encoders are: its columns are {', '.join(map(str, frame))}"
        raise UserError(problem, f"a line for each encoder, with the columns {', '.join(NAME_COLUMNS)}")
    return frame


def invariance_frame(places: RecordsByFolder, names: pd.DataFrame | None = None) -> pd.DataFrame:
    """A line for each encoder that was scored on rotation and color: R² of both, with intervals, and published points.

    Without a line in `names` its method is its own title, and its backbone what its record says first.
    """
    lines = []
    for folder, records in places.items():
        cells, told = cells_of(records), {r.baseline: r.encoder.split(",")[0] for r in records if r.encoder}
        for row in _encoders(cells):
            if (row, "rotation") in cells and (row, "color") in cells:
                line: dict[str, object] = {"source": "measured", "folder": folder, "encoder": row}
                line |= {"method": _method(row), "backbone": told.get(row, "")}
                line |= _named(row, names, ("method", "backbone"))
                line |= {"data": cells[row, "rotation"].data}
                for task in ("rotation", "color"):
                    cell = cells[row, task]
                    line |= {task: cell.value, f"{task}_low": cell.low, f"{task}_high": cell.high}
                lines.append(line)
    return pd.concat([pd.DataFrame(lines), published_points("p2_figure3")], ignore_index=True)


def dimensions_frame(places: RecordsByFolder, names: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean top-1 over the classification tasks that all encoders share, and mean rank over the dense ones they share.

    A line for each encoder to which `names` gives lambda and d_equi, or neither of both: that is the baseline, which is
    ranked with the others. Rank 1 is best; equal values share the mean of their ranks. Published points follow.
    """
    lines = []
    for folder, records in places.items():
        rows = names["encoder"] if names is not None and "lambda" in names else ()
        told = {row: _named(row, names, ("lambda", "d_equi")) for row in rows}
        cells = {key: cell for key, cell in cells_of(records).items() if key[0] in told}
        found = _encoders(cells)
        accuracies = [f"{task}:top1" for task in _shared(records, found, ("classification",))]
        ranks = _mean_ranks(cells, found, records)
        for row in found:
            values = [cells[row, column].value for column in accuracies]
            line = {"source": "measured", "folder": folder, "encoder": row, **told[row]}
            line |= {"mean_accuracy": np.mean(values) if values else np.nan, "mean_rank": ranks.get(row, np.nan)}
            lines.append(line)
    frame = pd.concat([pd.DataFrame(lines), published_points("p2_figure4")], ignore_index=True)
    return frame.sort_values(["source", "lambda", "d_equi"], na_position="first", ignore_index=True)


def differences_frame(measured: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Measured differences (encoder, base, task, difference, low, high, p in percentage points) and published ones."""
    own = pd.DataFrame(measured).assign(source="measured") if measured else pd.DataFrame()
    return pd.concat([own, published_points("p2_differences").assign(encoder="Ours")], ignore_index=True)


def write_figure(frame: pd.DataFrame, name: str, folder: Path) -> list[Path]:
    """Write `<name>.csv`, and drawn from it `<name>.svg` and `<name>.png`.

    Raises:
        UserError: matplotlib is not installed, or the folder cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("matplotlib is needed to draw figures", 'pip install "equibench[plot]"')
    import matplotlib
    from matplotlib.figure import Figure

    files = [writable_folder(folder) / f"{name}.{kind}" for kind in ("csv", "svg", "png")]
    write_text(files[0], frame.round(4).to_csv(index=False))
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        DRAWINGS[name](frame, figure)
        if not (frame["source"] == "measured").any():
            figure.suptitle("published points only: no encoder of these folders belongs here")
        for path, metadata in zip(files[1:], ({"Date": None}, {"Software": None}), strict=True):
            kind = path.suffix[1:]
            write_atomically(path, partial(figure.savefig, format=kind, dpi=150, metadata=metadata))
    return files


def _draw_invariance(frame: pd.DataFrame, figure: Figure) -> None:
    """All points, and beside them the corner in which most of P2's lie."""
    figure.set_size_inches(10, 4.2)
    axes, methods = figure.subplots(1, 2, width_ratios=(3, 2)), list(dict.fromkeys(frame["method"]))
    for axis in axes:
        for (source, method), points in frame.groupby(["source", "method"], sort=False):
            own, number = source == "measured", methods.index(str(method))
            colour = f"C{number % 10}" if own else _GREY
            axis.plot(points["rotation"], points["color"], label=str(method) + " (published)" * (not own), color=colour,
                      marker=_MARKERS[number % len(_MARKERS)], markerfacecolor=colour if own else "none",
                      linestyle="none")  # fmt: skip
        for point in frame.to_dict("records"):
            inside = all(low <= point[at] <= high for at, (low, high) in _ZOOM.items())
            if inside == (axis is axes[1]):
                axis.annotate(str(point["backbone"]), (point["rotation"], point["color"]), fontsize=6, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axis.set(xlabel="R² of rotation")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="R² of color")
    axes[1].set(xlim=_ZOOM["rotation"], ylim=_ZOOM["color"], title="the corner, enlarged")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=6)


def _draw_differences(frame: pd.DataFrame, figure: Figure) -> None:
    panels = list(frame.groupby(["source", "base"], sort=False))
    for axis, ((source, base), part) in zip(_panels(figure, len(panels)), panels, strict=True):
        tasks, encoders = list(dict.fromkeys(part["task"])), list(dict.fromkeys(part["encoder"]))
        for number, encoder in enumerate(encoders):
            bars = part[part["encoder"] == encoder].set_index("task").reindex(tasks)
            places = np.arange(len(tasks)) + (number - (len(encoders) - 1) / 2) * 0.8 / len(encoders)
            ends = None
            if source == "measured":
                ends = np.stack([bars["difference"] - bars["low"], bars["high"] - bars["difference"]]).clip(min=0)
            colour = f"C{number % 10}" if source == "measured" else _GREY
            axis.bar(places, bars["difference"], 0.8 / len(encoders), yerr=ends, capsize=2, label=encoder, color=colour)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xticks(range(len(tasks)), [_title(task) for task in tasks], rotation=60, ha="right")
        axis.set(title=f"minus {base}{' (published)' * (source == 'published')}")
        axis.legend(frameon=False, fontsize=6)
    figure.axes[0].set_ylabel("accuracy, percentage points")


def _draw_dimensions(frame: pd.DataFrame, figure: Figure) -> None:
    kinds = (("mean_accuracy", "mean accuracy"), ("mean_rank", "mean rank over dense tasks (1 is best)"))
    for axis, (column, title) in zip(_panels(figure, 2), kinds, strict=True):
        for source, part in frame.groupby("source"):
            own = source == "measured"
            for number, (weight, line) in enumerate(part.dropna(subset=["lambda", column]).groupby("lambda")):
                label = f"λ = {weight:g}{'' if own else ' (published)'}"
                axis.plot(line["d_equi"], line[column], marker=_MARKERS[number], label=label,
                          color=f"C{number}" if own else _GREY, linestyle="-" if own else "--")  # fmt: skip
            for base in part[part["lambda"].isna()].to_dict("records"):
                style: dict[str, Any] = {"color": "black" if own else _GREY, "linewidth": 0.8}
                axis.axhline(base[column], label=f"baseline{'' if own else ' (published)'}", **style)
                if column == "mean_accuracy" and pd.notna(base.get("low")):
                    axis.axhspan(base["low"], base["high"], color=style["color"], alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="d_equi", ylabel=title)
        axis.grid(alpha=0.3)
    figure.axes[1].invert_yaxis()
    figure.axes[0].legend(frameon=False, fontsize=6)


DRAWINGS: dict[str, Callable[[pd.DataFrame, Figure], None]] = {
    "invariance": _draw_invariance,
    "differences": _draw_differences,
    "dimensions": _draw_dimensions,
}
"""How a frame is drawn, by the figure's name."""


def _panels(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0])


def _encoders(cells: Cells) -> list[str]:
    """The rows that have an encoder, in the order of their records."""
    rows = dict.fromkeys(row for row, _ in cells)
    return [row for row in rows if row not in CONTROLS or CONTROLS[row].has_encoder]


def _method(row: str) -> str:
    return row_title(row) if row in CONTROLS or row in BASELINES.names() else row


def _named(row: str, names: pd.DataFrame | None, keys: Sequence[str]) -> dict[str, object]:
    """What `names` says of a row, of these."""
    said = names[names["encoder"] == row] if names is not None else pd.DataFrame()
    return {key: said[key].iloc[0] for key in keys if len(said) and key in said and pd.notna(said[key].iloc[0])}


def _shared(records: Sequence[Record], rows: Sequence[str], evaluators: Sequence[str]) -> list[str]:
    """The tasks of some evaluators on which all of the rows were scored."""
    of = {row: {r.task for r in records if r.baseline == row and r.evaluator in evaluators} for row in rows}
    return sorted(set.intersection(*of.values())) if of else []


def _mean_ranks(cells: Cells, rows: Sequence[str], records: Sequence[Record]) -> dict[str, float]:
    """The mean rank of each row over the dense tasks that all share; nothing where there are none."""
    ranks = []
    for task in _shared(records, rows, DENSE):
        info = metric_info(next(r.main_metric for r in records if r.task == task))
        values = pd.Series([cells[row, task].value for row in rows], index=list(rows))
        ranks.append(values.rank(ascending=info is not None and info.better == "lower"))
    means = pd.concat(ranks, axis=1).mean(axis=1) if ranks else pd.Series(dtype=float)
    return {str(row): float(mean) for row, mean in means.items()}


def _title(task: str) -> str:
    return TASKS.get(task).title if task in TASKS.names() else task.removeprefix("linear_").capitalize()
