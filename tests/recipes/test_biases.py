"""BitFit: the biases of a model are trained, the head in full, and nothing else."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from loralib.errors import ConfigError
from loralib.recipes.biases import train_biases

SIZES = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def test_what_is_named_bias_is_trained_and_the_head() -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES))
    train_biases(model, ["classifier"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith(".bias")} | {"classifier.weight"}
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in trained


@pytest.mark.parametrize("head", [[], ["lm_head"]])
def test_a_model_without_biases_is_refused_and_left_as_it_is(head: list[str]) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(9)) if head else None
    with pytest.raises(ConfigError, match=r"a llama model, has no biases to train; use another method, such as lora"):
        train_biases(model, head)
    assert all(parameter.requires_grad for parameter in model.parameters())
