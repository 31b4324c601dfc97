"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "equibench.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_user_error(result: subprocess.CompletedProcess[str], *said: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr


COMMANDS = (
    "table", "pretrain", "list", "certify", "score", "curve", "study", "compare", "explain", "verify", "doctor",
    "report", "figures", "tune", "stability", "export-pairs",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, tmp_path: Path) -> None:
    result = run(command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert f"equibench {command}" in result.stdout
    assert "Example" in result.stdout


def test_a_bad_latent_is_named_with_the_flag_that_goes_on_without_it(tmp_path: Path) -> None:
    made = run(
        "data", "render", "objects", "--objects", "2", "--views", "3", "--size", "16", "--jobs", "1", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    latent = sorted((tmp_path / "objects").rglob("latent_1.npy"))[0]
    np.save(latent, np.zeros(9))
    given = ["score", "timm:test_vit", "--no-pretrained", "--size", "32", "--data", "objects", "--image-size", "16"]
    given += ["--dry-run"]
    cache = {"EQUIBENCH_CACHE": str(tmp_path / "cache")}
    assert_user_error(run(*given, cwd=tmp_path, **cache), latent.name, "(9,)", "--skip-bad")
    assert run(*given, "--skip-bad", cwd=tmp_path, **cache).returncode == 0


def test_list_shows_tasks_baselines_tables_and_profiles(tmp_path: Path) -> None:
    shown = run("list", cwd=tmp_path).stdout
    for name in ("rotation", "reconstruction", "oracle", "table2", "tiny"):
        assert name in shown


def test_pretrain_says_where_the_encoder_is_and_writes_a_log(tmp_path: Path) -> None:
    result = run("pretrain", "vicreg", "--profile", "tiny", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/tiny/solids-headline/pretraining/vicreg/seed0"
    assert (folder / "encoder.safetensors").exists()
    assert "feature_std" in (folder / "log.jsonl").read_text()
    assert str(folder.relative_to(tmp_path)) in result.stdout


def test_two_processes_train_one_run(tmp_path: Path) -> None:
    result = run("pretrain", "sie_all", "--profile", "tiny", "--device", "cpu", "--devices", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs/tiny/solids-headline/pretraining/sie_all/seed0"
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6  # every fifth of 30 steps, written by one process alone
    assert losses[-1] < losses[0]
    assert result.stdout.count("encoder.safetensors") == 1


def test_dry_run_lists_jobs_and_writes_nothing(tmp_path: Path) -> None:
    result = run("table", "table2", "--profile", "tiny", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "reconstruction" in result.stdout
    assert "jobs to do" in result.stdout
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_user_errors(tmp_path: Path) -> None:
    assert_user_error(run("table", "table9", cwd=tmp_path), "table9", "table2")
    assert_user_error(run("pretrain", "vikreg", "--profile", "tiny", cwd=tmp_path), "did you mean 'vicreg'")
    assert_user_error(run("list", "task", cwd=tmp_path), "did you mean 'tasks'")
    assert_user_error(run("table", "--seeds", "a", "--profile", "tiny", cwd=tmp_path), "--seeds")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    result = run("table", "--profile", "tiny", "--rows", "vicreg", "--out", "out/here", cwd=tmp_path)
    assert_user_error(result, "out/here")
    (tmp_path / "runs").write_text("a file, not a folder")
    assert_user_error(run("pretrain", "vicreg", "--profile", "tiny", cwd=tmp_path), "runs")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "registers no baseline"),
        ("def f(:\n", "line 1"),
        ("\n\n1 / 0\n", "line 3 raised ZeroDivisionError"),
        (
            "from equibench.pretrain.method import register_baseline\n@register_baseline('a')\nclass A: pass\n",
            "Baseline",
        ),
    ],
)
def test_a_bad_baseline_file_is_explained(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert_user_error(run("table", "--profile", "tiny", "--baseline", "mine.py", cwd=tmp_path), "mine.py", said)


def test_a_table_file_with_unknown_rows_names_them(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("baseline,rotation\nvicreg,0.1\nvikreg,0.2\n")
    assert_user_error(run("table", "mine.csv", "--profile", "tiny", cwd=tmp_path), "mine.csv", "vikreg", "vicreg")


def test_a_damaged_data_file_is_named_with_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "data/cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(b"damaged")
    result = run("table", "--profile", "demo", "--data-root", "data", cwd=tmp_path)
    assert_user_error(result, "data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25")


def test_without_data_and_network_the_demo_says_that_it_uses_generated_images(tmp_path: Path) -> None:
    code = (
        "from equibench.data import load\n"
        "load.SOLIDS_SIZES = (300, 50)\n"
        "print(load.load_or_generate('cifar10', download=False).description)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**{k: v for k, v in os.environ.items() if k != "EQUIBENCH_DATA"}, "EQUIBENCH_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "generated" in result.stdout
