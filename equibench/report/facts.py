"""What a reader must know before the numbers: the header of a table."""

from __future__ import annotations

from collections.abc import Sequence

from equibench.setting import Setting
from equibench.task import Task
from equibench.transforms import max_shift
from equibench.transforms.families import BLUR_RANGE, COLOR_RANGE, CROP_SCALE, MAX_ANGLE


def header(setting: Setting, tasks: Sequence[Task], seeds: Sequence[int]) -> list[str]:
    """Lines that say on what, how and with which ranges the table was made."""
    profile = setting.profile
    pretraining, probing, encoder = profile.pretraining, profile.probing, profile.encoder
    train, val, test = probing.pairs
    radius = setting.spec.radius
    views = f"mirrored fill, disc of radius {radius:g} px" if radius else "black fill, no mask (paper_like)"
    return [
        f"Profile {profile.name}: {profile.title}.",
        f"Data: {setting.dataset.description}.",
        f"Encoder: ViT of width {encoder.width}, {encoder.depth} blocks, patch {encoder.patch}, "
        f"{encoder.features} features a token; {pretraining.pairs:,} pretraining pairs a row in batches of "
        f"{pretraining.batch}; decoder of width {profile.decoder.width}, {profile.decoder.depth} blocks; "
        f"λ_recon {pretraining.lambda_recon:g}; pretraining seeds {', '.join(map(str, seeds))}.",
        f"Probe: 3-layer MLP of width {probing.width}, at most {probing.epochs} epochs, {probing.seeds} seeds; "
        f"{train:,} training, {val:,} validation and {test:,} test pairs.",
        f"Views: {profile.image_size} px, {views}; ranges: {ranges(tasks, profile.image_size)}.",
        "R² per dimension on standardised targets, ± half the 95 % bootstrap interval over test images.",
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
