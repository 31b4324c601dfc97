"""equibench: which transformations does a representation keep, which does it throw away, and how sure are we?"""

from __future__ import annotations

from typing import Any

_FUNCTIONS = {
    "score": "equibench.runner.score",
    "compare": "equibench.audit.compare",
    "explain": "equibench.audit.find",
    "verify": "equibench.audit.verify",
    "examine": "equibench.audit.doctor",
}

__all__ = ["compare", "examine", "explain", "score", "verify"]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are first asked for: torch takes seconds to import."""
    from importlib import import_module

    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'equibench' has no attribute {name!r}")
