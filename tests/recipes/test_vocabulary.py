"""A model whose embedding is smaller than its tokenizer, and tokenizers without a padding token: one sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from loralib.cli import main
from loralib.recipes import finished, model_loader
from recipes.nlg.conftest import meal, write_jsonl

pytest_plugins = ["recipes.conftest", "recipes.nlg.conftest"]


def smaller(model: Path, folder: Path, rows: int) -> Path:
    """A copy of the model with embeddings of the first `rows` tokens."""
    shutil.copytree(model, folder)
    loaded = AutoModel.from_pretrained(folder)
    loaded.resize_token_embeddings(rows)
    loaded.save_pretrained(folder)
    return folder


def training(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    named = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return ["train", *named, "--target-modules", "all-linear", "--num-train-epochs", "1", *more]


def test_an_encoder_with_too_few_embeddings_is_refused_before_training(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = len(AutoTokenizer.from_pretrained(encoder))
    cut = smaller(encoder, tmp_path / "cut", words - 3)
    assert main(training(cut, reviews / "test.tsv", tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert f"of {words} tokens" in said
    assert f"embeddings of {words - 3} tokens only" in said
    assert "resize_token_embeddings" in said
    assert said.rpartition("loralib: ")[2].count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_language_model_with_too_few_embeddings_is_refused_before_training(
    gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    data = write_jsonl(tmp_path / "meals.jsonl", [meal(f"Mill {i}", "Thai") for i in range(12)])
    cut = tmp_path / "cut"
    shutil.copytree(gpt2, cut)
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(cut)
    loaded.resize_token_embeddings(40)
    loaded.save_pretrained(cut)
    more = ["--problem", "generation", "--max-length", "64"]
    assert main(training(cut, data, tmp_path / "run", *more)) == 2
    said = capsys.readouterr().err
    assert f"of {len(tokenizer):,} tokens" in said
    assert "embeddings of 40 tokens only" in said
    assert not (tmp_path / "run").exists()


def test_a_run_whose_model_has_shrunk_since_predicts_and_generates_nothing(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(encoder, model)
    assert main(training(model, reviews / "test.tsv", tmp_path / "run")) == 0
    shutil.rmtree(model)
    smaller(encoder, model, 10)
    capsys.readouterr()
    for words in (["predict", str(tmp_path / "run"), "the lamp"], ["evaluate", str(tmp_path / "run"), "--data", "TEST"]):
        given = [str(reviews / "test.tsv") if word == "TEST" else word for word in words]
        assert main(given) == 2
        assert "embeddings of 10 tokens only" in capsys.readouterr().err
    assert finished.FinishedRun.kinds == ()


def test_tokens_are_checked_by_their_numbers(gpt2: Path) -> None:
    """A tokenizer may have more tokens than the model: those that occur count, and padding."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(gpt2), AutoTokenizer.from_pretrained(gpt2)
    tokenizer.pad_token, rows = tokenizer.eos_token, model.get_input_embeddings().num_embeddings
    model_loader.check_tokens(model, tokenizer, [[0, rows - 1], []])
    tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    model_loader.check_tokens(model, tokenizer, [[0, rows - 1]])
    with pytest.raises(model_loader.RunError, match="embeddings of"):
        model_loader.check_tokens(model, tokenizer, [[0], [rows]])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(model_loader.RunError, match="'<pad>'"):
        model_loader.check_tokens(model, tokenizer, [[0]])


@pytest.mark.parametrize("end", ["<end>", None])
def test_a_classifier_without_a_padding_token_gets_one_or_is_refused(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str | None
) -> None:
    folder = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    size = len(tokenizer)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("pad_token", "cls_token", "sep_token"):
        config.pop(name, None)
    config |= {} if end is None else {"eos_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=160, eos_token_id=3, bos_token_id=3)
    GPT2ForSequenceClassification(shape).save_pretrained(folder)
    code = main(training(folder, reviews / "test.tsv", tmp_path / "run", "--batch-size", "8"))
    said = capsys.readouterr().err
    assert code == (2 if end is None else 0), said
    assert ("no padding token" in said) == (end is None)


def test_the_column_of_the_text_is_not_that_of_the_label(
    encoder: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training(encoder, reviews / "test.tsv", tmp_path / "run", "--label-column", "text")) == 2
    assert "--label-column text: that is the column of the text" in capsys.readouterr().err
