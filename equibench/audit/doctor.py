"""A look at a file of weights, in under a minute: is it safe, what is it, does it load, and does it see anything?"""

import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from equibench.data.load import load_dataset
from equibench.encoders.adapter import ImageEncoder
from equibench.encoders.checkpoint import find_weights, read_checkpoint
from equibench.encoders.coverage import is_finite
from equibench.encoders.guess import candidates, propose_rename
from equibench.encoders.layouts import apply_rename, parse_rename
from equibench.encoders.open import Opened, open_encoder
from equibench.encoders.weightfile import Checkpoint, inspect_file
from equibench.encoders.zoo import settle_batch_norm
from equibench.errors import UserError
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import evaluate
from equibench.pretrain.loop import default_precision
from equibench.profiles import Probing, get_profile
from equibench.runner.open import CPU_IMAGES, REPEATS, drawable, find_device
from equibench.runner.plan import time_image
from equibench.task import TASKS
from equibench.transforms.transformation import view_spec

SURE = 0.99
"""Share of an architecture's parameters that must be in the file for it to be taken without being named."""
BUDGET = 20.0
"""Seconds that the quick score's forward passes may take."""
QUICK_PAIRS = ((1600, 200, 800), (800, 100, 400), (400, 60, 200), (200, 40, 100))
NORMALISATIONS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "ImageNet (0.485/0.456/0.406, 0.229/0.224/0.225)": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half (0.5, 0.5)": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP (0.481/0.458/0.408, 0.269/0.261/0.276)": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
    "none (0, 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "none, in 0 to 255 (0, 1/255)": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
OWN = "its own config"
LOOKS_UNTRAINED = 0.05
"""Below this median Kolmogorov-Smirnov distance between its weights and an untrained net's, a file looks untrained."""


@dataclass
class Findings:
    """What the doctor found."""

    file: str
    format: str = ""
    bytes: int = 0
    safe: bool = False  # whether it was read, by readers that import and call nothing that a file names
    inert: list[str] = field(default_factory=list)  # names in it that nothing was done about
    tensors: int = 0
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)  # number of tensors by type
    notes: list[str] = field(default_factory=list)
    guesses: list[tuple[str, float]] = field(default_factory=list)  # architecture, share of it in the file; best first
    architecture: str | None = None  # the one that was loaded; None if none was
    options: str = ""  # what was asked for besides, as on the command line
    coverage: str = ""  # lines on missing, unexpected and mis-shaped names
    preprocessing: str = ""  # what the model's own config says
    normalisation: str = ""  # what the first BatchNorm's statistics say of it; "" where there is none
    from_untrained: float | None = None  # median distance of its weights from an untrained net's: 0 the same, 1 apart
    rotation: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """R² of a quick probe with its interval, for the file and for the untrained architecture."""
    rotation_pairs: tuple[int, int, int] | None = None
    problems: list[str] = field(default_factory=list)  # what stands in the way of a score
    hints: list[str] = field(default_factory=list)  # what does not
    seconds: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether the file can be scored as it is."""
        return not self.problems


def doctor(
    file: str | Path,
    *,
    arch: str | None = None,
    branch: str | None = None,
    rename: str | None = None,
    data: str | Path = "cifar10",
    data_root: str | Path | None = None,
    score: bool = True,
    device: str = "auto",
) -> Findings:
    """Examine a file of weights; what is wrong with it becomes a finding, not an error.

    Args:
        file: .pth, .pt, .safetensors, ..., an index of shards, or a folder that holds one.
        arch: "timm:NAME" or "torchvision:NAME"; the best guess if None.
        branch, rename: see `equibench.encoders.coverage.load_strictly`.
        data, data_root: images for the quick score; see `equibench.config.RunConfig`.
        score: whether to encode images at all.

    Raises:
        UserError: the file does not exist.
    """
    started, found = time.perf_counter(), Findings(str(file))
    asked = {"branch": branch, "rename": rename}
    found.options = "".join(f" --{name} {shlex.quote(value)}" for name, value in asked.items() if value)
    file = find_weights(file) or file
    facts = inspect_file(file)
    found.format, found.bytes = facts.format, facts.bytes
    try:
        checkpoint = read_checkpoint(file)
        found.format, found.bytes, found.safe = checkpoint.format, checkpoint.bytes, True
        opened = _load(checkpoint, file, arch, branch, rename, found)
        if opened is not None:
            _look_at_weights(opened, found)
            if score:
                _look_through(opened, found, data, data_root, device)
    except UserError as error:
        found.problems.append(f"{error.problem}. {error.fix}" if error.fix else error.problem)
    found.seconds = round(time.perf_counter() - started, 1)
    return found


def _load(
    checkpoint: Checkpoint, file: str | Path, arch: str | None, branch: str | None, rename: str | None, found: Findings
) -> Opened | None:
    """What the file holds, and its encoder if there is an architecture for it."""
    state = checkpoint.state
    found.tensors, found.parameters = len(state), sum(v.numel() for v in state.values() if v.is_floating_point())
    found.dtypes = dict(Counter(str(v.dtype).removeprefix("torch.") for v in state.values()))
    found.notes, found.inert = list(checkpoint.notes), list(checkpoint.inert)
    if checkpoint.suspicious:
        listed = ", ".join(checkpoint.suspicious[:5])
        found.hints.append(f"it asks for {listed}: open it with nothing that trusts pickles. Nothing was called here")
    bad = [n for n, v in state.items() if v.is_floating_point() and not is_finite(v)]
    if bad:
        found.problems.append(f"{len(bad)} tensors hold NaN or infinite values: {', '.join(bad[:5])}")
    given = arch
    if arch is None:
        guesses = _guess(checkpoint, rename, found)
        if not guesses or guesses[0][1] < SURE:
            best = f"the nearest is {guesses[0][0]} with {guesses[0][1]:.0%}" if guesses else "none comes near"
            found.problems.append(f"no known architecture has these keys ({best}). Name one with --arch timm:NAME")
            return None
        arch = guesses[0][0]
    try:
        opened = open_encoder(file, arch=arch, branch=branch, rename=rename)
    except UserError:
        if given is not None:
            _guess(checkpoint, rename, found)
            if found.guesses and found.guesses[0][1] >= SURE and found.guesses[0][0] != arch:
                found.hints.append(f"its names fit {found.guesses[0][0]}: --arch {found.guesses[0][0]}")
            elif rule := propose_rename(arch, state):
                found.hints.append(f"its names would fit {arch} with --rename '{rule}', if they mean the same")
        raise
    assert opened.coverage is not None
    found.architecture, found.coverage, found.notes = opened.architecture, opened.coverage.describe(), [*opened.notes]
    own = opened.encoder.preprocessing
    mean, std = ("/".join(f"{v:.3g}" for v in values) for values in (own.mean, own.std))
    found.preprocessing = f"{own.size} px, {own.interpolation}, mean {mean}, std {std}"
    return opened


def _guess(checkpoint: Checkpoint, rename: str | None, found: Findings) -> list[tuple[str, float]]:
    """Architectures that the names fit, best first, with the shares of them that are in the file."""
    found.guesses = [(c.arch, c.share) for c in candidates(apply_rename(checkpoint.state, parse_rename(rename)))]
    return found.guesses


def _look_at_weights(opened: Opened, found: Findings) -> None:
    """How far are the weights from untrained ones, and has any BatchNorm ever seen data?"""
    from scipy.stats import ks_2samp

    if opened.fresh is None:
        return

    def sample(values: Tensor) -> np.ndarray:
        return values.numpy()[rng.integers(len(values), size=2000)]

    rng = np.random.default_rng(0)
    ours, theirs = (
        {n: p.detach().float().flatten() for n, p in model.named_parameters() if p.ndim >= 2 and p.numel() >= 500}
        for model in (opened.encoder.model, opened.fresh(0).model)
    )
    distances = [ks_2samp(sample(ours[n]), sample(theirs[n])).statistic for n in ours if n in theirs]
    if distances:
        found.from_untrained = round(float(np.median(distances)), 3)
        if found.from_untrained < LOOKS_UNTRAINED:
            found.hints.append("its weights are distributed like those of an untrained network")
    norms = [m for m in opened.encoder.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    fresh = [m for m in norms if m.running_mean is not None and not m.running_mean.any()]
    if norms and len(fresh) == len(norms):
        found.hints.append("every BatchNorm mean is 0: it has never seen data, or its statistics were not saved")


def _look_through(opened: Opened, found: Findings, data: str | Path, data_root: str | Path | None, device: str) -> None:
    """Real images through the encoder: does its normalisation fit, and can a rotation be read from its features?"""
    try:
        dataset = load_dataset(data, data_root=data_root)
    except UserError as error:
        found.hints.append(f"no quick score: {error.problem}")
        return
    where, views = find_device(device), view_spec("headline", int(dataset.train.images.shape[-1]))
    images = torch.from_numpy(np.array(dataset.test.images[:64])).float() / 255
    found.normalisation = _normalisation(opened.encoder, images, found)
    profile = replace(get_profile("demo"), image_size=int(images.shape[-1]))
    with tempfile.TemporaryDirectory(prefix="equibench-") as folder:
        bf16 = default_precision(where.type) == "bf16-mixed"
        context = Context(profile, dataset, "headline", Path(folder), where, bf16, repeats=REPEATS)
        enough = [pairs for pairs in QUICK_PAIRS if drawable(dataset, pairs) == pairs]
        if not enough:
            found.hints.append(f"no quick score: {dataset.name} has too few images for one")
            return
        seconds = time_image(Row("", lambda: opened.encoder, batch=CPU_IMAGES), context)
        pairs = next((p for p in enough if sum(p) * 2 * seconds <= BUDGET), enough[-1])
        found.rotation_pairs = pairs
        quick = replace(profile, probing=Probing(pairs, width=256, epochs=40))
        context = replace(context, profile=quick)
        untrained = opened.fresh(0) if opened.fresh and sum(pairs) * 4 * seconds <= 1.5 * BUDGET else None
        if untrained is not None:
            settle_batch_norm(untrained, [images])
        for name, encoder in ((Path(found.file).name, opened.encoder), ("untrained", untrained)):
            if encoder is not None:
                kept = {
                    key: getattr(encoder, key) for key in ("architecture", "preprocessing", "pooling", "classifier")
                }
                masked = ImageEncoder(encoder.model, views=views, **kept)
                row = Row(name, lambda encoder=masked: encoder, masked.identity or {}, None, batch=CPU_IMAGES)  # type: ignore[misc]
                value = evaluate(row, TASKS.get("rotation"), context)[0].interval()
                found.rotation |= {name: value} if value else {}


@torch.no_grad()
def _normalisation(encoder: ImageEncoder, images: Tensor, found: Findings) -> str:
    """Which common normalisation brings the first BatchNorm's input closest to the statistics that it has stored."""
    norm = next((m for m in encoder.model.modules() if isinstance(m, nn.BatchNorm2d)), None)
    if norm is None or norm.running_mean is None or norm.running_var is None or not norm.running_mean.any():
        return ""
    mean, variance = norm.running_mean.cpu().clone(), norm.running_var.cpu().clone()
    own = (tuple(encoder.preprocessing.mean), tuple(encoder.preprocessing.std))
    distances: dict[str, float] = {}
    for name, (shift, scale) in {OWN: own, **NORMALISATIONS}.items():
        prepared = replace(encoder.preprocessing, mean=tuple(shift), std=tuple(scale))  # type: ignore[arg-type]
        twin = ImageEncoder(encoder.model, architecture="", preprocessing=prepared, classifier=encoder.classifier)
        taken: list[Tensor] = []
        hook = norm.register_forward_pre_hook(lambda _m, inputs, taken=taken: taken.append(inputs[0].float()))
        try:
            twin.represent(images)
        finally:
            hook.remove()
        seen = taken[0].transpose(0, 1).flatten(1)
        off = (seen.mean(dim=1) - mean).abs() / variance.sqrt() + (seen.var(dim=1) / variance).log().abs() / 2
        distances[name] = float(off.median())
    best = min(distances, key=lambda name: distances[name])
    if distances[OWN] > 1.5 * distances[best] + 0.1:
        found.hints.append(f"its first BatchNorm expects another normalisation: {best}; set --mean and --std")
    other = "" if best == OWN else f", by {distances[best]:.2f} with {best}"
    return f"the first BatchNorm's input is off by {distances[OWN]:.2f} with {OWN}{other}"
