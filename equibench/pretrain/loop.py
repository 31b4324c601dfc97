"""The training loop: Lightning Fabric for devices and precision, everything else on this page.

Schedules count steps, and a step's pairs depend on its number alone, so a run that is interrupted and resumed gives
the same losses as one that is not. What is in a run's folder: see `runs`.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from equibench.data.dataset import Dataset
from equibench.encoders.vit import ViTEncoder, weights_sha256
from equibench.errors import UserError
from equibench.pretrain.batches import PairStream, open_stream
from equibench.pretrain.method import Baseline, BaselineEntry, TokenPair, ViewPair
from equibench.pretrain.runs import FACTS, Run, build_encoder, finished_run
from equibench.profiles import Profile
from equibench.transforms.transformation import view_spec
from equibench.utils.digests import code_digest
from equibench.utils.files import append_line, digest_of, read_lines, writable_folder, write_atomically, write_text

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COLLAPSE_STD = 0.02
"""Below this mean standard deviation per dimension, relative to the features' root mean square, a run has collapsed."""
FINAL_BATCHES = 10
"""Held-out batches over which diagnostics are averaged when a run ends; while it goes on, one has to do."""

OVERLAP_IMAGES = 2560
"""Validation images, of which one half fits the linear map between the halves and the other tests it."""
_PENALTIES = np.logspace(-4, 4, 9)

Report = Callable[[int, int, dict[str, float]], None]


class TrainingStep(nn.Module):
    """Encoder and method as the one module that Fabric wraps, so that DDP sees every parameter."""

    def __init__(self, encoder: ViTEncoder, method: Baseline) -> None:
        super().__init__()
        self.encoder, self.method = encoder, method

    def forward(self, views: ViewPair) -> tuple[dict[str, Tensor], TokenPair]:
        tokens = self.method.encode(self.encoder, views)
        return self.method.loss(views, tokens), tokens

    @property
    def kept(self) -> str:
        """Name of the part that is the run's encoder: "encoder", or that of the method's teacher."""
        kept = self.method.kept(self.encoder)
        return next(name for name, part in self.named_modules() if part is kept)


def build_step(entry: BaselineEntry, profile: Profile, variant: str, seed: int, classes: int) -> TrainingStep:
    """Encoder and method (a supervised one for so many classes) from the seed; all methods start from one encoder."""
    profile = profile.of_row(entry.name)
    encoder = build_encoder(profile, variant, seed)
    return TrainingStep(encoder, entry.build(profile, encoder, classes))


def recipe(
    entry: BaselineEntry, profile: Profile, dataset: Dataset, variant: str, seed: int, known_fraction: float = 1.0
) -> dict[str, Any]:
    """Everything that a run's result depends on, but for the machine's rounding."""
    profile = profile.of_row(entry.name)
    return {
        "baseline": entry.name,
        "source": entry.source_sha256,
        **{part: asdict(getattr(profile, part)) for part in ("encoder", "decoder", "pretraining")},
        **{name: asdict(profile.extras)[name] for name in entry.extras},
        "image_size": profile.image_size,
        "data": dataset.name,
        "data_sha256": dataset.sha256,
        "variant": variant,
        "seed": seed,
        "known_fraction": 1.0 if entry.use_of_theta == "unused" else known_fraction,
        "code": code_digest(_Trainer, build_step, open_stream, learning_rate),
    }


def default_precision(device: str) -> str:
    """bf16 where the hardware multiplies it, else float32."""
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    # there is no public question to ask of a CPU yet
    return "bf16-mixed" if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)() else "32-true"


def start_fabric(device: str = "auto", devices: int | str = 1) -> "Fabric":
    """Fabric for this machine; under torchrun or SLURM it joins the process group that they describe.

    A UserError if the device is not there.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision otherwise
    accelerator = {"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(device, device)
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found", "use --device cpu or --device auto")
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=default_precision(accelerator))  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def run_pretraining(
    entry: BaselineEntry,
    profile: Profile,
    dataset: Dataset,
    folder: Path,
    *,
    variant: str = "headline",
    seed: int = 0,
    known_fraction: float = 1.0,
    fabric: "Fabric | None" = None,
    report: Report | None = None,
) -> Run:
    """Pretrain one row, or go on where it stopped, or return it if it is done.

    A UserError if the folder cannot be written, or the loss is not finite.

    Args:
        profile: whose settings for this row are taken, where it has been tuned.
        dataset: images; the validation tenth of its training set is only looked at for diagnostics.
        folder: where the run is kept. What lies there from another recipe is replaced.
        variant: "headline" or "paper_like" views; "rendered" for data that bring their views along.
        known_fraction: of the training images, whose θ is known (P1 Table 3).
        report: called at every log line with (steps done, steps in all, scalars).
    """
    fabric, profile = fabric or start_fabric(), profile.of_row(entry.name)
    digest = digest_of(recipe(entry, profile, dataset, variant, seed, known_fraction))
    if finished := finished_run(profile, folder, variant, seed, digest):
        return finished
    writable_folder(folder)
    module = build_step(entry, profile, variant, seed, len(dataset.class_names))
    views = view_spec(variant, profile.image_size)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    train, val = (open_stream(dataset, s, module.method, views, seed, known_fraction) for s in ("train", "val"))
    _Trainer(fabric, module, profile, train, val, folder, digest, report).run()
    run = finished_run(profile, folder, variant, seed, digest)
    assert run is not None
    return run


class _Trainer:
    """State of a run in progress."""

    def __init__(
        self,
        fabric: "Fabric",
        module: TrainingStep,
        profile: Profile,
        train: PairStream,
        val: PairStream,
        folder: Path,
        digest: str,
        report: Report | None,
    ) -> None:
        self.fabric, self.bare, self.settings = fabric, module, profile.pretraining
        self.train, self.val, self.folder, self.digest, self.report = train, val, folder, digest, report
        lr, decay = self.settings.lr, self.settings.weight_decay
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay, fused=True)
        self.module, self.optimizer = fabric.setup(module, optimizer)
        self.step, self.seconds, self.collapsed = 0, 0.0, False
        self.held_out: dict[str, float] = {}
        self._resume()

    def run(self) -> None:
        settings, share = self.settings, self.settings.batch // self.fabric.world_size
        self.module.train()
        since, since_step = time.perf_counter(), self.step
        while self.step < settings.steps:
            self.lr = learning_rate(settings.lr, self.step, settings.steps, settings.warmup)
            first = self.step * settings.batch + self.fabric.global_rank * share
            views = self.bare.method.prepare(self.train.batch(first, share, self.bare.encoder))
            losses, tokens = self.module(views)
            self.fabric.backward(losses["loss"])
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.bare.method.after_step(self.bare.encoder, self.step, settings.steps)
            if self.step % settings.log_every == 0 or self.step == settings.steps:
                seconds = time.perf_counter() - since
                self.seconds += seconds
                self._log(losses, tokens, (self.step - since_step) * settings.batch / seconds)
                since, since_step = time.perf_counter(), self.step
            due = self.step % settings.checkpoint_every == 0 and self.step < settings.steps
            if due and self.fabric.is_global_zero:
                state = {"digest": self.digest, "step": self.step, "seconds": self.seconds, "kept": self.bare.kept}
                state |= {"module": self.bare.state_dict(), "optimizer": self.optimizer.state_dict()}
                write_atomically(self.folder / "checkpoint.pt", partial(torch.save, state))
        if self.fabric.is_global_zero:
            self._finish()
        self.fabric.barrier()

    @torch.no_grad()
    def _log(self, losses: dict[str, Tensor], tokens: TokenPair, pairs_per_second: float) -> None:
        scalars = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(scalars["loss"]):
            problem = f"the loss is {scalars['loss']} at step {self.step} of {self.folder.name}"
            raise UserError(problem, "lower the learning rate; the last checkpoint is kept")
        features = tokens.v1.mean.detach().float()
        spread = features.std(dim=0) / features.square().mean().sqrt().clamp_min(1e-12)
        scalars |= {"feature_std": float(spread.mean()), "feature_std_min": float(spread.min())}
        self.module.eval()
        with self.fabric.autocast():
            self.held_out = self._held_out(last=self.step == self.settings.steps)
        self.module.train()
        scalars |= {f"held_out/{name}": value for name, value in self.held_out.items()}
        self.collapsed = bool(collapse_signs(scalars))
        if self.fabric.is_global_zero:
            line = {"step": self.step, "lr": self.lr, "pairs_per_second": round(pairs_per_second, 1), **scalars}
            append_line(self.folder / "log.jsonl", json.dumps(line))
            if self.report:
                self.report(self.step, self.settings.steps, scalars)

    def _held_out(self, last: bool) -> dict[str, float]:
        """The method's diagnostics, and at the end of a run with two halves how far these overlap."""
        method, encoder, batch = self.bare.method, self.bare.encoder, self.settings.batch
        found = held_out_diagnostics(method, encoder, self.val, batch, FINAL_BATCHES if last else 1)
        if missing := [name for name in method.learned if name not in found]:
            problem = f"{type(method).__name__}.learned names {', '.join(missing)}, which its diagnostics do not give"
            raise UserError(problem, "return it from diagnostics(self, views, tokens)")
        if last and method.splits_features:
            found["halves_overlap"] = halves_overlap(method.kept(encoder), self.val, batch)
        return found

    def _resume(self) -> None:
        path, log = self.folder / "checkpoint.pt", self.folder / "log.jsonl"
        if path.exists():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise UserError(f"the checkpoint {path} is damaged: {error}", f"remove {path} and run again") from error
            if state["digest"] == self.digest:
                self.bare.load_state_dict(state["module"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.step, self.seconds = state["step"], state["seconds"]
        if self.fabric.is_global_zero:  # what was logged after the checkpoint will be logged again
            kept = [line for line in read_lines(log) if line["step"] <= self.step]
            write_text(log, "".join(json.dumps(line) + "\n" for line in kept))
        self.fabric.barrier()

    def _finish(self) -> None:
        encoder = self.bare.method.kept(self.bare.encoder)
        for part, name in ((encoder, "encoder"), (self.bare.method, "method")):
            state = {key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()}
            write_atomically(self.folder / f"{name}.safetensors", partial(save_file, state))
        facts = {
            "recipe_sha256": self.digest,
            "encoder_sha256": weights_sha256(encoder),
            "seconds": round(self.seconds, 3),
            "steps": self.step,
            "collapsed": self.collapsed,
            "diagnostics": self.held_out,
            "trained": not self.bare.method.not_learned(self.held_out) if self.bare.method.learned else None,
            "precision": default_precision(self.fabric.device.type),
        }
        # last, since its presence says that the run is complete
        write_text(self.folder / FACTS, json.dumps(facts, indent=1) + "\n")
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)


def learning_rate(peak: float, step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a fraction of all steps, then a cosine to zero."""
    ramp = max(1, round(warmup * steps))
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def collapse_signs(scalars: Mapping[str, float]) -> str:
    """What in a line of the log says that a run has collapsed, in words; "" where nothing does."""
    if scalars["feature_std"] < COLLAPSE_STD:
        return "the features hardly vary over images"
    if scalars.get("held_out/collapsed", 0) > 0.5:
        entropy, spread = (scalars[f"held_out/teacher_{name}"] for name in ("entropy", "spread"))
        said = f"entropy {entropy:.2f} of the teacher's distributions and {spread:.2f} of their mean, of at most 1"
        return f"the teacher says the same of all images ({said})"
    return ""


def held_out_diagnostics(
    method: Baseline, encoder: ViTEncoder, stream: PairStream, batch: int, batches: int
) -> dict[str, float]:
    """Means of a method's diagnostics over the first batches of a held-out stream; both modules are in eval mode."""
    found = []
    for number in range(batches):
        views = stream.batch(number * batch, batch, encoder)
        with torch.autocast(views.v1.device.type, enabled=False):
            views = method.prepare(views)
        found.append(method.diagnostics(views, method.encode(encoder, views)))
    return {name: float(np.mean([float(each[name]) for each in found])) for name in found[0]}


def halves_overlap(encoder: ViTEncoder, stream: PairStream, batch: int) -> float:
    """R² of the equivariant half as a linear function of the invariant one (docs/protocol.md 6.11).

    Ridge regression between the halves of the representations of untransformed images, its penalty chosen by
    leave-one-out on every other image and the R², the mean over dimensions, taken on the rest. 1: the equivariant
    half holds nothing of its own that a linear map could tell; 0: it shares nothing linearly.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = stream.spread_rows(OVERLAP_IMAGES)
    parts = [stream.pictures(rows[start : start + batch], encoder) for start in range(0, len(rows), batch)]
    features = torch.cat([encoder.tokens(part).mean for part in parts]).double().cpu().numpy()
    invariant, equivariant = np.split(features, [encoder.invariant], axis=1)
    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES)).fit(invariant[::2], equivariant[::2])
    return float(model.score(invariant[1::2], equivariant[1::2]))
