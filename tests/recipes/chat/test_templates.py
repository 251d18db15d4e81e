"""What is learned of a conversation, against the masks that TRL's and transformers' own marks give, for many templates."""

from pathlib import Path
from typing import Any

import pytest

import chats
from chats import of_trl
from loralib.errors import ConfigError, DataError
from loralib.recipes.chat import templates
from loralib.recipes.chat.templates import OWN, PAPER, ChatFormat, encode_all, set_template
from loralib.recipes.nlg.prompts import IGNORED
from loralib.recipes.option_sections import TEMPLATES

MARKED = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3", "gemma", "phi3", "cohere")
USER, ANSWER = {"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "It is Paris."}
TURNS = [USER, ANSWER, {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "You are welcome."}]


def talk(messages: list[dict[str, Any]] = TURNS, **more: Any) -> dict[str, Any]:
    return {"messages": messages, "tools": None, "learned": 0} | more


def learned(tokenizer: Any, row: dict[str, list[int]]) -> str:
    return str(tokenizer.decode([token for token in row["labels"] if token != IGNORED]))


@pytest.fixture
def chatml() -> Any:
    return chats.tokenizer(templates.NAMED["chatml"], eos_token="<|im_end|>")


@pytest.mark.parametrize("name", MARKED)
def test_the_same_as_marked_templates(name: str) -> None:
    """TRL marks what is generated in templates: the same is learned, but for white space and what the prompt ends with."""
    tokenizer = chats.tokenizer(of_trl(name))
    (row,) = ChatFormat(tokenizer).encode(talk(TURNS[:2]))
    marked = tokenizer.apply_chat_template(
        TURNS[:2], chat_template=of_trl(f"{name}_training"), return_dict=True, return_assistant_tokens_mask=True
    )
    theirs = [token for token, on in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if on]
    mine, text = learned(tokenizer, row).rstrip(), tokenizer.decode(theirs).rstrip()
    prompt = tokenizer.decode(ChatFormat(tokenizer).prompt_ids([USER]))
    assert mine.startswith("It is Paris.") or "think>" in mine
    if mine != text:
        bare, end = mine.removesuffix(tokenizer.eos_token).rstrip(), text.removesuffix(tokenizer.eos_token).rstrip()
        assert end.endswith(bare)
        assert prompt.rstrip().endswith(end.removesuffix(bare).strip())


def test_what_is_learned_is_how_the_prompt_goes_on(chatml: Any) -> None:
    chat = ChatFormat(chatml)
    (row,) = chat.encode(talk())
    assert learned(chatml, row) == "It is Paris.<|im_end|>You are welcome.<|im_end|>"
    for upto in (1, 3):
        prompt = chat.prompt_ids(TURNS[:upto])
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][len(prompt)] != IGNORED
        assert row["labels"][len(prompt) - 1] == IGNORED
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "gemma", "phi3"])
def test_rows_begin_with_the_tokens_of_their_prompts(name: str) -> None:
    """Also where the tokenizer would join the end of the prompt with the answer: here two line breaks before a word."""
    tokenizer = chats.tokenizer(of_trl(name))
    chat = ChatFormat(tokenizer)
    rows = chat.encode(talk())
    for upto in (1, 3):
        prompt = chat.prompt_ids(TURNS[:upto])
        row = next(row for row in rows if row["labels"][len(prompt) :][:1] not in ([], [IGNORED]))
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"][len(prompt) - 1] == IGNORED
    text = tokenizer.decode(rows[-1]["input_ids"])
    assert text.removesuffix(tokenizer.eos_token) == chat.render(talk(), 4).removesuffix(tokenizer.eos_token)


def test_only_the_completion_of_a_prompt_with_answers(chatml: Any) -> None:
    (row,) = ChatFormat(chatml).encode(talk(learned=3))
    assert learned(chatml, row) == "You are welcome.<|im_end|>"


def test_a_template_that_rewrites_earlier_answers() -> None:
    """Qwen3's drops the reasoning of earlier turns: each answer is a row of its own, after what the model will see."""
    tokenizer = chats.tokenizer(of_trl("qwen3"))
    chat = ChatFormat(tokenizer)
    first, last = chat.encode(talk([USER, ANSWER | {"reasoning_content": "A city."}, *TURNS[2:]]))
    assert "A city." in learned(tokenizer, first)
    assert "welcome" not in learned(tokenizer, first)
    assert "A city." not in tokenizer.decode(last["input_ids"])
    assert "welcome" in learned(tokenizer, last)
    assert "Paris" not in learned(tokenizer, last)


def test_an_end_is_learned_where_the_template_has_none() -> None:
    bare = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = chats.tokenizer(bare)
    (row,) = ChatFormat(tokenizer).encode(talk([USER, ANSWER]))
    assert learned(tokenizer, row) == " It is Paris.<|endoftext|>"
    assert ChatFormat(tokenizer).end_ids() == [tokenizer.eos_token_id]


def test_plain_text(chatml: Any) -> None:
    (row,) = ChatFormat(chatml).encode({"text": "It is Paris."})
    assert row["input_ids"] == [*chatml("It is Paris.")["input_ids"], chatml.eos_token_id]
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_named_templates() -> None:
    for name, end in (("chatml", "<|im_end|>"), ("plain", "<|endoftext|>")):
        tokenizer = chats.tokenizer()
        set_template(tokenizer, name)
        chat = ChatFormat(tokenizer)
        (row,) = chat.encode(talk([{"role": "system", "content": "Be brief."}, *TURNS]))
        assert [text.strip() for text in learned(tokenizer, row).split(end)] == ["It is Paris.", "You are welcome.", ""]
        assert tokenizer.convert_tokens_to_ids(end) in chat.end_ids()


def test_end_of_turn() -> None:
    tokenizer = chats.tokenizer(of_trl("llama3"))
    assert ChatFormat(tokenizer).end_ids() == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|eot_id|>"])


def test_long_rows(chatml: Any) -> None:
    """Rows are cut at the end; those that lose their answer are counted and left out."""
    chat = ChatFormat(chatml)
    (whole,) = chat.encode(talk([USER, ANSWER]))
    prompt = len(chat.prompt_ids([USER]))
    found = encode_all(chat, [talk([USER, ANSWER])] * 2, prompt + 2, "a")
    assert (found.cut, found.left_out) == (2, 0)
    assert found.rows[0]["input_ids"] == whole["input_ids"][: prompt + 2]
    long = talk([USER | {"content": "What " * 99}, ANSWER])
    found = encode_all(chat, [talk([USER, ANSWER]), long], len(whole["input_ids"]), "a")
    assert (len(found.rows), found.cut, found.left_out) == (1, 0, 1)
    with pytest.raises(DataError, match=r"no row has an answer within 9 tokens; give a larger --max-length"):
        encode_all(chat, [long], 9, "a")


def test_templates_that_refuse() -> None:
    chat = ChatFormat(chats.tokenizer(of_trl("gemma"), bos_token="<bos>"))
    with pytest.raises(DataError, match=r"row 7: the chat template of .* refuses its messages \(System role not supported\)"):
        chat.encode(talk([{"role": "system", "content": "x"}, *TURNS]), "row 7")
    other = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
    with pytest.raises(DataError, match=r"lets an answer begin with .*'.*<answer>' and writes it in another way"):
        ChatFormat(chats.tokenizer(other)).encode(talk(), "row 1")


def test_tools_that_a_template_does_not_know(chatml: Any) -> None:
    parameters = {"type": "object", "properties": {}}
    tools = [{"type": "function", "function": {"name": "add", "description": "x", "parameters": parameters}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}
    messages = [USER, call, {"role": "tool", "content": "4"}, ANSWER]
    with pytest.raises(DataError, match=r"row 3 has tools, which the chat template .* does not support"):
        ChatFormat(chatml).encode(talk(tools=tools), "row 3")
    with pytest.raises(DataError, match=r"row 3 has tool calls, which the chat template .* does not support"):
        ChatFormat(chatml).encode(talk(messages), "row 3")
    tokenizer = chats.tokenizer(of_trl("qwen2_5"))
    (row,) = ChatFormat(tokenizer).encode(talk(messages, tools=tools))
    assert '{"name": "add", "arguments": {"a": 2}}' in learned(tokenizer, row)
    assert "It is Paris." in learned(tokenizer, row)
    assert "4" not in learned(tokenizer, row)


def test_which_template(tmp_path: Any) -> None:
    tokenizer = chats.tokenizer()
    with pytest.raises(ConfigError, match="has no chat template; name one: --chat-template plain, chatml"):
        set_template(tokenizer, None)
    with pytest.raises(ConfigError, match=r"='alpaca': must be tokenizer, chatml, plain, or the path of a \.jinja file"):
        set_template(tokenizer, "alpaca")
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}")
    set_template(tokenizer, str(tmp_path / "own.jinja"))
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_template_without_the_answers(chatml: Any) -> None:
    chatml.chat_template = "a constant"
    with pytest.raises(DataError, match=r"the file, row 1: the chat template of .* leaves the answer out"):
        encode_all(ChatFormat(chatml), [talk()], 99, "the file")


def test_a_template_that_is_not_text(chatml: Any, tmp_path: Path) -> None:
    (tmp_path / "odd.jinja").write_bytes(b"\x80")
    with pytest.raises(ConfigError, match="not UTF-8"):
        set_template(chatml, str(tmp_path / "odd.jinja"))


def test_words_for_templates_are_no_paths() -> None:
    assert {*templates.NAMED, OWN, PAPER} == {*TEMPLATES}
