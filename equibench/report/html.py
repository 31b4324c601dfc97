"""The report: one HTML file of results, which loads nothing, reads without scripts, and tells each number's recipe.

Tables, figures and recipes are made here, by `html_tables`, `html_figures` and `html_recipes`; `page.html` is the
Jinja template, `page.css` its style, `page.js` sorts, filters and opens recipes. The JSON in the page holds the lines
of the CSVs, as values.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from equibench.report.html_figures import Figure, can_draw, figures_of
from equibench.report.html_pictures import Picture
from equibench.report.html_recipes import BINS, BOX_HEIGHT, OpenPredictions, Recipe, recipes_of
from equibench.report.html_tables import Anchors, ReportSource, ReportTable, grids_of
from equibench.task import TASKS
from equibench.utils.digests import __version__

NO_FIGURES = 'figures: matplotlib is not here; pip install "equibench[plot]"'


@dataclass(frozen=True)
class ReportSection:
    """A source as the page shows it; `index` is its place in the payload."""

    index: int
    id: str
    title: str
    path: str
    facts: str
    profiles: Sequence[str]
    data: Sequence[str]
    claims: Sequence[str]
    limits: Sequence[str]
    left_out: Sequence[str]
    grids: Sequence[ReportTable]
    figures: Sequence[Figure]


@dataclass(frozen=True)
class ReportPage:
    """All that the template prints."""

    title: str
    summary: str
    command: str
    sections: Sequence[ReportSection]
    choices: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]  # filters: id, name, values with their texts
    recipes: Sequence[Recipe]
    pictures: Sequence[Picture]
    left_out: Sequence[str]


def build_page(
    sources: Sequence[ReportSource],
    opened: OpenPredictions,
    logs: Mapping[str, Path],
    pictures: tuple[Sequence[Picture], Sequence[str]],
    title: str,
    command: str,
) -> ReportPage:
    """The page of some sources.

    Args:
        opened: gives the predictions behind a record, for histograms.
        logs: log.jsonl of pretraining runs, by the digest of the weights that they ended with.
        pictures: what `html_pictures.report_pictures` gave: pictures, and what was left out and why.
    """
    sections: list[ReportSection] = []
    recipes: list[Recipe] = []
    titles = [source.title for source in sources]
    for index, source in enumerate(sources):
        again = f" ({Path(source.path).name})" if titles.count(source.title) > 1 else ""
        anchors = Anchors(f"r{index}")
        sections.append(_section(index, source, source.title + again, anchors, logs))
        recipes += recipes_of(source, anchors, opened)
    records = [record for source in sources for record in source.records]
    tasks = {r.task: TASKS.get(r.task).title if r.task in TASKS.names() else r.task for r in records}
    profiles, data = (sorted({key for s in sections for key in getattr(s, what)}) for what in ("profiles", "data"))
    choices = [
        (
            "task",
            "Column",
            [(task, f"{said} ({task})" if said.lower() != task else said) for task, said in tasks.items()],
        ),
        ("profile", "Profile", [(name, name) for name in profiles]),
        ("data", "Data", [(name, name) for name in data]),
    ]
    summary = f"{len(records):,} scores of {len({r.baseline for r in records}):,} rows on {len(tasks):,} tasks."
    left_out = [*pictures[1], *([] if can_draw() else [NO_FIGURES])]
    return ReportPage(title, summary, command, sections, choices, recipes, pictures[0], left_out)


def _section(index: int, source: ReportSource, title: str, anchors: Anchors, logs: Mapping[str, Path]) -> ReportSection:
    records, definition = source.records, source.definition
    profiles, data = sorted({r.profile for r in records}), sorted({r.data for r in records})
    seeds = sorted({r.seeds.pretraining for r in records if r.seeds.pretraining is not None})
    facts = [f"{len(records):,} scores", f"profile {', '.join(profiles)}", f"data {', '.join(data)}"]
    facts += [f"pretraining seeds {', '.join(map(str, seeds))}"] if seeds else []
    words = [d.replace(" ", "_") for d in data]
    return ReportSection(
        index, f"s{index}", title, source.path, ", ".join(facts), profiles, words, definition.claims,
        definition.limits, source.left_out, grids_of(source, anchors), figures_of(source, logs),
    )  # fmt: skip


def payload_of(sources: Sequence[ReportSource]) -> str:
    """The page's JSON, in which no text can end the script element that it stands in."""
    found = {"version": __version__, "sources": [source.payload() for source in sources]}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render_page(page: ReportPage, sources: Sequence[ReportSource]) -> str:
    """The HTML file. Its policy lets it run the one script whose digest it names, and load nothing."""
    folder = files("equibench.report")
    template, style, script = (
        folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        page=page,
        policy=policy,
        style=style,
        script=script,
        payload=payload_of(sources),
        version=__version__,
        box=f"{BINS} {BOX_HEIGHT}",
    )
