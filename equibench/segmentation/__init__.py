"""Semantic segmentation with mmsegmentation: encoders as backbones, P1's decode head, ADE20K.

`custom_imports=dict(imports=["equibench.segmentation"])` in a config of one's own registers `equibench.Encoder`,
`equibench.HyperNetHead` and `equibench.LinearHead` with mmsegmentation; in a script that has imported parts of this
package before mmengine, name `equibench.segmentation.engine` instead. What needs no mmsegmentation imports none of it.
mmcv-lite lacks mmcv's compiled operations, which some of mmsegmentation's heads import: a stub stands in for them.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from equibench.errors import UserError

EXTENSION = "mmcv._ext"
_PACKAGES = ("mmseg", "mmengine", "mmcv", "ftfy", "regex")  # mmseg needs the last two and does not declare them


def missing_packages() -> tuple[str, ...]:
    """Which of the packages that segmentation needs are not installed."""
    return tuple(name for name in _PACKAGES if importlib.util.find_spec(name) is None)


def require_mmseg() -> None:
    """Make `import mmseg` work, if need be with a stub; a UserError where a package is not installed."""
    if missing := missing_packages():
        verb = "is" if len(missing) == 1 else "are"
        problem = f"segmentation needs {', '.join(missing)}, which {verb} not installed"
        raise UserError(problem, 'pip install "equibench[seg]"')
    install_stub()


def install_stub() -> bool:
    """Register a stub of mmcv's compiled operations, unless they are there (mmcv, or a fork with its module names).

    Each raises an error that names it when it is called. None of them is needed by the heads, datasets and metrics
    used here: mmseg only imports them. Returns whether a stub was registered.
    """
    if EXTENSION in sys.modules or importlib.util.find_spec(EXTENSION) is not None:
        return False
    stub = sys.modules[EXTENSION] = ModuleType(EXTENSION)
    # a spec without a loader: mmengine takes that for "no compiled operations", which is right
    vars(stub).update(__spec__=ModuleSpec(EXTENSION, None), __getattr__=_operation)
    return True


def _operation(name: str) -> Callable[..., NoReturn]:
    """An attribute of the stub, which has every operation; none can be called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def operation(*_arguments: object, **_named: object) -> NoReturn:
        problem = f"mmcv's compiled operation {name!r} was called, and the mmcv installed here has none (mmcv-lite)"
        raise UserError(problem, "install the full mmcv, or choose a head that does without it")

    return operation


# importing mmsegmentation takes seconds, which only those who came from there have already spent
if "mmengine" in sys.modules and not missing_packages():
    from equibench.segmentation import engine  # noqa: F401
