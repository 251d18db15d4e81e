"""A conversation with a run's model: what was said, who answers, and the answer as it comes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from transformers import TextStreamer

from ...errors import ConfigError
from ..nlg import decoding
from ..nlg.generator import Run
from ..presets.nlg import Decoding
from ..task import ADAPTERS
from .form import ChatForm, TextForm


class _Streamer(TextStreamer):
    """Hands on the text of an answer as it comes."""

    def __init__(self, tokenizer: Any, heard: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.heard = heard
        self.said: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on a piece of text."""
        self.said.append(text)
        self.heard(text)


class Session:
    """A conversation. run: what answers. system: the first message, "" for none. how: how answers are generated.

    base: whether the model answers as it was before training, which is switched at will. Raises `ConfigError` for a run whose
    texts are not answers.
    """

    def __init__(self, run: Run, how: Decoding, system: str = ""):
        form = ChatForm(run.tokenizer) if isinstance(run.form, TextForm) and run.tokenizer.chat_template else run.form
        if not isinstance(form, ChatForm):
            raise ConfigError(
                f"the run in {run.folder} was trained without a chat template, so there is no way to talk with it; use loralib "
                "generate."
            )
        self.run, self.how, self.form, self.base = run, how, form, False
        self._first = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = [*self._first]

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = [*self._first]

    def switch(self) -> bool:
        """Let the model answer without its adapter, or with it again; whether it is now without. `ConfigError` without LoRA."""
        if self.run.options.method not in ADAPTERS:
            raise ConfigError("this run trained the model itself, so there is no base to switch to.")
        self.base = not self.base
        return self.base

    def answer(self, message: str, heard: Callable[[str], None] = lambda text: None) -> str:
        """The answer to a message, both of which are kept; what is heard of it is all of it, piece by piece.

        When `KeyboardInterrupt` stops the answer, what was said of it is kept. The oldest messages are forgotten when there is
        no room for all. Raises `DataError` for a message that has no room itself, and forgets it.
        """
        asked, prompt = self._fitting([*self.messages, {"role": "user", "content": message}])
        streamer, text = _Streamer(self.run.tokenizer, heard), ""
        try:
            with self.run.base() if self.base else nullcontext(), torch.inference_mode():
                (text,) = decoding.decode_batch(self.run.model, self.form, [prompt], self.how, streamer)
        except KeyboardInterrupt:
            text = "".join(streamer.said).strip()
            raise
        finally:
            if text:  # a message without an answer is forgotten, as templates want each to have one
                self.messages = [*asked, {"role": "assistant", "content": text}]
        return text

    def _fitting(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """As many of the last messages as there is room for, and their tokens. Raises `DataError` when the last has no room."""
        most = decoding.room(self.run.model) or 1 << 30
        first, prompt = len(self._first), self.form.prompt_ids(messages)
        while len(prompt) + self.how.max_new_tokens > most and len(messages) > first + 1:
            messages = [*self._first, *messages[first + 2 :]]
            prompt = self.form.prompt_ids(messages)
        decoding.check_room(self.run.model, self.form, [prompt], self.how.max_new_tokens)
        return messages, prompt
