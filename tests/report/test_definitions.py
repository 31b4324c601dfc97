"""A table's definition: what its first lines say, columns of metrics, and what is wrong with a CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from equibench.errors import UserError
from equibench.evaluation.controls import CONTROLS
from equibench.records import Metric, Record, read_records
from equibench.report.definition import cells_of, columns_of, load_definition, table_names
from equibench.runner import table as api

DEMO = Path(__file__).parents[2] / "results/demo"
PUBLISHED = {  # method by method as the papers print them, for the columns that pandas could have misread
    ("table1", "sie_pose_hues", "object_color"): "0.980",
    ("table3", "reconstruction", "blur"): "0.944",
    ("table4", "sie_color", "color"): "0.921",
    ("table5", "sie_all", "linear_pets"): "85.34±0.19",
    ("table6", "supervised", "ade20k:aAcc"): "0.751",
    ("p2_table1", "vicreg_all_blur", "blur"): ".9392±.0106",
    ("p2_table4", "ibot_all_se2", "color"): ".943",
    ("p2_table5", "dinov2", "linear_food101"): "87.92",
    ("p2_table9", "vicreg_all_rot_k1", "translation"): ".4230",
}


@pytest.mark.parametrize("name", table_names())
def test_every_published_table_is_complete(name: str) -> None:
    definition = load_definition(name)
    assert definition.title
    assert definition.claims
    assert definition.limits
    printed = [c for c in definition.columns if ":" not in c or c.startswith("ade20k:")]  # the rest is ours
    assert (definition.published[printed] != "").all().all()


@pytest.mark.parametrize(("where", "said"), PUBLISHED.items())
def test_published_numbers_stand_where_they_belong(where: tuple[str, str, str], said: str) -> None:
    name, row, column = where
    assert load_definition(name).published.loc[row, column] == said


def test_first_lines_say_what_a_table_is_about(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        "# title: Mine: a table\n# known_fraction: 0.5\n# scale: 100\n# claim: this\n# claim: that\n# data: 3diebench\n"
        "baseline,rotation,linear_dtd:top1\nvicreg,0.1,2\n"
    )
    found = load_definition(file)
    assert (found.title, found.known_fraction, found.scale, found.data) == ("Mine: a table", 0.5, 100, "3diebench")
    assert found.claims == ("this", "that")
    assert found.columns == ("rotation", "linear_dtd:top1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# titel: Mine\nbaseline,rotation\nvicreg,1\n", "titel"),
        ("# known_fraction: 1.5\nbaseline,rotation\nvicreg,1\n", "known_fraction is '1.5'"),
        ("# scale: much\nbaseline,rotation\nvicreg,1\n", "scale is 'much'"),
        ("# title: a\n# title: b\nbaseline,rotation\nvicreg,1\n", "title 2 times"),
        ("baseline,ade20k:mIuO\nvicreg,1\n", "did you mean 'mIoU'"),
        ("baseline,rotaton\nvicreg,1\n", "did you mean 'rotation'"),
        ("row,rotation\nvicreg,1\n", "no column `baseline`"),
        ("# recipe: ibto\nbaseline,rotation\nvicreg,1\n", "did you mean 'ibot'"),
    ],
)
def test_a_wrong_definition_is_said(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        load_definition(file)


def test_published_recipes_are_told_in_a_line_each() -> None:
    lines = load_definition("p2_table4").recipe_lines
    assert [line.split()[0] for line in lines] == ["ibot", "dinov2"]
    assert "ViT-L/16, 100 epochs of ImageNet-1K with batch 2,048, 62,500 steps, peak lr 0.00566" in lines[1]
    assert load_definition("table2").recipe_lines == []


def made(baseline: str, **metrics: tuple[float, float, float]) -> Record:
    """A record of segmentation with these metrics, all else as in one that was measured."""
    base = read_records(DEMO / "table2/records.jsonl")[0]
    named = {name: Metric(value=v, low=low, high=high) for name, (v, low, high) in metrics.items()}
    changed: dict[str, Any] = {"baseline": baseline, "task": "ade20k", "evaluator": "segmentation"}
    return base.model_copy(update={**changed, "main_metric": "mIoU", "metrics": named, "features": "full"})


def test_a_column_takes_the_metric_that_it_names_and_is_scaled() -> None:
    records = [made("vicreg", mIoU=(0.2, 0.1, 0.3), aAcc=(0.7, 0.6, 0.8))]
    cells = cells_of(records, scale=100)
    assert cells["vicreg", "ade20k"].value == cells["vicreg", "ade20k:mIoU"].value == pytest.approx(20)
    accuracy = cells["vicreg", "ade20k:aAcc"]
    assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx((70, 60, 80))
    keys = [column.score_key for column in columns_of(["ade20k:aAcc", "ade20k", "rotation", "linear_pets"])]
    assert keys == ["ade20k_aAcc", "ade20k_mIoU", "rotation_r2", "linear_pets_mean_per_class"]


def test_controls_are_beaten_only_beyond_their_interval_and_only_by_those_that_can_be() -> None:
    rival = made("random_init", mIoU=(0.2, 0.15, 0.25), degrees_mean=(40, 38, 42))
    for low, beats in ((0.26, True), (0.24, False)):
        row = made("vicreg", mIoU=(0.3, low, 0.4), degrees_mean=(30, 29, 37))
        cells = cells_of([row, rival])
        # pixels and image statistics are no controls of a segmentation: random init alone decides
        assert cells["vicreg", "ade20k"].beats_controls is beats
        assert cells["vicreg", "ade20k:degrees_mean"].beats_controls is True, "fewer degrees are better"
        assert cells["random_init", "ade20k"].beats_controls is None
    assert cells_of([made("vicreg", mIoU=(0.9, 0.8, 1))])["vicreg", "ade20k"].beats_controls is None


@pytest.fixture(scope="module")
def table3(tmp_path_factory: pytest.TempPathFactory) -> api.TableResult:
    folder = tmp_path_factory.mktemp("table3")
    return api.table(
        "table3",
        profile="tiny",
        rows=["supervised", "sie_all", "reconstruction"],
        columns=["rotation"],
        jobs=1,
        runs=folder / "runs",
        out=folder / "results",
        console=Console(quiet=True),
    )


def test_partly_known_runs_are_kept_apart_from_others(table3: api.TableResult) -> None:
    runs = {path.parent.parent.name for path in table3.context.work.glob("pretraining/*/seed0/run.json")}
    assert runs == {"supervised-known0.2", "sie_all-known0.2", "reconstruction"}
    known = {r.baseline: r.known_fraction for r in table3.records}
    assert known["sie_all"] == 0.2
    assert known["reconstruction"] == known["pixels"] == 1
    assert "θ is known of 20% of the training images" in table3.files[1].read_text(encoding="utf-8")


def test_whoever_reads_no_theta_is_not_trained_again(table3: api.TableResult) -> None:
    runs = table3.context.work.parents[1]
    planned = api.plan_table(
        "table4", profile="tiny", rows=["reconstruction", "sie_all"], columns=["rotation"], runs=runs
    )
    pretrain = {job.place.row: job.pretrain for job in planned.jobs if job.place.row not in CONTROLS}
    assert pretrain == {"reconstruction": False, "sie_all": True}


def test_views_of_objects_have_no_variants(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="brings its views along"):
        api.plan_table("table1", profile="tiny", variant="paper_like", runs=tmp_path)


def test_a_method_for_objects_is_refused_on_images(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("baseline,rotation\nsie_pose,1\n")
    with pytest.raises(UserError, match="needs views with pose between them"):
        api.table(
            str(file), profile="tiny", jobs=1, runs=tmp_path / "runs", out=tmp_path / "out", console=Console(quiet=True)
        )


def test_published_data_to_pretrain_on_that_are_not_there_are_named_with_their_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3DIEBench") as caught:
        api.plan_table("table1", profile="cifar10", rows=["reconstruction"], runs=tmp_path)
    assert "/" in str(caught.value), "a path or a tree of them"


@pytest.mark.parametrize(
    ("table", "columns", "said"),
    [
        ("table5", ["linear_food101"], "Food101: put the folder food-101 below --data-root or $EQUIBENCH_DATA"),
        (
            "table6",
            ["ade20k:mIoU"],
            "ADE20K, HyperNet head: put the folder ADEChallengeData2016 below --data-root or $EQUIBENCH_DATA",
        ),
    ],
)
def test_columns_whose_data_are_not_there_say_where_they_belong(
    table: str, columns: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the profile that asks for the published data; CIFAR-10 is replaced, since it may not be there either."""
    import equibench.runner.open
    from equibench.data.load import load_dataset

    solids = load_dataset("solids", sizes=(600, 200))
    monkeypatch.setattr(equibench.runner.open, "load_dataset", lambda *_, **__: solids)
    planned = api.plan_table(table, profile="cifar10", columns=columns, rows=["reconstruction"], runs=tmp_path)
    assert planned.notes == [said]
    assert {job.tasks for job in planned.jobs} == {()}
