"""A tokenizer that knows the special tokens of several families, and chat templates that others wrote."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
]
TALK = "system user assistant You are a helpful assistant . What is the capital of France ? Paris It is . Thanks"


@cache
def _trained() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([TALK, *["\n\n"] * 9], trainer)
    return tokenizer


def tokenizer(template: str | None = None, **changes: Any) -> Any:
    """A byte-level tokenizer; a special token is one token, whatever it stands next to."""
    from transformers import PreTrainedTokenizerFast

    own: dict[str, Any] = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | changes
    extra = [token for token in SPECIAL if token not in own.values()]
    made = PreTrainedTokenizerFast(tokenizer_object=_trained(), extra_special_tokens=extra, **own)
    made.chat_template = template
    return made


def of_trl(name: str) -> str:
    """A chat template as TRL ships it."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "chat_templates", f"{name}.jinja").read_text()
