"""The one exception that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: a wrong name, a missing file, a folder that cannot be written.

    Args:
        problem: what happened, in one sentence that names the thing at fault.
        fix: what was expected, or the command that mends it.

    The command line prints both and ends with exit status 2; in Python both are in ``str(error)``.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem = problem
        self.fix = fix
        super().__init__(f"{problem}\n{fix}" if fix else problem)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # a worker process sends it to its parent: both parts must survive
        return UserError, (self.problem, self.fix)


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to a wrong one, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
