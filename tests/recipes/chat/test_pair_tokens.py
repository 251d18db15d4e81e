"""Preference pairs as tokens: the form of answers that are learned, and TRL's own where its template allows a comparison."""

from typing import Any

import pytest

import chats
from loralib.errors import DataError
from loralib.recipes.chat import pair_tokens, templates
from loralib.recipes.chat.templates import ChatFormat
from loralib.recipes.nlg.prompts import IGNORED

USER = {"role": "user", "content": "What is the capital of France?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("It is Paris.", "You are welcome."))
PAIR = {"prompt": [USER], "chosen": GOOD, "rejected": BAD, "tools": None}


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(chats.tokenizer(templates.NAMED["chatml"], eos_token="<|im_end|>"))


def test_an_answer_is_what_fine_tuning_learns_of_it(chat: ChatFormat) -> None:
    prompt, chosen, rejected = pair_tokens.encode(chat, PAIR)
    assert prompt == chat.prompt_ids([USER])
    for ids, answer in ((chosen, GOOD), (rejected, BAD)):
        (row,) = chat.encode({"messages": [USER, answer], "tools": None, "learned": 1})
        assert ids == [token for token in row["labels"] if token != IGNORED]
        assert chat.tokenizer.decode(ids) == answer["content"] + "<|im_end|>"


def test_answers_before_the_last_are_of_the_prompt(chat: ChatFormat) -> None:
    turns = [USER, GOOD, {"role": "user", "content": "Thanks"}]
    prompt, chosen, _ = pair_tokens.encode(chat, PAIR | {"prompt": turns})
    assert prompt == chat.prompt_ids(turns)
    assert chat.tokenizer.decode(chosen) == "It is Paris.<|im_end|>"


@pytest.mark.parametrize("name", ["qwen2_5", "gemma"])
def test_as_trl_cuts_them(name: str) -> None:
    """TRL learns the white space after an answer too, and starts at the same token."""
    tokenizer = chats.tokenizer(chats.of_trl(name), **({"bos_token": "<bos>"} if name == "gemma" else {}))
    prompt, chosen, _ = pair_tokens.encode(ChatFormat(tokenizer), PAIR)
    whole = tokenizer.apply_chat_template([USER, GOOD], return_dict=True)["input_ids"]
    before = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert (prompt, whole[: len(before)]) == (before, before)
    assert tokenizer.decode(whole[len(before) :]).rstrip() == tokenizer.decode(chosen)


def test_a_prompt_is_what_is_generated_after() -> None:
    """Here the tokenizer would join the space that the prompt ends with and the beginning of an answer."""
    spaced = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = chats.tokenizer(spaced)
    prompt, chosen, rejected = pair_tokens.encode(ChatFormat(tokenizer), PAIR)
    assert tokenizer.decode(prompt) == f"user: {USER['content']}<|endoftext|>assistant: "
    assert tokenizer.decode(chosen) == "It is Paris.<|endoftext|>"
    assert tokenizer.decode(rejected) == "You are welcome.<|endoftext|>"


def test_long_rows_are_cut_and_counted(chat: ChatFormat) -> None:
    prompt, chosen, rejected = pair_tokens.encode(chat, PAIR)
    alike = {"prompt": [USER], "chosen": GOOD, "rejected": {**GOOD, "content": "It is Paris. It is."}, "tools": None}
    length = len(prompt) + 3
    found = pair_tokens.encode_all(chat, [PAIR, alike], length, "d")
    assert (found.cut, found.left_out) == (1, 1)
    (row,) = found.rows
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (prompt, chosen[:3], rejected[:3])
    assert row["input_ids"] == [*prompt, *chosen[:3], *prompt, *rejected[:3]]
    assert found.note(length, "d").startswith(f"d: 1 of 2 rows cut at {length} tokens, and 1 left out")
    assert pair_tokens.encode_all(chat, [PAIR], 512, "d").note(512, "d") == ""
    with pytest.raises(DataError, match=r"d: no row has answers that differ within 5 tokens; give a larger --max-length"):
        pair_tokens.encode_all(chat, [PAIR], 5, "d")


def test_a_template_that_refuses_names_the_row_and_the_answer() -> None:
    chat = ChatFormat(chats.tokenizer(chats.of_trl("gemma"), bos_token="<bos>"))
    pair: Any = PAIR | {"prompt": [{"role": "system", "content": "x"}, USER]}
    with pytest.raises(DataError, match=r"d, row 1: chosen: the chat template of .* refuses its messages"):
        pair_tokens.encode_all(chat, [pair], 99, "d")
