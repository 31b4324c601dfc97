"""A table for a paper or another program: LaTeX (booktabs), markdown, CSV, JSON, and the BibTeX entries behind it.

Best is bold and second best underlined only where the paired test separates them from all rows below
(`audit.paired`); where no test could be made, nothing is marked, and the footnote says why.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from equibench.errors import UserError, closest
from equibench.evaluation.controls import CONTROLS
from equibench.records import Record
from equibench.report.bibliography import bibtex, cited, paper_of
from equibench.report.definition import (
    MARK,
    PROBE_LEGEND,
    UNTRAINED,
    Cell,
    Cells,
    Column,
    TableDefinition,
    cells_of,
    plain,
    published,
    table_frame,
    untrained_rows,
)
from equibench.report.standing import Standing, Standings
from equibench.utils.digests import __version__

_WIDE, _GRAPHICX = 6, r", \usepackage{graphicx}"
FORMATS = ("latex", "markdown", "csv", "json", "bibtex")
_TEXTS = ("baseline", "title", "published", "data", "signature", "row", "task", "evaluator", "features", "metric")
"""Last parts of the names of a CSV's columns that hold text; an identifier such as 12e4 is no number."""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "²": r"$^2$", "°": r"$^\circ$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≠": r"$\neq$", "–": "--",
    "λ": r"$\lambda$", "θ": r"$\theta$", "σ": r"$\sigma$", "γ": r"$\gamma$", "×": r"$\times$", "→": r"$\to$",
    "≥": r"$\geq$", "≤": r"$\leq$", "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


@dataclass(frozen=True)
class PrintedTable:
    """A table with everything that print needs; `names` are the rows' names, `titles` the columns'."""

    definition: TableDefinition
    names: Mapping[str, str]
    columns: Sequence[Column]
    records: Sequence[Record]
    standings: Standings

    @cached_property
    def cells(self) -> Cells:
        return cells_of(self.records, scale=self.definition.scale)

    @property
    def digits(self) -> int:
        """Decimals: three, or two where numbers are percentages."""
        return 3 if self.definition.scale == 1 else 2

    @cached_property
    def shown(self) -> list[Column]:
        """The columns in which something was measured."""
        return [c for c in self.columns if any((row, c.name) in self.cells for row in self.names)]

    def has_published(self, column: Column) -> bool:
        return any(published(self.definition, row, column.name) for row in self.names)


def formatted(table: PrintedTable, format: str) -> str:
    """The table in one of `FORMATS`; a UserError if it is none of these, or there is nothing to print."""
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}{closest(format, FORMATS)}", f"one of {', '.join(FORMATS)}")
    if not table.shown:
        raise UserError(f"{table.definition.name} has no score yet", "run the table without --format first")
    make = {"latex": _latex, "markdown": _markdown, "csv": _csv, "json": _json, "bibtex": _bibtex}
    return make[format](table)


def csv_payload(text: str) -> list[dict[str, object]]:
    """The lines of one of our CSVs as JSON values: numbers, truth values, texts, and None where a cell is empty."""
    names = pd.read_csv(io.StringIO(text), nrows=0).columns
    texts = {name: str for name in names if name.rpartition("_")[2] in _TEXTS}
    frame = pd.read_csv(io.StringIO(text), dtype=texts)  # type: ignore[arg-type]
    found: list[dict[str, object]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return found


def recipe_notes(records: Sequence[Record], standings: Standings) -> list[str]:
    """How the numbers were made, in sentences, of the records alone."""
    some = records[0]
    seeds = sorted({r.seeds.pretraining for r in records if r.seeds.pretraining is not None})
    data = ", ".join(sorted({r.data for r in records}))
    probe = f"{len(some.seeds.probe)} probe seed{'s' * (len(some.seeds.probe) > 1)}"
    pairs = "/".join(f"{n:,}" for n in some.pairs)
    notes = [
        f"Scored with equibench {some.package_version} on {data}, profile {some.profile}, views {some.variant}: "
        f"{pairs} pairs or images for training, validation and test, {probe}, "
        f"pretraining seeds {', '.join(map(str, seeds)) or 'none'}.",
        "Brackets hold 95 % bootstrap intervals over test images.",
    ]
    if any(standing.test == "paired" for standing in standings.values()):
        notes.append(
            "Best in bold and second best underlined where a paired bootstrap over test images separates the row from "
            "all rows below it (p < 0.05, Holm's correction within the column); controls do not compete."
        )
    reasons: dict[str, list[str]] = {}
    for name, standing in standings.items():
        if standing.reason:
            reasons.setdefault(standing.reason, []).append(name)
    notes += [f"Not tested, so nothing is marked: {', '.join(names)} ({why})." for why, names in reasons.items()]
    return notes


def _notes(table: PrintedTable) -> list[str]:
    """The recipe, and the marks that occur with their meanings."""
    shown = {column.name for column in table.shown}
    cells = [cell for (row, name), cell in table.cells.items() if row in table.names and name in shown]
    notes = recipe_notes(table.records, {name: s for name, s in table.standings.items() if name in shown})
    if any(cell.beats_controls is False for cell in cells):
        notes.append(f"{MARK} does not beat random init, pixels and image statistics.")
    marks = {mark for cell in cells for mark in cell.marks}
    notes += [f"{mark} {meaning}." for mark, meaning in PROBE_LEGEND.items() if mark in marks]
    if untrained_rows(table.records):
        notes.append(f"{UNTRAINED} has not learned what it is for, by held-out diagnostics.")
    return notes


def emphasis(row: str, standing: Standing | None) -> str:
    """How a row's number is set in a column: "best", "second", or "" for the others."""
    if standing is None:
        return ""
    return "best" if row == standing.best else "second" if row == standing.second else ""


def marks_of(cell: Cell) -> str:
    """The marks behind a number."""
    return (MARK if cell.beats_controls is False else "") + cell.marks


def latex_escaped(text: str) -> str:
    """A text that LaTeX prints as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _latex(table: PrintedTable) -> str:
    definition, columns, cells = table.definition, table.shown, table.cells
    two = [table.has_published(column) for column in columns]
    heads, ends, at = [], [], 2
    for column, both in zip(columns, two, strict=True):
        heads.append(rf"\multicolumn{{{1 + both}}}{{c}}{{{latex_escaped(column.title)}}}")
        ends.append(rf"\cmidrule(lr){{{at}-{at + both}}}")
        at += 1 + both
    under = ["published & ours" if both else "ours" for both in two]
    untrained = untrained_rows(table.records)
    lines: list[str] = []
    was_control = False
    for row, name in table.names.items():
        control = row in CONTROLS
        if control and not was_control and lines:
            lines.append(r"\midrule")
        was_control = control
        said = latex_escaped(name + UNTRAINED * (row in untrained))
        line = [rf"\textit{{{said}}}" if control else said]
        for column, both in zip(columns, two, strict=True):
            line += [latex_escaped(published(definition, row, column.name)) or "--"] if both else []
            line.append(_latex_number(cells.get((row, column.name)), row, column, table))
        lines.append(" & ".join(line) + r" \\")
    source = rf" Published numbers are those of~\cite{{{paper_of(definition.name)}}}." if any(two) else ""
    wide = at > _WIDE  # squeezed to the line, since twelve columns with intervals are broader than any page
    title = re.sub(r"^(P2 )?Table \d+[:,] ", "", definition.title) or definition.name
    body = [
        f"% made by equibench {__version__}; needs \\usepackage{{booktabs}}{_GRAPHICX * wide} and --format bibtex",
        r"\begin{table}", r"\centering",
        rf"\caption{{{latex_escaped(title[:1].upper() + title[1:])}~\cite{{equibench}}.{source}}}",
        rf"\label{{tab:{definition.name.replace('_', '-')}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{l{''.join('rr' if both else 'r' for both in two)}}}", r"\toprule",
        " & " + " & ".join(heads) + r" \\", " ".join(ends), " & " + " & ".join(under) + r" \\", r"\midrule",
        *lines, r"\bottomrule", r"\end{tabular}" + "}" * wide, "", r"\smallskip",
        r"\begin{minipage}{\linewidth}\footnotesize",
        *map(latex_escaped, _notes(table)), r"\end{minipage}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join([*body, *_provenance(table)]) + "\n"


def _latex_number(cell: Cell | None, row: str, column: Column, table: PrintedTable) -> str:
    if cell is None:
        return "--"
    digits, marks = table.digits, latex_escaped(marks_of(cell))
    number = f"${plain(cell.value, digits)}$"
    how = emphasis(row, table.standings.get(column.name))
    if how:
        number = rf"$\mathbf{{{number[1:-1]}}}$" if how == "best" else rf"\underline{{{number}}}"
    return rf"{number}{marks} {{\scriptsize $[{plain(cell.low, digits)}, {plain(cell.high, digits)}]$}}"


def _provenance(table: PrintedTable) -> list[str]:
    """Comments that name each number's record."""
    lines = ["% each number's record, for: equibench explain IDENTIFIER"]
    for (row, name), cell in table.cells.items():
        if row in table.names and any(name == column.name for column in table.shown):
            lines.append(f"% {row}, {name}: {' '.join(cell.signatures)}")
    return lines


def _markdown(table: PrintedTable) -> str:
    columns, cells, digits = table.shown, table.cells, table.digits
    untrained = untrained_rows(table.records)
    heads = [f"{c.title}, published \\| ours" if table.has_published(c) else c.title for c in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(columns)]
    for row, name in table.names.items():
        texts = []
        for column in columns:
            cell, before = cells.get((row, column.name)), ""
            if table.has_published(column):
                before = (published(table.definition, row, column.name) or "–") + " \\| "
            if cell is None:
                texts.append(f"{before}–")
                continue
            number, how = plain(cell.value, digits), emphasis(row, table.standings.get(column.name))
            number = {"best": f"**{number}**", "second": f"<u>{number}</u>"}.get(how, number)
            interval = f"[{plain(cell.low, digits)}, {plain(cell.high, digits)}]"
            texts.append(f"{before}{number}{marks_of(cell)} {interval}")
        said = f"*{name}*" if row in CONTROLS else name + UNTRAINED * (row in untrained)
        lines.append(f"| {said} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *(line for note in _notes(table) for line in (note, ""))]).rstrip() + "\n"


def _csv(table: PrintedTable) -> str:
    names = [column.name for column in table.columns]
    return table_frame(table.definition, list(table.names), names, table.records).to_csv(index=False)


def _json(table: PrintedTable) -> str:
    standings = {
        name: {"best": s.best, "second": s.second, "level": list(s.level), "test": s.test, "reason": s.reason}
        for name, s in table.standings.items()
    }
    found = {
        "table": table.definition.name,
        "title": table.definition.title,
        "rows": csv_payload(_csv(table)),
        "standings": standings,
        "notes": _notes(table),
    }
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def _bibtex(table: PrintedTable) -> str:
    papers = [paper_of(table.definition.name)] if any(map(table.has_published, table.columns)) else []
    return bibtex(cited(table.records, *papers))
