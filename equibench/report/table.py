"""Tables for people, in markdown and on the terminal: a header, published | ours ± interval, what they say; and the
page of all tables of a profile.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pandas as pd
from rich.console import Console
from rich.table import Table

from equibench.errors import UserError
from equibench.evaluation.context import Context
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.pretrain.method import BASELINES
from equibench.profiles import get_profile
from equibench.records import RECORDS, Record, read_records
from equibench.report.definition import (
    MARK,
    PROBE_LEGEND,
    UNTRAINED,
    Cell,
    Cells,
    Column,
    TableDefinition,
    best_sets,
    cells_of,
    columns_of,
    leakage_lines,
    load_definition,
    markdown_head,
    plain,
    published,
    table_names,
    untrained_legend,
    untrained_rows,
    with_overlaps,
)
from equibench.task import Task
from equibench.transforms.transformation import BLUR_RANGE, COLOR_RANGE, CROP_SCALE, MAX_ANGLE, max_shift

_UNBEATEN = (
    "its interval does not lie beyond that of the best of random init, pixels and image statistics (of those that the "
    "column has), so the score says nothing about the training"
)
_SETS = (
    "Of which the closed form reads most: full is the mean of the patch tokens (the score above), grid holds the means "
    "of their four quarters, cls is the class token, invariant and equivariant are the halves."
)
_WIDE, _MEDIUM = 150, 118  # columns of a terminal
_T = TypeVar("_T")
_Text = Callable[[str, Column], str]
"""What is printed in a row and column."""


def markdown_table(
    definition: TableDefinition,
    rows: Sequence[str],
    columns: Sequence[Column],
    records: Sequence[Record],
    context: Context,
    seeds: Sequence[int],
    notes: Sequence[str] = (),
) -> str:
    """The whole report of a table."""
    full, inv, equi = (cells_of(records, part, definition.scale) for part in ("full", "invariant", "equivariant"))
    regression = [c for c in columns if c.task.evaluator == "regression" and not c.further]
    probed = [c.task for c in regression]
    std = _text(full, lambda cell: "–" if cell.std_seeds is None else f"{cell.std_seeds:.3f}")
    pooled = _text(full, lambda cell: "–" if cell.pooled is None else plain(cell.pooled))
    signatures = _text(full, lambda cell: " ".join(f"`{signature}`" for signature in cell.signatures))
    left, right = (_text(half, lambda cell: plain(cell.value)) for half in (inv, equi))
    lines = [f"# {definition.title or definition.name}", ""]
    lines += [f"- {line}" for line in _header(context, [c.task for c in columns], seeds, records)]
    lines += ["", "## Published | ours", "", *_score_grids(definition, rows, columns, full, untrained_rows(records))]
    lines += ["", *(f"Not measured, since the data are not there: {note}" for note in notes)] if notes else []
    lines += ["", f"{MARK} does not beat its controls: {_UNBEATEN}.", ""]
    lines += [line for mark, meaning in _probe_legend(full).items() for line in (f"{mark} {meaning}.", "")]
    lines += [legend, ""] if (legend := untrained_legend(records)) else []
    if regression and not context.dataset.has_objects:
        lines += leakage_lines(probed)
    if scattered := {row for (row, _), cell in full.items() if cell.std_seeds is not None}:
        lines += ["", "## Standard deviation over pretraining seeds", ""]
        lines += _grid([row for row in rows if row in scattered], columns, std)
    if geometry := _geometry_findings(rows, probed, full):
        lines += ["", "## Mean of rotation and translation", "", *[f"- {line}" for line in geometry]]
    if own := _own_column_findings(rows, probed, full):
        lines += ["", "## Is SIE(x) the best SIE row in its own column?", "", *[f"- {line}" for line in own]]
    if regression:
        lines += ["", "## Pooled R², as published", "", _floors(regression, records), ""]
        lines += _grid(rows, regression, _beside_published(definition, pooled))
    if best := best_sets(records):
        sets = _text_of(best, lambda found: f"{found[0]} {plain(found[1])}")
        lines += ["", "## The best feature set", "", _SETS, "", *_grid(rows, regression, sets)]
    if split := [c for c in columns if any(name == c.name for _, name in inv)]:
        lines += ["", "## The halves alone", "", "From the invariant | the equivariant half.", ""]
        there = [row for row in rows if any(name == row for name, _ in inv)]
        halves = _grid(there, split, lambda row, column: f"{left(row, column)} \\| {right(row, column)}")
        lines += with_overlaps(halves, there, records)
    lines += ["", "## Signatures", "", "`equibench explain` turns one into the score's recipe and command.", ""]
    return "\n".join([*lines, *_grid(rows, columns, signatures)]) + "\n"


def _score_grids(
    definition: TableDefinition, rows: Sequence[str], columns: Sequence[Column], cells: Cells, untrained: Container[str]
) -> list[str]:
    """Published | ours, row by row, of the columns that are published; then our further columns, where there are any,
    under a line that says so and without rows that have none of them. Columns on rendered data say so in their heads,
    rows that have not learned have a mark.
    """
    ours = _text(cells, lambda cell: _score(cell, definition.scale))
    printed, further = _split_columns(definition, columns)
    lines = _grid(rows, printed, _beside_published(definition, ours), cells, untrained)
    if further:
        there = [row for row in rows if any((row, column.name) in cells for column in further)]
        lines += ["", "Not in the published table:", "", *_grid(there, further, ours, cells, untrained)]
    return lines


def _split_columns(definition: TableDefinition, columns: Sequence[Column]) -> tuple[list[Column], list[Column]]:
    """The columns that have published numbers, or all if none has any; and the others."""
    printed = [c for c in columns if any(published(definition, row, c.name) for row in definition.rows)]
    return (printed, [c for c in columns if c not in printed]) if printed else (list(columns), [])


def _column_title(column: Column, cells: Cells) -> str:
    """The column's name in print, which says where its data are rendered by equibench."""
    rendered = any(name == column.name and _is_rendered(cell.data) for (_, name), cell in cells.items())
    return f"{column.title} (rendered)" if rendered else column.title


def _is_rendered(data: str) -> bool:
    """Whether the name is that of data which equibench renders itself, in the layout of published ones."""
    return data.startswith("rendered-")


def _score(cell: Cell, scale: float) -> str:
    """0.345 ±0.012, or 34.50 ±1.20 where numbers are percentages, with a mark where it does not beat its controls."""
    mark = MARK if cell.beats_controls is False else ""
    digits = 3 if scale == 1 else 2
    return f"{plain(cell.value, digits)} ±{(cell.high - cell.low) / 2:.{digits}f}{mark}{cell.marks}"


def _text(cells: Cells, text: Callable[[Cell], str]) -> _Text:
    """What is printed of a cell; a dash where there is none."""
    return lambda row, column: text(cell) if (cell := cells.get((row, column.name))) else "–"


def _text_of(found: Mapping[tuple[str, str], _T], text: Callable[[_T], str]) -> _Text:
    """The same of anything that is known by row and task."""
    return lambda row, column: text(found[row, column.task.name]) if (row, column.task.name) in found else "–"


def _probe_legend(cells: Cells) -> dict[str, str]:
    """The probes' marks that occur, with their meanings."""
    used = {mark for cell in cells.values() for mark in cell.marks}
    return {mark: meaning for mark, meaning in PROBE_LEGEND.items() if mark in used}


def _beside_published(definition: TableDefinition, ours: _Text) -> _Text:
    return lambda row, column: f"{published(definition, row, column.name) or '–'} \\| {ours(row, column)}"


def _grid(
    rows: Sequence[str],
    columns: Sequence[Column],
    text: _Text,
    cells: Cells | None = None,
    untrained: Container[str] = (),
) -> list[str]:
    """A table in markdown; with cells, its head says which columns were measured on rendered data."""
    lines = markdown_head(_column_title(column, cells or {}) for column in columns)
    for row in rows:
        name = f"*{row_title(row)}*" if row in CONTROLS else row_title(row) + UNTRAINED * (row in untrained)
        lines.append(f"| {name} | " + " | ".join(text(row, column) for column in columns) + " |")
    return lines


def _floors(columns: Sequence[Column], records: Sequence[Record]) -> str:
    pooled = {r.task: r.metrics.get("r2_pooled") for r in records}
    floors = {task: metric.floor for task, metric in pooled.items() if metric and metric.floor is not None}
    named = [f"{c.title} {plain(floors[c.task.name])}" for c in columns if c.task.name in floors]
    return "One scalar mean over all dimensions (SIE's formula); a constant predictor scores: " + ", ".join(named) + "."


def print_table(
    definition: TableDefinition,
    rows: Sequence[str],
    columns: Sequence[Column],
    records: Sequence[Record],
    context: Context,
    seeds: Sequence[int],
    console: Console,
) -> None:
    """Print a table; on a narrow terminal each cell takes two lines or three."""
    cells, untrained = cells_of(records, scale=definition.scale), untrained_rows(records)
    for line in _header(context, [column.task for column in columns], seeds, records):
        console.print(line, style="dim", highlight=False)
    title = f"{definition.title or definition.name}, profile {context.profile.name}"
    printed, further = _split_columns(definition, columns)
    console.print(_table(f"{title}: published | ours", definition, rows, printed, cells, untrained, console.width))
    if further:
        there = [row for row in rows if any((row, column.name) in cells for column in further)]
        console.print(_table("not in the published table", definition, there, further, cells, untrained, console.width))
    shown = {column.name for column in columns}
    if any(cell.beats_controls is False for (_, name), cell in cells.items() if name in shown):
        console.print(f"{MARK} does not beat random init, pixels and image statistics", style="dim")
    for mark, meaning in _probe_legend(cells).items():
        console.print(f"{mark} {meaning}", style="dim", highlight=False)
    if untrained:
        console.print(untrained_legend(records), style="dim", highlight=False)


def _table(
    title: str,
    definition: TableDefinition,
    rows: Sequence[str],
    columns: Sequence[Column],
    cells: Cells,
    untrained: Container[str],
    width: int,
) -> Table:
    table = Table("", title=title)
    for column in columns:
        table.add_column(_column_title(column, cells), justify="right", overflow="fold")
    separator = " | " if width >= _WIDE else "\n"
    for row, following in pairwise([*rows, ""]):
        texts = []
        for column in columns:
            cell = cells.get((row, column.name))
            said, ours = published(definition, row, column.name), _score(cell, definition.scale) if cell else "–"
            style = "dim" if cell is None or cell.beats_controls is False else "bold"
            if width < _MEDIUM:
                said, ours = said.split("±")[0], ours.replace(" ", "\n")
            texts.append(f"[dim]{said}{separator}[/dim][{style}]{ours}[/]" if said else f"[{style}]{ours}[/]")
        last_method = row not in CONTROLS and following in CONTROLS
        name = row_title(row) + UNTRAINED * (row in untrained)
        table.add_row(name, *texts, style="italic" if row in CONTROLS else "", end_section=last_method)
    return table


# What a reader must know before the numbers, and what these say of the claims


def _header(context: Context, tasks: Sequence[Task], seeds: Sequence[int], records: Sequence[Record]) -> list[str]:
    """Lines that say on what, how and with which ranges the table was made."""
    profile = context.profile
    pretraining, encoder = profile.pretraining, profile.encoder
    lines = [
        f"Profile {profile.name}: {profile.title}.",
        f"Data: {context.dataset.description}.",
        f"Encoder: ViT of width {encoder.width}, {encoder.depth} blocks, patch {encoder.patch}, "
        f"{encoder.features} features a token; {pretraining.pairs:,} pretraining pairs a row in batches of "
        f"{pretraining.batch}; decoder of width {profile.decoder.width}, {profile.decoder.depth} blocks; "
        f"λ_recon {pretraining.lambda_recon:g}; pretraining seeds {', '.join(map(str, seeds))}.",
    ]
    shares = sorted({record.known_fraction for record in records if record.known_fraction < 1})
    if shares:
        lines.append(
            f"θ is known of {shares[0]:.0%} of the training images; rows that need it are trained on these alone."
        )
    evaluators = {task.evaluator for task in tasks}
    if "regression" in evaluators:
        lines += _regression(context, [task for task in tasks if task.evaluator == "regression"], records)
    if "classification" in evaluators:
        lines.append(
            "Classes: multinomial logistic regression (L-BFGS) on frozen features, the penalty chosen among 45 values "
            "on validation images, fitted again on training and validation images, tested once; ± half the 95 % "
            "bootstrap interval over test images."
            + (" Images are seen through the disc of pretraining." if context.spec.radius else "")
        )
    if "segmentation" in evaluators:
        size = profile.segmentation
        lines.append(
            f"Segmentation: frozen encoder, taps at four depths, {size.iterations:,} iterations of {size.batch} crops "
            f"of {size.crop} px; ± half the 95 % bootstrap interval over validation images."
        )
    sizes = {f"{r.data}: {' / '.join(f'{n:,}' for n in r.pairs)}" for r in records if r.evaluator != "regression"}
    if sizes:
        lines.append(f"Images or pairs for training / validation / test: {'; '.join(sorted(sizes))}.")
    bad = {r.data: r.left_out for r in records if r.left_out}
    lines += [f"{count:,} bad items of {data} were left out." for data, count in bad.items()]
    return lines


def _regression(context: Context, tasks: Sequence[Task], records: Sequence[Record]) -> list[str]:
    profile, probing, radius = context.profile, context.probing, context.spec.radius
    train, val, test = next((r.pairs for r in records if r.evaluator == "regression"), probing.pairs)
    units = "objects" if context.dataset.has_objects else "images"
    views = f"mirrored fill, disc of radius {radius:g} px" if radius else "black fill, no mask (paper_like)"
    views += f"; ranges: {_ranges(tasks, profile.image_size)}"
    if context.dataset.has_objects:
        views = "as the data have them, angles in ±90°"
    return [
        f"Probe: 3-layer MLP of width {probing.width}, at most {probing.epochs} epochs, {probing.seeds} seeds; "
        f"{train:,} training, {val:,} validation and {test:,} test pairs.",
        f"Views: {profile.image_size} px, {views}.",
        f"R² per dimension on standardised targets, ± half the 95 % bootstrap interval over test {units}.",
    ]


def _ranges(tasks: Sequence[Task], size: int) -> str:
    """The parameter ranges of the tasks' transformations."""
    brightness, hue = COLOR_RANGE[0], COLOR_RANGE[3]
    text = {
        "rotation": f"rotation ±{MAX_ANGLE:g}°",
        "color": f"brightness, contrast, saturation ±{brightness:g} and hue ±{hue:g}",
        "blur": f"blur sigma {BLUR_RANGE[0]:g} to {BLUR_RANGE[1]:g} px",
        "translation": f"translation ±{max_shift(size):g} px",
        "crop": f"crop area {CROP_SCALE[0]:g} to {CROP_SCALE[1]:g}",
        "flip": "flip or not",
    }
    return ", ".join(dict.fromkeys(text[t.transformation] for t in tasks if t.transformation in text))


def _own_column_findings(rows: Sequence[str], tasks: Sequence[Task], cells: Cells) -> list[str]:
    """Whether a row trained on one known transformation is the best of its kind in that transformation's column.

    P1 (section 3) says so of SIE. A win counts only above the upper bound of random init, and only in a column that
    separates at least two of the rows compared.
    """
    kind = [row for row in rows if row.startswith("sie_")]
    return [
        f"{row_title(row)} in {task.title}: {_verdict(row, task, kind, cells)}"
        for row in kind
        for task in tasks
        if BASELINES.get(row).transformations == (task.transformation,) and (row, task.name) in cells
    ]


def _verdict(row: str, task: Task, kind: Sequence[str], cells: Cells) -> str:
    column = {r: cells[r, task.name] for r in kind if (r, task.name) in cells}
    floor, mine = cells.get(("random_init", task.name)), f"{column[row].value:.3f}"
    if len(column) < 2 or floor is None:
        return "not tested, since the rows to compare it with are missing."
    best = max(column, key=lambda r: column[r].value)
    if best != row:
        return f"no; {row_title(best)} is best with {column[best].value:.3f} against {mine}."
    if max(c.low for c in column.values()) <= min(c.high for c in column.values()):
        return f"best with {mine}, but the column separates no two SIE rows, so this is no win."
    if column[row].value <= floor.high:
        return f"best of the SIE rows with {mine}, but not above random init's upper bound {floor.high:.3f}: no win."
    return f"yes, with {mine}, above random init's upper bound {floor.high:.3f}."


def _geometry_findings(rows: Sequence[str], tasks: Sequence[Task], cells: Cells) -> list[str]:
    """Rows by their mean over rotation and translation, with what lies above both VICReg and random init.

    The tasks share their test images, so the interval of the mean is at most as wide as the mean of the intervals.
    """
    geometry = [task.name for task in tasks if task.transformation in ("rotation", "translation")]
    means = {}
    for row in (*(r for r in rows if r not in CONTROLS), "random_init"):
        found = [cells[row, name] for name in geometry if (row, name) in cells]
        if found and len(found) == len(geometry):
            means[row] = [sum(getattr(cell, end) for cell in found) / len(found) for end in ("value", "low", "high")]
    if len(geometry) < 2 or not {"vicreg", "random_init"} <= set(means):
        return []
    bar = max(means["vicreg"][2], means["random_init"][2])
    return [
        f"{row_title(row)}: {value:.3f} [{low:.3f}, {high:.3f}]"
        + (" above both VICReg and random init" if low > bar else "")
        for row, (value, low, high) in means.items()
    ]


# All tables of a profile on one page


def overview(folder: Path, profile: str) -> str:
    """The page of results/<profile>, made of the definitions and records of the tables below it alone.

    Raises:
        UserError: no table is there, or one has a row that is not registered here.
    """
    found = [name for name in table_names() if (folder / name / RECORDS).is_file()]
    if not found:
        raise UserError(f"there is no table below {folder}", f"make one: equibench table table2 --profile {profile}")
    lines = [f"# The tables in the profile {profile}", "", f"{_sentence(get_profile(profile).title)}", ""]
    lines += [
        "Published | ours ± half the 95 % bootstrap interval over test images; rows in italics are controls. "
        f"{MARK} does not beat its controls: {_UNBEATEN}. Columns marked *rendered* were measured on small pictures "
        "that equibench renders itself: their numbers must not be compared with the published ones. A dash: not "
        "measured, since the data were not there.",
        "",
    ]
    for name in found:
        lines += _section(folder, name)
    return "\n".join(lines).rstrip() + "\n"


def _section(folder: Path, name: str) -> list[str]:
    definition, records = load_definition(name), read_records(folder / name / RECORDS)
    frame = pd.read_csv(folder / name / f"{name}.csv", dtype=str, keep_default_na=False)
    columns = columns_of(definition.columns)
    rows = [str(row) for row in frame["baseline"]]
    cells = cells_of(records, scale=definition.scale)
    lines = [f"## [{definition.title or name}]({name}/{name}.md)", ""]
    lines += _score_grids(definition, rows, columns, cells, untrained_rows(records))
    lines += ["", legend] if (legend := untrained_legend(records)) else []
    lines += ["", "It can show " + "; ".join(definition.claims) + ".", ""] if definition.claims else [""]
    lines += ["What limits it:", "", *[f"- {limit}" for limit in _limits(definition, records, cells)], ""]
    return [*lines, "What it says:", "", *[f"- {line}" for line in _verdicts(rows, columns, cells)], ""]


def _limits(definition: TableDefinition, records: Sequence[Record], cells: Cells) -> list[str]:
    profile = get_profile(records[0].profile)
    limits = [_sentence(limit) for limit in definition.limits]
    rendered = sorted({cell.data for cell in cells.values() if _is_rendered(cell.data)})
    if rendered:
        everything = all(_is_rendered(cell.data) for cell in cells.values())
        which = "Every number is" if everything else "Some numbers are"
        limits.append(f"{which} of {', '.join(rendered)}, data of our own; the published data were not there.")
    count = len({record.seeds.pretraining for record in records if record.recipe_sha256})
    seeds = "one pretraining seed" if count == 1 else f"{count} pretraining seeds"
    encoder, pairs = profile.encoder, profile.pretraining.pairs
    small = f"Encoders are small (width {encoder.width}, {encoder.depth} blocks)"
    return [*limits, f"{small} and saw {pairs:,} pairs, with {seeds}."]


def _verdicts(rows: Sequence[str], columns: Sequence[Column], cells: Cells) -> list[str]:
    """For each column the best row, those that it cannot be told apart from, and which rows beat every control."""
    lines = []
    methods = [row for row in rows if row not in CONTROLS]
    for column in columns:
        there = {row: cells[row, column.name] for row in methods if (row, column.name) in cells}
        if not there:
            continue
        best = (min if column.info.better == "lower" else max)(there, key=lambda row: there[row].value)
        top = there[best]
        tied = [row_title(r) for r, c in there.items() if r != best and c.high >= top.low and c.low <= top.high]
        ahead = [row_title(r) for r, c in there.items() if c.beats_controls]
        said = f"{column.title}: best is {row_title(best)}"
        said += f" (overlapping: {', '.join(tied)})" if tied else ""
        lines.append(f"{said}; {', '.join(ahead) or 'no row'} better than all controls.")
    return lines


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."
