"""A prefix by PEFT: what is trained, saved and counted, and what refuses it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from loralib.errors import ConfigError, FormatError, RunError
from loralib.train import prefix
from models import same_bits
from peers import library

IDS, MASK = torch.arange(2, 16).reshape(2, 7), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


def encoder(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**SIZES)).eval()


def with_prefix(seed: int = 0) -> Any:
    library("peft")
    return prefix.add_prefix(encoder(seed), 3, "SEQ_CLS", ["classifier"]).eval()


def logits(model: Any, rows: slice = slice(None), most: int = 7) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS[rows, :most], attention_mask=MASK[rows, :most]).logits
    return found


def test_the_prefix_and_the_head_are_trained_and_the_model_is_counted_once() -> None:
    model, base = with_prefix(), encoder()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum("prompt_encoder" in name for name in trained) == 1
    assert all("prompt_encoder" in name or "classifier.modules_to_save" in name for name in trained)
    of_prefix = 3 * 2 * 2 * 8  # tokens, keys and values, blocks, width
    total = sum(p.numel() for p in base.parameters())
    assert prefix.count_parameters(model) == {"trained": of_prefix + 2 * 8 + 2, "lora": 0, "prefix": of_prefix, "total": total}
    assert (prefix.length_of(model), prefix.length_of(base)) == (3, 0)


def test_keys_and_values_stand_in_front_of_those_of_the_tokens() -> None:
    """A block with a prefix attends as one whose keys and values were computed from three more tokens."""
    model = with_prefix()
    seen: list[tuple[Tensor, Tensor]] = []
    attention = model.base_model.bert.encoder.layer[0].attention.self
    attention.register_forward_hook(lambda layer, args, out: seen.append((args[0], out[0])))
    logits(model)
    ((hidden, found),) = seen
    prefixed = model.get_prompt(2)
    keys, values = prefixed.layers[0].keys, prefixed.layers[0].values  # (rows, heads, 3, 4)
    heads = lambda x: x.view(2, 7, 2, 4).transpose(1, 2)  # noqa: E731
    with torch.no_grad():
        q, k, v = (heads(getattr(attention, name)(hidden)) for name in ("query", "key", "value"))
        scores = q @ torch.cat([keys, k], 2).transpose(-1, -2) / 4**0.5
        seen_by = torch.cat([torch.ones(2, 3), MASK], 1)[:, None, None]
        weights = scores.masked_fill(seen_by == 0, -torch.inf).softmax(-1)
        expected = (weights @ torch.cat([values, v], 2)).transpose(1, 2).reshape(2, 7, 8)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing() -> None:
    model = with_prefix()
    torch.testing.assert_close(logits(model)[1:], logits(model, slice(1, 2), 4), rtol=1e-5, atol=1e-6)


def test_what_is_saved_is_what_peft_reads_and_what_comes_back(tmp_path: Path) -> None:
    model = with_prefix()
    prefix.save_prefix(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    read = library("peft").PeftModel.from_pretrained(encoder(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-6)
    opened = prefix.open_prefix(encoder(), tmp_path).eval()
    assert same_bits(logits(opened), logits(model))
    other = with_prefix(seed=1)
    assert not torch.equal(logits(other), logits(model))
    prefix.load_prefix(other, tmp_path)
    held, wanted = prefix.trained_tensors(other), prefix.trained_tensors(model)
    assert all(same_bits(held[name], tensor) for name, tensor in wanted.items())


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    model = with_prefix()
    prefix.save_prefix(model, tmp_path)
    longer = prefix.add_prefix(encoder(), 4, "SEQ_CLS", ["classifier"])
    with pytest.raises(RunError, match=r"has 'prompt_embeddings' in shape \(3, 32\), and the run needs \(4, 32\)"):
        prefix.load_prefix(longer, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for damage in ({"num_virtual_tokens": "3"}, {"task_type": None}, {"modules_to_save": 3}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | damage))
        with pytest.raises(RunError, match="does not describe a prefix"):
            prefix.open_prefix(encoder(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(FormatError, match="not JSON"):
        prefix.open_prefix(encoder(), tmp_path)


def test_a_model_that_takes_no_keys_and_values_is_refused() -> None:
    library("peft")
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=12))
    with pytest.raises(ConfigError, match=r"a distilbert model, takes no keys and values in front of those of its tokens"):
        prefix.add_prefix(model, 3, "SEQ_CLS", ["classifier"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_peft_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(RunError, match="method=prefix needs the package peft; run: pip install peft"):
        prefix.add_prefix(encoder(), 3, "SEQ_CLS")


def test_a_language_model_writes_the_text_that_its_logits_say() -> None:
    library("peft")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=40, initializer_range=0.5)
    base = GPT2LMHeadModel(config).eval()
    model = prefix.add_prefix(base, 3, "CAUSAL_LM").eval()
    text = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        for _ in range(6):
            text = torch.cat([text, model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -1:].argmax(-1)], 1)
        padded = torch.tensor([[0, 0, 4, 5, 6], [7, 8, 9, 10, 11]])
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        found = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=19)
    end = text[0].tolist().index(19) if 19 in text[0] else 9
    assert found[0, 2:].tolist()[:end] == text[0].tolist()[:end]
