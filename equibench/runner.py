"""Bring the cells of a table up to date: pretrain what is missing, score what is missing, leave the rest alone.

The journal of a profile is `runs/<profile>/<data>-<variant>/records.jsonl`, append-only: a unit whose records are
there under the same digest is done. Whatever kills a run, the next one goes on from the journal and the last
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from equibench.controls import CONTROLS
from equibench.data.manifest import store_pairs
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.evaluate import evaluate, evaluation_digest
from equibench.files import digest_of, read_lines
from equibench.pretrain.loop import COLLAPSE_STD, Run, build_encoder, finished_run, pretrain, recipe
from equibench.progress import Progress
from equibench.records import HALVES, Record, append_records, read_records
from equibench.registry import BASELINES
from equibench.setting import Setting, Subject, vit_identity
from equibench.snapshots import keep_snapshot, read_snapshot
from equibench.task import Task
from equibench.workplace import Workplace


@dataclass(frozen=True)
class Unit:
    """One piece of work: a row at one pretraining seed, on some tasks.

    Attributes:
        row: a baseline's or control's id.
        seed: pretraining seed; None for controls without an encoder.
        pretrain: whether an encoder has to be trained first.
        tasks: columns that are not in the journal yet; empty if the unit is done.
        step: after which the run's encoder is scored; None for a finished run's.
    """

    row: str
    seed: int | None
    pretrain: bool
    tasks: tuple[Task, ...]
    step: int | None = None

    @property
    def done(self) -> bool:
        return not self.pretrain and not self.tasks


@dataclass(frozen=True)
class Plan:
    """The units of a table, and seconds for those still to be done."""

    units: list[Unit]
    estimates: dict[tuple[str, str], float]
    total: float


def plan(rows: Sequence[str], tasks: Sequence[Task], seeds: Sequence[int], place: Workplace) -> list[Unit]:
    """The units that make up rows x tasks x pretraining seeds, done ones included, in the table's order."""
    journal = {(r.baseline, r.task, r.evaluation_sha256) for r in read_records(place.journal)}
    units = []
    for row in rows:
        has_encoder = row not in CONTROLS or CONTROLS[row].has_encoder
        for seed in seeds if has_encoder else [None]:
            subject = find_subject(row, seed, place)
            missing = tuple(tasks)
            if subject:
                suited = [t for t in tasks if subject.suits(t)]
                missing = tuple(t for t in suited if (row, t.name, _digest(subject, t, place)) not in journal)
            units.append(Unit(row, seed, subject is None, missing))
    return units


def find_subject(row: str, seed: int | None, place: Workplace, step: int | None = None) -> Subject | None:
    """The row's encoder or control, or None if it has to be pretrained first.

    Args:
        step: after which the encoder is taken from the finished run, which is then called ROW@STEP.

    Raises:
        UserError: the run kept no encoder of that step.
    """
    setting = place.setting
    command = _command(row, seed, place)
    if row in CONTROLS and not CONTROLS[row].has_encoder:
        return Subject(row, command=command)
    assert seed is not None
    if row in CONTROLS:
        encoder = build_encoder(setting.profile, setting.variant, seed).eval()
        return encoder_subject(row, encoder, weights_sha256(encoder), setting, seed=seed, command=command)
    entry, known = BASELINES.get(row), place.known(row)
    digest = digest_of(recipe(entry, setting.profile, setting.dataset, setting.variant, seed, known))
    run = finished_run(setting.profile, place.run_folder(row, seed), setting.variant, seed, digest)
    if run is None:
        return None
    if step is not None:
        encoder = read_snapshot(run.folder, setting.profile, setting.variant, seed, step, digest)
        run, row = replace(run, encoder=encoder, encoder_sha256=weights_sha256(encoder)), f"{row}@{step}"
        command = command.replace(f"table {place.order.table}", "curve")
    subject = encoder_subject(row, run.encoder, run.encoder_sha256, setting, seed=seed, command=command)
    half = run.encoder.invariant if entry.splits_features else None
    return replace(subject, half=half, recipe_sha256=digest, seconds=run.seconds, collapsed=run.collapsed, known=known)


def encoder_subject(
    name: str, encoder: ViTEncoder, weights: str, setting: Setting, *, seed: int | None, command: str
) -> Subject:
    """An encoder that the suite pretrains, or its untrained twin."""
    size = setting.profile.encoder
    return Subject(
        name,
        encoder,
        vit_identity(encoder, weights, setting.profile, setting.spec),
        weights,
        seed=seed,
        description=f"ViT of width {size.width}, {size.depth} blocks, patch {size.patch}, mean of patch tokens",
        command=command,
    )


def _command(row: str, seed: int | None, place: Workplace) -> str:
    order = place.order
    parts = [f"equibench table {order.table} --profile {order.profile.name} --rows {row} --columns {{task}}"]
    parts += [f"--seeds {seed}"] if seed is not None else []
    parts += [f"--variant {order.variant}"] if order.variant != "headline" else []
    parts += [f"--baseline {file}" for file in order.baseline_files]
    return " ".join(parts)


def carry_out(units: Iterable[Unit], place: Workplace, progress: Progress) -> None:
    """Do the units that are not done one after the other, appending their records to the journal as they come."""
    for unit in units:
        if not unit.done:
            do_unit(unit, place, progress, lambda records: append_records(place.journal, records))


def do_unit(unit: Unit, place: Workplace, progress: Progress, keep: Callable[[list[Record]], None]) -> None:
    """Pretrain the unit's row if need be, and score it.

    Args:
        keep: what becomes of the records of each task, as soon as they are there.
    """
    if unit.pretrain:
        pretrain_row(unit.row, unit.seed or 0, place, progress)
    subject = find_subject(unit.row, unit.seed, place, unit.step)
    assert subject is not None
    if unit.tasks and place.fabric.is_global_zero:
        after = "" if unit.step is None else f" after {unit.step:,} steps"
        with progress.unit(f"score {row_title(unit.row)}{after}", ("score", unit.row)) as advance:
            for number, task in enumerate(unit.tasks):
                advance(number / len(unit.tasks), task.title)

                def report(fraction: float, note: str, number: int = number) -> None:
                    advance((number + fraction) / len(unit.tasks), note)

                if task.transformation:
                    store_pairs(place.setting.pairs(task), task.name, place.setting.work / "pairs")
                keep(evaluate(subject, task, replace(place.setting, on_progress=report)))
    place.fabric.barrier()


def pretrain_row(row: str, seed: int, place: Workplace, progress: Progress) -> Run:
    """Pretrain one row at one seed, with progress and a warning as soon as its features collapse."""
    setting, entry, folder = place.setting, BASELINES.get(row), place.run_folder(row, seed)
    warned = False
    with progress.unit(f"pretrain {entry.title}, seed {seed}", ("pretrain", row)) as advance:

        def report(step: int, steps: int, scalars: dict[str, float]) -> None:
            nonlocal warned
            advance(step / steps, f"loss {scalars['loss']:.3f}")
            keep_snapshot(folder, setting.profile, step)
            if scalars["feature_std"] < COLLAPSE_STD and not warned:
                warned = True
                progress.warn(
                    f"{entry.title}, seed {seed}: the features hardly vary over images at step {step} of {steps} "
                    f"(collapse); see {folder / 'log.jsonl'}"
                )

        return pretrain(
            entry,
            setting.profile,
            setting.dataset,
            folder,
            variant=setting.variant,
            seed=seed,
            known=place.known(row),
            fabric=place.fabric,
            report=report,
        )


def current_records(rows: Sequence[str], tasks: Sequence[Task], seeds: Sequence[int], place: Workplace) -> list[Record]:
    """The journal's records of these cells, as the code and the settings stand now, in the table's order."""
    stored: dict[tuple[str, str, str, str], Record] = {}
    for record in read_records(place.journal):
        stored.setdefault((record.evaluation_sha256, record.task, record.features, record.baseline), record)
    found = []
    for row in rows:
        has_encoder = row not in CONTROLS or CONTROLS[row].has_encoder
        for seed in seeds if has_encoder else [None]:
            subject = find_subject(row, seed, place)
            if subject is None:
                continue
            for task in filter(subject.suits, tasks):
                digest = _digest(subject, task, place)
                for features in HALVES:
                    if (key := (digest, task.name, features, row)) in stored:
                        found.append(stored[key])
    return found


def final_log_lines(rows: Sequence[str], seeds: Sequence[int], place: Workplace) -> list[dict[str, Any]]:
    """The last line of each finished run's log: its losses and held-out diagnostics when training ended."""
    lines = []
    for row in rows:
        for seed in seeds if row not in CONTROLS else ():
            if find_subject(row, seed, place):
                last = read_lines(place.run_folder(row, seed) / "log.jsonl")[-1]
                last.pop("pairs_per_second")  # the one value that another run would not repeat
                lines.append({"baseline": row, "seed": seed, **last})
    return lines


def _digest(subject: Subject, task: Task, place: Workplace) -> str:
    return evaluation_digest(subject, task, place.setting)


def row_title(row: str) -> str:
    """The name of a row in print."""
    return CONTROLS[row].title if row in CONTROLS else BASELINES.get(row).title
