"""A study: what is wrong with its file is said before anything is run, and its parts end up in their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from equibench.errors import UserError
from equibench.runner.study import read_study, run_study
from equibench.runner.table import TableResult


def study(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[part]\n", "cannot be read"),
        ("", r"lists no \[\[part\]\]"),
        ('[[part]]\ntable = "table2"\n', "part 1 has no folder"),
        ('[[part]]\ntabel = "table2"\nfolder = "x"\n', "part 1 .*did you mean 'table'"),
        ('[[part]]\ntable = "table2"\nfolder = "x"\n\n[[part]]\nfolder = "y"\n', "part 2"),
        ('[[part]]\ntable = "table2"\nfolder = "x"\nrow = ["vicreg"]\n', "did you mean 'rows'"),
        ('[[part]]\ntable = "table2"\nfolder = "x"\nseeds = [0, 0]\n', "distinct"),
        ('[[part]]\ntable = "table2"\nfolder = "x"\nprofile = "tinny"\n', "did you mean 'tiny'"),
    ],
)
def test_a_wrong_study_is_said_before_anything_is_run(text: str, said: str, tmp_path: Path) -> None:
    file = study(tmp_path, text)
    with pytest.raises(UserError, match=said):
        list(run_study(file))
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing.toml cannot be read"):
        read_study(tmp_path / "nothing.toml")


def test_its_parts_are_read_in_order(tmp_path: Path) -> None:
    text = (
        '[[part]]\nscore = "timm:resnet18"\nfolder = "a"\npooling = "cls"\n\n'
        '[[part]]\ncurve = true\nfolder = "b"\n\n[[part]]\ntable = "table4"\nfolder = "c/d"\nseeds = [0, 1]\n'
    )
    parts = read_study(study(tmp_path, text))
    assert [(part.kind, part.folder) for part in parts] == [
        ("score", tmp_path / "a"),
        ("curve", tmp_path / "b"),
        ("table", tmp_path / "c/d"),
    ]
    assert [part.words for part in parts] == ["score timm:resnet18, pooling cls", "curve", "table table4, seeds [0, 1]"]
    assert parts[0].options == {"pooling": "cls"}


def test_the_committed_study_is_one() -> None:
    folder = Path(__file__).parents[2] / "results/cifar10"
    parts = read_study(folder / "study.toml")
    assert all(part.folder.is_dir() for part in parts)


def test_a_study_of_one_table_is_carried_out(tmp_path: Path) -> None:
    text = (
        '[[part]]\ntable = "table2"\nfolder = "small"\nprofile = "tiny"\nrows = ["vicreg"]\ncolumns = ["flip"]\n'
        f'jobs = 1\nruns = "{tmp_path}/runs"\n'
    )
    (result,) = run_study(study(tmp_path, text))
    assert isinstance(result, TableResult)
    assert {record.baseline for record in result.records} >= {"vicreg", "random_init"}
    assert (tmp_path / "small/table2.csv") in result.files
    before = [file.read_bytes() for file in result.files]
    (again,) = run_study(tmp_path / "study.toml")
    assert [file.read_bytes() for file in again.files] == before
