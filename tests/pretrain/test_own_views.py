"""Methods that make their own views: they learn, and two processes do what one does; and whose settings count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sharded import sharded_steps, stepped

from equibench import profiles
from equibench.data.dataset import Dataset
from equibench.pretrain.batches import open_stream
from equibench.pretrain.loop import TrainingStep, build_step, recipe
from equibench.pretrain.method import BASELINES, ViewPair
from equibench.profiles import get_profile
from equibench.transforms.transformation import view_spec

TINY = get_profile("tiny")
NAMES = [name for name in BASELINES.names() if not BASELINES.get(name).transformations]
SHARDED = ["simclr", "ibot", "dinov2", "dinov2_sinkhorn", "vicreg_all_rot", "ibot_all_se2"]


def batch_of(name: str, dataset: Dataset) -> tuple[TrainingStep, ViewPair]:
    step = build_step(BASELINES.get(name), TINY, "headline", 0, 10).train()
    stream = open_stream(dataset, "train", step.method, view_spec("headline", 32), seed=0)
    return step, step.method.prepare(stream.batch(0, 16, step.encoder))


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_scalars_and_reach_every_weight_of_the_student(name: str, solids_dataset: Dataset) -> None:
    step, views = batch_of(name, solids_dataset)
    for _, buffer in step.named_buffers():
        if buffer.shape == ():
            buffer.fill_(0.5)  # half of the run is done, and no layer waits any more
    losses, _ = step(views)
    for value in losses.values():
        assert value.shape == ()
        assert torch.isfinite(value)
    losses["loss"].backward()
    for parameter_name, parameter in step.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            if parameter.ndim > 1:
                assert float(parameter.grad.abs().max()) > 1e-9, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_what_says_that_it_has_learned_is_measured_and_fails_untrained(name: str, solids_dataset: Dataset) -> None:
    step, views = batch_of(name, solids_dataset)
    step.eval()
    with torch.no_grad():
        found = step.method.diagnostics(views, step.method.encode(step.encoder, views))
    learned = type(step.method).learned
    assert learned
    assert set(learned) <= set(found)
    assert len(step.method.not_learned({key: float(value) for key, value in found.items()})) == len(learned)


@pytest.mark.parametrize("name", ["simclr", "vicreg_all_rot", "simclr_all_se2"])
def test_what_has_learned_its_batch_says_so(name: str, solids_dataset: Dataset) -> None:
    step, views = batch_of(name, solids_dataset)
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        step(views)[0]["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = step.method.diagnostics(views, step.method.encode(step.encoder, views))
    assert step.method.not_learned({key: float(value) for key, value in found.items()}) == []


def test_images_that_a_student_and_teacher_tell_apart_are_said_to_be(solids_dataset: Dataset) -> None:
    """Small data do not train a teacher within seconds, so one is made that knows its images."""
    step, views = batch_of("ibot", solids_dataset)
    method = step.method.eval()
    logits = 4 * torch.eye(16, method.settings.prototypes)
    method.class_logits = lambda tokens: ([logits, logits], [logits])  # type: ignore[method-assign]
    with torch.no_grad():
        found = method.diagnostics(views, method.encode(step.encoder, views))
    assert method.not_learned({key: float(value) for key, value in found.items()}) == []


def test_two_processes_give_the_loss_the_gradients_and_the_centres_of_one(
    solids_dataset: Dataset, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(sharded_steps, args=(str(tmp_path), SHARDED), nprocs=2)  # type: ignore[no-untyped-call]
    result = torch.load(tmp_path / "result.pt")
    for name in SHARDED:
        step, loss = stepped(name, 0, 16)
        found = result[name]
        torch.testing.assert_close(found["loss"], loss, rtol=1e-4, atol=1e-5, msg=name)
        for parameter, gradient in found["gradients"].items():
            expected = step.get_parameter(parameter).grad
            torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=2e-4, msg=f"{name}: {parameter}")
        for buffer, value in found["buffers"].items():
            torch.testing.assert_close(value, step.get_buffer(buffer), rtol=1e-4, atol=1e-6, msg=f"{name}: {buffer}")


def test_settings_enter_the_recipes_of_those_that_read_them(
    solids_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("vicreg", "sie_all", "reconstruction", "supervised", "simclr", "ibot", "ibot_all_rot", "vicreg_all_rot")

    def recipes() -> dict[str, object]:
        return {name: recipe(BASELINES.get(name), TINY, solids_dataset, "headline", 0) for name in names}

    before, extras = recipes(), profiles.EXTRA_SETTINGS["tiny"]
    changes = {
        "distillation": (replace(extras.distillation, momentum=0.5), {"ibot", "ibot_all_rot"}),
        "redrawing": (replace(extras.redrawing, width=48), {"ibot_all_rot", "vicreg_all_rot"}),
        "temperature": (0.1, {"simclr"}),
    }
    for field, (value, changed) in changes.items():
        monkeypatch.setitem(profiles.EXTRA_SETTINGS, "tiny", replace(extras, **{field: value}))  # type: ignore[arg-type]
        after = recipes()
        assert {name for name in names if after[name] != before[name]} == changed, field


def test_rows_of_one_class_with_other_ssl_methods_are_other_methods() -> None:
    names = ("vicreg_all_rot", "simclr_all_rot", "ibot_all_rot", "vicreg_all_se2", "vicreg_all_rot_k1")
    assert len({BASELINES.get(name).source_sha256 for name in names}) == len(names)
    assert BASELINES.get("ibot_all_rot").extras == ("distillation", "redrawing")
