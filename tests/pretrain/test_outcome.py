"""What a run says of itself when it ends: means of diagnostics, what it has learned, and how far its halves overlap."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from equibench.baselines.vicreg import VICReg
from object_data import with_objects
from torch import Tensor

from equibench.data.dataset import Dataset, split_indices
from equibench.encoders.vit import Tokens, ViTEncoder
from equibench.errors import UserError
from equibench.pretrain.batches import PairStream, open_stream
from equibench.pretrain.loop import FINAL_BATCHES, build_step, halves_overlap, held_out_diagnostics, run_pretraining
from equibench.pretrain.method import BASELINES, Baseline, Criterion, encode_pair
from equibench.profiles import PROFILES
from equibench.transforms.transformation import view_spec

TINY = PROFILES["tiny"]
SHORT = dataclasses.replace(TINY, pretraining=dataclasses.replace(TINY.pretraining, pairs=160))


def held_out(name: str, dataset: Dataset) -> tuple[Baseline, ViTEncoder, PairStream]:
    step = build_step(BASELINES.get(name), TINY, "headline", 0, 10).eval()
    return step.method, step.encoder, open_stream(dataset, "val", step.method, view_spec("headline", 32), seed=0)


@torch.no_grad()
def test_diagnostics_are_means_over_batches(solids_dataset: Dataset) -> None:
    method, encoder, stream = held_out("reconstruction", solids_dataset)
    batches = [stream.batch(start, 8, encoder) for start in (0, 8, 16)]
    each = [method.diagnostics(views, encode_pair(encoder, views)) for views in batches]
    for name, value in held_out_diagnostics(method, encoder, stream, 8, 3).items():
        assert value == pytest.approx(np.mean([float(found[name]) for found in each]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("equivariant", "low", "high"),
    [("copy", 0.999, 1.0), ("mixture", 0.999, 1.0), ("noise", -0.3, 0.1), ("half copy, half noise", 0.35, 0.55)],
)
def test_overlap_is_the_share_that_is_linear_in_the_other_half(
    equivariant: str, low: float, high: float, solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoder, stream = held_out("vicreg", solids_dataset)
    monkeypatch.setattr(stream, "all_rows", np.arange(600))
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(encoder.invariant, encoder.invariant, generator=generator)

    def tokens(images: Tensor) -> Tokens:
        first, noise = torch.randn(2, len(images), 1, encoder.invariant, generator=generator)
        half = encoder.invariant // 2
        other = {
            "copy": 3 * first + 1,
            "mixture": first @ mixing,
            "noise": noise,
            "half copy, half noise": torch.cat([first[..., :half], noise[..., half:]], dim=2),
        }[equivariant]
        return Tokens(first[:, 0], torch.cat([first, other], dim=2))

    monkeypatch.setattr(encoder, "tokens", tokens)
    assert low <= halves_overlap(encoder, stream, 64) <= high


@pytest.mark.parametrize("objects", [False, True])
def test_the_overlap_looks_at_validation_images_alone(objects: bool, solids_dataset: Dataset) -> None:
    dataset = with_objects(solids_dataset) if objects else solids_dataset
    _, _, stream = held_out("sie_pose" if objects else "sie_all", dataset)
    there = split_indices(dataset)["val"]
    np.testing.assert_array_equal(stream.spread_rows(10**6), there)
    some = stream.spread_rows(10)
    assert len(set(some)) == 10
    assert set(some) <= set(there)


@pytest.mark.parametrize("name", ["vicreg", "reconstruction"])
def test_a_run_keeps_what_it_has_learned(name: str, solids_dataset: Dataset, tmp_path: Path) -> None:
    entry = BASELINES.get(name)
    run = run_pretraining(entry, SHORT, solids_dataset, tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    found = facts["diagnostics"]
    assert {f"held_out/{key}": value for key, value in found.items()} == {
        key: value for key, value in last.items() if key.startswith("held_out/")
    }
    assert ("halves_overlap" in found) == entry.splits_features
    assert facts["trained"] == (not entry.method.not_learned(found))
    if entry.splits_features:
        stream = held_out(name, solids_dataset)[2]
        with torch.no_grad():
            again = halves_overlap(run.encoder, stream, 16)
        assert found["halves_overlap"] == pytest.approx(again, rel=0.01), "the run may have had bfloat16"
    assert FINAL_BATCHES > 1


def test_a_criterion_is_a_side_and_a_limit_and_what_is_absent_fails() -> None:
    class Both(Baseline):
        learned = {"small": Criterion("below", 0.2), "large": Criterion("above", 1.5)}

    assert Both.not_learned({"small": 0.1, "large": 2}) == []
    assert Both.not_learned({"small": 0.2, "large": 1.5}) == ["small 0.20, not below 0.2", "large 1.50, not above 1.5"]
    assert Both.not_learned({"small": float("nan"), "large": 2}) == ["small nan, not below 0.2"]
    assert Both.not_learned({"large": 2}) == ["small nan, not below 0.2"]
    assert Baseline.not_learned({}) == []


def test_a_criterion_of_what_is_not_measured_is_said_at_once(
    solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VICReg, "learned", {"rank": Criterion("above", 10)})
    with pytest.raises(UserError, match="learned names rank"):
        run_pretraining(BASELINES.get("vicreg"), SHORT, solids_dataset, tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_whoever_names_no_criterion_is_neither_trained_nor_not(
    solids_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VICReg, "learned", {})
    run_pretraining(BASELINES.get("vicreg"), SHORT, solids_dataset, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["trained"] is None
