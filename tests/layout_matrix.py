"""The layouts in which weights are published, and what must happen to each.

`docs/encoders.md` shows this table (`python tests/layout_matrix.py` writes it there), and
`tests/encoders/test_layout_matrix.py` writes every file and opens it.
"""

from __future__ import annotations

import re
from pathlib import Path

from layout_files import CONTAINERS, WRAPPERS
from layout_libraries import LIBRARIES
from layout_methods import METHODS
from layout_refusals import REFUSED

from equibench.encoders.branches import CHOICES

GROUPS = {
    "Files and entries": CONTAINERS,
    "Wrappers": WRAPPERS,
    "Methods": METHODS,
    "Libraries": LIBRARIES,
    "Refused": REFUSED,
}
MATRIX = tuple(layout for group in GROUPS.values() for layout in group)


def matrix_markdown() -> str:
    """The table of docs/encoders.md."""
    lines = []
    for title, group in GROUPS.items():
        lines += [f"**{title}**", "", "| file | names in it | outcome |", "|---|---|---|"]
        for layout in group:
            options = "".join(f" --{key} '{value}'" for key, value in layout.options.items())
            said = f"refused: {layout.refused.replace('.*', ' … ')}" if layout.refused else "loads"
            shown = layout.shown.replace("|", "\\|")
            lines.append(f"| {layout.name} | `{shown}` | {said}{f' with `{options.strip()}`' if options else ''} |")
        lines.append("")
    return "\n".join(lines)


def choices_markdown() -> str:
    """The list of docs/encoders.md: which of two networks is taken."""
    plain = {one: re.sub(r"\(_\\w\+\)\?|\(\\?\.\w+\)\?", "", one) for c in CHOICES for one in (c.take, c.leave)}
    return "".join(f"* `{plain[c.take]}`, not `{plain[c.leave]}`: {c.source}\n" for c in CHOICES)


if __name__ == "__main__":  # writes the page's two tables
    page = Path(__file__).parents[1] / "docs/encoders.md"
    text = page.read_text(encoding="utf-8")
    for name, table in (("matrix", matrix_markdown()), ("choices", choices_markdown())):
        head, tail = text.split(f"<!-- {name}:begin -->\n")[0], text.split(f"<!-- {name}:end -->")[1]
        text = f"{head}<!-- {name}:begin -->\n{table}<!-- {name}:end -->{tail}"
    page.write_text(text, encoding="utf-8")
