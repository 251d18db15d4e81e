"""The benchmark on E2E: what it pretrains on, its vocabulary, and all of its stages with next to nothing of everything."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from loralib.cli import main
from loralib.recipes import comparison, report, run_folder
from loralib.recipes.nlg import generator
from loralib.recipes.nlg.examples import collected, example
from loralib.recipes.nlg.prompts import PaperForm
from loralib.recipes.nlg.tasks import read_split
from loralib.recipes.presets.nlg import Decoding
from peers import data

sys.path.append(str(Path(__file__).parent.parent))  # `benchmarks` is not a part of what is installed

from benchmarks import e2e, provenance

pytestmark = pytest.mark.slow

TINY = e2e.Budget(
    width=32,
    depth=3,
    heads=2,
    vocabulary=600,
    pretraining_rows=48,
    pretraining_epochs=1,
    rows=32,
    epochs=1,
    dev_rows=16,
    test_inputs=3,
    decoding=Decoding(beams=2, max_new_tokens=6),
)


def test_what_is_pretrained_on() -> None:
    rows = e2e.pretraining_rows(data())
    assert len(rows) == 6935 + 2768
    assert sum(len(row["completion"]) for row in rows) == 18_025 + 6_980
    assert rows[0]["context"] == 'Aarhus_Airport : cityServed : "Aarhus, Denmark"'
    assert rows[0]["completion"][0] == "The Aarhus is the airport of Aarhus, Denmark."
    seen = {plain(text) for row in rows for text in row["completion"]}
    assert not seen & {plain(text) for row in read_split("e2e", "test", data()) for text in row["references"]}


def plain(text: str) -> str:
    return "".join(text.lower().split())


def test_the_vocabulary_is_like_that_of_gpt_2(tmp_path: Path) -> None:
    texts = ["The Mill : Type : pub", "The Mill is a pub near the Café Rouge ; £ 30 ."] * 5
    e2e.make_tokenizer(texts, 280).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 280
    assert tokenizer.all_special_tokens == [e2e.END]
    for text in (*texts, " unseen words, 日本\tand bytes\n"):
        assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text
    assert PaperForm(tokenizer).prompt_ids("pub")[-1] == tokenizer.eos_token_id == tokenizer.bos_token_id
    assert len(PaperForm(tokenizer).end_ids()) == 2  # the end and "\n"


def test_every_stage_and_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained: list[str] = []

    def wait_for(words: Sequence[str]) -> int:
        trained.append(Path(words[2]).stem)
        return main(list(words))

    monkeypatch.setattr(comparison, "wait_for", wait_for)
    console = Console()
    rows, texts = e2e.measure(data(), tmp_path / "runs", TINY, console, resume=False)
    assert trained == ["pretrained", "lora", "last-layers", "full", "lora-all"]
    assert [row["method"] for row in rows] == list(texts) == ["pretrained", *e2e.ADAPTED]
    block = 12 * 32 * 32 + 13 * 32
    everything = 3 * block + 600 * 32 + 512 * 32 + 2 * 32
    of_all = 16 * (4 * (32 + 32) + 2 * (32 + 128))  # query, key, value, output, and the two of the MLP
    assert [row["trained"] for row in rows] == [0, 3 * 2 * 4 * (32 + 32), 3 * of_all, 2 * block, everything]
    assert {(row["total"], row["test_inputs"], row["train_rows"]) for row in rows[1:]} == {(everything, 3, 32)}
    assert all(1 < row["perplexity"] < 1000 and 0 <= row["bleu"] <= 100 for row in rows)
    assert {len(of_method) for of_method in texts.values()} == {3}
    options, _ = run_folder.read_options(tmp_path / "runs" / "full")
    of_full = e2e.perplexity(generator.open_run(tmp_path / "runs" / "full"), options)
    assert of_full == pytest.approx(rows[-1]["perplexity"], rel=1e-4)  # as Trainer found it

    for suffix in (".jsonl", ".txt"):
        (tmp_path / "runs" / "full" / "generated" / "test").with_suffix(suffix).unlink()
    again, same = e2e.measure(data(), tmp_path / "runs", TINY, console, resume=True)
    assert len(trained) == 5  # nothing was trained again
    assert same == texts
    assert [{**row, "decode_seconds": 0} for row in again] == [{**row, "decode_seconds": 0} for row in rows]

    capsys.readouterr()
    Console(width=200).print(e2e.table(rows))
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*trained, "NIST", "ROUGE-L", report.human_share(rows[1]["share"])))
    e2e.plot(rows, tmp_path / "images" / "e2e.png")
    assert (tmp_path / "images" / "e2e.png").stat().st_size > 5000
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    with provenance.write_rows("e2e", rows, provenance.provenance("cpu")).open(newline="") as file:
        assert [row["bleu"] for row in csv.DictReader(file)] == [str(row["bleu"]) for row in rows]


def test_samples_are_spread_over_the_inputs_and_say_whose_they_are(tmp_path: Path) -> None:
    given = collected("x", [example(f"name : {i} | a : b", [f"{i} .", "other"]) for i in range(10)])
    path = e2e.write_samples(tmp_path / "samples.md", given, {"lora": [f"a | {i} <" for i in range(10)]}, n=4)
    written = path.read_text()
    assert [line for line in written.splitlines() if line.startswith("## ")] == ["## 1", "## 4", "## 7", "## 10"]
    assert "CC BY-SA 4.0" in written
    assert "| lora | a \\| 9 &lt; |" in written


def test_without_data_one_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LORALIB_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["e2e"])
    assert e2e.main() == 2
    assert "set LORALIB_DATA" in capsys.readouterr().err
