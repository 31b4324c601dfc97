"""Who is scored and on what: the subject, and the setting that all subjects of a table or a score share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from equibench.data.dataset import Dataset
from equibench.encoders.vit import ViTEncoder
from equibench.evaluation.controls import CONTROLS
from equibench.evaluation.features import DEFAULT, FeatureStore
from equibench.pairs.manifest import Pairs, draw_object_pairs, draw_pairs
from equibench.pairs.views import Views, ViewStore
from equibench.profiles import MetricSizes, Probing, Profile
from equibench.task import Task
from equibench.transforms.transformation import TRANSFORMATIONS, ViewSpec, view_spec
from equibench.utils.arrays import Gathered

Features = NDArray[Any] | Gathered


@dataclass(frozen=True)
class Subject:
    """What is scored: an encoder, trained or not, or a control without an encoder.

    Attributes:
        name: the row's id.
        encoder: has `represent` (and `outputs`, `token_map` for layers and token maps); None for pixel controls.
        identity: what tells the encoder from all others: weights, architecture, and what it makes of an image.
        encoder_sha256: digest of its weights.
        half: channels of the invariant half where it has two halves, which are then scored alone too.
        layers: whose outputs are scored: "default" is the encoder's representation.
        batch: images per forward pass; None for the profile's.
        seed: pretraining seed, None for controls without an encoder.
        recipe_sha256, seconds, collapsed: of the pretraining run, if there was one.
        known: the share of training images whose θ that run could see.
        description: the encoder in words.
        command: the command that scores it, with {task} where the task's name goes.
    """

    name: str
    encoder: nn.Module | None = None
    identity: Mapping[str, object] | None = None
    encoder_sha256: str | None = None
    half: int | None = None
    layers: tuple[str, ...] = DEFAULT
    batch: int | None = None
    seed: int | None = None
    recipe_sha256: str | None = None
    seconds: float | None = None
    collapsed: bool | None = None
    known: float = 1.0
    description: str | None = None
    command: str = ""

    def suits(self, task: Task) -> bool:
        """Whether it can be scored on a task: a control without an encoder only where it says something."""
        return self.encoder is not None or task.family in CONTROLS[self.name].families

    def feature_sets(self) -> dict[str, tuple[str, slice]]:
        """What is scored, by name: a layer and which of its channels."""
        sets = {("full" if n == "default" else f"layer:{n}"): (n, slice(None)) for n in self.layers}
        if self.half is not None and "default" in self.layers:
            sets |= {"invariant": ("default", slice(0, self.half)), "equivariant": ("default", slice(self.half, None))}
        return sets


def vit_identity(encoder: ViTEncoder, weights: str, profile: Profile, spec: ViewSpec) -> dict[str, object]:
    """The identity of an encoder that the suite pretrains."""
    return {"weights": weights, "architecture": asdict(profile.encoder), "views": asdict(spec)}


@dataclass(frozen=True)
class OwnData:
    """How a task that brings its data along finds them.

    Attributes:
        size: side to which images are resized and cropped; None for that of the setting's own data.
        root: folder that holds the data; else $EQUIBENCH_DATA and the user's cache.
        stand_ins: whether small generated data take the place of those that a small profile cannot ask for.
        skip_bad: whether to leave out what cannot be read, and count it.
    """

    size: int | None = None
    root: Path | None = None
    stand_ins: bool = False
    skip_bad: bool = False


@dataclass(frozen=True)
class Setting:
    """Where and on what subjects are scored; the same for a whole table.

    Args:
        work: folder for views, features and predictions.
        own_data: for tasks that bring their data along.
        repeats: how often a training or validation image may be used, each time with a new θ.
        on_images: called with the number of images whenever some have been encoded.
        on_progress: called with the fraction of a task that is done, by families that take long over one.
    """

    profile: Profile
    dataset: Dataset
    variant: str
    work: Path
    device: torch.device
    bf16: bool
    repeats: int = 1
    own_data: OwnData = field(default_factory=OwnData)
    on_images: Callable[[int], None] | None = field(default=None, compare=False, repr=False)
    on_progress: Callable[[float, str], None] | None = field(default=None, compare=False, repr=False)
    _pairs: dict[Task, Pairs] = field(default_factory=dict, compare=False, repr=False)

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

    def pairs(self, task: Task) -> Pairs:
        """The task's manifest on this data, drawn once."""
        if task not in self._pairs:
            self._pairs[task] = self._draw(task)
        return self._pairs[task]

    def _draw(self, task: Task) -> Pairs:
        data, name, sizes = self.dataset, task.transformation, self.probing.pairs
        if TRANSFORMATIONS[name].observed:
            return draw_object_pairs(data, name, sizes, task=task.name, version=task.version)
        return draw_pairs(data, name, sizes, task=task.name, version=task.version, repeats=self.repeats)

    def encode(self, subject: Subject, views: Views, layers: Sequence[str] | None = None) -> dict[str, Features]:
        """A subject's features of these views, by layer: from the store, else from one forward pass."""
        assert subject.encoder is not None
        assert subject.identity is not None
        batch = subject.batch or self.profile.encode_batch
        store = FeatureStore(self.work / "features", batch, self.device, self.bf16, self.on_images)
        encoder = subject.encoder.to(self.device)
        return dict(store.encode(encoder, subject.identity, views, layers or subject.layers))
