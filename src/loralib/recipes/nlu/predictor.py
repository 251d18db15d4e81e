"""A finished run, used: its model again, for scoring labelled text and for classifying new text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import DataError
from ...train.sampling import by_length
from .. import model_loader, quantizing, records
from ..finished import FinishedRun
from ..options import TrainOptions
from . import encoders, inputs, metrics, readers
from .glue import read_glue, read_glue_file

if TYPE_CHECKING:
    from datasets import Dataset


class Run(FinishedRun):
    """A finished run that classifies or scores text."""

    kinds = ("classification", "regression")

    @staticmethod
    def load(
        name: str, options: TrainOptions, labels: list[str] | None, trust_remote_code: bool
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The encoder `name`, with a head for `labels`."""
        encoder = encoders.load_encoder(name, labels, trust_remote_code=trust_remote_code)
        quantizing.quantize(encoder.model, options.quantize)
        return encoder.model, encoder.tokenizer

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> torch.Tensor:
        """The model's outputs, shape (len(texts), classes), or (len(texts), 1) for regression. Texts of like length share a
        batch, whatever their order."""
        if not texts:
            raise DataError("there is no text.")
        if self.options.takes_pairs != (pairs is not None):
            needs = "takes pairs: give each text its second one" if self.options.takes_pairs else "takes single texts, no pairs"
            raise DataError(f"the run {needs} (--pair).")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} texts but {len(pairs)} second texts; give one for each.")
        second = list(pairs) if pairs is not None else None
        rows = self.tokenizer(list(texts), second, truncation=True, max_length=self.options.length)
        model_loader.check_tokens(self.model, self.tokenizer, rows["input_ids"])
        order = by_length([len(tokens) for tokens in rows["input_ids"]])
        outputs = []
        size = self.options.per_device_eval_batch_size
        for start in range(0, len(texts), size):
            part = order[start : start + size]
            chosen = {name: [values[at] for at in part] for name, values in rows.items()}
            batch = self.tokenizer.pad(chosen, return_tensors="pt")
            with torch.inference_mode():
                outputs.append(self.model(**batch.to(self.model.device)).logits.float().cpu())
        return torch.cat(outputs)[torch.tensor(order).argsort()]

    def evaluate(self, data: "Dataset") -> dict[str, float]:
        """The metrics on labelled rows. Raises `DataError` for labels that the run does not know."""
        expected = np.asarray(inputs.targets(data, self.labels), dtype=np.float64)
        return metrics.of_logits(self.logits(*inputs.texts(data)).double().numpy(), expected)

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[tuple[str | float, float | None]]:
        """For each text the most likely class and its probability; for regression the score and None."""
        logits = self.logits(texts, pairs)
        if self.labels is None:
            return [(score, None) for score in logits[:, 0].tolist()]
        probabilities, best = logits.softmax(-1).max(-1)
        return [(self.labels[i], p) for i, p in zip(best.tolist(), probabilities.tolist(), strict=True)]


open_run = Run.open


def read_rows(options: TrainOptions, path: str, overrides: Mapping[str, str | None]) -> "Dataset":
    """Labelled rows to evaluate a run on: a local file with columns as in training unless overridden, which for a GLUE task
    is one of the task's own files; or "dev" for that task's development set.

    Raises `DataError` when they cannot be had.
    """
    names = ("text_column", "label_column", "text_pair_column")
    renamed = any(overrides.get(name) for name in names)
    if options.task and not renamed:
        return (
            read_glue_file(options.task, Path(path))
            if records.is_local_file(path)
            else read_glue(options.task, path, options.data_dir)
        )
    if not records.is_local_file(path):
        raise DataError(f"--data {path!r} is not a {', '.join(records.SUFFIXES)} file.")
    text, label, pair = (overrides.get(name) or getattr(options, name) for name in names)
    if options.takes_pairs and pair is None:
        raise DataError("the run takes pairs: name the column of the second text with --text-pair-column.")
    readers.check_columns(text, label, pair)
    return readers.read_file(path, text, label, pair)
