"""What a reader must know before the numbers: the header of a table."""

from __future__ import annotations

from collections.abc import Sequence

from equibench.records import Record
from equibench.setting import Setting
from equibench.task import Task
from equibench.transforms import max_shift
from equibench.transforms.families import BLUR_RANGE, COLOR_RANGE, CROP_SCALE, MAX_ANGLE


def header(setting: Setting, tasks: Sequence[Task], seeds: Sequence[int], records: Sequence[Record]) -> list[str]:
    """Lines that say on what, how and with which ranges the table was made."""
    profile = setting.profile
    pretraining, encoder = profile.pretraining, profile.encoder
    lines = [
        f"Profile {profile.name}: {profile.title}.",
        f"Data: {setting.dataset.description}.",
        f"Encoder: ViT of width {encoder.width}, {encoder.depth} blocks, patch {encoder.patch}, "
        f"{encoder.features} features a token; {pretraining.pairs:,} pretraining pairs a row in batches of "
        f"{pretraining.batch}; decoder of width {profile.decoder.width}, {profile.decoder.depth} blocks; "
        f"λ_recon {pretraining.lambda_recon:g}; pretraining seeds {', '.join(map(str, seeds))}.",
    ]
    shares = sorted({record.known for record in records if record.known < 1})
    if shares:
        lines.append(
            f"θ is known of {shares[0]:.0%} of the training images; rows that need it are trained on these alone."
        )
    families = {task.family for task in tasks}
    if "regression" in families:
        lines += _regression(setting, [task for task in tasks if task.family == "regression"], records)
    if "classification" in families:
        lines.append(
            "Classes: multinomial logistic regression (L-BFGS) on frozen features, the penalty chosen among 45 values "
            "on validation images, fitted again on training and validation images, tested once; ± half the 95 % "
            "bootstrap interval over test images."
            + (" Images are seen through the disc of pretraining." if setting.spec.radius else "")
        )
    if "segmentation" in families:
        size = profile.segmentation
        lines.append(
            f"Segmentation: frozen encoder, taps at four depths, {size.iterations:,} iterations of {size.batch} crops "
            f"of {size.crop} px; ± half the 95 % bootstrap interval over validation images."
        )
    sizes = {f"{r.data}: {' / '.join(f'{n:,}' for n in r.pairs)}" for r in records if r.family not in ("regression",)}
    if sizes:
        lines.append(f"Images or pairs for training / validation / test: {'; '.join(sorted(sizes))}.")
    bad = {r.data: r.left_out for r in records if r.left_out}
    lines += [f"{count:,} bad items of {data} were left out." for data, count in bad.items()]
    return lines


def _regression(setting: Setting, tasks: Sequence[Task], records: Sequence[Record]) -> list[str]:
    profile, probing, radius = setting.profile, setting.probing, setting.spec.radius
    pairs = next((r.pairs for r in records if r.family == "regression"), list(probing.pairs))
    train, val, test = pairs
    views = f"mirrored fill, disc of radius {radius:g} px" if radius else "black fill, no mask (paper_like)"
    views += f"; ranges: {ranges(tasks, profile.image_size)}"
    if setting.dataset.has_objects:
        views = "as the data have them, angles in ±90°"
    return [
        f"Probe: 3-layer MLP of width {probing.width}, at most {probing.epochs} epochs, {probing.seeds} seeds; "
        f"{train:,} training, {val:,} validation and {test:,} test pairs.",
        f"Views: {profile.image_size} px, {views}.",
        "R² per dimension on standardised targets, ± half the 95 % bootstrap interval over test "
        + ("objects." if setting.dataset.has_objects else "images."),
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
