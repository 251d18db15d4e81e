"""A file that grows while long work goes on, and that the same work can go on from when it was interrupted.

SETTINGS                    what the work depends on, a JSON object; other settings do not go on from this file
{"i", "prediction"}         a line for each text that is done
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from .atomic import write_atomically
from .json_text import as_json


@dataclass(frozen=True)
class Resumable:
    """A file of predicted texts, on disk as they come. settings: what they depend on, its first line."""

    path: Path
    settings: Mapping[str, Any]

    def begin(self) -> dict[int, str]:
        """Begin the file; no texts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (as_json(self.settings) + "\n").encode())
        return {}

    def read(self) -> dict[int, str]:
        """The texts that are there, by position; a last line that was not written to its end is cut off."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            head, *lines = whole.decode().removesuffix("\n").split("\n")
            settings: dict[str, Any] = dict(json.loads(head))
            rows = [json.loads(line) for line in lines]
            texts = {int(row["i"]): str(row["prediction"]) for row in rows}
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.path} is damaged; add --overwrite to begin again.") from None
        if settings != self.settings:
            other = sorted(key for key in self.settings if settings.get(key) != self.settings[key])
            raise RunError(
                f"{self.path} was begun with other {' and other '.join(other)}; say the same, or --overwrite to begin again."
            )
        if len(whole) < len(content):
            write_atomically(self.path, whole)
        return texts

    def append(self, texts: Mapping[int, str]) -> None:
        """Add texts, and wait until they are on the disk."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(as_json({"i": i, "prediction": text}) + "\n" for i, text in texts.items())
            file.flush()
            os.fsync(file.fileno())
