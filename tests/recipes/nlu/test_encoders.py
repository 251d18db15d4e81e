"""What is known of encoders: their heads, their dropouts."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from hf import OF_ITS_OWN, encoder_shape
from loralib import architectures
from loralib.errors import ConfigError
from loralib.recipes.nlu import encoders


@pytest.mark.parametrize("kind", architectures.HEAD_DROPOUT)
def test_dropouts_reach_the_model(kind: str) -> None:
    config = encoder_shape(kind).config
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
        encoders.set_dropouts(encoder_shape("mpnet").config, head_dropout=0.1)


def test_only_the_classifier_of_a_head_is_trained_and_all_of_it_is_saved(encoder: Path) -> None:
    import loralib as lora

    config = transformers.AutoConfig.for_model("distilbert", **OF_ITS_OWN["distilbert"])
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    head = ("pre_classifier", "classifier")
    loaded = encoders.Encoder(model, head, transformers.AutoTokenizer.from_pretrained(encoder), drawn=True)
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
    again = encoders.load_encoder(str(tmp_path), ["a", "b"])
    assert again.drawn
    assert again.classifier.out_features == 2
