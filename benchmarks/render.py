"""How fast views are rendered: a mesh of 5,000 faces, views of 64 pixels, by two processes; and what the time goes to.

    python benchmarks/render.py [--jobs 2] [--out benchmarks/render.json]

Prints JSON. The rate is that of whole objects, mesh, JPEGs and files included, in processes that have started (their
start is given apart). It is set against 50 views a second, which is what makes a data set of 20,000 views a matter of
minutes; the parts say what a view of one process spends on what, the larger sizes what they cost. On a machine that is
busy otherwise (see the load average) only the rate by CPU time means something. About a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from equibench.render.jobs import RenderJob, render_all, write_view
from equibench.render.meshes import OBJECT_DRAWS, Mesh, solid_object
from equibench.render.scene import (
    OBJECT_RADIUS,
    OVERSAMPLING,
    camera,
    cover,
    draw_latents,
    object_rotation,
    render_view,
    see,
)
from equibench.utils.random import uniforms

GOAL = 50.0  # views a second
SOLID = "cylinder"  # has 4,992 faces, which is nearest to 5,000
OBJECTS, VIEWS, SIZE = 16, 50, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    mesh = solid_object(SOLID, uniforms((1, OBJECT_DRAWS), "benchmark")[0])
    with tempfile.TemporaryDirectory(prefix="equibench-benchmark-") as folder:
        start, rate = throughput(Path(folder), arguments.jobs)
        with threadpool_limits(1):
            sizes = {str(size): round(1 / typical(view_of(mesh, size)), 1) for size in (64, 128, 256)}
            split = parts(mesh, Path(folder))
            per_cpu_second = undisturbed(mesh, Path(folder))
    facts = {
        "numpy": np.__version__,
        "faces": len(mesh.corners),
        "size": SIZE,
        "views": OBJECTS * VIEWS,
        "jobs": arguments.jobs,
        "views_per_second": round(rate, 1),
        "ratio_to_goal": round(rate / GOAL, 2),
        "load_average_before": round(load, 2),
        "views_per_cpu_second": round(per_cpu_second, 1),
        "start_seconds": round(start, 2),
        "views_per_second_of_one_process_by_size": sizes,
        "milliseconds_of_a_view": split,
    }
    text = json.dumps(facts, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def throughput(folder: Path, jobs: int) -> tuple[float, float]:
    """Seconds until every process has rendered an object of two views, then views a second."""

    def queue() -> Iterator[RenderJob]:
        for number in range(jobs + OBJECTS):
            views = 2 if number < jobs else VIEWS
            latents = draw_latents(uniforms((views, 7), "benchmark", "view", number))
            drawn = uniforms((1, OBJECT_DRAWS), "benchmark", number)[0]
            yield RenderJob(folder, SOLID, str(number), drawn, latents, SIZE)

    began = time.perf_counter()
    for done, _ in enumerate(render_all(queue(), jobs), start=1):
        if done == jobs:
            started = time.perf_counter()
    return started - began, OBJECTS * VIEWS / (time.perf_counter() - started)


def view_of(mesh: Mesh, size: int) -> Callable[[int], object]:
    latents = draw_latents(uniforms((64, 7), "benchmark", "size"))
    return lambda turn: render_view(mesh, latents[turn], size)


def undisturbed(mesh: Mesh, folder: Path, times: int = 100) -> float:
    """Views, files included, in a second of this process's own time on the CPU: what others do counts for little."""
    latents = draw_latents(uniforms((times, 7), "benchmark", "cpu"))
    started = time.process_time()
    for number, one in enumerate(latents):
        write_view(folder, number, mesh, one, SIZE)
    return times / (time.process_time() - started)


def parts(mesh: Mesh, folder: Path) -> dict[str, float]:
    """Milliseconds of the parts of a view in one process; they overlap: the first holds the next two."""
    latents = draw_latents(uniforms((64, 7), "benchmark", "parts"))
    side, eye = SIZE * OVERSAMPLING, camera()
    corners = OBJECT_RADIUS * mesh.corners
    turned = [eye.project(corners @ object_rotation(one).as_matrix().T, side) for one in latents]
    picture = Image.fromarray(render_view(mesh, latents[0], SIZE))
    measured: dict[str, Callable[[int], object]] = {
        "picture": view_of(mesh, SIZE),
        "of which z-buffer": lambda turn: see(turned[turn], side),
        "of which shadow's coverage": lambda turn: cover(turned[turn], side),
        "JPEG": lambda turn: picture.save(folder / "one.jpg", quality=95),
        "with its files": lambda turn: write_view(folder, turn, mesh, latents[turn], SIZE),
    }
    return {name: round(1000 * typical(work), 2) for name, work in measured.items()}


def typical(work: Callable[[int], object], times: int = 40) -> float:
    """Median seconds of a call."""
    work(0)
    taken = []
    for turn in range(times):
        started = time.perf_counter()
        work(turn)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
