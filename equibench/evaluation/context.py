"""What is scored and on what: the row, and the context (data, device, folders, profile) that all rows share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equibench.data.dataset import Dataset
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.features import DEFAULT, FeatureStore
from equibench.pairs.manifest import Pairs, draw_object_pairs, draw_pairs
from equibench.pairs.views import Views, ViewStore
from equibench.probes.whitening import Features
from equibench.profiles import MetricSizes, Probing, Profile
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS, ViewSpec, view_spec
from equibench.utils.files import append_line, cut_torn_line, digest_of, read_lines

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Row:
    """What is scored: an encoder, trained or not, or a control without an encoder.

    Attributes:
        name: the row's id.
        open: gives the encoder, which has `represent` (and `outputs`, `token_map` for layers and token maps); None for
            controls that have none. Whatever is stored already is found without it.
        identity: what tells the encoder from all others: weights, architecture, and what it makes of an image.
        encoder_sha256: digest of its weights.
        half: channels of the invariant half where it has two halves, which are then scored alone too.
        layers: whose outputs are scored: "default" is the encoder's representation.
        token_sets: tells which of "cls" and "grid" the encoder has; regression looks at them, too.
        batch: images per forward pass; None for the profile's.
        seed: pretraining seed, None for controls without an encoder.
        recipe_sha256, seconds, collapsed: of the pretraining run, if there was one.
        diagnostics, trained: what that run's method said of itself on held-out images when it ended, and whether by
            this it has learned what it is for.
        known_fraction: of the training images, whose θ that run could see.
        description: the encoder in words.
        command: the command that scores it, with {task} where the task's name goes.
        task_files: by task, the Python file that registers it, which then stands for its name.
        given: gives the features (N, D) of some views, where other code has made them and there is no encoder to open.
    """

    name: str
    open: Callable[[], nn.Module] | None = None
    identity: Mapping[str, object] | None = None
    encoder_sha256: str | None = None
    half: int | None = None
    layers: tuple[str, ...] = DEFAULT
    token_sets: Callable[[], tuple[str, ...]] = tuple
    batch: int | None = None
    seed: int | None = None
    recipe_sha256: str | None = None
    seconds: float | None = None
    collapsed: bool | None = None
    diagnostics: Mapping[str, float] | None = None
    trained: bool | None = None
    known_fraction: float = 1.0
    description: str | None = None
    command: str = ""
    task_files: Mapping[str, str] = field(default_factory=dict)
    given: Callable[[Views], Features] | None = None

    @property
    def has_encoder(self) -> bool:
        return self.open is not None

    @cached_property
    def encoder(self) -> nn.Module:
        """The encoder, opened when it is first asked for.

        Raises:
            TypeError: it is a control without one.
        """
        if self.open is None:
            raise TypeError(f"{self.name} has no encoder")
        return self.open()

    def suits(self, task: Task) -> bool:
        """Whether it can be scored on a task: a control without an encoder only where it says something."""
        return self.has_encoder or task.evaluator in CONTROLS[self.name].evaluators

    def feature_sets(self, tokens: bool = False) -> dict[str, tuple[str, slice]]:
        """What is scored, by name: a layer and which of its channels; with `tokens` its token sets, too."""
        sets = {("full" if n == "default" else f"layer:{n}"): (n, slice(None)) for n in self.layers}
        if self.half is not None and "default" in self.layers:
            sets |= {"invariant": ("default", slice(0, self.half)), "equivariant": ("default", slice(self.half, None))}
        return sets | ({name: (name, slice(None)) for name in self.token_sets()} if tokens else {})


def vit_identity(weights: str, profile: Profile, spec: ViewSpec) -> dict[str, object]:
    """The identity of an encoder that the suite pretrains, or of its untrained twin."""
    return {"weights": weights, "architecture": asdict(profile.encoder), "views": asdict(spec)}


@dataclass(frozen=True)
class Context:
    """Where and on what rows are pretrained and scored; the same for a whole table.

    Attributes:
        work: folder for pretraining runs, views, features, predictions and the journal.
        device, bf16: where encoders and probes run, and whether under bfloat16 autocast.
        devices: how many devices a pretraining run uses.
        repeats: how often a training or validation image may be used, each time with a new θ.
        known_fraction: of the training images, whose θ methods may see.
        data_root: folder of the data that tasks bring along; else $EQUIBENCH_DATA and the user's cache.
        data_size: side to which their images are resized and cropped; None for that of the context's own data.
        rendered: whether rendered scenes take the place of segmentation data, as in the small profiles.
        skip_bad: whether to leave out what cannot be read, and count it.
        on_images: called with the number of images whenever some have been encoded.
        on_progress: called with the fraction of a task that is done, by evaluators that take long over one.
    """

    profile: Profile
    dataset: Dataset
    variant: str
    work: Path
    device: torch.device
    bf16: bool
    devices: int = 1
    repeats: int = 1
    known_fraction: float = 1.0
    data_root: Path | None = None
    data_size: int | None = None
    rendered: bool = False
    skip_bad: bool = False
    on_images: Callable[[int], None] | None = field(default=None, compare=False, repr=False)
    on_progress: Callable[[float, str], None] | None = field(default=None, compare=False, repr=False)
    _shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def journal(self) -> Path:
        """The records of all that has been scored here, append-only."""
        return self.work / "records.jsonl"

    @property
    def size(self) -> int:
        """The images' side in pixels."""
        return int(self.dataset.train.images.shape[-1])

    @property
    def spec(self) -> ViewSpec:
        return view_spec(self.variant, self.size)

    @property
    def probing(self) -> Probing:
        return self.profile.probing

    @property
    def metric_sizes(self) -> MetricSizes:
        return self.profile.metric_sizes

    @property
    def probe_seeds(self) -> list[int]:
        return list(range(self.probing.seeds))

    @property
    def views(self) -> ViewStore:
        return ViewStore(self.work / "views", self.dataset, self.spec)

    @property
    def fabric(self) -> Fabric:
        """Lightning Fabric, started when it is first needed: importing it takes seconds."""
        if "fabric" not in self._shared:
            from equibench.pretrain.loop import start_fabric

            self._shared["fabric"] = start_fabric(self.device.type, self.devices)
        return self._shared["fabric"]  # type: ignore[no-any-return]

    @property
    def several_processes(self) -> bool:
        """Whether a launcher such as torchrun has started more than this process, or Fabric is to."""
        return self.devices > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that scores, writes and prints."""
        return not self.several_processes or self.fabric.is_global_zero

    def barrier(self) -> None:
        """Wait for the other processes, if there are any."""
        if self.several_processes:
            self.fabric.barrier()

    def pairs(self, task: Task) -> Pairs:
        """The task's manifest on this data, drawn once."""
        if task not in self._shared:
            self._shared[task] = self._draw(task)
        return self._shared[task]  # type: ignore[no-any-return]

    def _draw(self, task: Task) -> Pairs:
        data, name, sizes = self.dataset, task.transformation, self.probing.pairs
        if TRANSFORMATIONS[name].observed:
            return draw_object_pairs(data, name, sizes, task=task.name, version=task.version)
        named: dict[str, Any] = {"task": task.name, "version": task.version, "nuisance": task.nuisance}
        return draw_pairs(data, name, sizes, repeats=self.repeats, **named)

    def remembered(self, key: object, compute: Callable[[], Any]) -> Any:
        """A JSON value that is computed once for this folder: the digest of something that takes long to draw.

        It is written only where the folder is there already, since a plan writes nothing.
        """
        path, digest = self.work / "remembered.jsonl", digest_of(key)
        if "remembered" not in self._shared:
            self._shared["remembered"] = {line["key"]: line["value"] for line in read_lines(path)}
        known = self._shared["remembered"]
        if digest not in known:
            known[digest] = compute()
            if self.work.is_dir():
                cut_torn_line(path)
                append_line(path, json.dumps({"key": digest, "value": known[digest]}))
        return known[digest]

    def encode(self, row: Row, views: Views, layers: Sequence[str] | None = None) -> dict[str, Features]:
        """A row's features of these views, by layer: from the store, else from one forward pass."""
        assert row.identity is not None
        if row.given is not None:
            return {"default": row.given(views)}
        batch = row.batch or self.profile.encode_batch
        store = FeatureStore(self.work / "features", batch, self.device, self.bf16, self.on_images)
        return dict(store.encode(lambda: row.encoder.to(self.device), row.identity, views, layers or row.layers))
