"""A conversation with a run: what it remembers, who answers, and what stops it."""

from pathlib import Path

import pytest

from loralib.errors import DataError
from loralib.recipes.chat.session import Session
from loralib.recipes.nlg import decoding, generator
from loralib.recipes.presets.nlg import CHATTING, Decoding
from recipes.chat.conftest import options, run, talk

PERU = "What is the capital of Peru?"
SHORT = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=20)


@pytest.fixture(scope="module")
def session(chatter: Path, capitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("runs") / "capitals"
    run(folder, options(chatter, capitals, num_train_epochs=12))
    return Session(generator.open_run(folder), SHORT)


def test_what_was_said_is_remembered(session: Session) -> None:
    session.clear()
    heard: list[str] = []
    assert session.answer(PERU, heard.append) == "It is\nLima."
    assert "".join(heard).strip() == "It is\nLima."
    assert session.messages == talk("Peru")["messages"]
    before = session.run.form.prompt_ids(session.messages)
    session.answer(PERU)
    assert len(session.messages) == 4
    assert len(session.run.form.prompt_ids(session.messages)) > len(before)


def test_the_base_answers_on_request(session: Session, chatter: Path) -> None:
    from loralib.recipes.nlg import language_models

    session.clear()
    assert session.switch()
    found = session.answer(PERU)
    model, _ = language_models.load_language_model(str(chatter))
    (expected,) = decoding.decode(model.eval(), session.form, [PERU], SHORT)
    assert found == expected != "It is\nLima."
    assert not session.switch()
    session.clear()
    assert session.answer(PERU) == "It is\nLima."


def test_an_answer_that_is_stopped(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said of it is kept, and the conversation goes on."""
    session.clear()

    def press(text: str) -> None:
        if "It" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.answer(PERU, press)
    assert [message["role"] for message in session.messages] in (["user", "assistant"], [])
    session.clear()
    assert session.answer(PERU) == "It is\nLima."


def test_the_oldest_messages_make_room(session: Session) -> None:
    session.clear()
    most = session.run.model.config.max_position_embeddings
    for _ in range(40):
        session.answer(PERU)
    assert len(session.form.prompt_ids(session.messages[:-1])) + SHORT.max_new_tokens <= most
    assert 2 < len(session.messages) < 80
    assert session.messages[0]["role"] == "user"


def test_a_run_without_a_template_has_no_conversation(session: Session) -> None:
    from dataclasses import replace

    from loralib.errors import ConfigError

    other = replace(session.run, options=session.run.options.updated({"chat_template": "none"}))
    with pytest.raises(ConfigError, match="was trained without a chat template"):
        Session(other, CHATTING)


def test_a_message_that_is_too_long_is_forgotten(session: Session) -> None:
    session.clear()
    with pytest.raises(DataError, match="exceeds the 512 that the model takes"):
        session.answer("What " * 3000)
    assert session.messages == []
    assert session.answer(PERU) == "It is\nLima."
