"""The files of texts that a finished run writes: whole, in order, and the same however often they were interrupted."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import loralib as lora
from loralib.errors import AttachError, DataError, FormatError, RunError
from loralib.recipes import run_folder
from loralib.recipes.nlg import decoding, generator, language_models
from loralib.recipes.nlg.examples import collected, example, read_jsonl
from loralib.recipes.nlg.prompts import PaperForm
from loralib.recipes.nlu import predictor as finished_understanding
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.nlg import Decoding
from loralib.recipes.run import Interrupted
from loralib.storage.lock import file_lock
from loralib.storage.temporaries import temporary
from recipes.nlg.conftest import FOODS, MEALS, meal, options, run
from recipes.nlg.conftest import read_jsonl as lines_of
from recipes.nlu.test_text_classification import InterruptAt

HOW = Decoding(beams=2, max_new_tokens=12)


@pytest.fixture(scope="module")
def folder(gpt2: Path, meals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has learned to write `serves`."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run(folder, options(gpt2, meals, layers="query,key,value,output,mlp", num_train_epochs=4))
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> generator.Run:
    return generator.open_run(folder)


@pytest.fixture(scope="module")
def some() -> Any:
    """Inputs of several lengths, two of them equal but for their category."""
    names = ("Aromi", "Bibimbap House", "The Mill", "Zizzi", "Loch Fyne", "Giraffe")
    rows = [meal(name, FOODS[i % 3]) for i, name in enumerate(names)]
    examples = [example(context, (text, "Café £ 20 ."), "seen") for context, text in rows]
    return collected("some", [*examples, examples[2] | {"category": None}])


class Counted:
    """Counts the inputs that are decoded, and stops before a batch when told so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows, self.stop_after, self.error = 0, 10**6, RuntimeError("out of memory")
        self.inner = decoding.decode_batch
        monkeypatch.setattr(decoding, "decode_batch", self)

    def __call__(self, model: Any, tokenizer: Any, rows: Sequence[list[int]], how: Decoding) -> list[str]:
        if self.rows + len(rows) > self.stop_after:
            raise self.error
        self.rows += len(rows)
        return self.inner(model, tokenizer, rows, how)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def content(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), path.with_suffix(".txt").read_bytes()


# --- what is written ------------------------------------------------------------------------------------------------


def test_a_run_writes_what_it_has_learned(gpt2: Path, opened: generator.Run, meals: Path, tmp_path: Path) -> None:
    data = read_jsonl(meals / "test.jsonl")
    texts = opened.generate_into(tmp_path / "new" / "test.jsonl", data, HOW)
    names = [reference.partition(" serves ")[0] for (reference,) in data["references"]]
    assert sum(text.startswith(f"{name} serves ") for text, name in zip(texts, names, strict=True)) >= 6
    model, tokenizer = language_models.load_language_model(str(gpt2))
    base = decoding.decode(model, PaperForm(tokenizer), data["context"][:], HOW)
    assert not any("serves" in text for text in base)
    assert texts == opened.generate(data["context"][:], HOW)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"test.jsonl", "test.txt"}
    assert not opened.model.training


def test_rows_are_in_the_order_of_the_data(opened: generator.Run, some: Any, tmp_path: Path) -> None:
    path, heard = tmp_path / "some.jsonl", []
    texts = opened.generate_into(path, some, HOW, batch_size=2, on_progress=heard.append)
    written = lines_of(path)
    assert [row["context"] for row in written] == some["context"]
    assert [row["references"] for row in written] == some["references"]
    assert [row["category"] for row in written] == ["seen"] * 6 + [None]
    assert [row["prediction"] for row in written] == texts == [opened.generate([c], HOW)[0] for c in some["context"]]
    assert path.with_suffix(".txt").read_text().splitlines() == texts
    assert "Café £" in path.read_text(encoding="utf-8")
    assert heard == [0, 2, 4, 6, 7]


# --- interruption ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_what_was_interrupted_goes_on_without_repeating_or_losing_a_text(
    opened: generator.Run, some: Any, tmp_path: Path, counted: Counted, stop_after: int, error: BaseException
) -> None:
    opened.generate_into(tmp_path / "straight.jsonl", some, HOW)
    path, heard = tmp_path / "some.jsonl", []
    counted.rows, counted.stop_after, counted.error = 0, stop_after, error
    with pytest.raises(type(error)):
        opened.generate_into(path, some, HOW, batch_size=2)
    done = stop_after // 2 * 2
    assert counted.rows == done
    assert not path.exists()
    assert not path.with_suffix(".txt").exists()
    assert len((tmp_path / "some.partial.jsonl").read_text().splitlines()) == 1 + done
    with pytest.raises(RunError, match=r"some.partial.jsonl was interrupted; add --resume to go on with it, or --overwrite"):
        opened.generate_into(path, some, HOW)
    counted.stop_after = 10**6
    opened.generate_into(path, some, HOW, batch_size=3, resume=True, on_progress=heard.append)
    assert counted.rows == len(some)
    assert (heard[0], heard[-1]) == (done, len(some))
    assert content(path) == content(tmp_path / "straight.jsonl")
    assert not (tmp_path / "some.partial.jsonl").exists()


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_line_that_was_not_written_to_its_end_is_decoded_again(
    opened: generator.Run, some: Any, tmp_path: Path, counted: Counted, cut: int
) -> None:
    opened.generate_into(tmp_path / "straight.jsonl", some, HOW)
    path, partial = tmp_path / "some.jsonl", tmp_path / "some.partial.jsonl"
    counted.rows, counted.stop_after = 0, 4
    with pytest.raises(RuntimeError, match="out of memory"):
        opened.generate_into(path, some, HOW, batch_size=2)
    partial.write_bytes(partial.read_bytes()[:-cut])
    kept = partial.read_bytes().count(b"\n") - 1
    assert kept < 4
    with pytest.raises(RuntimeError, match="out of memory"):  # twice
        opened.generate_into(path, some, HOW, batch_size=2, resume=True)
    assert partial.read_bytes().count(b"\n") - 1 == kept
    counted.stop_after, counted.rows = 10**6, 0
    opened.generate_into(path, some, HOW, batch_size=2, resume=True)
    assert counted.rows == len(some) - kept
    assert content(path) == content(tmp_path / "straight.jsonl")


def test_what_a_kill_leaves_at_the_end_is_finished_or_undone(
    opened: generator.Run, some: Any, tmp_path: Path, counted: Counted
) -> None:
    path, partial = tmp_path / "some.jsonl", tmp_path / "some.partial.jsonl"
    assert not generator.is_finished(path)
    opened.generate_into(path, some, HOW)
    whole = content(path)
    killed = temporary(path, "2147483647")  # no process has this number
    partial.touch()
    path.rename(killed)  # the plain texts are in their place, and these are not yet
    assert generator.is_finished(path)
    assert content(path) == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["some.jsonl", "some.txt"]
    with file_lock(path):
        for use in (lambda: generator.is_finished(path), lambda: opened.generate_into(path, some, HOW, overwrite=True)):
            with pytest.raises(RunError, match=r"some.jsonl is being written by process \d+ on"):
                use()
    assert content(path) == whole
    assert counted.rows == len(some)


def interrupted(opened: generator.Run, some: Any, path: Path, counted: Counted) -> Path:
    """A partial file with four texts."""
    counted.stop_after = counted.rows + 4
    with pytest.raises(RuntimeError, match="out of memory"):
        opened.generate_into(path, some, HOW, batch_size=2)
    counted.stop_after = 10**6
    return path.with_suffix(".partial.jsonl")


def test_everything_may_have_been_decoded_but_not_written(
    opened: generator.Run, some: Any, tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("disk full")

    path = tmp_path / "some.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(generator, "write", full)
        with pytest.raises(OSError, match="disk full"):
            opened.generate_into(path, some, HOW)
    rows = counted.rows
    texts = opened.generate_into(path, some, HOW, resume=True)
    assert counted.rows == rows
    assert [row["prediction"] for row in lines_of(path)] == texts


def test_overwrite_begins_again(opened: generator.Run, some: Any, tmp_path: Path, counted: Counted) -> None:
    path = tmp_path / "some.jsonl"
    interrupted(opened, some, path, counted)
    counted.rows = 0
    opened.generate_into(path, some, HOW, overwrite=True)
    assert counted.rows == len(some)
    first = content(path)
    with pytest.raises(RunError, match=r"some.jsonl exists; add --overwrite to replace it, or give another --output"):
        opened.generate_into(path, some, HOW)
    with pytest.raises(RunError, match=r"some.jsonl exists"):
        opened.generate_into(path, some, HOW, resume=True)
    assert content(path) == first
    assert counted.rows == len(some)
    opened.generate_into(path, some.select([0, 1]), Decoding(beams=1, max_new_tokens=2), overwrite=True)
    assert len(lines_of(path)) == 2


def test_resuming_what_was_never_begun_begins_it(opened: generator.Run, some: Any, tmp_path: Path) -> None:
    assert len(opened.generate_into(tmp_path / "some.jsonl", some, HOW, resume=True)) == len(some)


def test_texts_of_other_inputs_decodings_or_trainings_are_not_gone_on_with(
    opened: generator.Run, some: Any, tmp_path: Path, counted: Counted
) -> None:
    path = tmp_path / "some.jsonl"
    partial = interrupted(opened, some, path, counted)
    before = partial.read_bytes()
    other = tmp_path / "other"
    shutil.copytree(opened.folder, other)
    results = json.loads((other / run_folder.METRICS).read_text())
    (other / run_folder.METRICS).write_text(json.dumps(results | {"train_seconds": 1.0}))
    for other_run, data, how, named in (
        (opened, some.select([1, 0, *range(2, 7)]), HOW, "inputs"),
        (opened, some.select(range(6)), HOW, "inputs"),
        (opened, some, replace(HOW, beams=3), "decoding"),
        (opened, some, replace(HOW, length_penalty=0.8), "decoding"),
        (replace(opened, folder=other), some, HOW, "trained"),
        (opened, some.select([0]), replace(HOW, beams=3), "decoding and other inputs"),
    ):
        with pytest.raises(RunError, match=f"some.partial.jsonl was begun with other {named}; say the same, or --overwrite"):
            other_run.generate_into(path, data, how, resume=True)
    assert partial.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"\n" + content,
        lambda content: b"[1]\n" + content.partition(b"\n")[2],
        lambda content: content.replace(b'"i"', b'"j"'),
        lambda content: content + b"1\n",
        lambda content: content.replace(b'"i": ', b'"i": "x'),
        lambda content: content.replace(b'"prediction"', b"\xff"),
    ],
    ids=["empty", "no head", "another head", "another key", "no object", "no JSON", "no UTF-8"],
)
def test_a_damaged_file_of_texts_is_one_error(
    opened: generator.Run, some: Any, tmp_path: Path, counted: Counted, damage: Any
) -> None:
    path = tmp_path / "some.jsonl"
    partial = interrupted(opened, some, path, counted)
    partial.write_bytes(damage(partial.read_bytes()))
    with pytest.raises(RunError, match=r"some.partial.jsonl is damaged; add --overwrite to begin again"):
        opened.generate_into(path, some, HOW, resume=True)


@pytest.mark.parametrize("name", ["some.jsonl", "some.txt"])
@pytest.mark.parametrize("content", ["", "notes", "[1]", '{"context": 1}', "\x00"])
def test_files_that_hold_no_texts_of_ours_are_never_overwritten(
    opened: generator.Run, some: Any, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=f"{name} is there and was not written by loralib generate"):
        opened.generate_into(tmp_path / "some.jsonl", some, HOW, overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: content}


def test_an_input_without_room_is_found_before_anything_is_written(opened: generator.Run, some: Any, tmp_path: Path) -> None:
    long = collected("some", [*some.to_list(), example(" | ".join(meal(*both)[0] for both in MEALS), ["x"])])
    with pytest.raises(DataError, match="give a smaller --max-new-tokens"):
        opened.generate_into(tmp_path / "new" / "some.jsonl", long, HOW)
    assert not list(tmp_path.iterdir())


# --- which runs can be opened ---------------------------------------------------------------------------------------


def test_a_run_that_classifies_writes_no_text_and_the_other_way_round(
    encoder: Path, reviews: Path, folder: Path, tmp_path: Path
) -> None:
    run(
        tmp_path / "run",
        TrainOptions(model=str(encoder), data=str(reviews / "train.tsv"), num_train_epochs=0.1, max_train_rows=64),
    )
    with pytest.raises(RunError, match=r"the run in .* generates no text; use loralib predict or loralib evaluate"):
        generator.open_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"the run in .* generates text; use loralib generate and loralib score"):
        finished_understanding.open_run(folder)


def test_a_folder_without_a_finished_run_is_refused(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        generator.open_run(tmp_path)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", options(gpt2, meals), callbacks=[InterruptAt(1)])
    with pytest.raises(RunError, match=r"is not finished \(adapter/ or metrics.json is missing\); finish it with --resume"):
        generator.open_run(tmp_path / "run")


def test_a_damaged_or_foreign_adapter_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / run_folder.ADAPTER / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        generator.open_run(broken)
    shutil.copytree(folder / run_folder.ADAPTER, broken / run_folder.ADAPTER, dirs_exist_ok=True)
    stored = lora.load(broken / run_folder.ADAPTER)
    name, update = next(iter(stored.layers.items()))
    stretched = lora.LoRAUpdate(torch.ones(update.r, 99), update.B, update.lora_alpha)
    lora.save(lora.Adapter(stored.config, {**stored.layers, name: stretched}, stored.tensors), broken / run_folder.ADAPTER)
    with pytest.raises(AttachError, match=r"99\)"):
        generator.open_run(broken)
    (broken / run_folder.CONFIG).write_text("model: [")
    with pytest.raises(RunError, match="is damaged"):
        generator.open_run(broken)


def test_a_base_model_that_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    chosen, labels = run_folder.read_options(moved)
    run_folder.write_options(moved, replace(chosen, model=str(tmp_path / "gone")), labels)
    with pytest.raises(RunError, match="gone' cannot be loaded as a causal language model"):
        generator.open_run(moved)
