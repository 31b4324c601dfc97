"""Digests of code follow what a definition uses, and nothing else: each edit is made in a copy of the package."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from equibench.evaluation.regression import RegressionEvaluator
from equibench.pretrain.method import BASELINES
from equibench.utils import digests
from equibench.utils.digests import code_digest, definitions_of

ROOT = Path(__file__).parents[2]
ROOTS = (RegressionEvaluator,)
COVERED = definitions_of(*ROOTS)
MODULES = sorted({module for module, _ in COVERED})


def forget() -> None:
    for function in (digests._digest, digests._used, digests._text, digests._read):
        function.cache_clear()


class Copy:
    """A copy of the package whose files may be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "equibench"
        for source, place in ((ROOT / "equibench", "."), (ROOT / "baselines", "baselines"), (ROOT / "tasks", "tasks")):
            shutil.copytree(
                source, self.folder / place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )

    def file(self, module: str) -> Path | None:
        first, *parts = module.split(".")
        place = self.folder.joinpath(*parts)
        files = (place / "__init__.py", place.with_suffix(".py")) if first == "equibench" and parts else ()
        return next((path for path in files if path.is_file()), None)

    def edit(self, module: str, old: str, new: str) -> None:
        """Replace a text that is there."""
        path = self.file(module)
        assert path is not None
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        forget()

    def append(self, module: str, text: str) -> None:
        path = self.file(module)
        assert path is not None
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
        forget()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    made = Copy(tmp_path)
    monkeypatch.setattr(digests, "_file", made.file)
    forget()
    yield made
    monkeypatch.undo()
    forget()


def test_a_copy_of_the_package_has_its_digests(copy: Copy) -> None:
    found = code_digest(*ROOTS)
    copy.append("equibench.metrics.bootstrap", "")
    assert code_digest(*ROOTS) == found
    assert definitions_of(*ROOTS) == COVERED


def test_what_is_covered_is_what_is_used() -> None:
    assert ("equibench.metrics.bootstrap", "RESAMPLES") in COVERED
    assert ("equibench.evaluation.evaluator", "Evaluator") in COVERED
    assert not {module for module in MODULES if module.startswith(("equibench.report", "equibench.runner"))}
    assert not {module for module in MODULES if module.startswith(("equibench.cli", "equibench.audit"))}


@pytest.mark.parametrize("module", MODULES)
def test_comments_and_docstrings_say_nothing_about_a_number(module: str, copy: Copy) -> None:
    before = code_digest(*ROOTS)
    path = copy.file(module)
    assert path is not None
    text = path.read_text(encoding="utf-8")
    copy.append(module, "\n# a comment\n")
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    said = [n.body[0] for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)]
    texts = [
        n
        for n in said
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str)
    ]
    assert texts
    for node in sorted(texts, key=lambda n: -n.lineno):
        indent = " " * node.col_offset
        lines[node.lineno - 1 : node.end_lineno] = [f'{indent}"""Other words."""  # and a comment\n']
    path.write_text("".join(lines), encoding="utf-8")
    forget()
    assert code_digest(*ROOTS) == before


def numbers(module: str) -> dict[str, ast.Constant]:
    """A number of each definition that is covered and has one."""
    path, found = digests._file(module), {}
    assert path is not None
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = [n for n in ast.walk(statement) if isinstance(n, ast.Constant) and type(n.value) in (int, float)]
        covered = [name for name in digests._bound(statement) if (module, name) in COVERED]
        found.update({name: inside[0] for name in covered if inside})
    return found


WITH_NUMBERS = [module for module in MODULES if numbers(module)]


def test_most_modules_have_numbers() -> None:
    assert len(WITH_NUMBERS) > len(MODULES) / 2


@pytest.mark.parametrize("module", WITH_NUMBERS)
def test_any_number_in_what_is_used_counts(module: str, copy: Copy) -> None:
    before = code_digest(*ROOTS)
    path = copy.file(module)
    assert path is not None
    original = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number in numbers(module).values():
        lines = list(original)
        line = lines[number.lineno - 1].encode()
        changed = line[: number.col_offset] + b"7654321" + line[number.end_col_offset :]
        lines[number.lineno - 1] = changed.decode()
        path.write_text("".join(lines), encoding="utf-8")
        forget()
        assert code_digest(*ROOTS) != before, (module, lines[number.lineno - 1])


def test_a_module_may_move_and_be_renamed(copy: Copy) -> None:
    before = code_digest(*ROOTS)
    old, new = "equibench.metrics.bootstrap", "equibench.resampling"
    source = copy.file(old)
    assert source is not None
    source.rename(copy.folder / "resampling.py")
    for path in copy.folder.rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    forget()
    assert (new, "RESAMPLES") in definitions_of(*ROOTS)
    assert code_digest(*ROOTS) == before
    assert code_digest("equibench.evaluation.regression:RegressionEvaluator") == before


def test_what_is_not_used_does_not_count(copy: Copy) -> None:
    before = code_digest(*ROOTS)
    copy.append("equibench.metrics.bootstrap", "\n\ndef unused() -> int:\n    return 3\n")
    copy.edit("equibench.report.definition", "KEYS = (", 'KEYS = ("other", ')
    assert code_digest(*ROOTS) == before


def test_a_name_that_is_no_definition_is_refused() -> None:
    with pytest.raises(TypeError, match="not defined at the top level"):
        code_digest("equibench.metrics.bootstrap:nothing")
    with pytest.raises(TypeError, match="not defined at the top level"):
        code_digest(type("Typed", (), {}))


# The digests of methods


def test_a_method_is_trained_again_only_if_its_own_code_has_changed(copy: Copy) -> None:
    entry = BASELINES.get("sie_rot")
    before = entry.source_sha256
    copy.append("equibench.baselines.sie", "\n# a comment\n")
    assert entry.source_sha256 == before
    copy.edit("equibench.baselines.reconstruction", "import", "CHANGED = 3\nimport")
    copy.append("equibench.baselines.reconstruction", "\n\nMORE = 5\n")
    copy.edit("equibench.baselines.vicreg", "def vicreg_loss", "NEW = 1\n\n\ndef vicreg_loss")
    assert entry.source_sha256 == before
    copy.edit("equibench.baselines.sie", '"equivariance": 4.5', '"equivariance": 4.6')
    assert entry.source_sha256 != before


def test_rows_of_one_class_differ_by_their_settings() -> None:
    names = [name for name in BASELINES.names() if name.startswith("sie")]
    entries = [BASELINES.get(name) for name in names]
    assert len({entry.source_sha256 for entry in entries}) == len({str(sorted(e.settings.items())) for e in entries})


def test_what_a_user_s_file_takes_from_the_face_is_covered(copy: Copy) -> None:
    """`from equibench import Baseline` names the same class as importing it from where it is defined."""
    (copy.folder / "mine.py").write_text("from equibench import Baseline\n\n\nclass Mine(Baseline):\n    pass\n")
    before = code_digest("equibench.mine:Mine")
    assert ("equibench.pretrain.method", "Baseline") in definitions_of("equibench.mine:Mine")
    copy.edit("equibench.pretrain.method", "splits_features = False", "splits_features = True")
    assert code_digest("equibench.mine:Mine") != before
