"""Profiles: how large a run is. A profile sets sizes and schedules, never a loss, a view or a metric."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from equibench.errors import UserError, closest


@dataclass(frozen=True)
class EncoderSize:
    """A ViT with a linear head per token (P2 4.1): the head's outputs are the features, split in two halves."""

    width: int
    depth: int
    heads: int
    patch: int
    features: int

    @property
    def half(self) -> int:
        """Channels of the invariant half, which come first; the equivariant half is the rest."""
        return self.features // 2


@dataclass(frozen=True)
class DecoderSize:
    """The reconstruction decoder: one cross-attention block and depth - 1 self-attention blocks."""

    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class Pretraining:
    """Schedule and loss weights of every row of a table; all rows get the same pairs.

    Attributes:
        pairs: how many pairs a run sees in all (an image that is seen again gets a new θ).
        batch: pairs per optimiser step over all devices.
        lr: peak learning rate of AdamW, after warmup (a fraction of all steps) and before the cosine to zero.
        lambda_recon: weight of the reconstruction loss against the SSL loss (P1 section 2, λ_recon with λ_SSL = 1).
        weight: what a method's one weight is multiplied by (docs/protocol.md 6.12): that of the invariance term of
            VICReg and of the reconstruction's VICReg, of SIE's equivariance term, of supervised label smoothing.
    """

    pairs: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float
    lambda_recon: float
    projector: tuple[int, ...]
    checkpoint_every: int
    log_every: int
    weight: float = 1.0

    @property
    def steps(self) -> int:
        return self.pairs // self.batch


@dataclass(frozen=True)
class Probing:
    """The probes of the regression tasks, and the pairs that they are trained, selected and reported on.

    Attributes:
        epochs: at most; the MLP's training ends when its validation error has not fallen for `patience` of them.
        dropout: share of the hidden units that are left out in a training step.
        averaging: how much of the running average of the weights, which is what is kept, each step leaves.
        unwhitened_epochs, unwhitened_lr: of P1's literal probe (docs/protocol.md 7.2), which has neither.
    """

    pairs: tuple[int, int, int]
    width: int
    epochs: int = 80
    batch: int = 256
    lr: float = 4e-3
    seeds: int = 3
    patience: int = 20
    dropout: float = 0.2
    averaging: float = 0.98
    unwhitened_epochs: int = 12
    unwhitened_lr: float = 5e-4


@dataclass(frozen=True)
class MetricSizes:
    """How many test images the metrics beyond regression look at, where they need views of their own.

    Attributes:
        composition_images: two transformations after one another, for composition errors.
        retrieval_images, bank: each image's transform is sought among `bank` transforms of the same image.
        fixed_images, fixed: the same `fixed` transformations of all these images, for Wahba's problem.
        lie_images: finite differences around the identity.
    """

    composition_images: int = 500
    retrieval_images: int = 100
    bank: int = 50
    fixed_images: int = 500
    fixed: int = 4
    lie_images: int = 200


@dataclass(frozen=True)
class RenderedData:
    """How large the data are that equibench renders for the small profiles, in the layout of published ones.

    Attributes:
        objects, views: of data in 3DIEBench's layout: objects of each of ten classes, and views of each.
        scenes: training and validation pictures in ADE20K's layout.
    """

    objects: int
    views: int
    scenes: tuple[int, int]


@dataclass(frozen=True)
class SegmentationSize:
    """Training of the segmentation head: steps, images a step, side of the crops in pixels, peak learning rate."""

    iterations: int
    batch: int
    crop: int
    lr: float


@dataclass(frozen=True)
class Distillation:
    """Heads, teacher and crops of iBOT and DINOv2 (docs/protocol.md 13.3); shares are of a run's steps.

    Attributes:
        prototypes, hidden, bottleneck: widths of the head's output, hidden layers and last layer's input.
        local_crops, local_size: how many small crops beside the two large ones, and their side in pixels.
        momentum: of the teacher at the start, from where it rises to 1 on a cosine.
        temperatures: of the teacher, at the start and after the share `warmup`, linear in between.
        frozen_last: share during which the head's last layer is not trained.
        keeps_teacher: whether the run's encoder is the teacher (as published) or the student.
    """

    prototypes: int
    hidden: int
    bottleneck: int
    local_crops: int
    local_size: int
    momentum: float
    temperatures: tuple[float, float] = (0.04, 0.07)
    warmup: float = 0.3
    frozen_last: float = 0.01
    keeps_teacher: bool = True


@dataclass(frozen=True)
class Redrawing:
    """Decoders of intermediate reconstruction, and what its paper is silent about (docs/protocol.md 13.4).

    Attributes:
        width: channels of the decoder's first map; each doubling of its side halves them, down to `narrowest`.
        class_token: whether the decoder sees the class tokens too, beside each patch's tokens.
        reduction: whether the squared error is the mean or the sum over an image's visible pixels and channels.
        first_view: whether view 1's tokens come from the student or, where there is one, from the teacher.
    """

    width: int
    narrowest: int = 8
    class_token: bool = False
    reduction: Literal["mean", "sum"] = "mean"
    first_view: Literal["student", "teacher"] = "student"


@dataclass(frozen=True)
class Extras:
    """Settings of some methods alone, which enter the recipes of these and of no other."""

    distillation: Distillation
    redrawing: Redrawing
    temperature: float = 0.5
    """Of SimCLR's softmax: its README's for CIFAR; 0.1 on ImageNet."""


@dataclass(frozen=True)
class Profile:
    """Attributes: `rendered` is None where published data are asked for; `snapshots` are the steps after which a copy
    of the encoder is kept for learning curves, multiples of `pretraining.checkpoint_every`; `tuned` are the settings
    that `equibench tune` has found for rows, fields of `pretraining` by row.
    """

    name: str
    title: str
    dataset: str
    dataset_sizes: tuple[int, int] | None
    image_size: int
    encoder: EncoderSize
    decoder: DecoderSize
    pretraining: Pretraining
    probing: Probing
    extras: Extras
    metric_sizes: MetricSizes = field(default_factory=MetricSizes)
    encode_batch: int = 512
    rendered: RenderedData | None = None
    segmentation: SegmentationSize = SegmentationSize(iterations=40_000, batch=16, crop=512, lr=1e-3)
    snapshots: tuple[int, ...] = ()
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def of_row(self, row: str) -> "Profile":
        """The profile as one row is pretrained with it; every other row has the profile's own settings."""
        return replace(self, pretraining=replace(self.pretraining, **self.tuned.get(row, {})))


CPU_BATCH = 128
"""Images a forward pass on a CPU: a small ViT encodes 1,500 a second and core so, and 1,000 with 512, whose activations
leave the cache. The features are the same to the last bit."""

_SMALL_EXTRAS = Extras(
    Distillation(prototypes=512, hidden=256, bottleneck=64, local_crops=2, local_size=16, momentum=0.98),
    Redrawing(width=64),
)
_TUNED = dict.fromkeys(
    ("vicreg", "sie_rot", "sie_color", "sie_blur", "sie_trans", "sie_crop", "sie_flip", "sie_all", "sie_all_single",
     "reconstruction"),
    {"lr": 1.4e-3, "batch": 64, "weight": 0.25},
)  # fmt: skip
"""What `equibench tune table2 --trials 3` chose in the demo: the same for every row (results/demo/tune)."""
_DEMO = Profile(
    name="demo",
    title="a small ViT on CIFAR-10, minutes a row on two CPU cores",
    dataset="cifar10",
    dataset_sizes=None,
    image_size=32,
    encoder=EncoderSize(width=128, depth=4, heads=4, patch=4, features=128),
    decoder=DecoderSize(width=96, depth=2, heads=3),
    pretraining=Pretraining(
        pairs=45_000, batch=64, lr=7e-4, weight_decay=1e-6, warmup=0.05, lambda_recon=1,
        projector=(512, 512, 48), checkpoint_every=75, log_every=25,
    ),
    probing=Probing(pairs=(4000, 1000, 3000), width=128, epochs=40, patience=12),
    extras=_SMALL_EXTRAS,
    encode_batch=CPU_BATCH,
    rendered=RenderedData(objects=120, views=12, scenes=(200, 80)),
    snapshots=(75, 225, 450),
    tuned=_TUNED,
    segmentation=SegmentationSize(iterations=500, batch=8, crop=64, lr=3e-3),
)  # fmt: skip
_CIFAR10_CPU = replace(
    _DEMO,
    name="cifar10_cpu",
    title="complete CIFAR-10 on two CPU cores: the demo's small ViT, two epochs of pairs, larger probes",
    pretraining=replace(_DEMO.pretraining, pairs=90_000, checkpoint_every=175),
    probing=Probing(pairs=(16_000, 1000, 5000), width=256),
    rendered=None,
    snapshots=(175, 350, 700, 1050),
)
PROFILES = {
    p.name: p
    for p in [
        Profile(
            name="tiny",
            title="every path in a minute or two on generated images; its numbers claim nothing",
            dataset="solids",
            dataset_sizes=(800, 200),
            image_size=32,
            encoder=EncoderSize(width=32, depth=1, heads=2, patch=8, features=32),
            decoder=DecoderSize(width=32, depth=2, heads=2),
            pretraining=Pretraining(
                pairs=480, batch=16, lr=1e-3, weight_decay=1e-6, warmup=0.1, lambda_recon=1,
                projector=(32, 8), checkpoint_every=10, log_every=5,
            ),
            probing=Probing(pairs=(256, 64, 128), width=32, epochs=10, seeds=2),
            extras=Extras(
                Distillation(prototypes=64, hidden=64, bottleneck=16, local_crops=2, local_size=16, momentum=0.9),
                Redrawing(width=32),
            ),
            metric_sizes=MetricSizes(
                composition_images=60, retrieval_images=30, bank=10, fixed_images=100, fixed=2, lie_images=40
            ),
            rendered=RenderedData(objects=6, views=6, scenes=(16, 8)),
            snapshots=(10, 20),
            segmentation=SegmentationSize(iterations=20, batch=4, crop=64, lr=1e-3),
        ),
        _DEMO,
        _CIFAR10_CPU,
        Profile(
            name="cifar10",
            title="the paper's appendix: complete CIFAR-10, one GPU",
            dataset="cifar10",
            dataset_sizes=None,
            image_size=32,
            encoder=EncoderSize(width=384, depth=12, heads=6, patch=4, features=384),
            decoder=DecoderSize(width=192, depth=6, heads=3),
            pretraining=Pretraining(
                pairs=45_000 * 200, batch=512, lr=4e-4, weight_decay=1e-6, warmup=0.05, lambda_recon=1,
                projector=(1024, 1024, 192), checkpoint_every=500, log_every=100,
            ),
            probing=Probing(
                pairs=(45_000, 5_000, 10_000), width=1024, lr=1e-3, unwhitened_epochs=50, unwhitened_lr=1e-3
            ),
            extras=Extras(
                Distillation(
                    prototypes=8192, hidden=2048, bottleneck=256, local_crops=8, local_size=16, momentum=0.996
                ),
                Redrawing(width=256, narrowest=16),
            ),
            snapshots=(500, 2000, 5000, 10_000),
            # with patches of 4 px, crops of 512 px would be 16,384 tokens
            segmentation=SegmentationSize(iterations=40_000, batch=16, crop=128, lr=1e-3),
        ),
    ]
}  # fmt: skip


_BUILT_IN = tuple(PROFILES)


def get_profile(name: str | Profile) -> Profile:
    """The profile of that name, or of a file that ends in ".toml" (see `read_profile`); a profile is itself.

    Raises:
        UserError: no such profile, or the file is wrong.
    """
    if isinstance(name, Profile):
        return name
    if name.endswith(".toml"):
        return read_profile(Path(name))
    if name not in PROFILES:
        known = f"profiles: {', '.join(PROFILES)}; or FILE.toml"
        raise UserError(f"unknown profile {name!r}{closest(name, PROFILES)}", known)
    return PROFILES[name]


def read_profile(path: Path) -> Profile:
    """A profile of one's own: a TOML file with the `base` that it starts from, and what differs.

        base = "demo"
        [encoder]
        width = 192
        [pretraining]
        pairs = 90_000

    It is called `name`, or like the file, and known by that name from then on.

    Raises:
        UserError: the file cannot be read, a key is unknown (the nearest one is named), or a value makes no sense.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the profile {path} cannot be read: {error}"
        raise UserError(problem, "give a TOML file: --profile mine.toml") from error
    profile = _parsed_profile(path, text)
    PROFILES[profile.name] = profile  # so that the runs made with it can be opened again
    return profile


@lru_cache(maxsize=8)  # a configuration asks for its profile at every turn
def _parsed_profile(path: Path, text: str) -> Profile:
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no TOML: {error}", 'it begins like: base = "demo"') from error
    base = given.pop("base", None)
    if base not in _BUILT_IN:
        hint = closest(str(base), _BUILT_IN)
        raise UserError(f"{path}: base = {base!r} is no profile{hint}", f"base is one of {', '.join(_BUILT_IN)}")
    name = given.setdefault("name", path.stem)
    if name in _BUILT_IN or not re.fullmatch(r"[\w.-]+", str(name)):
        problem = f"{path}: a profile of one's own cannot be called {name!r}"
        raise UserError(problem, 'add a line such as: name = "mine" (letters, digits, ".", "_", "-")')
    given.setdefault("title", f"{base} with the changes of {path.name}")
    profile = _changed(PROFILES[base], given, str(path))
    try:
        TypeAdapter(Profile).validate_json(json.dumps(asdict(profile)), strict=True)
    except (ValidationError, TypeError) as error:
        found = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("a value",), "msg": str(error)}
        where = ".".join(map(str, found["loc"]))
        raise UserError(f"{path}: {where}: {found['msg']}", f"as in {base}, where it is {_at(base, where)}") from error
    _check_sense(profile, str(path))
    return profile


def _changed(part: Any, changes: dict[str, Any], where: str) -> Any:
    """A copy of a profile, or of a part of one, with what a table of the file changes; lists become tuples."""
    known, new = [one.name for one in fields(part)], {}
    for key, value in changes.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{closest(key, known)}", f"keys: {', '.join(known)}")
        now = getattr(part, key)
        if isinstance(value, dict) and is_dataclass(now):
            value = _changed(now, value, f"{where}, {key}")
        elif isinstance(value, dict) and now is None and (kinds := get_args(get_type_hints(type(part))[key])):
            value = _whole(kinds[0], value, f"{where}, {key}")
        new[key] = tuple(value) if isinstance(value, list) else value
    return replace(part, **new)


def _whole(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A part that the base does not have, of which every key must be given."""
    known = [one.name for one in fields(kind)] if is_dataclass(kind) else []
    for key in (*values, *known):
        if key not in known or key not in values:
            what = "unknown" if key not in known else "missing"
            hint = closest(key, known) if key not in known else ""
            raise UserError(f"{where}: {what} key {key!r}{hint}", f"keys: {', '.join(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _at(base: str, where: str) -> object:
    value: Any = PROFILES[base]
    for key in where.split("."):
        value = getattr(value, key, value)
    return value


def _check_sense(profile: Profile, where: str) -> None:
    """Refuse sizes with which nothing can be built or trained."""
    encoder, decoder, pretraining, probing = profile.encoder, profile.decoder, profile.pretraining, profile.probing
    least_one = (*asdict(encoder).values(), *asdict(decoder).values(), profile.image_size, profile.encode_batch)
    wrong = {
        "sizes of encoder, decoder and images must be 1 or more": min(least_one) < 1,
        "encoder.patch must divide image_size": profile.image_size % max(encoder.patch, 1),
        "encoder.heads must divide encoder.width": encoder.width % max(encoder.heads, 1),
        "decoder.heads must divide decoder.width": decoder.width % max(decoder.heads, 1),
        "encoder.features must be even: they are split in two halves": encoder.features % 2,
        "pretraining.batch must be 1 or more, and pretraining.pairs no fewer": not (
            1 <= pretraining.batch <= pretraining.pairs
        ),
        "pretraining.lr and probing.lr must be above 0": min(pretraining.lr, probing.lr) <= 0,
        "pretraining.warmup must be in [0, 1)": not 0 <= pretraining.warmup < 1,
        "pretraining.checkpoint_every and log_every must be 1 or more": min(
            pretraining.checkpoint_every, pretraining.log_every
        ) < 1,
        "snapshots must be multiples of pretraining.checkpoint_every": any(
            step % max(pretraining.checkpoint_every, 1) for step in profile.snapshots
        ),
        "probing.pairs, width, epochs, batch and seeds must be 1 or more": min(
            *probing.pairs, probing.width, probing.epochs, probing.batch, probing.seeds
        ) < 1,
    }  # fmt: skip
    for rule, broken in wrong.items():
        if broken:
            raise UserError(f"{where}: {rule}", f"change it, or take the value of {', '.join(_BUILT_IN)}")
