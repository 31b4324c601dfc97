"""BibTeX entries of what a table or a score rests on: methods, measures, data, and the paper of the table."""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

from equibench.pretrain.method import BASELINES
from equibench.records import Record
from equibench.task import TASKS
from equibench.utils.digests import __version__

_P1, _P2 = "wang2024equivariant", "wang2025coherent"
_METHODS = {
    "reconstruction": _P1, "sie": "garrido2023sie", "vicreg": "bardes2022vicreg", "intermediate": _P2,
    "simclr": "chen2020simclr", "ibot": "zhou2022ibot", "dinov2": "oquab2024dinov2",
}  # fmt: skip
_EVALUATORS = {
    "retrieval": "garrido2023sie", "object_retrieval": "garrido2023sie", "wahba": "gupta2024care",
    "lie": "gruver2023lie", "propagation": "jabri2020walk", "homography": "detone2016homography",
}  # fmt: skip
_TRANSFORMATIONS = {
    "crop": ("devillers2023equimod", "lee2021augself"), "color": ("lee2021augself",), "flip": ("lee2021augself",),
    "pose": ("garrido2023sie",), "hues": ("garrido2023sie",),
}  # fmt: skip
_DATA = {
    "cifar10": "krizhevsky2009cifar", "cifar100": "krizhevsky2009cifar", "ade20k": "zhou2017ade20k",
    "davis2017": "ponttuset2017davis", "coco2017": "lin2014coco", "imagenet": "russakovsky2015imagenet",
    "inaturalist18": "vanhorn2018inaturalist",
}  # fmt: skip


def bib_entries() -> dict[str, str]:
    """All entries that equibench knows, by key."""
    text = files("equibench.report").joinpath("references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text.replace("VERSION", __version__))]
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}


def paper_of(table: str) -> str:
    """The key of the paper that a table is of: P2, or P1 as for one that equibench does not know."""
    return _P2 if table.startswith("p2_") else _P1


def cited(records: Sequence[Record], *further: str) -> list[str]:
    """Keys of what these records rest on, and further ones, in the order of the file."""
    found = {"equibench", *further}
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
        entry = BASELINES.get(record.baseline)
        methods = [entry.method, *(one for one in entry.settings.values() if isinstance(one, type))]
        keys += [_METHODS.get(method.__module__.rpartition(".")[2]) for method in methods]
    if record.task in TASKS.names():
        task = TASKS.get(record.task)
        keys += _TRANSFORMATIONS.get(task.transformation, ())
        keys += ["kornblith2019better"] if task.evaluator == "classification" and task.data else []
        keys += ["kong2016hypernet"] if task.name == "ade20k" else []
    return [key for key in keys if key]
