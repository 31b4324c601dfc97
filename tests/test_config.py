"""The configuration: plain values in, mistakes named, and the command line that it is the source of."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from typer.main import get_command

import equibench.runner.score
import equibench.runner.table
from equibench.cli import app
from equibench.config import SCORE_OPTIONS, RunConfig
from equibench.errors import UserError
from equibench.profiles import PROFILES


def test_lists_become_tuples_and_texts_paths() -> None:
    config = RunConfig.of(rows=["vicreg"], seeds=[0, 1], runs="elsewhere", baseline_files=["a.py"], data_root="data")
    assert (config.rows, config.seeds) == (("vicreg",), (0, 1))
    assert (config.runs, config.baseline_files, config.data_root) == (Path("elsewhere"), (Path("a.py"),), Path("data"))
    assert RunConfig.of(profile="tiny").sizes is RunConfig.of(profile=PROFILES["tiny"]).sizes is PROFILES["tiny"]
    assert hash(config) == hash(config.with_())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"taks": ["flip"]}, "no option 'taks'; did you mean 'tasks'"),
        ({"qqqq": 1}, "no option 'qqqq'\n"),
        ({"tasks": "rotation"}, "tasks is a list, not the text 'rotation'"),
        ({"seeds": "0,1"}, "seeds is a list"),
        ({"baseline_files": "mine.py"}, "baseline_files is a list"),
        ({"pairs": (4000, 1000)}, "pairs"),
        ({"pairs": (4000, 0, 1000)}, "pairs"),
        ({"seeds": ()}, "distinct"),
        ({"seeds": (0, 0)}, "distinct"),
        ({"seeds": (-1,)}, "distinct"),
        ({"variant": "paper"}, "did you mean 'paper_like'"),
        ({"profile": "tinny"}, "did you mean 'tiny'"),
    ],
)
def test_a_wrong_value_is_said_with_what_would_be_right(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        RunConfig.of(**options)
    assert raised.value.fix


def test_an_unknown_option_is_answered_with_those_that_can_be_asked_for() -> None:
    with pytest.raises(UserError) as raised:
        RunConfig.of(known=0.5)
    assert "profile" in raised.value.fix
    assert "known_fraction" not in raised.value.fix, "a table's definition says that"


def test_what_is_as_by_default_needs_no_option() -> None:
    assert RunConfig().flags([one.name for one in fields(RunConfig)]) == []


SCORED: dict[str, Any] = {
    "tasks": ["rotation", "flip*"], "layers": ["all"], "controls": False, "variant": "paper_like", "profile": "tiny",
    "pairs": [128, 32, 64], "seed": 3, "data": "my photographs", "data_root": "a b", "image_size": 64,
    "skip_bad": True, "plugins": ["my data.py"], "features": "made elsewhere", "arch": "timm:resnet18",
    "name": "mine's", "pretrained": False, "size": 32, "mean": [0, 0, 0.5], "std": [1, 1, 0.25],
    "interpolation": "nearest",
    "pooling": "mean", "branch": "teacher", "rename": "a b=>c", "allow_random": ["conv1.weight", "bn1"],
    "allow_partial": True,
    "device": "cpu", "runs": "elsewhere",
}  # fmt: skip
TABLE: dict[str, Any] = {
    "profile": "tiny", "rows": ["vicreg", "sie_all"], "columns": ["flip"], "seeds": [0, 2],
    "baseline_files": ["my a.py", "b.py"], "variant": "paper_like", "data_root": "a b", "skip_bad": True,
    "device": "cpu", "devices": 2, "jobs": 3, "runs": "elsewhere", "plugins": ["my data.py"],
}  # fmt: skip


class Asked(Exception):
    """Ends a command as soon as it has said what it was asked for."""


@pytest.mark.parametrize(
    ("command", "options", "place"),
    [
        (["score", "timm:resnet18"], SCORED, equibench.runner.score),
        (["table", "table2"], TABLE, equibench.runner.table),
    ],
)
def test_the_command_line_understands_its_own_flags(
    command: list[str], options: dict[str, Any], place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []

    def note(*_: Any, out: Path | None = None, **given: Any) -> None:
        asked.append(RunConfig.of(**given))
        raise Asked

    monkeypatch.setattr(place, command[0], note)
    config = RunConfig.of(**options)
    flags = shlex.split(" ".join(config.flags(list(options))))
    said = CliRunner().invoke(get_command(app), [*command, *flags])
    assert isinstance(said.exception, Asked), said.output
    assert asked == [config]


def test_every_option_of_a_score_is_tried_above() -> None:
    assert set(SCORED) == set(SCORE_OPTIONS)
    assert all(getattr(RunConfig(), name) != getattr(RunConfig.of(**SCORED), name) for name in SCORED)
    assert all(getattr(RunConfig(), name) != getattr(RunConfig.of(**TABLE), name) for name in TABLE)


@pytest.mark.parametrize("name", ["jobs", "devices"])
def test_counts_are_1_or_more(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be 1 or more, not -1"):
        RunConfig.of(**{name: -1})
