"""A base in 4 or 8 bits: which layers are quantized, what is said, and what a run on it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from chats import of_trl, tokenizer
from loralib import quant
from loralib.recipes import quantizing
from peers import library, quantizer


@pytest.fixture(autouse=True)
def _bitsandbytes() -> None:
    quantizer("bitsandbytes")


def llama(**sizes: Any) -> Any:
    transformers = library("transformers")
    torch.manual_seed(0)
    config = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | sizes, bos_token_id=None, pad_token_id=0)).eval()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_the_linear_layers_of_the_body_are_quantized(kind: Any) -> None:
    model, plain = llama(), llama()
    assert quantizing.quantize(model, kind) == 14
    assert quantizing.said(model, kind) == f"14 linear layers of the base are in {kind}, 1 as they were"
    assert type(model.lm_head) is nn.Linear
    for name, layer in plain.named_modules():
        found = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and name != "lm_head":
            known = quant.of(found, found.weight)
            assert known is not None
            W = known.dense()
            assert 0 < (W - layer.weight).norm() < 0.15 * layer.weight.norm()
            assert quant.count(found.weight) == layer.weight.numel()
    ids = torch.arange(3, 13).reshape(1, 10)
    y, expected = model(ids).logits, plain(ids).logits
    assert (y - expected).norm() < 0.3 * expected.norm()


def test_nothing_is_done_unless_it_is_asked_for() -> None:
    model = llama()
    assert quantizing.quantize(model, None) == 0
    assert all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))


def test_a_head_that_is_trained_in_full_stays() -> None:
    transformers = library("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    assert quantizing.quantize(model, "nf4") == 7  # six of a block, and the pooler
    assert type(model.classifier) is nn.Linear


def test_layers_that_do_not_fit_blocks_stay_or_are_refused() -> None:
    model = llama(intermediate_size=96)
    assert quantizing.quantize(model, "nf4") == 12  # down_proj has 96 inputs
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    with pytest.raises(lora.RunError, match="no linear layer that can be quantized so"):
        quantizing.quantize(llama(hidden_size=48, intermediate_size=96), "nf4")


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(lora.RunError, match="pip install bitsandbytes"):
        quantizing.quantize(llama(), "nf4")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_trains_saves_predicts_and_merges(kind: str, tmp_path: Path, capsys: Any) -> None:
    from loralib.cli import main
    from loralib.recipes.nlg.generator import Run

    words = tokenizer(of_trl("qwen3"), eos_token="<|im_end|>")
    base = llama(vocab_size=len(words), eos_token_id=words.eos_token_id)
    base.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    rows = [
        [{"role": "user", "content": f"Is it {i} ?"}, {"role": "assistant", "content": f"It is {i % 3} ."}] for i in range(24)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    common = [
        "--model",
        str(tmp_path / "base"),
        "--data",
        str(tmp_path / "d.jsonl"),
        "--num-train-epochs",
        "2",
        "--eval-steps",
        "2",
    ]
    common += ["--max-length", "96", "--learning-rate", "1e-2", "--batch-size", "4"]
    assert main(["train", *common, "-o", str(tmp_path / "run"), "--quantize", kind, "--save-merged"]) == 0
    said = capsys.readouterr()
    assert f"14 linear layers of the base are in {kind}" in said.out + said.err
    assert "will be cast" not in said.out + said.err
    run = Run.open(tmp_path / "run")
    assert type(run.model.model.layers[0].mlp.up_proj).__name__.startswith("LoRALinear")  # type: ignore[union-attr, operator, index]
    merged = library("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged")
    assert not hasattr(merged.config, "quantization_config")
    ids = torch.arange(3, 13).reshape(1, 10)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, run.model(ids).logits, atol=1e-4, rtol=1e-3)
    assert main(["train", *common, "-o", str(tmp_path / "full"), "--method", "full", "--quantize", kind]) != 0
    assert "has no effect with method=full" in capsys.readouterr().err
