"""Files of lines: whole, or seen to be cut."""

from __future__ import annotations

from pathlib import Path

from equibench.utils.files import append_line, cut_torn_line, read_lines


def test_a_line_that_a_kill_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, '{"n": 1}')
    with path.open("a") as file:
        file.write('{"n": 2')
    assert read_lines(path) == [{"n": 1}]
    cut_torn_line(path)
    append_line(path, '{"n": 3}')
    assert read_lines(path) == [{"n": 1}, {"n": 3}]
    cut_torn_line(path)  # a whole file stays as it is
    assert read_lines(path) == [{"n": 1}, {"n": 3}]
