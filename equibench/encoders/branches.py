"""Where in a file a network is, and which one is meant where there are two.

An entry of a dictionary ("teacher") and a prefix of names ("module.encoder_q.") are the same here: a branch. All
branches are tried against the architecture. Where two fit and hold different weights, the choice is the one that the
method's own evaluation makes (`CHOICES`), or the user's; it is never made by length or alphabet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from equibench.errors import UserError

_TRAINING = re.compile(r"(optim(izers?)?(_\w+)?|opt|exp_avg\w*|momentum_buffer|grad_scaler|scaler|lr_schedulers?)")
_SHOWN = 8


class Choice(NamedTuple):
    """Of two branches that fit, `take` and not `leave` (patterns of where their names differ)."""

    take: str
    leave: str
    source: str


CHOICES = tuple(
    Choice(*row)
    for row in (
        (r"teacher(_\w+)?", r"student(_\w+)?", "DINO, iBOT, DINOv2, EsViT: their evaluations read the teacher"),
        (r"backbone", r"student_backbone", "lightly's DINO: its evaluation reads `backbone`, the teacher"),
        (r"encoder_q", r"encoder_k(\.module)?", "MoCo v1 and v2: main_lincls.py reads encoder_q"),
        (r"base_encoder", r"momentum_encoder", "MoCo v3: main_lincls.py reads base_encoder"),
        (r"backbone", r"(encoder_k|target_net)(\.0)?", "OpenMMLab's MoCo and BYOL: `backbone` is what is extracted"),
        (r"backbone", r"momentum_backbone|backbone_momentum", "solo-learn, lightly: linear evaluation of `backbone`"),
        (r"encoder", r"momentum_encoder", "solo-learn, older: main_linear.py reads `encoder`"),
        (r"(online_(encoder|network|net|backbone)|online)", r"(target_(encoder|network|net|backbone)|target)",
         "BYOL (section 3.1): the online network is kept"),
        (r"target_encoder", r"(encoder|context_encoder)", "I-JEPA, V-JEPA, MSN: evaluated on the target encoder"),
    )
)  # fmt: skip
"""Whose evaluation takes what."""


def branch_names(state: Mapping[str, Tensor], least: int) -> list[str]:
    """Prefixes below which at least `least` tensors are, "" among them; training state is left out.

    Sorted by depth, then by their order in the file.
    """
    counts = Counter({"": len(state)})
    for name in state:
        parts = name.split(".")
        if any(_TRAINING.fullmatch(part) for part in parts[:3]):
            counts[""] -= 1
            continue
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    return sorted((p for p, count in counts.items() if count >= least or p == ""), key=lambda p: p.count("."))


def named(branches: Sequence[str], asked: str) -> list[str]:
    """The branches whose path holds the path `asked`; the shallowest that do, and what is below them."""
    wanted = f".{asked.strip('.')}."
    return [branch for branch in branches if wanted in f".{branch}"]


def choose_branch(fitting: Sequence[str], path: object) -> tuple[int, str]:
    """Which of several branches with different weights is meant, by its place in the list, and why.

    A UserError that lists them is raised where no published evaluation says.
    """
    if len(fitting) == 1:
        return 0, ""
    for index, one in enumerate(fitting):
        said = [_preferred(one, other) for k, other in enumerate(fitting) if k != index]
        if all(said):
            return index, str(said[0])
    listed = ", ".join(_shown(branch) for branch in fitting[:_SHOWN])
    example = next((branch for branch in fitting if branch), "")
    raise UserError(
        f"{path} holds {len(fitting)} networks with different weights that fit the architecture: {listed}",
        f"say which one is meant, such as --branch {example.rstrip('.')} (branch={example.rstrip('.')!r})",
    )


def unknown_branch(asked: str, fitting: Sequence[str], path: object) -> UserError:
    """What to say of a --branch that the file does not have."""
    listed = ", ".join(_shown(branch) for branch in fitting[:_SHOWN]) or "none"
    return UserError(
        f"{path} has no branch {asked!r}; it holds: {listed}", "give --branch one of them, or leave it out"
    )


def _preferred(one: str, other: str) -> str:
    """The source by which `one` is taken and not `other`, or ""."""
    a, b = one.rstrip(".").split("."), other.rstrip(".").split(".")
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    x, y = ".".join(a), ".".join(b)
    for choice in CHOICES:
        if re.fullmatch(choice.take, x) and re.fullmatch(choice.leave, y):
            return choice.source
    return ""


def _shown(branch: str) -> str:
    return repr(branch.rstrip(".")) if branch else "the names without a prefix"
