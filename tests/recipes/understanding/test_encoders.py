"""What is known of encoders: their layers by role, their heads, their dropouts."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from loralib.errors import ConfigError
from loralib.recipes.options import ROLES
from loralib.recipes.understanding import encoders

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
OWN = {
    "albert": {"embedding_size": 8},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 30},
    "electra": {"embedding_size": 8},
}


def build(kind: str) -> transformers.PreTrainedModel:
    values = OWN[kind] if kind == "distilbert" else SMALL | OWN.get(kind, {})
    config = transformers.AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("kind", encoders.LAYERS)
def test_every_linear_layer_of_the_body_plays_one_role(kind: str) -> None:
    model = build(kind)
    by_role = {role: encoders.role_targets(model, [role]) for role in ROLES}
    blocks = 1 if kind == "albert" else 2  # whose blocks share their weights
    assert {role: len(names) for role, names in by_role.items()} == {
        "query": blocks,
        "key": blocks,
        "value": blocks,
        "output": blocks,
        "mlp": 2 * blocks,
    }
    everything = encoders.role_targets(model, ROLES)
    assert sorted(everything) == sorted(name for names in by_role.values() for name in names)
    shapes = {role: {tuple(model.get_submodule(n).weight.shape) for n in names} for role, names in by_role.items()}
    assert all(shapes[role] == {(16, 16)} for role in ROLES[:4])
    assert shapes["mlp"] == {(24, 16), (16, 24)}
    blocks_linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ("layer" in name) and "projection" not in name and "pos_" not in name
    }
    assert blocks_linear == set(everything)


def test_a_model_that_is_not_known_is_told_what_to_give() -> None:
    config = transformers.AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=30)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ConfigError, match=r"layers of a gpt2 model are query, value is not known; give --target-modules"):
        encoders.role_targets(model, ["query", "value"])


@pytest.mark.parametrize("kind", encoders.HEAD_DROPOUT)
def test_dropouts_reach_the_model(kind: str) -> None:
    config = build(kind).config
    encoders.set_dropouts(config, head_dropout=0.25, attention_dropout=0.125)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    rates |= {name: m.p for name, m in model.named_modules() if hasattr(m, "p") and name not in rates}
    in_body = {name: p for name, p in rates.items() if name.startswith(model.base_model_prefix)}
    assert 0.25 in {p for name, p in rates.items() if name not in in_body}
    assert 0.125 in in_body.values()


def test_a_dropout_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="a mpnet model is not known to have such a dropout"):
        encoders.set_dropouts(build("mpnet").config, head_dropout=0.1)


def test_only_the_classifier_of_a_head_is_trained_and_all_of_it_is_saved(encoder: Path) -> None:
    import loralib as lora

    config = transformers.AutoConfig.for_model("distilbert", **OWN["distilbert"])
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    head = ("pre_classifier", "classifier")
    loaded = encoders.Encoder(model, transformers.AutoTokenizer.from_pretrained(encoder), head, drawn=True)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["q_lin"], modules_to_save=head))
    lora.mark_only_lora_as_trainable(model)
    encoders.freeze_all_but_last(loaded)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained == {"classifier.weight", "classifier.bias"}
    assert set(lora.extract(model).tensors) == {f"{part}.{leaf}" for part in head for leaf in ("weight", "bias")}


def test_a_regression_head_begins_at_the_mean_unless_the_checkpoint_brought_it(encoder: Path, tmp_path: Path) -> None:
    drawn = encoders.load_encoder(str(encoder), None)
    encoders.center(drawn, 2.5)
    assert drawn.classifier.bias.tolist() == [2.5]
    drawn.model.save_pretrained(tmp_path)
    drawn.tokenizer.save_pretrained(tmp_path)
    brought = encoders.load_encoder(str(tmp_path), None)
    assert torch.equal(brought.classifier.weight, drawn.classifier.weight)
    encoders.center(brought, 1.0)
    assert brought.classifier.bias.tolist() == [2.5]
    anew = encoders.load_encoder(str(tmp_path), ["a", "b"])
    assert anew.drawn
    assert anew.classifier.out_features == 2
