"""`loralib chat`: what it says, remembers and refuses; and `loralib generate` with a run that chats."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import main
from loralib.recipes import run_folder
from loralib.recipes.nlg import decoding
from recipes.chat.conftest import CITIES, talk

pytest_plugins = ["recipes.chat.conftest"]

PERU = "What is the capital of Peru?"


@pytest.fixture(scope="module")
def chatting(chatter: Path, capitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was started by the command line, which saw by the columns what it is."""
    folder = tmp_path_factory.mktemp("runs") / "capitals"
    words = ["train", "--model", str(chatter), "--data", str(capitals), "--output", str(folder), "--batch-size", "4"]
    words += ["--eval-data", str(capitals)]
    assert main([*words, "--num-train-epochs", "14", "--learning-rate", "1e-2", "--max-length", "64"]) == 0
    return folder


def test_what_the_data_are_is_detected(chatting: Path) -> None:
    options, _ = run_folder.read_options(chatting)
    assert (options.kind, options.lora.r, options.chat_template) == ("chat", 16, "tokenizer")


def test_a_conversation(chatting: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal every line of standard input is a message."""
    lines = [PERU, "", "/clear", "What is the capital of Spain?", "/nosuch", "/base", "/quit", "unheard", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", str(chatting), "--max-new-tokens", "20"]) == 0
    said = capsys.readouterr().out
    assert said.count("Loading") == 1
    for part in ("It is\nLima.\n", "It is\nMadrid.\n", "What was said is forgotten.", "/nosuch is not known", "Now without"):
        assert part in said
    assert "unheard" not in said


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_prints_all_lines(chatting: Path, capsys: Any) -> None:
    assert main(["generate", str(chatting), PERU]) == 0
    assert capsys.readouterr().out == "It is\nLima.\n"


def test_generate_answers_a_file(chatting: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "asked.jsonl"
    rows: list[dict[str, Any]] = [talk(land) for land in CITIES]
    rows.append({"messages": [*talk("Italy")["messages"], {"role": "user", "content": PERU}]})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["generate", str(chatting), "--data", str(data)]) == 0
    path = chatting / run_folder.GENERATED / "asked.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prediction"] for row in found[:4]] == [f"It is\n{city}." for city in CITIES.values()]
    assert [row["references"] for row in found[:4]] == [[f"It is\n{city}."] for city in CITIES.values()]
    assert found[4]["context"] == rows[4]["messages"]
    assert found[4]["references"] == []
    assert path.with_suffix(".txt").read_text().splitlines()[:4] == [f"It is {city}." for city in CITIES.values()]
    assert main(["generate", str(chatting), "--data", str(data), "--base"]) == 0
    base = [json.loads(line) for line in path.with_name("asked-base.jsonl").read_text().splitlines()]
    assert base[0]["prediction"] != found[0]["prediction"]
    capsys.readouterr()
    answered = path.with_name("answered.jsonl")
    answered.write_text("".join(json.dumps(row) + "\n" for row in found if row["references"]))
    assert main(["score", "any", str(answered), "--without", "meteor", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["rows"], scored["metrics"]["bleu"]) == (4, pytest.approx(100))
    assert main(["score", "any", str(path)]) == 2
    assert "row 5 has no reference" in capsys.readouterr().err


def test_sampling_is_seeded(chatting: Path, capsys: Any) -> None:
    def sampled(seed: int) -> str:
        assert main(["generate", str(chatting), PERU, "--temperature", "9", "--top-p", "0.99", "--seed", str(seed)]) == 0
        return str(capsys.readouterr().out)

    assert sampled(0) == sampled(0) != sampled(1)


def test_stop_strings(chatting: Path, capsys: Any) -> None:
    assert main(["generate", str(chatting), PERU, "--stop", "im", "--stop", "zz"]) == 0
    assert capsys.readouterr().out == "It is\nL\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--temperature", "-1"], "temperature=-1.0: must be 0 (no sampling) or more"),
        (["--temperature", "1", "--beams", "2"], "has no effect on beam search"),
        (["--top-p", "0.5"], "has no effect without sampling"),
        (["--top-p", "2", "--temperature", "1"], "must be above 0 and at most 1"),
    ],
)
def test_decodings_that_cannot_be(words: list[str], sentence: str, chatting: Path, capsys: Any) -> None:
    assert main(["generate", str(chatting), PERU, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_texts_that_are_all_empty(chatting: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "decode_batch", lambda model, form, rows, how: [""] * len(rows))
    assert main(["generate", str(chatting), PERU]) == 0
    assert "all 1 texts are empty" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_seeds_that_cannot_be(seed: str, chatting: Path, capsys: Any) -> None:
    assert main(["generate", str(chatting), "q", "--seed", seed]) == 2
    assert f"--seed {seed}: must be in [0, 2**32)" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_are_compared_on_conversations(chatter: Path, capitals: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "both"
    words = ["compare", "--model", str(chatter), "--data", str(capitals), "--eval-data", str(capitals), "--output", str(folder)]
    assert main([*words, "--methods", "lora,full", "--num-train-epochs", "1", "--max-length", "64"]) == 0
    assert run_folder.read_options(folder / "full")[0].kind == "chat"
    assert "learning_rate: auto" in (folder / "best.yaml").read_text()
    assert main(["generate", str(folder / "full"), "--data", str(capitals), "--base"]) == 2
    assert "has no base" in capsys.readouterr().err
    assert not list((folder / "full").glob("generated/*")), "nothing is written"


def test_input_in_another_encoding(chatting: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{PERU}\nÄh?\n".encode("latin-1")), encoding="utf-8"))
    assert main(["chat", str(chatting), "--max-new-tokens", "20"]) == 2
    assert "loralib: standard input is not utf-8 text (" in capsys.readouterr().err
