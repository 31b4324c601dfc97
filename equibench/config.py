"""What was asked: one configuration for every command and for Python, so that each parameter is described once.

    RunConfig.of(profile="tiny", rows=["vicreg"], device="cpu")

The command line makes its options from the fields below; `equibench.table(**options)` and its siblings take the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from equibench.errors import UserError, closest
from equibench.profiles import Profile, get_profile

_VARIANTS = ("headline", "paper_like")
RESULTS = Path("results")
"""Where results go unless told otherwise."""
_MEASURED, _SIZE, _DATA, _ENCODER, _MACHINE = "What to measure", "How much", "Data", "Encoder", "Machine and folders"
"""Groups of options on the command line."""

SCORE_OPTIONS = (
    "tasks", "layers", "controls", "variant", "profile", "pairs", "seed", "data", "plugins", "data_root", "image_size",
    "skip_bad", "features", "arch", "name", "pretrained", "size", "mean", "std", "interpolation", "pooling", "branch",
    "rename", "allow_random", "allow_partial", "device", "runs",
)  # fmt: skip
"""The fields of the configuration that a score heeds."""
VIEW_OPTIONS = ("variant", "profile", "pairs", "data", "plugins", "data_root", "image_size", "skip_bad")
"""Those that decide which views there are; features of exported views are scored with those of their manifest."""


def _option(default: Any, help: str, group: str, *, flag: str | None = None, numbers: type | None = None) -> Any:
    return field(default=default, metadata={"help": help, "group": group, "flag": flag, "numbers": numbers})


@dataclass(frozen=True)
class RunConfig:
    """All that can be asked of a table, a score, a curve or a pretraining run; it can be sent to another process.

    The fields' help says what each is; `equibench.runner.open.open_context` turns it into data, device and folders.
    """

    rows: tuple[str, ...] | None = _option(None, "only these rows, separated by commas", _MEASURED)
    columns: tuple[str, ...] | None = _option(None, "only these columns, separated by commas", _MEASURED)
    tasks: tuple[str, ...] | None = _option(
        None, "names, patterns, evaluators, all, or a .py file; the regression tasks by default", _MEASURED
    )
    layers: tuple[str, ...] | None = _option(None, "inner layers to score as well, by name, or all", _MEASURED)
    controls: bool = _option(True, "score random init, pixels, constant and oracle as well", _MEASURED)
    baseline_files: tuple[Path, ...] = _option(
        (), "a Python file that registers further baselines; may be repeated", _MEASURED, flag="--baseline"
    )
    variant: str = _option("headline", "views: headline (mirrored fill, disc) or paper_like (black fill)", _MEASURED)
    profile: str | Profile = _option("demo", "how large: `equibench list profiles`, or a TOML file", _SIZE)
    pairs: tuple[int, ...] | None = _option(
        None, "training, validation and test pairs, such as 4000,1000,3000", _SIZE, numbers=int
    )
    seeds: tuple[int, ...] = _option((0,), "pretraining seeds, separated by commas", _SIZE, numbers=int)
    seed: int = _option(0, "pretraining seed, or that of the untrained control", _SIZE)
    data: str | Path = _option("cifar10", "one of cifar10, solids; a folder of images; or a registered name", _DATA)
    plugins: tuple[Path, ...] = _option(
        (), "a Python file that registers data sets; may be repeated", _DATA, flag="--plugin"
    )
    data_root: Path | None = _option(
        None, "folder that holds the data sets; else $EQUIBENCH_DATA, the cache, a download", _DATA
    )
    image_size: int = _option(224, "pixels to which the images of a folder are resized and cropped", _DATA)
    skip_bad: bool = _option(False, "leave out what cannot be read, and count it in the records", _DATA)
    features: Path | None = _option(
        None, "a folder of features that other code made of exported views, instead of an encoder", _ENCODER
    )
    arch: str | None = _option(
        None,
        "a file's architecture: timm:NAME, torchvision:NAME, hf:ORG/NAME, open_clip:NAME, or FILE.py:FUNCTION, which "
        "is run",
        _ENCODER,
    )
    name: str | None = _option(None, "the encoder's name in the records, instead of its file's with a digest", _ENCODER)
    pretrained: bool = _option(True, "take the model's trained weights, or none", _ENCODER)
    size: int | None = _option(None, "pixels that the encoder sees, instead of its own", _ENCODER)
    mean: tuple[float, ...] | None = _option(
        None, "three numbers in units of [0, 1], instead of its own", _ENCODER, numbers=float
    )
    std: tuple[float, ...] | None = _option(None, "three numbers, instead of its own", _ENCODER, numbers=float)
    interpolation: str | None = _option(None, "one of bilinear, bicubic, nearest", _ENCODER)
    pooling: str = _option("default", "one of default (the model's own), cls, mean; or a layer's name", _ENCODER)
    branch: str | None = _option(None, "which network of a file that holds several, such as teacher", _ENCODER)
    rename: str | None = _option(None, "rules for a file's names, 'regex=>text;regex=>text'", _ENCODER)
    allow_random: tuple[str, ...] = _option(
        (), "names of weights that the file lacks and that may stay random, separated by commas", _ENCODER
    )
    allow_partial: bool = _option(False, "gone: what it was needed for is left out by itself", _ENCODER)
    device: str = _option("auto", "one of auto, cpu, cuda", _MACHINE)
    devices: int = _option(1, "how many devices (on each node, under torchrun or SLURM)", _MACHINE)
    jobs: int | None = _option(
        None, "jobs worked on side by side, one thread each; as many as cores on a CPU", _MACHINE
    )
    runs: Path = _option(Path("runs"), "folder for work in progress: checkpoints, features, the journal", _MACHINE)
    # what a table's definition adds
    table: str = "table2"
    pretraining_data: str | None = None
    known_fraction: float = 1.0
    shared_root: bool = False  # whether data_root is there for data that tasks bring along
    dataset: str | None = None  # that was found already, if so; it is not searched for again

    @classmethod
    def of(cls, **options: Any) -> RunConfig:
        """A configuration from plain values: lists become tuples, and texts paths.

        A UserError if an option is unknown, or its value makes no sense.
        """
        known, plain = {one.name: one for one in fields(cls)}, {}
        for name, value in options.items():
            if name not in known:
                asked = [one.name for one in fields(cls) if one.metadata]
                raise UserError(f"there is no option {name!r}{closest(name, asked)}", f"options: {', '.join(asked)}")
            kind, plain[name] = str(known[name].type), value
            if value is not None and kind.startswith("tuple"):
                if isinstance(value, str | bool):
                    kind = "the text " if isinstance(value, str) else ""
                    raise UserError(f"{name} is a list, not {kind}{value!r}", f"{name}=[{str(value)!r}]")
                plain[name] = tuple(Path(one) if "Path" in kind else one for one in value)
            elif value is not None and kind.startswith("Path"):
                plain[name] = Path(value)
        return cls(**plain)

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            hint = closest(self.variant, _VARIANTS)
            raise UserError(f"unknown variant {self.variant!r}{hint}", f"one of {', '.join(_VARIANTS)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            problem = f"seeds must be distinct numbers from 0 on, not {list(self.seeds)}"
            raise UserError(problem, "for example --seeds 0,1,2")
        if self.pairs is not None and (len(self.pairs) != 3 or min(self.pairs) < 1):
            problem = f"pairs {self.pairs} are not numbers of training, validation and test pairs"
            raise UserError(problem, "--pairs 4000,1000,3000")
        for name in ("jobs", "devices"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise UserError(f"{name} must be 1 or more, not {count}", f"--{name} 1")
        get_profile(self.profile)

    @property
    def sizes(self) -> Profile:
        """The profile."""
        return get_profile(self.profile)

    def with_(self, **changes: Any) -> RunConfig:
        """A copy with some values changed."""
        return replace(self, **changes)

    def flags(self, names: Sequence[str]) -> list[str]:
        """The options, of those named, that are not as by default, as on the command line."""
        found = []
        for one in fields(self):
            value, name = getattr(self, one.name), one.name.replace("_", "-")
            if one.name not in names or value == one.default:
                continue
            flag = one.metadata["flag"] or f"--{name}"
            if isinstance(value, bool):
                found.append(flag if value else f"--no-{name}")
                continue
            for each in value if str(one.type).startswith("tuple[Path") else [value]:
                text = ",".join(map(str, each)) if isinstance(each, tuple) else str(each)
                found.append(f"{flag} {shlex.quote(each.name if isinstance(each, Profile) else text)}")
        return found
