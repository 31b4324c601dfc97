"""The commands for data: `equibench data render`, `equibench data contact-sheet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from equibench.cli.options import command

data_commands = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Make data and look at it.")


@command(
    data_commands,
    "render",
    "equibench data render rendered/ --objects 40 --views 50 --size 128 --jobs 2",
    "equibench data render rendered/ --dry-run",
    "equibench data render rendered/ --meshes ShapeNetCore.v2/ --skip-bad",
)
def _render(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; an unfinished one is gone on with.")],
    meshes: Annotated[
        Path | None,
        typer.Option(help="Folder of OBJ, GLB, STL, PLY files: CLASS/OBJECT.obj, or ShapeNet's; else ten solids."),
    ] = None,
    objects: Annotated[int, typer.Option(min=2, help="Objects of each class, at most.")] = 40,
    views: Annotated[int, typer.Option(min=2, help="Views of each object.")] = 50,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of poses, lights, patterns and the split.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; as many as cores by default.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out mesh files that cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much it would be; write nothing.")] = False,
) -> None:
    """Render objects in random poses under a coloured light, in the layout of 3DIEBench."""
    from equibench.render.generate import estimate_rendering, render_objects
    from equibench.render.jobs import RenderSettings
    from equibench.utils.progress import clock

    settings = RenderSettings(
        meshes=meshes, objects=objects, views=views, size=size, seed=seed, jobs=jobs, skip_bad=skip_bad
    )
    console = Console(soft_wrap=True, highlight=False)
    if dry_run:
        work = estimate_rendering(out, settings)
        console.print(f"{sum(work.classes.values()):,} objects in {len(work.classes)} classes, {work.views} views each")
        console.print(
            f"to render: {work.missing:,} objects, {work.missing * work.views:,} views, about {clock(work.seconds)}, "
            f"{work.bytes / 1e6:,.0f} MB on disk ({work.free / 1e6:,.0f} MB free)"
        )
        return
    done = render_objects(out, settings)
    for name, problem in done.left_out.items():
        console.print(f"left out: {escape(name)}: {escape(problem)}", style="yellow")
    facts = [f"{done.train:,} objects for training", f"{done.val:,} for validation", f"{done.views} views each"]
    facts += [f"{len(done.classes)} classes", f"{done.new:,} objects rendered now"]
    console.print(", ".join(facts) + (f", {len(done.left_out):,} left out" if done.left_out else ""))
    console.print(f"written: {escape(str(done.root))}", style="dim")


@command(data_commands, "contact-sheet", "equibench data contact-sheet rendered/ sheet.png --objects 10 --views 8")
def _contact_sheet(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder in the layout of 3DIEBench.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The PNG to write.")] = Path("contact_sheet.png"),
    objects: Annotated[int, typer.Option(min=1, help="Rows; objects are taken from each class in turn.")] = 10,
    views: Annotated[int, typer.Option(min=1, help="Columns.")] = 8,
    cell: Annotated[int | None, typer.Option(min=1, help="Side of each picture in pixels; its own by default.")] = None,
) -> None:
    """Show some views of some objects in one picture."""
    from equibench.render.generate import write_contact_sheet

    written = write_contact_sheet(root, out, objects=objects, views=views, cell=cell)
    Console().print(f"written: {escape(str(written))}", style="dim", soft_wrap=True)
