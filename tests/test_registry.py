"""Names, suggestions, and files of a user's own baselines: good ones, and each way to be wrong."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import equibench.registry
import equibench.utils.digests
from equibench.errors import UserError, closest
from equibench.pretrain.loop import build_step
from equibench.pretrain.method import BASELINES, Baseline, register_baseline
from equibench.profiles import get_profile
from equibench.registry import Registry, load_file
from equibench.task import TASKS, regression_tasks
from equibench.transforms.transformation import TRANSFORMATIONS, transform_sequence
from equibench.utils.digests import code_digest

ROOT = Path(__file__).parent.parent

GOOD = '''
import torch
from equibench.pretrain.method import Baseline, register_baseline

@register_baseline("mine", title="My method", factor=3.0)
class Mine(Baseline):
    """One line about it.

    More lines.
    """

    splits_features = True

    def __init__(self, profile, encoder, factor):
        super().__init__(profile, encoder)
        self.factor = factor

    def loss(self, views, tokens):
        return {"loss": self.factor * (tokens.v1.mean - tokens.v2.mean).square().mean()}
'''


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Whatever a test registers or imports is forgotten after it."""
    BASELINES.discover()
    entries, modules = dict(BASELINES._entries), set(sys.modules)
    yield
    BASELINES._entries.clear()
    BASELINES._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("equibench_user_"):
            del sys.modules[name]


def file_of(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_built_in_rows_and_columns_are_found() -> None:
    assert {"vicreg", "reconstruction", "sie_all", "sie_all_single", "sie_rot"} <= set(BASELINES.names())
    assert regression_tasks() == ["rotation", "color", "blur", "translation", "crop", "flip"]
    assert {"rotation.retrieval", "flip.wahba", "color.lie"} <= set(TASKS.names())
    assert BASELINES.get("reconstruction").splits_features
    assert not BASELINES.get("vicreg").splits_features


@pytest.mark.parametrize(
    ("registry", "wrong", "right"),
    [(BASELINES, "vicrag", "vicreg"), (BASELINES, "sie-all", "sie_all"), (TASKS, "colour", "color")],
)
def test_unknown_name_suggests_the_nearest(registry: Registry[object], wrong: str, right: str) -> None:
    with pytest.raises(UserError, match=f"{wrong!r}; did you mean {right!r}") as caught:
        registry.get(wrong)
    assert f"equibench list {registry.kind}s" in caught.value.fix


def test_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(UserError, match="unknown baseline 'qqqq'\n") as caught:
        BASELINES.get("qqqq")
    assert "did you mean" not in str(caught.value)
    assert closest("qqqq", []) == ""
    with pytest.raises(UserError, match="did you mean 'demo'"):
        get_profile("dmo")


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equibench.registry, "_registries", [])  # or files would be looked for in equibench.things
    monkeypatch.setattr(equibench.registry, "_kinds", {})
    registry: Registry[int] = Registry("thing", "equibench.things")
    registry.add("one", 1)
    with pytest.raises(UserError, match="thing 'one' is registered twice"):
        registry.add("one", 2)


def test_only_baselines_with_a_loss_are_registered() -> None:
    with pytest.raises(UserError, match="'silent'.* has no loss"):

        @register_baseline("silent")
        class Silent(Baseline):
            pass

    with pytest.raises(UserError, match="not a subclass of Baseline"):
        register_baseline("odd")(int)  # type: ignore[type-var]
    assert not {"silent", "odd"} & set(BASELINES.names())


def test_a_good_file_registers_its_baselines(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD)
    assert load_file(path, "baseline") == ["mine"]
    entry = BASELINES.get("mine")
    assert (entry.name, entry.title, entry.splits_features) == ("mine", "My method", True)
    assert entry.description == "One line about it."
    method = build_step(entry, get_profile("tiny"), "headline", 0, 10).method
    assert method.factor == 3.0
    assert load_file(str(path), "baseline") == ["mine"], "a second time is no error"


def test_digest_follows_the_file_and_the_settings(tmp_path: Path) -> None:
    digests = []
    said_otherwise = GOOD.replace("More lines.", "Other lines.") + "\n# more\n"
    texts = (GOOD, said_otherwise, GOOD, GOOD.replace("3.0", "4.0"), GOOD.replace(".square()", ".abs()"))
    for number, text in enumerate(texts):
        BASELINES._entries.pop("mine", None)
        load_file(file_of(tmp_path, text, f"mine{number}.py"), "baseline")
        digests.append(BASELINES.get("mine").source_sha256)
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        path = file_of(tmp_path / name, GOOD.replace('"mine"', f'"{name}"'))
        assert load_file(path, "baseline") == [name]


BROKEN = [
    ("import torch\n\ndef f(:\n    pass\n", "line 3 raised SyntaxError"),
    ("import torch\nx = 1\n\ny = x / 0\n", "line 4 raised ZeroDivisionError"),
    ("def f():\n    raise ValueError('no')\n\nf()\n", "line 2 raised ValueError: no"),
    ("import nothing_of_that_name\n", "line 1 raised ModuleNotFoundError"),
    ("x = 1\n", "registers no baseline"),
    (GOOD.split("    def __init__")[0], "Mine has no loss"),
    (GOOD.replace('"mine"', '"vicreg"'), "'vicreg' is registered twice"),
    (GOOD.replace("(Baseline)", ""), "not a subclass of Baseline"),
    (GOOD + "\nraise RuntimeError('after')\n", "raised RuntimeError: after"),
]


@pytest.mark.parametrize(("text", "problem"), BROKEN)
def test_a_broken_file_is_named_and_leaves_nothing_behind(tmp_path: Path, text: str, problem: str) -> None:
    names, path = BASELINES.names(), file_of(tmp_path, text)
    with pytest.raises(UserError, match=problem) as caught:
        load_file(path, "baseline")
    assert str(path) in caught.value.problem
    assert BASELINES.names() == names
    path.write_text(GOOD)
    assert load_file(path, "baseline") == ["mine"], "once mended it loads"


def test_a_file_that_is_missing_or_no_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_file(tmp_path / "nothing.py", "baseline")
    with pytest.raises(UserError, match="not found"):
        load_file(tmp_path, "baseline")
    with pytest.raises(UserError, match="is not a Python file"):
        load_file(file_of(tmp_path, GOOD, "mine.txt"), "baseline")


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    moved = {name for name in settings["package-dir"] if name != "equibench"}
    there = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "equibench").rglob("__init__.py")}
    assert set(settings["packages"]) == there | moved


def test_a_changed_transformation_makes_old_views_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(transform_sequence)
    monkeypatch.setattr(equibench.utils.digests, "_transformation_files", set())
    example = (ROOT / "examples/my_task.py").read_text(encoding="utf-8")
    builtin = code_digest(transform_sequence)
    digests = []
    for number, text in enumerate((example, example.replace("MOST = 0.3", "MOST = 0.2"))):
        text = text.replace('name="shear"', f'name="shear{number}"')
        text = text.replace('transformation="shear"', f'transformation="shear{number}"')
        (tmp_path / f"shear{number}.py").write_text(text)
        assert load_file(tmp_path / f"shear{number}.py", "task") == [f"shear{number}"]
        digests.append(code_digest(transform_sequence))
    assert len({builtin, *digests}) == 3
    monkeypatch.undo()
    for number in (0, 1):
        del TASKS._entries[f"shear{number}"], TRANSFORMATIONS[f"shear{number}"]
    assert code_digest(transform_sequence) == before
