"""`equibench compare`: a difference is called one only if the same images say so, and only like is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from equibench.audit.compare import compare, holm, paired_p
from equibench.audit.find import select
from equibench.cli import app
from equibench.errors import UserError
from equibench.evaluation.evaluator import EVALUATORS
from equibench.metrics.bootstrap import mean_of, resampled
from equibench.records import Record, Seeds, append_records, keep_predictions, predictions_path
from equibench.utils.files import digest_of

Array = NDArray[np.float64]
IMAGES = 300
RNG = np.random.default_rng(0)
COMMON, HARD = RNG.normal(size=(2, IMAGES, 2))
"""Targets, and errors that all encoders share: some images are hard for everybody."""


def errors(scale: float, own: float, seed: int) -> Array:
    """Errors of three probes, most of which an encoder shares with the others."""
    return scale * HARD + own * np.random.default_rng(seed).normal(size=(3, IMAGES, 2))


def regression(mistakes: Array) -> dict[str, Array]:
    fixed = {"mean": np.zeros(2), "std": np.ones(2), "size": np.array(32), "transformation": np.array("translation")}
    return {**fixed, "targets": COMMON, "full/predictions": (COMMON + mistakes).astype(np.float32)}


def wahba(residual: float) -> dict[str, Array]:
    return {"full/wahba": np.stack([np.full(IMAGES, residual) + 0.1 * HARD[:, 0], np.ones(IMAGES)])}


def keep(folder: Path, name: str, evaluator: str, arrays: dict[str, Array], **changes: Any) -> Record:
    """A record in a results folder, with its predictions."""
    kind = EVALUATORS.get(evaluator)
    fields: dict[str, Any] = {
        "baseline": name, "task": f"some.{evaluator}", "task_version": 1, "evaluator": evaluator,
        "main_metric": kind.main_metric,
        "profile": "tiny", "variant": "headline", "data": "some", "data_sha256": "d" * 64, "features": "full",
        "seeds": Seeds(pretraining=0, probe=[0, 1, 2]), "parameters": ["x", "y"], "pairs": [1, 1, IMAGES],
        "pairs_sha256": "a" * 64, "encoder": name, "probe": {}, "precision": "32-true",
        "package_version": "0", "torch_version": "0", "seconds": 1.0,
        "command": f"equibench score {name} --tasks some.{evaluator}",
        "metrics": kind.scores(arrays, "full"), **changes,
    }  # fmt: skip
    fields["evaluation_sha256"] = digest_of([name, fields["task"], fields["seeds"].pretraining, str(changes)])
    record = Record(**fields)
    keep_predictions(predictions_path(folder / "runs", record.evaluation_sha256), arrays)
    append_records(folder / "results" / "records.jsonl", [record])
    return record


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """Three encoders, of which `good` is better at both tasks and `like_good` as good."""
    for name, scale, own, residual, seed in (
        ("good", 0.5, 0.05, 0.3, 1),
        ("like_good", 0.5, 0.05, 0.3, 2),
        ("bad", 0.54, 0.05, 0.4, 3),
    ):
        keep(tmp_path, name, "regression", regression(errors(scale, own, seed)))
        keep(tmp_path, name, "wahba", wahba(residual + 0.001 * seed))
    return [tmp_path / "results", tmp_path / "runs"]


def test_holm_by_hand() -> None:
    assert holm([0.01]) == [0.01]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, 0.02, 0.005]) == pytest.approx([0.04, 0.04, 0.015])
    assert holm([0.9, 0.8, 0.6]) == [1, 1, 1]
    p = np.random.default_rng(1).uniform(size=20)
    steps = [min(1.0, max((20 - j) * np.sort(p)[j] for j in range(i + 1))) for i in range(20)]  # its definition
    assert np.sort(holm(list(p))) == pytest.approx(steps)
    assert (np.array(holm(list(p))) >= p).all()


def test_paired_p_rejects_a_true_null_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    p = [paired_p(resampled(mean_of(rng.normal(size=100)))) for _ in range(600)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.075
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_paired_p_at_its_ends() -> None:
    assert paired_p(np.zeros(2000)) == 1
    assert paired_p(np.ones(2000)) == paired_p(-np.ones(2000)) == pytest.approx(2 / 2001)
    assert paired_p(np.full(2000, np.nan)) == 1  # nothing is known
    assert paired_p(np.array([np.nan] * 1000 + [1.0, -1.0] * 500)) == 1


def test_an_encoder_ties_with_itself(places: list[Path]) -> None:
    for found in compare("good", "good", places=places):
        assert (found.difference, found.low, found.high, found.p, found.verdict) == (0, 0, 0, 1, "tie")


@pytest.mark.parametrize(("a", "b", "winner"), [("good", "bad", "A"), ("bad", "good", "B")])
def test_the_better_one_wins_whichever_way_is_better(a: str, b: str, winner: str, places: list[Path]) -> None:
    r2, residual = compare(a, b, places=places)
    assert (r2.metric, residual.metric) == ("r2", "wahba")
    assert r2.verdict == residual.verdict == winner
    assert (r2.difference > 0) == (winner == "A")  # higher is better
    assert (residual.difference > 0) == (winner == "B")  # lower is better
    assert r2.low <= r2.difference <= r2.high
    assert r2.p <= r2.p_holm <= 2 * r2.p


def test_what_differs_by_noise_alone_is_a_tie(places: list[Path]) -> None:
    (found,) = compare("good", "like_good", tasks=["some.regression"], places=places)
    assert found.verdict == "tie"
    assert found.low < 0 < found.high


def test_the_same_images_make_the_interval_narrow(places: list[Path]) -> None:
    good, bad = (select(name, places)[0] for name in ("good", "bad"))
    (found,) = compare("good", "bad", tasks=["some.regression"], places=places)
    ends = [record.interval() for record in (good, bad)]
    unpaired = np.hypot(*[high - low for _, low, high in ends if ends])  # type: ignore[misc]
    assert found.high - found.low < unpaired / 3
    assert ends[0][1] < ends[1][2]  # type: ignore[index]  # taken alone, their intervals overlap


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs_sha256": "b" * 64}, "pairs"),
        ({"task_version": 2}, "task version"),
        ({"data": "other", "pairs_sha256": "b" * 64}, "data"),
        ({"variant": "paper_like"}, "views"),
    ],
)
def test_only_like_is_compared(change: dict[str, Any], said: str, places: list[Path], tmp_path: Path) -> None:
    keep(tmp_path, "elsewhere", "regression", regression(errors(0.5, 0.1, 4)), **change)
    with pytest.raises(UserError, match=f"some.regression: they differ in .*{said}") as raised:
        compare("good", "elsewhere", places=places)
    assert "equibench score good" in raised.value.fix
    keep(tmp_path, "good", "regression", regression(errors(0.5, 0.1, 4)), **change)  # now both answer the same question
    assert compare("good", "elsewhere", places=places)[0].task == "some.regression"


def test_two_questions_at_once_are_refused(places: list[Path], tmp_path: Path) -> None:
    for name in ("good", "bad"):
        keep(tmp_path, name, "regression", regression(errors(0.5, 0.1, 4)), pairs_sha256="b" * 64)
    with pytest.raises(UserError, match="2 different sets of pairs"):
        compare("good", "bad", places=places)


def test_missing_predictions_are_named_with_the_command(places: list[Path]) -> None:
    record = select("bad", places)[0]
    predictions_path(places[1], record.evaluation_sha256).unlink()
    with pytest.raises(UserError, match="predictions behind some.regression.1") as raised:
        compare("good", "bad", places=places)
    assert raised.value.fix.endswith("equibench score bad --tasks some.regression")


def test_pretraining_seeds_are_averaged(places: list[Path], tmp_path: Path) -> None:
    others = [
        keep(tmp_path, "good", "regression", regression(errors(0.5 + 0.1 * seed, 0.1, 7)),
             seeds=Seeds(pretraining=seed, probe=[0, 1, 2]))
        for seed in (1, 2)
    ]  # fmt: skip
    first = select("good", places)[0]
    (found,) = compare("good", "bad", tasks=["some.regression"], places=places)
    assert found.a == pytest.approx(np.mean([r.metrics["r2"].value for r in (first, *others)]))
    assert found.b == select("bad", places)[0].metrics["r2"].value


def test_each_pretraining_seed_speaks_for_itself(places: list[Path], tmp_path: Path) -> None:
    """Seeds 0 and 1 differ by what their own scores differ by; a seed that one side lacks says nothing."""
    other = {
        name: keep(
            tmp_path, name, "regression", regression(errors(scale, 0.05, 7)), seeds=Seeds(pretraining=1, probe=[0, 1])
        )
        for name, scale in (("good", 0.6), ("bad", 0.5))
    }
    keep(tmp_path, "bad", "regression", regression(errors(0.9, 0.05, 8)), seeds=Seeds(pretraining=2, probe=[0, 1]))
    first = {name: next(r for r in select(name, places) if r.task == "some.regression") for name in ("good", "bad")}
    found = compare("good", "bad", tasks=["some.regression"], places=places)[0]
    one, two = (side["good"].metrics["r2"].value - side["bad"].metrics["r2"].value for side in (first, other))
    assert found.per_seed == (one, two)
    assert found.per_seed[0] > 0 > found.per_seed[1]


def test_who_is_meant(places: list[Path], tmp_path: Path) -> None:
    folder = str(places[0])
    by_path = compare(f"{folder}:good", f"{folder}/records.jsonl:bad", places=places)
    assert by_path == compare("good", "bad", places=places)
    with pytest.raises(UserError, match="holds 3 scored encoders: bad, good, like_good") as raised:
        compare(folder, "bad", places=places)
    assert raised.value.fix == f"say which: {folder}:bad"
    with pytest.raises(UserError, match="did you mean 'good'"):
        compare("goood", "bad", places=places)
    with pytest.raises(UserError, match="no task in common"):
        compare("good", "bad", tasks=["flip"], places=places)
    alone = keep(tmp_path / "alone", "timm:some_net", "wahba", wahba(0.3))
    keep(tmp_path / "alone", "oracle", "wahba", wahba(0.3))
    assert select(str(tmp_path / "alone" / "results")) == [alone]  # a control is not whom a folder is about
    assert select("timm:some_net", [tmp_path / "alone"]) == [alone]


def test_on_the_command_line(places: list[Path]) -> None:
    told = [part for place in places for part in ("--in", str(place))]
    shown = CliRunner().invoke(app, ["compare", "good", "bad", *told], env={"COLUMNS": "150"})
    assert shown.exit_code == 0, shown.output
    assert any(
        line.split()[0] == "some.regression," and line.split()[-1] == "A"
        for line in shown.output.splitlines()
        if line.strip()
    )
    found = json.loads(CliRunner().invoke(app, ["compare", "good", "like_good", *told, "--json"]).stdout)
    assert [(line["task"], line["verdict"]) for line in found][0] == ("some.regression", "tie")


def test_an_encoder_may_be_called_like_a_file_that_is_there(
    places: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good").write_bytes(b"\x80weights")
    monkeypatch.chdir(tmp_path)
    assert select("good", places)


def weights(digit: str) -> dict[str, Any]:
    return {"encoder_sha256": digit * 64, "encoder": "a network"}


def test_a_file_that_was_overwritten_is_two_networks(places: list[Path], tmp_path: Path) -> None:
    arrays = wahba(0.3)
    first = keep(tmp_path / "one", "net.pth.aaaaaaaa", "wahba", arrays, **weights("a"))
    assert select("net.pth", [tmp_path / "one"]) == select("net.pth.aaaaaaaa", [tmp_path / "one"]) == [first]
    second = keep(tmp_path / "two", "net.pth.bbbbbbbb", "wahba", arrays, **weights("b"))
    with pytest.raises(
        UserError, match=r"'net.pth' stands for 2 networks: net.pth.a{8} in .*, net.pth.b{8} in"
    ) as told:
        compare("net.pth", "good", places=[tmp_path, *places])
    assert f"{tmp_path}/two/results:net.pth.bbbbbbbb" in told.value.fix
    assert select("net.pth.bbbbbbbb", [tmp_path]) == [second]


def test_a_name_that_was_used_again_is_refused_until_the_folder_is_named(tmp_path: Path) -> None:
    for folder, digit in (("one", "a"), ("two", "b")):
        keep(tmp_path / folder, "mine", "wahba", wahba(0.3), **weights(digit))
    with pytest.raises(UserError, match=r"'mine' stands for 2 networks: mine.aaaaaaaa in .*one"):
        select("mine", [tmp_path])
    assert select(f"{tmp_path}/two/results:mine")[0].encoder_sha256 == "b" * 64


def test_one_network_used_in_two_ways_is_refused(tmp_path: Path) -> None:
    for pooling in ("cls", "mean"):
        keep(
            tmp_path / pooling, "mine", "wahba", wahba(0.3), encoder_sha256="a" * 64, encoder=f"vit; pooling {pooling}"
        )
    with pytest.raises(UserError, match=r"'mine' stands for 2 ways of using a network"):
        select("mine", [tmp_path])


def test_seeds_and_tables_of_one_name_are_no_namesakes(tmp_path: Path) -> None:
    for seed, digit in ((0, "a"), (1, "b")):
        seeds = Seeds(pretraining=seed, probe=[0])
        keep(tmp_path, "vicreg", "wahba", wahba(0.3), seeds=seeds, command="equibench table table2", **weights(digit))
    keep(tmp_path, "vicreg", "wahba", wahba(0.3), pairs_sha256="c" * 64, **weights("d"))
    assert len(select("vicreg", [tmp_path])) == 3
