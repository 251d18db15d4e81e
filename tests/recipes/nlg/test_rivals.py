"""Texts learned by BitFit and by prefix tuning: what is trained, that figures are those of what was saved, and resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loralib.errors import ConfigError, DataError
from loralib.recipes import run_folder
from loralib.recipes.nlg import generator
from loralib.recipes.options import TrainOptions
from loralib.recipes.presets.nlg import Decoding
from loralib.recipes.run import Interrupted
from models import same_bits
from peers import library
from recipes.nlg.conftest import options, run
from recipes.nlg.test_text_generation import adapted, plain_perplexity, planned_run, pretrained
from recipes.nlu.test_text_classification import InterruptAt

GREEDY = Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=12)
INPUTS = ["name : Zizzi | food : Thai", "name : The Mill | food : French"]


@pytest.fixture(scope="module")
def prefix_run(gpt2: Path, meals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library("peft")
    folder = tmp_path_factory.mktemp("run") / "prefix"
    run(folder, options(gpt2, meals, method="prefix", prefix_length=4, learning_rate=1e-1, num_train_epochs=8))
    return folder


def test_a_prefix_learns_and_its_figures_are_those_of_what_it_wrote(prefix_run: Path, gpt2: Path, meals: Path) -> None:
    results = json.loads((prefix_run / run_folder.METRICS).read_text())
    assert results["value"] < 0.8 * plain_perplexity(*pretrained(gpt2), meals / "dev.jsonl")
    assert results["parameters"]["trained"] == results["parameters"]["prefix"] == 4 * 2 * 2 * 32
    assert results["value"] == pytest.approx(plain_perplexity(*adapted(prefix_run), meals / "dev.jsonl"), rel=1e-3)


def test_texts_are_the_same_alone_and_together_and_the_base_writes_others(prefix_run: Path, gpt2: Path) -> None:
    opened = generator.open_run(prefix_run)
    together = opened.generate(INPUTS, GREEDY)
    assert [opened.generate([text], GREEDY)[0] for text in INPUTS] == together
    model, tokenizer = adapted(prefix_run)
    for text, found in zip(INPUTS, together, strict=True):
        ids = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_token_id]])
        start = ids.shape[1]
        with torch.no_grad():
            for _ in range(GREEDY.max_new_tokens):
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        plain = ids[0, start:].tolist()
        end = plain.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in plain else len(plain)
        assert tokenizer.decode(plain[:end]).strip() == found.strip()
    without = opened.generate(INPUTS, GREEDY, base=True)
    assert without != together
    assert opened.generate(INPUTS, GREEDY) == together
    assert all(" eats " in f" {text} " for text in without)


def test_a_prefix_takes_positions_from_the_text(prefix_run: Path, gpt2: Path, meals: Path) -> None:
    opened = generator.open_run(prefix_run)
    with pytest.raises(DataError, match="exceeds the 124 that the model takes"):
        opened.generate(INPUTS, Decoding(beams=1, no_repeat_ngram=0, max_new_tokens=120))
    with pytest.raises(ConfigError, match="the model takes at most 118 tokens"):
        planned_run(options(gpt2, meals, method="prefix", max_length=120))


@pytest.mark.slow
def test_an_interrupted_prefix_resumes_bit_for_bit(prefix_run: Path, gpt2: Path, meals: Path, tmp_path: Path) -> None:
    chosen, _ = run_folder.read_options(prefix_run)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", chosen, callbacks=[InterruptAt(11)])
    run(tmp_path / "run", chosen, resume=True)
    part = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / part).read_bytes() == (prefix_run / part).read_bytes()
    values = [json.loads((folder / run_folder.METRICS).read_text())["value"] for folder in (tmp_path / "run", prefix_run)]
    assert values[0] == values[1]


def test_bitfit_changes_the_biases_alone(gpt2: Path, meals: Path, tmp_path: Path) -> None:
    results = run(tmp_path / "run", options(gpt2, meals, method="bitfit"))
    base, tuned = pretrained(gpt2)[0], pretrained(tmp_path / "run" / run_folder.MODEL)
    biases = {name for name, _ in base.named_parameters() if name.endswith(".bias")}
    changed = {name for name, tensor in tuned[0].state_dict().items() if not same_bits(tensor, base.state_dict()[name])}
    assert changed == biases
    assert results["parameters"]["trained"] == sum(p.numel() for name, p in base.named_parameters() if name in biases)
    assert results["value"] == pytest.approx(plain_perplexity(*tuned, meals / "dev.jsonl"), rel=1e-3)
    assert results["value"] < 0.8 * plain_perplexity(base, tuned[1], meals / "dev.jsonl")
    with pytest.raises(ConfigError, match="trained the model itself, so it has no base"):
        generator.open_run(tmp_path / "run").generate(INPUTS, GREEDY, base=True)


def test_a_model_without_biases_is_refused(llama: Path, meals: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a llama model, has no biases to train"):
        run(tmp_path / "run", options(llama, meals, method="bitfit"))
    assert not (tmp_path / "run").exists()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"problem": "chat", "method": "prefix"}, r"method='prefix': problem=chat has method=lora, last-layers, full\."),
    ({"problem": "preference", "method": "bitfit"}, r"method='bitfit': problem=preference has method=lora alone, whose base"),
    ({"problem": "generation", "method": "bitfit", "learning_rate": "auto"}, r"has no rule for method=bitfit; give a number"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_kinds_of_task_and_rates_that_are_not_for_them(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainOptions.of({"model": "m", "data": "d.jsonl", **values})
