"""A finished run that generates text, used: its model again, and the files of the texts that it writes.

RUN/generated/NAME.jsonl          {"context", "prediction", "references", "category"} an input, in the data's order
RUN/generated/NAME.txt            the predictions alone, a line each
RUN/generated/NAME.partial.jsonl  while it is decoded: what it is, then {"i", "prediction"} a text, on disk batch by batch
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import RunError
from ...storage.atomic import write_atomically
from .. import run_folder
from ..finished import FinishedRun
from ..presets.nlg import Decoding
from . import decoding, language_models

if TYPE_CHECKING:
    from datasets import Dataset


class Run(FinishedRun):
    """A finished run that generates text."""

    kinds = ("generation",)

    @staticmethod
    def load(name: str, labels: list[str] | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The language model `name`, whole."""
        return language_models.load_language_model(name)

    def generate(self, contexts: Sequence[str], how: Decoding, batch_size: int = 16) -> list[str]:
        """The text of each context. Raises `DataError` for an input that leaves no room for its text."""
        return decoding.decode(self.model, self.tokenizer, contexts, how, batch_size)

    def generate_into(
        self,
        path: Path,
        data: "Dataset",
        how: Decoding,
        *,
        batch_size: int = 16,
        overwrite: bool = False,
        resume: bool = False,
        told: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """Write the text of each input of `data` to `path`, a `.jsonl` file, and to a `.txt` file beside it; they are returned.

        overwrite: replace what is there. resume: go on with what was interrupted. told: hears how many inputs are done.
        Raises `RunError` when a file is there and neither is said, or when what was interrupted was told otherwise.
        """
        inputs = data["context"][:]
        decoding.check_room(self.model, self.tokenizer, inputs, how.max_new_tokens)
        partial = Partial(path.with_suffix(".partial.jsonl"), self._settings(inputs, how))
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; add --overwrite to replace it, or give another --output.")
        if partial.path.exists() and not overwrite and not resume:
            raise RunError(f"{partial.path} was interrupted; add --resume to go on with it, or --overwrite to begin again.")
        texts = partial.read() if resume and partial.path.exists() else partial.begin()
        told(len(texts))
        left = [i for i in range(len(data)) if i not in texts]

        def keep(batch: Mapping[int, str]) -> None:
            found = {left[i]: text for i, text in batch.items()}
            partial.append(found)
            texts.update(found)
            told(len(texts))

        decoding.decode(self.model, self.tokenizer, [inputs[i] for i in left], how, batch_size, keep)
        predictions = [texts[i] for i in range(len(data))]
        write(path, data, predictions)
        partial.path.unlink()
        return predictions

    def _settings(self, contexts: Sequence[str], how: Decoding) -> dict[str, Any]:
        """What a text depends on: the training, the inputs and the decoding."""
        inputs = hashlib.sha256(json.dumps(contexts).encode()).hexdigest()
        trained = hashlib.sha256((self.folder / run_folder.METRICS).read_bytes()).hexdigest()
        return {"inputs": inputs, "trained": trained, "decoding": asdict(how)}


@dataclass(frozen=True)
class Partial:
    """The file of texts that are being decoded. settings: what they depend on, its first line."""

    path: Path
    settings: Mapping[str, Any]

    def begin(self) -> dict[int, str]:
        """Begin the file anew; no texts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self.settings) + "\n").encode())
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
            file.writelines(json.dumps({"i": i, "prediction": text}) + "\n" for i, text in texts.items())
            file.flush()
            os.fsync(file.fileno())


def write(path: Path, data: "Dataset", predictions: Sequence[str]) -> None:
    """Write `path`, and the predictions alone to a `.txt` file beside it."""
    examples = zip(data.to_list(), predictions, strict=True)
    rows = [{"context": row["context"], "prediction": text, **row} for row, text in examples]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    write_atomically(path.with_suffix(".txt"), "".join(f"{text}\n" for text in predictions).encode())


open_run = Run.open
