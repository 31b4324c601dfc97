"""The report's figures as inline SVG, drawn by matplotlib (the extra `plot`).

matplotlib and not a JavaScript library: its SVG needs no script and no font, prints as it is, can be read by a screen
reader through its caption, and is the library that `equibench curve` draws with already. Small panels, which a page
can wrap on a phone, share one legend; lines and text take the page's own colour, so that they are seen on dark too.
"""

from __future__ import annotations

import html
import importlib.util
import io
import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from equibench.evaluation.controls import CONTROLS
from equibench.metrics.learning_curve import SHARES
from equibench.records import Record
from equibench.report.html_tables import ReportSource
from equibench.task import TASKS
from equibench.utils.files import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#3b7dd8", "#d1661f", "#2e9455", "#9b6bd6", "#d64550", "#1f96a3", "#a8742b", "#d1559d")
"""Of lines, all of at least 3 : 1 against white and against the page's dark ground."""
_GREY, _MARKERS = "#808080", "osD^vP*X"
_INK = "#010203"
"""Stands for the page's own colour until the SVG is finished."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "axes.spines.top": False,
    "axes.spines.right": False, "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.titlesize": 10, "legend.frameon": False,
}  # fmt: skip
_MOST_PANELS = 8


@dataclass(frozen=True)
class Figure:
    """Panels and a legend as SVG, with the caption that a screen reader says."""

    title: str
    caption: str
    panels: Sequence[str]
    legend: str = ""


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def figures_of(source: ReportSource, logs: Mapping[str, Path]) -> list[Figure]:
    """All figures for which the records, the CSV and the pretraining runs' logs (by digest of the weights) have data.

    Without matplotlib there are none.
    """
    if not can_draw():
        return []
    import matplotlib as mpl

    with mpl.rc_context({**_STYLE, "svg.hashsalt": source.path}):
        found = [_halves(source), _trade_off(source), _layers(source), _learning(source)]
        found += [_over_pretraining(source), _training(source, logs)]
    return [figure for figure in found if figure is not None]


@dataclass(frozen=True)
class _Curve:
    """What is drawn of a row in one panel: x and y (N,), errors below and above (2, N), where a dotted line leads."""

    x: Sequence[float]
    y: Sequence[float]
    errors: Any = None
    dashed: tuple[float, float] | None = None


def _panels(
    title: str,
    caption: str,
    panels: Mapping[str, Mapping[str, _Curve]],
    labels: tuple[str, str],
    names: Mapping[str, str],
    points: bool = False,
    diagonal: bool = False,
    log: bool = False,
    ticks: Sequence[str] = (),
) -> Figure | None:
    """A figure of one panel for each name, with a curve (or point) for each row."""
    panels = {name: curves for name, curves in itertools.islice(panels.items(), _MOST_PANELS) if curves}
    if not panels:
        return None
    styles = _styles(list(dict.fromkeys(row for curves in panels.values() for row in curves)))
    drawn = []
    for name, curves in panels.items():
        drawing, axes = _axes(name, labels, bool(ticks))
        for row, curve in curves.items():
            _draw(axes, curve, styles[row], points)
        if diagonal:
            limits = axes.axis()
            axes.axline((0, 0), slope=1, color=_GREY, linewidth=0.8, linestyle=":")
            axes.axis(limits)
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right")
        drawn.append(_svg(drawing, f"{title}, {name}"))
    legend = _legend(title, {names.get(row, row): style for row, style in styles.items()}, points)
    return Figure(title, caption, drawn, legend)


def _styles(rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker by row; controls are grey, so that the methods stand out."""
    methods = [row for row in rows if row not in CONTROLS]
    found = {r: {"color": COLOURS[i % 8], "marker": _MARKERS[i // 8 % 8]} for i, r in enumerate(methods)}
    controls = [row for row in rows if row in CONTROLS]
    return found | {r: {"color": _GREY, "marker": _MARKERS[i % 8]} for i, r in enumerate(controls)}


def _draw(axes: Axes, curve: _Curve, style: Mapping[str, Any], points: bool) -> None:
    line = "none" if points else "-"
    axes.errorbar(curve.x, curve.y, yerr=curve.errors, linestyle=line, markersize=4, linewidth=1.2, **style)
    if curve.dashed:
        x, y = (curve.x[-1], curve.dashed[0]), (curve.y[-1], curve.dashed[1])
        axes.plot(x, y, linestyle=":", linewidth=1.2, markersize=6, markerfacecolor="none", **style)


def _axes(name: str, labels: tuple[str, str], long_ticks: bool) -> tuple[Drawing, Axes]:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(3.2, 2.5))
    drawing.subplots_adjust(left=0.24, right=0.97, top=0.89, bottom=0.36 if long_ticks else 0.19)
    drawing.patch.set_alpha(0)
    axes = drawing.subplots()
    axes.patch.set_alpha(0)
    axes.set(title=name, xlabel=labels[0], ylabel=labels[1])
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=5)
    return drawing, axes


def _legend(title: str, styles: Mapping[str, Mapping[str, Any]], points: bool) -> str:
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

    drawing = Drawing(figsize=(3.2, 0.2 * len(styles) + 0.2))
    drawing.patch.set_alpha(0)
    line: Any = "none" if points else "-"
    handles = [Line2D([], [], linestyle=line, markersize=4, label=name, **style) for name, style in styles.items()]
    drawing.legend(handles=handles, loc="center left")
    return _svg(drawing, f"{title}, legend: {', '.join(styles)}")


def _svg(drawing: Drawing, label: str) -> str:
    """The drawing as an element of the page: in its ink and font, of no size, with ids that no other drawing has."""
    import matplotlib as mpl

    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(defs>\s*<style.*?</style>\s*</defs|metadata.*?</metadata|!--.*?--)>", "", text, flags=re.DOTALL)
    source = str(mpl.rcParams["svg.hashsalt"])
    prefix = f"p{zlib.crc32(f'{source} {label}'.encode()):x}"
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"#(?=[\w-]+[\")])(?![0-9a-f]{6}\b)", f"#{prefix}-", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1))
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d\d+", lambda n: f"{float(n[0]):.1f}", tag[0]), text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
    return re.sub(r"\s*\n\s*", "\n", _without_bare_groups(text.replace(_INK, "currentColor"))).strip()


def _without_bare_groups(text: str) -> str:
    """The same drawing without groups that have no attributes, which are a third of matplotlib's text."""
    kept: list[bool] = []

    def one(tag: re.Match[str]) -> str:
        if tag[0] != "</g>":
            kept.append(tag[0] != "<g>")
            return tag[0] if kept[-1] else ""
        return tag[0] if kept.pop() else ""

    return re.sub(r"<g(?: [^>]*)?>|</g>", one, text)


def _by_task(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Regression records by the task's title and the row."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if record.evaluator == "regression" and record.interval("r2") is not None:
            found.setdefault(TASKS.get(record.task).title, {}).setdefault(record.baseline, []).append(record)
    return found


def _mean(records: Sequence[Record], metric: str = "r2") -> tuple[float, float, float] | None:
    """Value and ends, the mean over pretraining seeds; None where one of them lacks it."""
    values = [record.interval(metric) for record in records]
    if not values or None in values:
        return None
    value, low, high = np.mean(np.array(values, dtype=np.float64), axis=0).tolist()
    return value, low, high


def _spread(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


def _halves(source: ReportSource) -> Figure | None:
    """Invariance against equivariance within a method: what θ is read from either half."""
    records = [_by_task([r for r in source.records if r.features == half]) for half in ("invariant", "equivariant")]
    panels: dict[str, dict[str, _Curve]] = {}
    for task, rows in records[0].items():
        for row, found in rows.items():
            one, other = _mean(found), _mean(records[1].get(task, {}).get(row, []))
            if one and other:
                panels.setdefault(task, {})[row] = _Curve([one[0]], [other[0]], _spread(*other))
    caption = (
        "R² read from the equivariant half against R² read from the invariant half. A method that separates them is at "
        "the upper left: its invariant half forgets the transformation, its equivariant half keeps it. "
        "On the dotted line both tell the same."
    )
    labels = ("R², invariant half", "R², equivariant half")
    return _panels(
        "Invariance and equivariance of the halves", caption, panels, labels, source.names, points=True, diagonal=True
    )


def _trade_off(source: ReportSource) -> Figure | None:
    """Invariance against equivariance of encoders: how far g moves features, and whether θ can be read."""
    full = [r for r in source.records if r.features == "full"]
    moved = {(r.baseline, TASKS.get(r.task).transformation): r for r in full if r.evaluator == "invariance"}
    panels: dict[str, dict[str, _Curve]] = {}
    for task, rows in _by_task(full).items():
        for row, found in rows.items():
            other, r2 = moved.get((row, TASKS.get(found[0].task).transformation)), _mean(found)
            ratio = other.interval() if other else None
            if ratio and r2:
                panels.setdefault(task, {})[row] = _Curve([ratio[0]], [r2[0]], _spread(*r2))
    caption = (
        "R² of the transformation against the invariance ratio E|f(x)-f(gx)|² / E|f(x)-f(x')|²: 0 is invariant, 1 is "
        "moved as far as another image."
    )
    return _panels(
        "Invariance and equivariance", caption, panels, ("invariance ratio", "R²"), source.names, points=True
    )


def _layers(source: ReportSource) -> Figure | None:
    """R² over depth, of the encoder and of its untrained twin."""
    layers = list(dict.fromkeys(r.features for r in source.records if r.features.startswith("layer:")))
    steps = [*layers, "full"]
    panels: dict[str, dict[str, _Curve]] = {}
    for task, rows in _by_task([r for r in source.records if r.features in steps]).items():
        for row, found in rows.items():
            values = {s: _mean([r for r in found if r.features == s]) for s in steps}
            there = [(i, v) for i, s in enumerate(steps) if (v := values[s])]
            if len(there) > 1:
                errors = np.concatenate([_spread(*v) for _, v in there], axis=1)
                panels.setdefault(task, {})[row] = _Curve([i for i, _ in there], [v[0] for _, v in there], errors)
    ticks = [".".join(step.removeprefix("layer:").split(".")[-2:]).replace("full", "representation") for step in steps]
    caption = "R² read from each inner layer, from the image to the representation, with 95 % intervals."
    return _panels("R² by layer", caption, panels, ("", "R²"), source.names, ticks=ticks)


def _learning(source: ReportSource) -> Figure | None:
    """R² against training pairs of the probe, and where that leads."""
    panels: dict[str, dict[str, _Curve]] = {}
    for task, rows in _by_task([r for r in source.records if r.features == "full"]).items():
        for row, found in rows.items():
            points = {found[0].pairs[0] // share: _mean(found, name) for name, share in SHARES.items()}
            points[found[0].pairs[0]] = _mean(found)
            there = [(n, v) for n, v in points.items() if v]
            if len(there) == len(points):
                end, pairs = _mean(found, "r2_asymptote"), found[0].pairs[0]
                errors = np.concatenate([_spread(*v) for _, v in there], axis=1)
                dashed = (4.0 * pairs, end[0]) if end else None
                curve = _Curve([n for n, _ in there], [v[0] for _, v in there], errors, dashed)
                panels.setdefault(task, {})[row] = curve
    caption = (
        "R² from an eighth, a quarter, half and all of the training pairs. A dotted line leads to where the curve is "
        "extrapolated to end with any number of pairs, drawn at the right end; without one, that cannot be said."
    )
    labels = ("training pairs", "R²")
    return _panels("Learning curves of the probe", caption, panels, labels, source.names, log=True)


def _over_pretraining(source: ReportSource) -> Figure | None:
    """R² of the encoders that a run kept on its way."""
    if source.kind != "curve":
        return None
    frame = pd.read_csv(io.StringIO(source.csv))
    start = frame[frame.step == 0]
    panels: dict[str, dict[str, _Curve]] = {}
    for (row, task), lines in frame[frame.step > 0].groupby(["baseline", "task"], sort=False):
        whole = pd.concat([start[start.task == task], lines]).groupby("epochs")[["r2", "low", "high"]].mean()
        errors = [whole.r2 - whole.low, whole.high - whole.r2]
        title = TASKS.get(str(task)).title if task in TASKS.names() else str(task)
        panels.setdefault(title, {})[str(row)] = _Curve(list(whole.index), list(whole.r2), np.clip(errors, 0, None))
    caption = "R² against epochs of pretraining, from the untrained encoder on, with 95 % intervals."
    names = dict(zip(frame.baseline, frame.title, strict=True))
    return _panels("R² over pretraining", caption, panels, ("epochs of pretraining", "R²"), names)


def _training(source: ReportSource, logs: Mapping[str, Path]) -> Figure | None:
    """Losses and held-out diagnostics over pretraining, of the first seed of each row whose log is here."""
    folders: dict[str, Path] = {}
    for record in source.records:
        if log := logs.get(record.encoder_sha256 or ""):
            folders.setdefault(record.baseline, log)
    panels: dict[str, dict[str, _Curve]] = {"loss": {}, "feature_std": {}}
    for row, path in folders.items():
        lines = read_lines(path)
        for name in dict.fromkeys(key for line in lines for key in line):
            if name in panels or name.startswith("held_out/"):
                there = [(line["step"], line[name]) for line in lines if name in line]
                panels.setdefault(name, {})[row] = _Curve([x for x, _ in there], [y for _, y in there])
    titles = {name.replace("held_out/", "held out: ").replace("_", " "): curves for name, curves in panels.items()}
    caption = "Losses of the methods differ in what they sum, so only curves of one method compare."
    return _panels("Pretraining", caption, titles, ("step", ""), source.names)
