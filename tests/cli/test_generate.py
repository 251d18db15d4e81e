"""`loralib generate`: what it prints, writes and refuses."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from loralib.cli import main
from loralib.recipes import run_folder, seeds
from loralib.recipes.nlg import decoding, generator
from loralib.recipes.presets.nlg import Decoding
from recipes.nlg.conftest import meal, read_jsonl, write_jsonl

pytest_plugins = ["recipes.conftest", "recipes.nlg.conftest"]

SHORT = ["--beams", "2", "--max-new-tokens", "10"]


@pytest.fixture(scope="module")
def restaurants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the three splits of E2E, as the paper's files are; the inputs of two rows are equal."""
    folder = tmp_path_factory.mktemp("data") / "e2e"
    folder.mkdir()
    foods = ("Thai", "French", "Indian", "English")
    for split, names in (
        ("train", ("Aromi", "Clowns", "Giraffe", "Zizzi")),
        ("valid", ("Strada",)),
        ("test", ("Wildwood", "The Mill")),
    ):
        rows = [meal(name, food) for name in names for food in foods[: 4 if split == "train" else 2]]
        rows.append((rows[0][0], "There is food ."))
        (folder / f"lora_nlg_{split}.txt").write_text("".join(f"{context}||{text}\n" for context, text in rows))
    return folder.parent


def train(gpt2: Path, folder: Path, *data: str) -> Path:
    options = ["--max-length", "64", "--batch-size", "8", "--learning-rate", "2e-2", "--r", "4", "--lora-alpha", "32"]
    assert main(["train", "--model", str(gpt2), "--output", str(folder), "--num-train-epochs", "1", *options, *data]) == 0
    return folder


@pytest.fixture(scope="module")
def e2e_run(gpt2: Path, restaurants: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds on the task."""
    folder = tmp_path_factory.mktemp("runs") / "e2e"
    return train(gpt2, folder, "--task", "e2e", "--data-dir", str(restaurants), "--seeds", "2")


@pytest.fixture(scope="module")
def own_run(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file of your own, with columns of other names."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [meal(name, food) for name in ("Aromi", "Clowns", "Giraffe", "Zizzi") for food in ("Thai", "French", "Indian")]
    path = write_jsonl(folder / "mine.jsonl", rows, ("input", "output"))
    columns = ["--problem", "generation", "--context-column", "input", "--completion-column", "output"]
    return train(gpt2, folder / "run", "--data", str(path), *columns)


@pytest.fixture(autouse=True)
def nothing_generated(e2e_run: Path, own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each test begins without texts."""
    import shutil

    for folder in (own_run, *(e2e_run / f"seed-{seed}" for seed in range(2))):
        shutil.rmtree(folder / run_folder.GENERATED, ignore_errors=True)
    capsys.readouterr()


def expected(run: Path, contexts: list[str], how: Decoding) -> list[str]:
    return generator.open_run(run).generate(contexts, how)


# --- what it writes and prints --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_texts_of_inputs_in_words_are_printed(own_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contexts = [meal("Strada", "Thai")[0], "name : Zizzi"]
    assert main(["generate", str(own_run), *SHORT, *contexts]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == expected(own_run, contexts, Decoding(2, 0.9, 4, 10))
    assert shown.err == ""
    assert not (own_run / run_folder.GENERATED).exists()
    assert main(["generate", "--beams", "1", str(own_run), *contexts, "--no-repeat-ngram", "0"]) == 0
    assert capsys.readouterr().out.splitlines() == expected(own_run, contexts, Decoding(1, 0.9, 0, 64))


def test_a_split_of_the_task_is_written_for_every_seed(
    e2e_run: Path, restaurants: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(e2e_run), "--split", "test", *SHORT]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Wrote ") == 2
    assert shown.endswith(f"Score them: loralib score e2e {e2e_run}\n")
    contexts = [meal(name, food)[0] for name in ("Wildwood", "The Mill") for food in ("Thai", "French")]
    for seed in range(2):
        run = e2e_run / f"seed-{seed}"
        assert {path.name for path in (run / run_folder.GENERATED).iterdir()} == {"test.jsonl", "test.txt"}
        rows = read_jsonl(run / run_folder.GENERATED / "test.jsonl")
        assert [row["context"] for row in rows] == contexts
        assert rows[0]["references"] == [meal("Wildwood", "Thai")[1], "There is food ."]
        assert [row["prediction"] for row in rows] == expected(run, contexts, Decoding(2, 0.9, 4, 10))
        assert (run / run_folder.GENERATED / "test.txt").read_text().splitlines() == [row["prediction"] for row in rows]
        assert f"Wrote {run}/generated/test.jsonl and test.txt: the texts of 4 inputs of {restaurants}" in shown


def test_one_seed_and_another_split_can_be_asked_for(e2e_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = e2e_run / "seed-1"
    assert main(["generate", str(run), "--split", "dev", "--max-inputs", "1", *SHORT]) == 0
    assert "Score them" not in capsys.readouterr().out
    assert [row["context"] for row in read_jsonl(run / run_folder.GENERATED / "dev.jsonl")] == [meal("Strada", "Thai")[0]]
    assert not (e2e_run / "seed-0" / run_folder.GENERATED).exists()


def test_the_run_may_be_overwritten_after_it_wrote_texts(own_run: Path, gpt2: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [meal("Aromi", "Thai"), meal("Zizzi", "Thai")] * 4)
    words = ["--data", str(path), "--problem", "generation", "--eval-data", str(path)]
    run = train(gpt2, tmp_path / "run", *words)
    assert main(["generate", str(run), "--data", str(path), *SHORT]) == 0
    assert (run / run_folder.GENERATED / "mine.jsonl").is_file()
    train(gpt2, run, *words, "--overwrite")
    assert not (run / run_folder.GENERATED).exists()


def test_the_inputs_of_a_file_go_where_they_are_told_to(
    own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "new.jsonl"
    data.write_text(json.dumps({"input": "name : Zizzi", "output": ["a", "b"], "category": "seen"}) + "\n")
    assert main(["generate", str(own_run), "--data", str(data), "-o", str(tmp_path / "out" / "texts.jsonl"), *SHORT]) == 0
    assert f"Wrote {tmp_path}/out/texts.jsonl and texts.txt: the texts of 1 inputs of {data}." in capsys.readouterr().out
    (row,) = read_jsonl(tmp_path / "out" / "texts.jsonl")
    assert {name: row[name] for name in ("context", "references", "category")} == {
        "context": "name : Zizzi",
        "references": ["a", "b"],
        "category": "seen",
    }
    assert main(["generate", str(own_run), "--data", str(data), *SHORT]) == 0
    assert (own_run / run_folder.GENERATED / "new.jsonl").read_bytes() == (tmp_path / "out" / "texts.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([], Decoding(10, 0.9, 4, 64)),
        (["--preset", "scripts"], Decoding(10, 0.8, 4, 64)),
        (["--preset", "scripts", "--length-penalty", "1.5", "--beams", "1"], Decoding(1, 1.5, 4, 64)),
    ],
)
def test_decoding_is_the_papers_unless_told_otherwise(
    e2e_run: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], how: Decoding
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(decoding, "decode", lambda model, tokenizer, texts, how, *more: told.append((how, more[0])) or [""])
    assert main(["generate", str(e2e_run / "seed-0"), "a", *words, "--batch-size", "3"]) == 0
    assert told == [(how, 3)]


# --- interruption ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_was_decoded_and_the_same_words_go_on(
    e2e_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(e2e_run / "seed-0"), "--split", "test", "--batch-size", "1", *SHORT]
    inner, decoded = decoding.decode_batch, []

    def pressed(model: Any, tokenizer: Any, rows: Any, how: Any) -> Any:
        if len(decoded) == 3:
            signal.raise_signal(signal.SIGINT)
        decoded.append(rows)
        return inner(model, tokenizer, rows, how)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_batch", pressed)
        assert main(words) == 130
    assert "what was decoded is kept. Go on with the same words and --resume" in capsys.readouterr().err
    folder = e2e_run / "seed-0" / run_folder.GENERATED
    assert [path.name for path in folder.iterdir()] == ["test.partial.jsonl"]
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "test.partial.jsonl was interrupted; add --resume to go on with it, or --overwrite to begin again" in shown
    assert shown.count("\n") == 1
    assert main([*words, "--resume"]) == 0
    resumed = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main([*words, "--overwrite"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == resumed
    assert resumed.keys() == {"test.jsonl", "test.txt"}


@pytest.mark.usefixtures("interruptible")
def test_the_seeds_that_are_done_are_kept_when_the_others_go_on(
    e2e_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words that the interruption told to say work for a folder of seeds too."""
    words = ["generate", str(e2e_run), "--split", "test", *SHORT]
    inner, decoded = decoding.decode_batch, []

    def pressed(model: Any, tokenizer: Any, rows: Any, how: Any) -> Any:
        if len(decoded) == 1:  # in the second seed
            signal.raise_signal(signal.SIGINT)
        decoded.append(rows)
        return inner(model, tokenizer, rows, how)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_batch", pressed)
        assert main(words) == 130
    first = (e2e_run / "seed-0" / run_folder.GENERATED / "test.jsonl").read_bytes()
    assert main([*words, "--resume"]) == 0
    assert (e2e_run / "seed-0" / run_folder.GENERATED / "test.jsonl").read_bytes() == first
    assert len(read_jsonl(e2e_run / "seed-1" / run_folder.GENERATED / "test.jsonl")) == 4


# --- wrong words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of: inputs in quotes, --split of the run's task, or --data"),
        (["text", "--split", "test"], "give one of: inputs in quotes"),
        (["--split", "test", "--data", "d.jsonl"], "give one of: inputs in quotes"),
        (["text", "--overwrite"], "inputs on the command line are printed, not written"),
        (["text", "-o", "x.jsonl"], "inputs on the command line are printed, not written"),
        (["text", "--max-inputs", "1"], "inputs on the command line are printed, not written"),
        (["--data", "d.jsonl", "--data-dir", "data"], "--data-dir belongs to --split"),
        (["--split", "test", "--resume", "--overwrite"], "--overwrite and --resume contradict each other"),
        (["--split", "test", "--batch-size", "0"], "--batch-size 0: must be positive"),
        (["--split", "test", "--max-inputs", "0"], "--max-inputs 0: must be positive"),
        (["--split", "test", "-o", "x.txt"], "--output x.txt: must end in .jsonl"),
        (["--split", "test", "-o", ""], "--output: the value is empty; leave it out"),
        (["--data", ""], "--data: the value is empty; leave it out"),
        (["--split", "valid"], "'valid' is not one of test, dev, train"),
        (["--split", "test", "--preset", "papers"], "nearest: paper"),
        (["--split", "test"], "was trained on {run.parent}/mine.jsonl, which has no splits; give --data"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--data", "{run}/config.yaml"], "config.yaml is not a .jsonl file"),
        (["text", "--beams", "0"], "beams=0: must be at least 1"),
        (["text", "--beams", "two"], "--beams: 'two' is not a whole number"),
        (["text", "--max-new-tokens", "0"], "max_new_tokens=0: must be at least 1"),
        (["text", "--max-new-tokens", "127"], "the input 'text' has "),
        (["text", "--length-penalty", "nan"], "length_penalty"),
        (["text", "--top-k", "5"], "no option --top-k"),
    ],
)
def test_wrong_words_end_with_code_2_and_one_sentence(
    own_run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["generate", str(own_run), *(word.format(run=own_run) for word in words)]) == 2
    shown = capsys.readouterr().err
    assert message.format(run=own_run) in shown
    assert shown.startswith("loralib: ")
    assert shown.count("\n") == 1
    assert not (own_run / run_folder.GENERATED).exists()


def test_texts_that_are_there_are_left_alone_unless_overwrite(e2e_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = e2e_run / "seed-0"
    words = ["generate", str(run), "--split", "test", *SHORT]
    assert main(words) == 0
    before = (run / run_folder.GENERATED / "test.jsonl").read_bytes()
    assert main([*words, "--max-inputs", "1"]) == 2
    assert f"{run}/generated/test.jsonl exists; add --overwrite" in capsys.readouterr().err
    assert (run / run_folder.GENERATED / "test.jsonl").read_bytes() == before
    assert main([*words, "--max-inputs", "1", "--overwrite"]) == 0
    assert len(read_jsonl(run / run_folder.GENERATED / "test.jsonl")) == 1


def test_one_file_does_not_take_the_texts_of_several_seeds(
    e2e_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(e2e_run), "--split", "test", "-o", str(tmp_path / "x.jsonl")]) == 2
    assert f"--output names one file, and {e2e_run} holds 2 seeds; leave it out" in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path), "text"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    (tmp_path / run_folder.SEEDS).write_text("seeds: 2")
    assert main(["generate", str(tmp_path), "text"]) == 2
    assert "no seed in" in capsys.readouterr().err


def test_each_kind_of_run_has_its_own_commands(e2e_run: Path, own_run: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["predict", str(own_run), "text"]) == 2
    assert "generates text; use loralib generate and loralib score" in capsys.readouterr().err
    data = tmp_path / "d.tsv"
    data.write_text("text\tlabel\na\tb\n")
    assert main(["evaluate", str(own_run), "--data", str(data)]) == 2
    assert "generates text; use loralib generate and loralib score" in capsys.readouterr().err
    for words in (["--data", str(data)], ["--data", "dev"], ["--data", "test"]):
        assert main(["evaluate", str(e2e_run / "seed-0"), *words]) == 2
        shown = capsys.readouterr().err
        assert "generates text" in shown
        assert shown.count("\n") == 1
    assert main(["predict", str(e2e_run / "seed-0"), "--split", "test"]) == 2
    shown = capsys.readouterr().err
    assert "generates text" in shown
    assert shown.count("\n") == 1


# --- training -------------------------------------------------------------------------------------------------------


def test_seeds_are_reported_as_they_are(
    e2e_run: Path, gpt2: Path, restaurants: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((e2e_run / run_folder.SUMMARY).read_text())
    values = {seed: json.loads((e2e_run / f"seed-{seed}" / run_folder.METRICS).read_text())["value"] for seed in range(2)}
    assert found["metric"] == "perplexity"
    assert found["values"] == {str(seed): value for seed, value in values.items()}
    assert seeds.best_of(e2e_run) == e2e_run / f"seed-{min(values, key=lambda seed: values[seed])}"
    words = ["train", "--model", str(gpt2), "--output", str(e2e_run), "--task", "e2e", "--data-dir", str(restaurants)]
    assert main([*words, "--seeds", "2", "--resume", "--num-train-epochs", "1", "--max-length", "64", "--batch-size", "8"]) == 0
    assert f"perplexity, median of 2: {found['median']:.1f} ± {found['deviation']:.1f}\n" in capsys.readouterr().out


def test_words_that_belong_to_classifying_are_one_sentence(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--model", str(gpt2), "--task", "e2e", "--output", str(tmp_path / "run")]
    for more, message in (
        (["--label-column", "a"], "label_column='a' has no effect with task=e2e"),
        (["--head-dropout", "0.1"], "head_dropout=0.1 has no effect on generating text"),
        (["--metric-for-best-model", "accuracy"], "must be one of perplexity, nll"),
        (["--data-dir", str(tmp_path)], "has no train set of E2E NLG"),
        (["--problem", "generation"], "problem='generation' has no effect with task=e2e"),
    ):
        assert main([*words, *more]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "run").exists()
