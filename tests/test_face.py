"""The face of the package: quick to import, with every name it promises, and open for evaluators of one's own."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scored import Pixels, quick

import equibench
import equibench.runner.open
from equibench.data.dataset import Dataset
from equibench.errors import UserError
from equibench.evaluation.evaluator import EVALUATORS, metric_info
from equibench.registry import load_file
from equibench.task import TASKS

DRIFT = '''
from equibench import register_evaluator
from equibench.evaluation.evaluator import Measurement, MetricInfo, RatioEvaluator, kept
from equibench.metrics.bootstrap import as_float, mean_of


@register_evaluator
class Drift(RatioEvaluator):
    """How far do features move?"""

    name, title, main_metric = "drift", "Drift", "drift"
    metrics = {"drift": MetricInfo("drift", "lower", "mean squared distance of f(gx) and f(x)")}
    transformations = ("rotation", "flip")

    def measure(self, row, task, context):
        pairs = context.pairs(task)
        first = context.encode(row, context.views.first(pairs))["default"]
        second = context.encode(row, context.views.second(pairs))["default"]
        distance = ((as_float(first[:]) - as_float(second[:])) ** 2).sum(axis=1)[pairs.rows("test")]
        return Measurement(kept({"drift": mean_of(distance)}, "full"), features=("full",))
'''


@pytest.mark.parametrize("module", ["equibench", "equibench.config", "equibench.errors"])
def test_importing_it_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([n for n in ('torch', 'numpy', 'pandas', 'timm') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("name", equibench.__all__)
def test_every_name_is_there(name: str) -> None:
    found = getattr(equibench, name)
    assert name == "__version__" or found.__doc__


def test_every_name_that_is_fetched_late_is_promised() -> None:
    assert set(equibench._HOMES) <= set(equibench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tabel'"):
        _ = equibench.tabel


def test_the_lists_hold_what_can_be_asked_for() -> None:
    assert "rotation" in equibench.list_tasks()
    assert {"vicreg", "random_init"} <= set(equibench.list_baselines())
    assert "table2" in equibench.list_tables()
    assert "tiny" in equibench.list_profiles()
    assert {"r2", "top1", "mIoU"} <= set(equibench.list_metrics())
    assert set(equibench.described("tasks")) == {EVALUATORS.get(name).title for name in EVALUATORS.names()}
    with pytest.raises(UserError, match="did you mean 'tasks'"):
        equibench.described("task")


@pytest.mark.parametrize("module", ["equibench", "equibench.metrics.regression", "equibench.transforms.transformation"])
def test_what_docstrings_show_is_what_comes_out(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.fixture
def drift(tmp_path: Path) -> Iterator[Path]:
    """A file with an evaluator of one's own, of which nothing is left after the test."""
    for registry in (TASKS, EVALUATORS):
        registry.discover()
    kept = [(entries, dict(entries)) for entries in (TASKS._entries, EVALUATORS._entries)]
    modules = set(sys.modules)
    file = tmp_path / "drift.py"
    file.write_text(DRIFT, encoding="utf-8")
    yield file
    for entries, before in kept:
        entries.clear()
        entries.update(before)  # type: ignore[arg-type]
    for name in set(sys.modules) - modules:
        if name.startswith("equibench_user_"):
            del sys.modules[name]


def test_an_evaluator_of_ones_own_is_scored(
    drift: Path, tmp_path: Path, solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids_dataset)
    assert load_file(drift, "evaluator") == ["drift"]
    assert load_file(drift, "task") == ["rotation.drift", "flip.drift"]
    assert TASKS.get("flip.drift").evaluator == "drift"
    info = metric_info("drift")
    assert info is not None
    assert info.better == "lower"
    result = quick(Pixels(), tmp_path, tasks=["flip.drift", "drift"], controls=False, name="mine")
    assert [(r.task, r.evaluator, r.features) for r in result.records] == [
        ("flip.drift", "drift", "full"),
        ("rotation.drift", "drift", "full"),
    ]
    for record in result.records:
        value, low, high = record.interval() or (0, 1, -1)
        assert 0 < low < value < high
        assert record.signature in result.files[2].read_text(encoding="utf-8")
    by_file = quick(Pixels(), tmp_path / "again", tasks=[str(drift)], controls=False, name="mine")
    assert all(f"--tasks {drift}" in r.command for r in by_file.records)
    assert {r.signature for r in by_file.records} == {r.signature for r in result.records}


def test_an_evaluator_must_describe_its_main_metric(drift: Path) -> None:
    drift.write_text(DRIFT.replace('main_metric = "drift", "Drift", "drift"', 'main_metric = "drift", "Drift", "far"'))
    with pytest.raises(UserError, match="'far' is not in its metrics"):
        load_file(drift, "evaluator")
    assert "drift" not in EVALUATORS.names()
