"""equibench: which transformations does a representation keep, which does it throw away, and how sure are we?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equibench.comparison import compare
    from equibench.doctor import examine
    from equibench.explanation import explain
    from equibench.scoring import score
    from equibench.verification import verify

__version__ = "0.1.0"

_FUNCTIONS = {
    "score": "equibench.scoring",
    "compare": "equibench.comparison",
    "explain": "equibench.explanation",
    "verify": "equibench.verification",
    "examine": "equibench.doctor",
}

__all__ = ["compare", "examine", "explain", "score", "verify"]


def __getattr__(name: str) -> Any:
    """The functions, imported when they are first asked for: torch takes seconds to import."""
    from importlib import import_module

    if name in _FUNCTIONS:
        return getattr(import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'equibench' has no attribute {name!r}")
