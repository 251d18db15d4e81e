"""In which form a model gets its inputs: its own chat template where it has one, the paper's else."""

import chats
from loralib.recipes.chat.form import ChatForm, of_run, resolve
from loralib.recipes.chat.templates import NAMED
from loralib.recipes.nlg.prompts import IGNORED, PaperForm


def test_the_form_follows_the_tokenizer() -> None:
    plain, chatting = chats.tokenizer(), chats.tokenizer(NAMED["chatml"], eos_token="<|im_end|>")
    for tokenizer, asked, kind, word in (
        (plain, None, PaperForm, "none"),
        (chatting, None, ChatForm, "tokenizer"),
        (chatting, "none", PaperForm, "none"),
        (plain, "plain", ChatForm, "plain"),
        (chatting, "tokenizer", ChatForm, "tokenizer"),
    ):
        form, name = resolve(tokenizer, asked)
        assert (type(form), name) == (kind, word)


def test_a_run_is_used_in_the_form_that_it_was_trained_in() -> None:
    chatting = chats.tokenizer(NAMED["chatml"], eos_token="<|im_end|>")
    assert type(of_run(chatting, None)) is PaperForm, "runs from before there were chat templates name none"
    assert type(of_run(chatting, "none")) is PaperForm
    assert type(of_run(chatting, "tokenizer")) is ChatForm


def test_an_input_and_its_text_are_a_message_and_its_answer() -> None:
    tokenizer = chats.tokenizer(NAMED["chatml"], eos_token="<|im_end|>")
    form = ChatForm(tokenizer)
    question = "What is the capital of France?"
    row, prompt = form.row(question, "It is\nParis."), form.prompt_ids(question)
    assert row["input_ids"][: len(prompt)] == prompt == form.prompt_ids([{"role": "user", "content": question}])
    assert [label for label in row["labels"] if label != IGNORED][-1] == tokenizer.eos_token_id
    assert form.text_of(row["input_ids"][len(prompt) :]) == "It is\nParis."
    assert form.end_ids() == [tokenizer.eos_token_id]


def test_a_run_on_plain_text_goes_on_with_it() -> None:
    for template in (None, NAMED["chatml"]):
        tokenizer = chats.tokenizer(template)
        form = of_run(tokenizer, "tokenizer", "text")
        prompt = form.prompt_ids("It is")
        assert prompt == tokenizer.encode("It is")
        row = form.row("It is", " Paris.\nThanks")
        assert row["input_ids"] == [*tokenizer.encode("It is Paris.\nThanks"), tokenizer.eos_token_id]
        assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
        assert form.text_of(row["input_ids"][len(prompt) :]) == " Paris.\nThanks"
        assert form.prompt_ids("") == form.end_ids() == [tokenizer.eos_token_id]
