"""Files and folders that are there only while something is written, next to it, and what killed processes left of them.

.NAME.TAG.tmp   the new content, before it is whole        .NAME.TAG.old   what it replaces, until it is in its place
.NAME.lock      who writes NAME (see `lock`)
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .processes import TAG, is_gone

LOCK = ".loralib.lock"  # in a folder, who writes that
_TEMPORARY = re.compile(rf"\.(?P<name>.+)\.(?P<tag>{TAG})\.(?P<kind>tmp|old)", re.DOTALL)
_LOCK = re.compile(r"\.(?P<name>.+)\.lock", re.DOTALL)


class Leftover(NamedTuple):
    """What a process left that was killed while it wrote: by which of its writes, of which kind (tmp or old), and where."""

    tag: str
    kind: str
    path: Path


def temporary(path: Path, tag: str, kind: str = "tmp") -> Path:
    """The place next to `path` for what is there only during the write `tag`."""
    return next_to(path, f"{tag}.{kind}")


def next_to(path: Path, suffix: str) -> Path:
    """The hidden name `.NAME.suffix` next to `path`."""
    whole = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return whole.parent / f".{whole.name}.{suffix}"


def purpose(name: str) -> str:
    """The name of the file for which a temporary or a lock of this name is there; any other name itself.

    >>> purpose(".config.yaml.12.tmp"), purpose(".a.jsonl.lock"), purpose("a.tmp")
    ('config.yaml', 'a.jsonl', 'a.tmp')
    """
    found = _TEMPORARY.fullmatch(name) or _LOCK.fullmatch(name)
    return purpose(found["name"]) if found and name != LOCK else name


def is_leftover(name: str) -> bool:
    """Whether it is the name of a temporary, of a process that has surely ended."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and is_gone(found)


def leftovers(path: Path, *, locked: bool = False) -> Iterator[Leftover]:
    """What processes that have ended left when they wrote `path`. locked: nobody else writes it now, on any host."""
    folder = next_to(path, "").parent
    own = next_to(path, "").name[1:-1]
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(name) if name.startswith(f".{own}.") else None
        if found and found["name"] == own and (locked or is_gone(found)):
            yield Leftover(found["tag"], found["kind"], folder / name)
