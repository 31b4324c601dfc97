"""What a run of the generator has to do: its settings, its objects, and the plan that it leaves in the folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equibench import __version__
from equibench.data.array_cache import read_json
from equibench.data.pairs import uniforms
from equibench.data.solid_shapes import CLASS_NAMES
from equibench.errors import UserError
from equibench.files import digest_of, write_text
from equibench.render.mesh_files import import_trimesh, list_meshes
from equibench.render.meshes import OBJECT_DRAWS
from equibench.render.scene import LATENTS, draw_latents
from equibench.render.worker import Job, is_complete

VERSION = 1  # raised whenever the same settings would give other pictures or lists
PLAN = "render.json"
VALIDATION_SHARE = 0.2  # of each class's objects
SMALLEST = 16  # pixels


@dataclass(frozen=True)
class Work:
    """The settings of a run, and its objects: by synset and name their mesh files, None for a solid."""

    root: Path
    objects: dict[str, dict[str, Path | None]]
    settings: dict[str, Any]

    @property
    def views(self) -> int:
        return int(self.settings["views"])

    @property
    def counts(self) -> dict[str, int]:
        """Objects by synset."""
        return {synset: len(names) for synset, names in self.objects.items()}

    def job(self, synset: str, name: str) -> Job:
        """One object with all that is drawn for it."""
        seed = self.settings["seed"]
        source = self.objects[synset][name]
        drawn = uniforms((1, OBJECT_DRAWS), "render", "object", seed, synset, name)[0]
        latents = draw_latents(uniforms((self.views, len(LATENTS)), "render", "view", seed, synset, name))
        return Job(self.root, synset, name, drawn if source is None else source, latents, self.settings["size"])

    def missing(self) -> list[tuple[str, str]]:
        """The objects that are not there, not complete, or older than their mesh file."""
        every = ((synset, name, source) for synset, found in self.objects.items() for name, source in found.items())
        return [
            (synset, name)
            for synset, name, source in every
            if not is_complete(folder := self.root / synset / name, self.views)
            or (source is not None and source.stat().st_mtime > folder.stat().st_mtime)
        ]


def make_work(out: Path | str, meshes: Path | str | None, objects: int, views: int, size: int, seed: int) -> Work:
    """The work that the arguments of `generator.render` ask for.

    Raises:
        UserError: a number is out of range; the meshes cannot be listed; a class has one object; trimesh is missing.
    """
    limits = {"objects": (objects, 2), "views": (views, 2), "size": (size, SMALLEST), "seed": (seed, 0)}
    for name, (value, least) in limits.items():
        if value < least:
            raise UserError(f"{name}={value} is too small.", f"Give {name} of {least} or more.")
    sources: dict[str, dict[str, Path | None]]
    if meshes is None:
        names = [f"{number:05d}" for number in range(objects)]
        sources = {synset: dict.fromkeys(names) for synset in sorted(CLASS_NAMES)}
    else:
        import_trimesh()
        listed = list_meshes(Path(meshes).expanduser())
        sources = {synset: dict(list(found.items())[:objects]) for synset, found in sorted(listed.items())}
    for synset, found in sources.items():
        if len(found) < 2:
            raise UserError(
                f"The class {synset} has one object; one is needed for training and one for validation.",
                "Add an object to the class or remove the class.",
            )
    objects_digest = digest_of([(synset, list(found)) for synset, found in sources.items()])[:16]
    settings = {
        "version": VERSION,
        "source": "solids" if meshes is None else f"meshes {objects_digest}",
        "objects": objects,
        "views": views,
        "size": size,
        "seed": seed,
    }
    return Work(Path(out).expanduser(), sources, settings)


def read_plan(work: Work) -> dict[str, Any]:
    """The plan that an earlier run has left in the folder, empty if there was none.

    Raises:
        UserError: it has other settings; or there are other things in the folder.
    """
    root, plan = work.root, read_json(work.root / PLAN)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file.", "Choose a folder.")
    if plan:
        before = plan.get("settings", {})
        differ = [key for key, value in work.settings.items() if before.get(key) != value]
        if differ:
            told = ", ".join(f"{key} {before.get(key)} (now {work.settings[key]})" for key in differ)
            raise UserError(
                f"{root} was rendered with other settings: {told}.",
                "Give the same settings to go on with it, or choose another folder.",
            )
    elif root.exists() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise UserError(f"{root} is not empty, and no {PLAN} in it says what was rendered.", "Choose another folder.")
    return plan


def write_plan(work: Work, **facts: Any) -> None:
    """Write the plan, with what is known of how far it is carried out.

    Raises:
        UserError: the folder cannot be written.
    """
    plan = {
        "generator": f"equibench {__version__}",
        "settings": work.settings,
        "latents": list(LATENTS),
        "classes": work.counts,
        "complete": False,
    }
    write_text(work.root / PLAN, json.dumps(plan | facts, indent=1) + "\n")


def split_objects(seed: int, synset: str, names: list[str]) -> dict[str, list[str]]:
    """A class's objects for training, and a fifth for validation, by a seeded hash; one at least on each side."""
    drawn = {name: float(uniforms((1, 1), "render", "split", seed, synset, name)[0, 0]) for name in names}
    count = min(max(round(VALIDATION_SHARE * len(names)), 1), len(names) - 1)
    chosen = sorted(names, key=lambda name: (drawn[name], name))[:count]
    return {"train": sorted(set(names) - set(chosen)), "val": sorted(chosen)}
