"""Folders that a command writes: whether one is free, and removing what was written there before, and nothing else."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError


@dataclass(frozen=True)
class Writer:
    """Who writes into a folder. title: what messages call it. pattern: of the names that it writes. inner: the writer of its
    folders. alone: whether what others wrote is refused even where nothing is replaced."""

    title: str
    pattern: str
    inner: "Writer | None" = None
    alone: bool = False

    def check_free(self, folder: Path, overwrite: bool, resume: bool) -> None:
        """`RunError` unless `folder` may be written: it is new or empty, or may be overwritten or gone on with."""
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; give another --output.")
        names = sorted(path.name for path in folder.glob("*"))
        foreign = [name for name in names if not re.fullmatch(self.pattern, name)]
        if foreign and (overwrite or self.alone):
            raise RunError(f"{folder} holds what no {self.title} wrote ({', '.join(foreign[:3])}); give another --output.")
        if names and not overwrite and not resume:
            raise RunError(f"{folder} exists and is not empty; add --resume to go on with it, or --overwrite to replace it.")

    def clear(self, folder: Path) -> None:
        """Remove what was written to `folder` before."""
        for path in folder.glob("*"):
            if not re.fullmatch(self.pattern, path.name):
                continue
            if not path.is_dir():
                path.unlink()
            elif self.inner is None:
                shutil.rmtree(path)
            else:
                self.inner.clear(path)
                if not any(path.iterdir()):
                    path.rmdir()
