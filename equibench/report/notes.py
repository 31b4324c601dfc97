"""What a reader must know before the numbers: the header of a table, and what its numbers say of the claims."""

from __future__ import annotations

from collections.abc import Sequence

from equibench.evaluation.context import Context
from equibench.evaluation.controls import CONTROLS, row_title
from equibench.pretrain.method import BASELINES
from equibench.records import Record
from equibench.report.definition import Cells
from equibench.task import Task
from equibench.transforms.transformation import BLUR_RANGE, COLOR_RANGE, CROP_SCALE, MAX_ANGLE, max_shift


def header(context: Context, tasks: Sequence[Task], seeds: Sequence[int], records: Sequence[Record]) -> list[str]:
    """Lines that say on what, how and with which ranges the table was made."""
    profile = context.profile
    pretraining, encoder = profile.pretraining, profile.encoder
    lines = [
        f"Profile {profile.name}: {profile.title}.",
        f"Data: {context.dataset.description}.",
        f"Encoder: ViT of width {encoder.width}, {encoder.depth} blocks, patch {encoder.patch}, "
        f"{encoder.features} features a token; {pretraining.pairs:,} pretraining pairs a row in batches of "
        f"{pretraining.batch}; decoder of width {profile.decoder.width}, {profile.decoder.depth} blocks; "
        f"λ_recon {pretraining.lambda_recon:g}; pretraining seeds {', '.join(map(str, seeds))}.",
    ]
    shares = sorted({record.known_fraction for record in records if record.known_fraction < 1})
    if shares:
        lines.append(
            f"θ is known of {shares[0]:.0%} of the training images; rows that need it are trained on these alone."
        )
    evaluators = {task.evaluator for task in tasks}
    if "regression" in evaluators:
        lines += _regression(context, [task for task in tasks if task.evaluator == "regression"], records)
    if "classification" in evaluators:
        lines.append(
            "Classes: multinomial logistic regression (L-BFGS) on frozen features, the penalty chosen among 45 values "
            "on validation images, fitted again on training and validation images, tested once; ± half the 95 % "
            "bootstrap interval over test images."
            + (" Images are seen through the disc of pretraining." if context.spec.radius else "")
        )
    if "segmentation" in evaluators:
        size = profile.segmentation
        lines.append(
            f"Segmentation: frozen encoder, taps at four depths, {size.iterations:,} iterations of {size.batch} crops "
            f"of {size.crop} px; ± half the 95 % bootstrap interval over validation images."
        )
    sizes = {f"{r.data}: {' / '.join(f'{n:,}' for n in r.pairs)}" for r in records if r.evaluator != "regression"}
    if sizes:
        lines.append(f"Images or pairs for training / validation / test: {'; '.join(sorted(sizes))}.")
    bad = {r.data: r.left_out for r in records if r.left_out}
    lines += [f"{count:,} bad items of {data} were left out." for data, count in bad.items()]
    return lines


def _regression(context: Context, tasks: Sequence[Task], records: Sequence[Record]) -> list[str]:
    profile, probing, radius = context.profile, context.probing, context.spec.radius
    pairs = next((r.pairs for r in records if r.evaluator == "regression"), list(probing.pairs))
    train, val, test = pairs
    views = f"mirrored fill, disc of radius {radius:g} px" if radius else "black fill, no mask (paper_like)"
    views += f"; ranges: {ranges(tasks, profile.image_size)}"
    if context.dataset.has_objects:
        views = "as the data have them, angles in ±90°"
    return [
        f"Probe: 3-layer MLP of width {probing.width}, at most {probing.epochs} epochs, {probing.seeds} seeds; "
        f"{train:,} training, {val:,} validation and {test:,} test pairs.",
        f"Views: {profile.image_size} px, {views}.",
        "R² per dimension on standardised targets, ± half the 95 % bootstrap interval over test "
        + ("objects." if context.dataset.has_objects else "images."),
    ]


def ranges(tasks: Sequence[Task], size: int) -> str:
    """The parameter ranges of the tasks' transformations."""
    brightness, hue = COLOR_RANGE[0], COLOR_RANGE[3]
    text = {
        "rotation": f"rotation ±{MAX_ANGLE:g}°",
        "color": f"brightness, contrast, saturation ±{brightness:g} and hue ±{hue:g}",
        "blur": f"blur sigma {BLUR_RANGE[0]:g} to {BLUR_RANGE[1]:g} px",
        "translation": f"translation ±{max_shift(size):g} px",
        "crop": f"crop area {CROP_SCALE[0]:g} to {CROP_SCALE[1]:g}",
        "flip": "flip or not",
    }
    return ", ".join(dict.fromkeys(text[t.transformation] for t in tasks if t.transformation in text))


def own_column_findings(rows: Sequence[str], tasks: Sequence[Task], cells: Cells) -> list[str]:
    """Whether a row trained on one known transformation is the best of its kind in that transformation's column.

    P1 (section 3) says so of SIE. A win counts only above the upper bound of random init, and only in a column that
    separates at least two of the rows compared.
    """
    kind = [r for r in rows if r.startswith("sie_")]
    lines = []
    for row in kind:
        known = BASELINES.get(row).transformations
        for task in tasks:
            if known == (task.transformation,) and (row, task.name) in cells:
                lines.append(f"{row_title(row)} in {task.title}: {_verdict(row, task, kind, cells)}")
    return lines


def _verdict(row: str, task: Task, kind: Sequence[str], cells: Cells) -> str:
    column = {r: cells[r, task.name] for r in kind if (r, task.name) in cells}
    best = max(column, key=lambda r: column[r].value)
    separated = max(c.low for c in column.values()) > min(c.high for c in column.values())
    floor = cells.get(("random_init", task.name))
    mine = f"{column[row].value:.3f}"
    if len(column) < 2 or floor is None:
        return "not tested, since the rows to compare it with are missing."
    if best != row:
        return f"no; {row_title(best)} is best with {column[best].value:.3f} against {mine}."
    if not separated:
        return f"best with {mine}, but the column separates no two SIE rows, so this is no win."
    if column[row].value <= floor.high:
        return f"best of the SIE rows with {mine}, but not above random init's upper bound {floor.high:.3f}: no win."
    return f"yes, with {mine}, above random init's upper bound {floor.high:.3f}."


def mean_of(row: str, tasks: Sequence[Task], cells: Cells) -> tuple[float, float, float] | None:
    """Mean R² of a row over tasks with the mean of the intervals' ends; None if a cell is missing.

    The tasks share their test images, so the interval of the mean is at most as wide.
    """
    found = [cells[row, t.name] for t in tasks if (row, t.name) in cells]
    if len(found) < len(tasks) or not found:
        return None
    return tuple(sum(getattr(c, end) for c in found) / len(found) for end in ("value", "low", "high"))  # type: ignore[return-value]


def geometry_findings(rows: Sequence[str], tasks: Sequence[Task], cells: Cells) -> list[str]:
    """Rows by their mean over rotation and translation, with what lies above both VICReg and random init."""
    geometry = [t for t in tasks if t.transformation in ("rotation", "translation")]
    rivals = [mean_of(r, geometry, cells) for r in ("vicreg", "random_init")]
    if len(geometry) < 2 or None in rivals:
        return []
    bar = max(rival[2] for rival in rivals if rival)
    lines = []
    for row in (*(r for r in rows if r not in CONTROLS), "random_init"):
        mean = mean_of(row, geometry, cells)
        if mean:
            above = " above both VICReg and random init" if mean[1] > bar else ""
            lines.append(f"{row_title(row)}: {mean[0]:.3f} [{mean[1]:.3f}, {mean[2]:.3f}]{above}")
    return lines
