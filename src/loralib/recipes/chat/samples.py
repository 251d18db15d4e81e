"""What the model answers to a few held-out prompts, at every evaluation: seen, and not only measured.

RUN/samples.jsonl    {"step", "epoch", "answers": [{"prompt", "answer", "reference"} …]} a line, the first before training
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ...storage.atomic import write_atomically
from ...storage.json_text import as_json
from ...train.rich_text import say
from .. import run_folder
from ..nlg import decoding
from ..nlg.prompts import Form
from ..presets.nlg import Decoding
from .conversations import Conversation
from .form import ChatForm

SHORT = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=48)
_SHOWN = 160  # characters of a text on the terminal

Question = tuple[list[dict[str, Any]], str]


def questions(conversations: Sequence[Conversation], most: int) -> list[Question]:
    """The messages before the first answer, and that answer, of the first `most` conversations."""
    found: list[Question] = []
    for row in conversations:
        messages = row.get("messages") or []
        first = next((i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= row["learned"]), None)
        if first is not None and not row.get("tools") and len(found) < most:
            found.append((messages[:first], str(messages[first]["content"])))
    return found


def watching(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], most: int
) -> Callable[[Console, Path], "Samples"] | None:
    """What makes `Samples` of the first `most` conversations, in a run folder; None where there is nothing to answer."""
    asked = questions(conversations, most)

    def watch(console: Console, folder: Path) -> Samples:
        return Samples(model, ChatForm(tokenizer), asked, console, folder / run_folder.SAMPLES)

    return watch if asked else None


class Samples(TrainerCallback):
    """Answers the `questions` at every evaluation, greedily and briefly, on the `console` and in the file `path`."""

    def __init__(self, model: PreTrainedModel, form: Form, questions: Sequence[Question], console: Console, path: Path):
        self.model, self.form, self.questions, self.console, self.path = model, form, questions, console, path
        self.kept: list[dict[str, Any]] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take up what was written before the step to go on from."""
        if state.global_step and self.path.is_file():
            with self.path.open(encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines]
            self.kept = [row for row in rows if row["step"] <= state.global_step]

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Answer, unless the model's weights are spread over processes."""
        if not state.is_world_process_zero or args.fsdp or args.deepspeed:
            return
        answers = self._answers()
        self.kept.append({"step": state.global_step, "epoch": state.epoch or 0, "answers": answers})
        write_atomically(self.path, "".join(as_json(row, ensure_ascii=False) + "\n" for row in self.kept).encode())
        for row in answers:
            if not state.global_step:
                say(self.console, f"  prompt    {_brief(row['prompt'])}")
                say(self.console, f"  expected  {_brief(row['reference'])}")
            say(self.console, f"  {'now' if state.global_step else 'before':<8}  {_brief(row['answer'])}")

    @torch.inference_mode()
    def _answers(self) -> list[dict[str, str]]:
        was_training = self.model.training
        prompts = [self.form.prompt_ids(messages) for messages, _ in self.questions]
        try:
            texts = decoding.decode_batch(self.model.eval(), self.form, prompts, SHORT)
        finally:
            self.model.train(was_training)
        return [
            {"prompt": str(messages[-1]["content"]), "answer": text, "reference": reference}
            for (messages, reference), text in zip(self.questions, texts, strict=True)
        ]


def _brief(text: str) -> str:
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
