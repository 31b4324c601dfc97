"""What README and docs/ show is what the repository holds, and what they say to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from equibench.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def block(page: str, name: str) -> str:
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", (ROOT / page).read_text(), flags=re.DOTALL)
    assert found
    return found.group(1)


@pytest.mark.parametrize(
    ("page", "name", "file"),
    [
        ("docs/adding-a-baseline.md", "example", "examples/my_method.py"),
        ("docs/adding-a-task.md", "task", "examples/my_task.py"),
    ],
)
def test_the_examples_are_the_files_that_the_tests_run(page: str, name: str, file: str) -> None:
    assert block(page, name).strip() == "```python\n" + (ROOT / file).read_text() + "```"


def test_the_table_s_cells_are_the_committed_result_s() -> None:
    report = (ROOT / "results/demo/table2/table2.md").read_text(encoding="utf-8")
    lines = [line for line in block("README.md", "table2").splitlines() if line.startswith("|")]
    assert len(lines) > 5
    for line in lines[2:]:
        title, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        row = next(other for other in report.splitlines() if other.startswith(f"| {title} |"))
        for cell in cells:
            assert cell in row, (title, cell)


def test_the_scores_of_a_checkpoint_are_committed_results() -> None:
    reports = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "results/external").rglob("score.md"))
    rows = [line for line in block("docs/guide.md", "external").splitlines() if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert row in reports


def test_the_signature_is_that_of_a_committed_score() -> None:
    found = re.findall(r"`(\S+\|\S+\|[0-9a-f]{12})`", README)
    assert found
    records = (ROOT / "results/demo/table2/records.jsonl").read_text(encoding="utf-8")
    for signature in found:
        assert f'"signature":"{signature}"' in records
    for identifier in re.findall(r"equibench explain ([0-9a-f]{12})", README):
        assert f'{identifier}"' in records


def test_readme_is_one_that_is_read() -> None:
    assert len(README.encode()) <= 9 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_named_is_there(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^(?:\.venv/bin/)?equibench (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        words = line.partition("#")[0].split()
        command = commands[words[0]]
        command = command.commands[words[1]] if words[0] == "data" else command
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        for word in words:
            if (option := word.strip("[]")).startswith("--"):
                assert option in {*known, "--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_named_is_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z]\w*)", text, flags=re.MULTILINE):
        assert re.search(rf"^({target}:|TABLES := .*\b{target}\b)", makefile, flags=re.MULTILINE), target
