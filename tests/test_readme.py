"""What the README shows is what the repository holds."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", README, flags=re.DOTALL)
    assert found
    return found.group(1)


def test_the_example_is_the_file_that_the_tests_run() -> None:
    assert block("example").strip() == "```python\n" + (ROOT / "examples/my_method.py").read_text() + "```"


def test_the_table_is_the_committed_result() -> None:
    report = (ROOT / "results/demo/table2/table2.md").read_text(encoding="utf-8")
    rows = [line for line in block("table2").splitlines() if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert row in report


def test_every_make_target_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_task_is_the_file_that_the_tests_run() -> None:
    assert block("task").strip() == "```python\n" + (ROOT / "examples/my_task.py").read_text() + "```"


def test_the_scores_are_committed_results() -> None:
    reports = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "results/external").rglob("score.md"))
    rows = [line for line in block("external").splitlines() if line.startswith("|")]
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
