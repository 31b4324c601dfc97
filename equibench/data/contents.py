"""What files hold, as digests: a cache that goes by names, sizes and times takes changed pictures for the old ones.

Reproducible archives, container layers and `rsync -t` give all versions of a file one time, and pictures without
compression have one size. So every byte is read each time: some 1 GB a second and core where the disk gives them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from equibench.errors import UserError
from equibench.utils.arrays import decode_all, progress

SKIP_BAD = "fetch or remove it, or leave such files out with --skip-bad (skip_bad=True)"
_TOLD_FROM = 2000  # files from which on a bar is shown


def file_digests(
    root: Path, paths: Sequence[str], *, skip_bad: bool = False, lists: Mapping[str, Path] | None = None
) -> Iterator[str]:
    """The BLAKE2b digest of each file, "absent" for one that cannot be read; on several threads, in order.

    Args:
        paths: relative to ``root``.
        skip_bad: whether to go on where a file cannot be read; else a UserError names it.
        lists: by path, the list that names it, for that error.
    """

    def digest(path: str) -> str:
        try:
            with (root / path).open("rb") as file:
                return hashlib.file_digest(file, "blake2b").hexdigest()
        except OSError as error:
            if skip_bad:
                return "absent"
            listed = f", which {lists[path]} names," if lists else ""
            raise UserError(f"{root / path}{listed} cannot be read: {error.strerror or error}", SKIP_BAD) from error

    if len(paths) < _TOLD_FROM:
        yield from decode_all(paths, digest)
        return
    with progress(f"checking {root.name}", len(paths)) as advance:
        for found in decode_all(paths, digest):
            advance()
            yield found
