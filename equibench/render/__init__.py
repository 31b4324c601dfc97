"""Rendered data in the layout of 3DIEBench: solids or meshes in random poses under a coloured light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equibench.render.contact import contact_sheet
    from equibench.render.generator import Estimate, Rendered, ensure_stand_in, estimate, render

_FUNCTIONS = {
    "render": "equibench.render.generator",
    "estimate": "equibench.render.generator",
    "ensure_stand_in": "equibench.render.generator",
    "Rendered": "equibench.render.generator",
    "Estimate": "equibench.render.generator",
    "contact_sheet": "equibench.render.contact",
}

__all__ = ["Estimate", "Rendered", "contact_sheet", "ensure_stand_in", "estimate", "render"]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are first asked for: a rendering process must not wait for torch."""
    from importlib import import_module

    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'equibench.render' has no attribute {name!r}")
