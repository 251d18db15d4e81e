"""A finished run that generates text, used: its model again, and the files of the texts that it writes.

RUN/generated/NAME.jsonl          {"context", "prediction", "references", "category"} an input, in the data's order
RUN/generated/NAME.txt            the predictions alone, a line each, their own line breaks as spaces
RUN/generated/NAME.partial.jsonl  while it is decoded: what it is, then {"i", "prediction"} a text, on disk batch by batch
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import RunError
from ...storage.atomic import settle, write_together
from ...storage.json_text import as_json
from ...storage.lock import file_lock
from ...storage.resumable import Resumable
from .. import run_folder
from ..chat.form import of_run
from ..finished import FinishedRun
from ..options import TrainOptions
from ..presets.nlg import Decoding
from . import decoding, language_models
from .prompts import Form

if TYPE_CHECKING:
    from datasets import Dataset


class Run(FinishedRun):
    """A finished run that generates text."""

    kinds = ("generation", "chat", "preference")

    @staticmethod
    def load(
        name: str, options: TrainOptions, labels: list[str] | None, trust_remote_code: bool
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The language model `name`, whole, in the data type that it was trained in."""
        how: dict[str, Any] = {"dtype": options.dtype, "quantize": options.quantize}
        return language_models.load_language_model(name, trust_remote_code=trust_remote_code, **how)

    @cached_property
    def form(self) -> Form:
        """How inputs become prompts."""
        return of_run(self.tokenizer, self.options.chat_template, self.options.layout)

    def generate(
        self,
        contexts: Sequence[Any],
        how: Decoding,
        batch_size: int = 16,
        *,
        base: bool = False,
        seed: int = 0,
        on_progress: Callable[[dict[int, str]], None] = lambda texts: None,
    ) -> list[str]:
        """The text of each context: a text or, for a model that chats, a list of messages.

        base: generate with the model as it was before LoRA. seed: of sampling. on_progress: called with the texts of each
        batch, by position. Raises `DataError` for an input that leaves no room for its text, and `ConfigError` when the run
        has no base.
        """
        without = self.base() if base else nullcontext()
        if how.temperature:
            torch.manual_seed(seed)
        with without:
            return decoding.decode(self.model, self.form, contexts, how, batch_size, on_progress)

    def generate_into(
        self,
        path: Path,
        data: "Dataset",
        how: Decoding,
        *,
        batch_size: int = 16,
        overwrite: bool = False,
        resume: bool = False,
        base: bool = False,
        seed: int = 0,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """Write the text of each input of `data` to `path`, a `.jsonl` file, and to a `.txt` file next to it; returns them.

        overwrite: replace what is there. resume: go on with what was interrupted. base, seed: as `generate` has them.
        on_progress: called with the number of inputs done. Raises `RunError` when a file is there and neither is given, when
        what was interrupted had other options, or while another process writes the file.
        """
        if base:
            self.check_base()
        with file_lock(path):
            settle(_both(path))
            options = {"batch_size": batch_size, "base": base, "seed": seed}
            return self._generate_into(path, data, how, options, overwrite, resume, on_progress)

    def _generate_into(
        self,
        path: Path,
        data: "Dataset",
        how: Decoding,
        options: Mapping[str, Any],
        overwrite: bool,
        resume: bool,
        on_progress: Callable[[int], None],
    ) -> list[str]:
        """`generate_into`, where no other process writes."""
        inputs = contexts_of(data)
        decoding.check_room(self.model, self.form, map(self.form.prompt_ids, inputs), how.max_new_tokens)
        partial = Resumable(_partial(path), self._settings(inputs, how, options))
        _check_free(path, overwrite)
        if partial.path.exists() and not overwrite and not resume:
            raise RunError(f"{partial.path} was interrupted; add --resume to go on with it, or --overwrite to begin again.")
        texts = partial.read() if resume and partial.path.exists() else partial.begin()
        on_progress(len(texts))
        left = [i for i in range(len(data)) if i not in texts]

        def keep(batch: Mapping[int, str]) -> None:
            found = {left[i]: text for i, text in batch.items()}
            partial.append(found)
            texts.update(found)
            on_progress(len(texts))

        self.generate([inputs[i] for i in left], how, **options, on_progress=keep)
        predictions = [texts[i] for i in range(len(data))]
        write(path, data, predictions)
        partial.path.unlink()
        return predictions

    def _settings(self, contexts: Sequence[Any], how: Decoding, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a text depends on: the training, the inputs and the decoding."""
        inputs = hashlib.sha256(as_json(contexts).encode()).hexdigest()
        trained = hashlib.sha256(b"" if options["base"] else (self.folder / run_folder.METRICS).read_bytes()).hexdigest()
        chosen = asdict(how) | {"stop": list(how.stop)}
        for name, unused in (("temperature", 0.0), ("top_p", 1.0), ("stop", [])):  # as files from before there were any
            if chosen[name] == unused:
                del chosen[name]
        if how.temperature:
            chosen["seed"] = options["seed"]
        return {"inputs": inputs, "trained": trained, "decoding": chosen}


def contexts_of(data: "Dataset") -> list[Any]:
    """The inputs: texts or, in a column `messages` of JSON, lists of messages."""
    if "messages" in data.column_names:
        return [json.loads(text) for text in data["messages"][:]]
    return list(data["context"][:])


def is_finished(path: Path) -> bool:
    """Whether the texts at `path` are all there; what a killed process left when it wrote them is finished or undone, and what
    they were decoded into is removed. `RunError` while another process writes them."""
    with file_lock(path):
        settle(_both(path))
        if path.exists():
            _partial(path).unlink(missing_ok=True)
        return path.exists()


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial.jsonl")


def _both(path: Path) -> list[Path]:
    """The two files of texts, the one that says that they are there last."""
    return [path.with_suffix(".txt"), path]


def _check_free(path: Path, overwrite: bool) -> None:
    """`RunError` unless texts may be written to `path`: nothing is there, or texts that may be overwritten."""
    plain = path.with_suffix(".txt")
    if path.exists() and not overwrite:
        raise RunError(f"{path} exists; add --overwrite to replace it, or give another --output.")
    foreign = [path] if path.exists() and not _holds_texts(path) else []
    foreign += [plain] if plain.exists() and not path.exists() else []
    if foreign:
        raise RunError(f"{foreign[0]} is there and was not written by loralib generate; give another --output.")


def _holds_texts(path: Path) -> bool:
    """Whether `path` begins as a file of texts does."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline() or "{}")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.keys() >= {"context", "prediction"}


def write(path: Path, data: "Dataset", predictions: Sequence[str]) -> None:
    """Write `path`, and the predictions alone to a `.txt` file next to it."""
    kept = [{name: value for name, value in row.items() if name != "messages"} for row in data.to_list()]
    inputs = zip(contexts_of(data), kept, predictions, strict=True)
    rows = [{"context": context, "prediction": text} | row | {"context": context} for context, row, text in inputs]
    plain = "".join(f"{' '.join(text.split())}\n" for text in predictions)
    whole = "".join(as_json(row, ensure_ascii=False) + "\n" for row in rows)
    write_together(dict(zip(_both(path), (plain.encode(), whole.encode()), strict=True)))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `write` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


open_run = Run.open
