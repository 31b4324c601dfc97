"""BibTeX entries of what a table or a score rests on: its methods, measures and data, and the paper it reproduces."""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

from equibench.pretrain.method import BASELINES
from equibench.records import Record
from equibench.task import TASKS
from equibench.utils.digests import __version__

PAPER = "wang2024equivariant"
"""Whose tables are reproduced."""
_METHODS = {"reconstruction": PAPER, "sie": "garrido2023sie", "vicreg": "bardes2022vicreg"}
_EVALUATORS = {
    "retrieval": "garrido2023sie", "object_retrieval": "garrido2023sie", "wahba": "gupta2024care",
    "lie": "gruver2023lie",
}  # fmt: skip
_TRANSFORMATIONS = {
    "crop": ("devillers2023equimod", "lee2021augself"), "color": ("lee2021augself",), "flip": ("lee2021augself",),
    "pose": ("garrido2023sie",), "hues": ("garrido2023sie",),
}  # fmt: skip
_DATA = {"cifar10": "krizhevsky2009cifar", "cifar100": "krizhevsky2009cifar", "ade20k": "zhou2017ade20k"}


def bib_entries() -> dict[str, str]:
    """All entries that equibench knows, by key."""
    text = files("equibench.report").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text.replace("VERSION", __version__))]
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}


def cited(records: Sequence[Record], published: bool) -> list[str]:
    """Keys of what these records rest on, in the order of the file; the paper's where its numbers are shown."""
    found = {"equibench", *([PAPER] if published else [])}
    for record in records:
        found |= set(_keys_of(record))
    return [key for key in bib_entries() if key in found]


def bibtex(keys: Iterable[str]) -> str:
    """The entries of these keys, as a .bib file."""
    entries = bib_entries()
    return "\n\n".join(entries[key] for key in keys) + "\n"


def _keys_of(record: Record) -> list[str]:
    keys = [_EVALUATORS.get(record.evaluator), _DATA.get(record.data)]
    if record.baseline in BASELINES.names():
        keys.append(_METHODS.get(BASELINES.get(record.baseline).method.__module__.rpartition(".")[2]))
    if record.task in TASKS.names():
        task = TASKS.get(record.task)
        keys += _TRANSFORMATIONS.get(task.transformation, ())
        keys += ["kornblith2019better"] if task.evaluator == "classification" and task.data else []
        keys += ["kong2016hypernet"] if task.name == "ade20k" else []
    return [key for key in keys if key]
