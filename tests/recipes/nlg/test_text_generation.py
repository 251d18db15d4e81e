"""A run that learns to write text, from data to run folder: what it trains, learns, writes, and can be resumed from."""

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import loralib as lora
from loralib.errors import AttachError, ConfigError, DataError, RunError, TargetError
from loralib.recipes import run_folder, seeds
from loralib.recipes.nlg import generator, text_generation
from loralib.recipes.options import TrainOptions
from loralib.recipes.plan import Plan
from loralib.recipes.run import Interrupted
from loralib.train.checkpoints import last_whole_checkpoint
from loralib.train.measure import count_parameters
from models import close, same_bits
from peers import data, library
from recipes.nlg.conftest import options, read_jsonl, run, write_jsonl
from recipes.nlu.test_text_classification import InterruptAt, check_same_outcome

SHARP = {"lora_dropout": 0.1, "base_dropout": 0.1, "label_smoothing_factor": 0.1}


def rows(path: Path) -> list[tuple[str, str]]:
    return [(row["context"], row["completion"]) for row in read_jsonl(path)]


@torch.no_grad()
def plain_nll(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[float, int]:
    """The loss of all completions, token by token, in float64, and how many tokens they have."""
    total, count = 0.0, 0
    for context, completion in pairs:
        prompt = [*tokenizer.encode(context), tokenizer.eos_token_id]
        text = [*tokenizer.encode(" " + completion, add_special_tokens=False), tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + text])).logits[0].double()
        for i, token in enumerate(text, len(prompt)):
            total -= float(logits[i - 1].log_softmax(-1)[token])
            count += 1
    return total, count


def planned_run(chosen: TrainOptions) -> Plan:
    return text_generation.plan(chosen, text_generation.read_rows(chosen))


def plain_perplexity(model: Any, tokenizer: Any, path: Path) -> float:
    total, count = plain_nll(model, tokenizer, rows(path))
    return math.exp(total / count)


def pretrained(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def adapted(run: Path) -> tuple[Any, Any]:
    """What PEFT makes of a run's adapter, and the tokenizer."""
    base, tokenizer = pretrained(run_folder.read_options(run)[0].model)  # type: ignore[arg-type]
    return library("peft").PeftModel.from_pretrained(base, str(run / run_folder.ADAPTER)).eval(), tokenizer


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(torch.arange(30).reshape(2, 15)).logits
    return result


@pytest.fixture(scope="module")
def lora_run(gpt2: Path, meals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "lora"
    run(folder, options(gpt2, meals, save_merged=True, test_data=str(meals / "test.jsonl"), **SHARP))
    return folder


# --- what it learns and writes --------------------------------------------------------------------------------------


def test_a_lora_run_learns_and_writes_what_it_says(lora_run: Path, gpt2: Path, meals: Path) -> None:
    results = json.loads((lora_run / run_folder.METRICS).read_text())
    untrained = plain_perplexity(*pretrained(gpt2), meals / "dev.jsonl")
    assert results["metric"] == "perplexity"
    assert results["value"] < 0.4 * untrained
    assert results["metrics"]["perplexity"] == results["value"] == pytest.approx(math.exp(results["metrics"]["nll"]))
    assert results["parameters"] == {"trained": 1024, "lora": 2 * 2 * 2 * 32 * 4, "total": results["parameters"]["total"]}
    assert (results["train_rows"], results["eval_rows"], results["test_rows"], results["steps"]) == (34, 8, 8, 3 * 5)
    assert {path.name for path in lora_run.iterdir()} == run_folder.PARTS - {
        run_folder.MODEL,
        run_folder.SAMPLES,
        run_folder.SUBMISSION,
        run_folder.GENERATED,
    }
    assert (lora_run / run_folder.CURVE).read_bytes().startswith(b"\x89PNG")
    assert run_folder.read_options(lora_run)[1] is None


def test_its_figures_are_those_of_the_adapter_that_it_wrote(lora_run: Path, meals: Path) -> None:
    results = json.loads((lora_run / run_folder.METRICS).read_text())
    model, tokenizer = adapted(lora_run)
    assert results["value"] == pytest.approx(plain_perplexity(model, tokenizer, meals / "dev.jsonl"), rel=1e-4)
    tested = plain_perplexity(model, tokenizer, meals / "test.jsonl")
    assert results["test"] == {"perplexity": pytest.approx(tested, rel=1e-4), "nll": pytest.approx(math.log(tested), rel=1e-3)}


def test_the_adapter_loads_by_peft_and_merged_by_plain_transformers(lora_run: Path) -> None:
    opened = generator.open_run(lora_run)
    assert all(layer.merged for layer in opened.model.modules() if isinstance(layer, lora.LoRALayer))
    model, _ = adapted(lora_run)
    merged, tokenizer = pretrained(lora_run / run_folder.MERGED)
    torch.testing.assert_close(logits(model), logits(opened.model), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merged), logits(opened.model), rtol=1e-4, atol=1e-4)
    assert tokenizer.get_vocab() == opened.tokenizer.get_vocab()
    stored = lora.load(lora_run / run_folder.ADAPTER)
    assert stored.metadata["task_type"] == "CAUSAL_LM"
    assert not stored.tensors
    assert max(float(update.B.abs().max()) for update in stored.layers.values()) > 1e-2


def test_of_gpt2_the_slices_of_query_and_value_are_trained(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    model = planned_run(options(gpt2, meals)).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    attention = [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
    assert trained == {f"{name}.lora_{factor}" for name in attention for factor in "AB"}
    for name in attention:
        update = model.get_submodule(name).update
        assert (update.enable_lora, update.widths, update.r) == ((True, False, True), (32, 32, 32), 4)
        assert (tuple(update.A.shape), tuple(update.B.shape), update.scaling) == ((8, 32), (64, 4), 8.0)


@pytest.mark.parametrize(("words", "trained"), [("key", 512), ("output,mlp", 2 * 4 * ((32 + 32) + 2 * (32 + 128)))])
def test_other_layers_are_adapted_when_asked_for(gpt2: Path, meals: Path, tmp_path: Path, words: str, trained: int) -> None:
    assert count_parameters(planned_run(options(gpt2, meals, layers=words)).model)["trained"] == trained


def test_layers_can_be_named(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    planned = planned_run(options(gpt2, meals, target_modules="c_attn", use_rslora=True))
    layer = planned.model.get_submodule("transformer.h.0.attn.c_attn")
    assert (type(layer.update), layer.scaling) == (lora.LoRAUpdate, 16.0)
    assert count_parameters(planned.model)["trained"] == 2 * 4 * (32 + 96)


@pytest.mark.parametrize("method", ["last-layers", "full"])
def test_the_other_methods_train_what_they_say(gpt2: Path, meals: Path, tmp_path: Path, method: str) -> None:
    results = run(tmp_path / "run", options(gpt2, meals, method=method, num_train_epochs=1, learning_rate=1e-2))
    block = 12 * 32 * 32 + 13 * 32
    assert results["parameters"]["lora"] == 0
    assert results["parameters"]["trained"] == (2 * block if method == "last-layers" else results["parameters"]["total"])
    tuned, tokenizer = pretrained(tmp_path / "run" / run_folder.MODEL)
    base, _ = pretrained(gpt2)
    assert results["value"] == pytest.approx(plain_perplexity(tuned, tokenizer, meals / "dev.jsonl"), rel=1e-4)
    assert close(logits(tuned), logits(generator.open_run(tmp_path / "run").model), factor=8)
    changed = {name for name, tensor in tuned.state_dict().items() if not same_bits(tensor, base.state_dict()[name])}
    if method == "last-layers":
        assert changed == {name for name in base.state_dict() if ".h." in name}
    else:
        assert changed == set(base.state_dict())


def test_the_epoch_of_the_lowest_perplexity_is_kept_and_patience_stops(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(gpt2, meals, num_train_epochs=20, patience=1, learning_rate=0.5, warmup_ratio=0.5))
    evaluations = [row for row in results["history"] if "eval_loss" in row]
    found = [row["eval_perplexity"] for row in evaluations]
    assert 1 < len(evaluations) < 20
    assert results["value"] == min(found) < found[-1]
    assert results["kept_epoch"] == evaluations[found.index(min(found))]["epoch"]
    assert results["value"] == pytest.approx(plain_perplexity(*adapted(tmp_path / "run"), meals / "dev.jsonl"), rel=1e-4)


def test_the_last_epoch_is_kept_when_asked_for(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(gpt2, meals, best_epoch=False, learning_rate=0.3))
    last = [row for row in results["history"] if "eval_loss" in row][-1]
    assert results["value"] == last["eval_perplexity"]
    assert results["kept_epoch"] == 3
    assert results["value"] == pytest.approx(plain_perplexity(*adapted(tmp_path / "run"), meals / "dev.jsonl"), rel=1e-4)


def test_nll_may_choose_the_epoch(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(gpt2, meals, metric_for_best_model="nll", num_train_epochs=1))
    assert (results["metric"], results["value"]) == ("nll", results["metrics"]["nll"])


@pytest.mark.slow
def test_a_pretrained_llama_learns_restaurants(llama: Path, tmp_path: Path) -> None:
    for name, part, count in (("train", "lora_nlg_train.txt", 64), ("dev", "lora_nlg_valid.txt", 16)):
        lines = data("e2e", part).read_text(encoding="utf-8").splitlines()[: 40 * count : 40]
        write_jsonl(tmp_path / f"{name}.jsonl", [tuple(line.split("||")) for line in lines])  # type: ignore[misc]
    chosen = options(llama, tmp_path, max_length=256, num_train_epochs=1, learning_rate=1e-2)
    results = run(tmp_path / "run", chosen)
    assert results["parameters"]["trained"] == 5 * 4 * (64 + 64 + 64 + 32)
    before = plain_perplexity(*pretrained(llama), tmp_path / "dev.jsonl")
    assert results["value"] < 0.5 * before
    assert results["value"] == pytest.approx(plain_perplexity(*adapted(tmp_path / "run"), tmp_path / "dev.jsonl"), rel=1e-3)


# --- interruption and resuming --------------------------------------------------------------------------------------


def interrupted(folder: Path, chosen: TrainOptions, step: int) -> None:
    with pytest.raises(Interrupted) as stop:
        run(folder, chosen, callbacks=[InterruptAt(step)])
    assert stop.value.checkpoint == last_whole_checkpoint(folder / run_folder.CHECKPOINTS)
    assert stop.value.checkpoint is not None
    assert stop.value.checkpoint.name == f"checkpoint-{step + 1}"


def check_same_run(folder: Path, other: Path) -> None:
    check_same_outcome(folder, other)
    configs = [(f / run_folder.ADAPTER / "adapter_config.json").read_bytes() for f in (folder, other)]
    assert configs[0] == configs[1]
    test = [json.loads((f / run_folder.METRICS).read_text()).get("test") for f in (folder, other)]
    assert test[0] == test[1]


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 12])  # an epoch has 5 steps
def test_an_interrupted_run_resumes_bit_for_bit(gpt2: Path, meals: Path, tmp_path: Path, lora_run: Path, step: int) -> None:
    chosen, folder = run_folder.read_options(lora_run)[0], tmp_path / "run"
    interrupted(folder, chosen, step)
    stored = lora.load(last_whole_checkpoint(folder / run_folder.CHECKPOINTS))  # type: ignore[arg-type]
    assert {(type(update), update.r) for update in stored.layers.values()} == {(lora.LoRAUpdate, 8)}  # PEFT's form
    run(folder, chosen, resume=True)
    check_same_run(folder, lora_run)


@pytest.mark.slow
def test_a_resumed_run_that_keeps_the_last_epoch_and_scales_by_a_root_is_the_same(
    gpt2: Path, meals: Path, tmp_path: Path
) -> None:
    chosen = options(
        gpt2, meals, best_epoch=False, use_rslora=True, lora_alpha=7.0, num_train_epochs=2, gradient_accumulation_steps=2
    )
    run(tmp_path / "straight", chosen)
    interrupted(tmp_path / "run", chosen, 7)
    run(tmp_path / "run", chosen, resume=True)
    check_same_run(tmp_path / "run", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("best_epoch", [True, False])
def test_what_the_adapter_says_does_not_depend_on_which_epoch_was_kept(
    gpt2: Path, meals: Path, tmp_path: Path, best_epoch: bool
) -> None:
    run(tmp_path / "run", options(gpt2, meals, num_train_epochs=1, use_rslora=True, lora_alpha=7.0, best_epoch=best_epoch))
    for update in lora.load(tmp_path / "run" / run_folder.ADAPTER).layers.values():
        assert update.lora_alpha == 7 * math.sqrt(2)


# --- starting from another run --------------------------------------------------------------------------------------


def test_a_run_may_start_from_the_factors_of_another(gpt2: Path, meals: Path, tmp_path: Path, lora_run: Path) -> None:
    planned = planned_run(options(gpt2, meals, init_adapter=str(lora_run)))
    stored = lora.load(lora_run / run_folder.ADAPTER)
    for name, expected in stored.layers.items():
        plain = planned.model.get_submodule(name).update.plain()
        assert same_bits(plain.A, expected.A)
        assert same_bits(plain.B, expected.B)
    results = run(tmp_path / "run", options(gpt2, meals, init_adapter=str(lora_run), learning_rate=1e-9, num_train_epochs=0.3))
    assert results["value"] == pytest.approx(json.loads((lora_run / run_folder.METRICS).read_text())["value"], rel=1e-4)


@pytest.mark.slow
def test_a_run_that_scales_by_a_root_may_start_another(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    chosen = options(gpt2, meals, use_rslora=True, lora_alpha=7.0, num_train_epochs=1)
    run(tmp_path / "first", chosen)
    again = options(gpt2, meals, use_rslora=True, lora_alpha=7.0, init_adapter=str(tmp_path / "first"))
    layer = planned_run(again).model.get_submodule("transformer.h.0.attn.c_attn")
    stored = lora.load(tmp_path / "first" / run_folder.ADAPTER).layers["transformer.h.0.attn.c_attn"]
    assert same_bits(layer.update.plain().B, stored.B)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_alpha": 16.0}, r"scaling 8 in the adapter.*, 4 in this run"),
        ({"r": 2, "lora_alpha": 16.0}, "rank 4 in the adapter, 2 in the model"),
        ({"layers": "query,value,output"}, r"attn.c_proj: in this run, not in the adapter"),
        ({"layers": "query,key"}, "kind linear in the adapter, fused in the model"),
    ],
)
def test_factors_of_another_run_that_do_not_fit_are_refused(
    gpt2: Path, meals: Path, tmp_path: Path, lora_run: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(AttachError, match=message):
        run(tmp_path / "run", options(gpt2, meals, init_adapter=str(lora_run), **values))
    assert not (tmp_path / "run").exists()


# --- data -----------------------------------------------------------------------------------------------------------


def test_fields_may_have_other_names_and_the_file_may_be_zipped(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    names, parts = ("input", "output"), {"train": 34, "dev": 8}
    for part in parts:
        path = write_jsonl(tmp_path / f"{part}.jsonl", rows(meals / f"{part}.jsonl"), names)
        (tmp_path / f"{part}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    files = {"data": str(tmp_path / "train.jsonl.gz"), "eval_data": str(tmp_path / "dev.jsonl.gz")}
    columns = {"context_column": "input", "completion_column": "output"}
    read = text_generation.read_rows(options(gpt2, meals, **files, **columns))
    assert [text_generation.as_pairs(part) for part in read] == [rows(meals / f"{part}.jsonl") for part in parts]
    with pytest.raises(DataError, match="line 1 has no column 'context'; it has 'input', 'output'"):
        text_generation.read_rows(options(gpt2, meals, **files))


@pytest.mark.parametrize(("fraction", "count"), [(None, 3), (0.25, 8)])
def test_a_part_of_the_training_inputs_is_held_out(gpt2: Path, meals: Path, fraction: float | None, count: int) -> None:
    chosen = options(gpt2, meals, eval_data=None, eval_fraction=fraction, seed=3)
    train, held_out = (text_generation.as_pairs(part) for part in text_generation.read_rows(chosen))
    assert len(held_out) == count
    assert sorted([*train, *held_out]) == sorted(rows(meals / "train.jsonl"))
    assert not {context for context, _ in train} & {context for context, _ in held_out}
    other = text_generation.read_rows(options(gpt2, meals, eval_data=None, eval_fraction=fraction))[1]
    assert held_out != text_generation.as_pairs(other)


def test_every_text_of_an_input_is_a_row(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"context": "a", "completion": ["One.", "Two."]}\n{"context": "b", "completion": "Three."}\n')
    train = text_generation.read_rows(options(gpt2, meals, data=str(path)))[0]
    assert text_generation.as_pairs(train) == [("a", "One."), ("a", "Two."), ("b", "Three.")]


def test_rows_are_sampled_by_the_seed(gpt2: Path, meals: Path) -> None:
    most = {"max_train_rows": 5, "max_eval_rows": 4, "max_test_rows": 3, "test_data": str(meals / "test.jsonl")}
    first, again, other = (text_generation.read_rows(options(gpt2, meals, seed=seed, **most)) for seed in (1, 1, 2))
    assert [len(part) for part in first] == [5, 4, 3]
    assert (
        list(map(text_generation.as_pairs, first))
        == list(map(text_generation.as_pairs, again))
        != list(map(text_generation.as_pairs, other))
    )
    assert set(text_generation.as_pairs(first[0])) <= set(rows(meals / "train.jsonl"))
    most["max_test_rows"] = 0
    assert len(text_generation.read_rows(options(gpt2, meals, **most))) == 2


@pytest.fixture
def restaurants(tmp_path: Path) -> Path:
    """A data folder with the three splits of E2E, as the paper's files are."""
    folder = tmp_path / "data" / "e2e"
    folder.mkdir(parents=True)
    for split, names in (("train", "ABCDEFGHIJ"), ("valid", "KL"), ("test", "MN")):
        lines = [f"name : {name} | food : {food}||{name} serves {food} ." for name in names for food in ("Thai", "French")]
        (folder / f"lora_nlg_{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def test_a_task_trains_on_its_own_splits(gpt2: Path, restaurants: Path) -> None:
    common: dict[str, Any] = {"model": str(gpt2), "task": "e2e", "data_dir": str(restaurants)}
    train, dev = text_generation.read_rows(TrainOptions(**common))
    assert (len(train), len(dev)) == (20, 4)
    assert text_generation.as_pairs(train)[0] == ("name : A | food : Thai", "A serves Thai .")
    assert {context[7] for context, _ in text_generation.as_pairs(dev)} == {"K", "L"}
    train, held_out, test = text_generation.read_rows(TrainOptions(**common, eval_fraction=0.2))
    assert (len(train), len(held_out)) == (16, 4)
    assert text_generation.as_pairs(test) == text_generation.as_pairs(dev)
    assert len(text_generation.read_rows(TrainOptions(**common, eval_fraction=0.2, max_test_rows=0))) == 2


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model": "no/such-model"}, RunError, "no/such-model.*cannot be loaded as a causal language model"),
        ({"data": "none.jsonl"}, DataError, "none.jsonl does not exist"),
        ({"data": "imdb"}, DataError, "'imdb' is not a .jsonl file"),
        ({"data": __file__}, DataError, "is not a .jsonl file"),
        ({"eval_data": "none.jsonl"}, DataError, "none.jsonl does not exist"),
        ({"test_data": "none.jsonl"}, DataError, "none.jsonl does not exist"),
        ({"context_column": "contxt"}, DataError, "no column 'contxt'"),
        ({"target_modules": "q_proj"}, TargetError, "'q_proj' matches no layer of GPT2LMHeadModel"),
        ({"metric_for_best_model": "bleu"}, ConfigError, "metric_for_best_model='bleu': must be one of perplexity, nll"),
        ({"max_length": 129}, ConfigError, "max_length=129: the model takes at most 128 tokens"),
        ({"max_length": None}, ConfigError, "max_length=512: the model takes at most 128 tokens"),
        ({"max_length": 8}, DataError, r"train.jsonl: the input 'name : .* alone has \d+ tokens of 8"),
        ({"gradient_accumulation_steps": 3}, ConfigError, "batch_size=8 cannot be split evenly"),
        ({"init_adapter": "nowhere"}, lora.FormatError, "nowhere"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(
    gpt2: Path, meals: Path, tmp_path: Path, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "run", options(gpt2, meals, **values))
    assert not (tmp_path / "run").exists()


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"text_column": "a"},
        {"text_pair_column": "a"},
        {"label_column": "a"},
        {"train_head": "classifier"},
        {"head_dropout": 0.1},
        {"attention_dropout": 0.1},
        {"data_config": "a"},
        {"train_split": "all"},
        {"eval_split": "dev", "eval_data": None},
        {"test_split": "test"},
    ],
)
def test_what_only_classifying_takes_is_refused(gpt2: Path, meals: Path, values: dict[str, Any]) -> None:
    name = next(iter(values))
    with pytest.raises(ConfigError, match=f"^{name}=.* has no effect"):
        options(gpt2, meals, **values)


@pytest.mark.parametrize(
    "values", [{"label_smoothing_factor": 0.1}, {"base_dropout": 0.0}, {"context_column": "a"}, {"completion_column": "a"}]
)
@pytest.mark.parametrize("problem", [{"data": "d.tsv"}, {"data": "d.tsv", "problem": "regression"}, {"task": "mnli"}])
def test_what_only_generating_takes_is_refused(values: dict[str, Any], problem: dict[str, Any]) -> None:
    name = next(iter(values))
    with pytest.raises(ConfigError, match=f"^{name}=.* (belongs to generating text|has no effect with task=mnli)"):
        TrainOptions(model="m", **values, **problem)


@pytest.mark.parametrize(
    "values",
    [{"context_column": "a"}, {"problem": "generation"}, {"eval_data": "a.jsonl"}, {"test_data": "a.jsonl"}],
)
def test_a_task_says_by_itself_where_its_texts_are(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(values))}=.* has no effect with task=e2e"):
        TrainOptions(model="m", task="e2e", **values)


@pytest.mark.parametrize("name", ["label_smoothing_factor", "base_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_shares_are_in_range(gpt2: Path, meals: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name}="):
        options(gpt2, meals, **{name: value})


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-4), ("last-layers", 1e-4), ("full", 5e-5)])
def test_what_is_not_said_is_usual_for_generating(method: str, rate: float) -> None:
    for chosen in (
        TrainOptions(model="m", task="dart", method=method),  # type: ignore[arg-type]
        TrainOptions(model="m", data="d.jsonl", problem="generation", method=method),  # type: ignore[arg-type]
    ):
        assert (chosen.kind, chosen.length, chosen.peak_learning_rate) == ("generation", 512, rate)
    assert TrainOptions(model="m", data="d.jsonl").kind == "classification"


# --- several seeds --------------------------------------------------------------------------------------------------


def test_the_best_seed_has_the_lowest_perplexity(tmp_path: Path) -> None:
    for metric, best in (("perplexity", 7), ("nll", 7), ("accuracy", 3)):
        for seed, value in ((3, 2.5), (7, 1.5), (11, 2.0)):
            (tmp_path / f"seed-{seed}").mkdir(exist_ok=True)
            (tmp_path / f"seed-{seed}" / run_folder.METRICS).write_text(json.dumps({"metric": metric, "value": value}))
        assert seeds.best_of(tmp_path) == tmp_path / f"seed-{best}"
    assert run_folder.runs_of(tmp_path) == [tmp_path]  # no folder of seeds yet
    (tmp_path / run_folder.SEEDS).touch()
    assert [run.name for run in run_folder.runs_of(tmp_path)] == ["seed-3", "seed-7", "seed-11"]
    (tmp_path / "seed-3" / run_folder.SEEDS).touch()
    with pytest.raises(RunError, match=r"no seed in .* is finished; go on with: loralib train --output .* --resume"):
        run_folder.runs_of(tmp_path / "seed-3")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    chosen = options(gpt2, meals, num_train_epochs=1, max_train_rows=32, base_dropout=0.0, label_smoothing_factor=0.1)
    alone = run(tmp_path / "alone", chosen)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(chosen.to_dict() | {"output": str(tmp_path / "both")}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "-m", "loralib", "train", "--config", str(tmp_path / "run.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both" / run_folder.METRICS).read_text())
    assert both["value"] == pytest.approx(alone["value"], rel=1e-3)
    factors = [lora.load(tmp_path / name / run_folder.ADAPTER).layers for name in ("alone", "both")]
    for name, update in factors[0].items():
        assert close(update.B, factors[1][name].B, factor=1e4)


def test_several_gpus_need_a_process_each(gpt2: Path, meals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"sees 2 GPUs.*torchrun"):
        run(tmp_path / "run", options(gpt2, meals))
    assert not (tmp_path / "run").exists()
