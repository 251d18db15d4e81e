"""Values that are far outside of what is known to work are named, and those of published recipes never are."""

from typing import Any

import pytest
import torch

import loralib as lora
from loralib.architectures import PUBLISHED
from loralib.recipes.presets import glue, nlg
from loralib.surgery.concerns import concerns
from loralib.surgery.suggest import Suggestion
from models import mlp
from peers import library

USUAL = Suggestion(1000, learning_rate=5e-4, full_learning_rate=5e-5, sources=())


def found(learning_rate: float = 5e-4, batch_size: int = 32, **config: Any) -> list[str]:
    return concerns(USUAL, lora.LoRAConfig(**{"r": 16, "lora_alpha": 32} | config), learning_rate, batch_size)


def recipes() -> list[Any]:
    of_glue = [
        pytest.param(model, values, id=f"{preset}-{model}-{task}")
        for (preset, model), table in glue.TABLES.items()
        for task, values in table.items()
    ]
    of_nlg = [
        pytest.param(model, values, id=f"{preset}-{model}-{task}")
        for preset, table in nlg.TABLES.items()
        for task, values in table.items()
        for model in (nlg.MEDIUM, nlg.LARGE)
    ]
    return of_glue + of_nlg


@pytest.fixture(scope="module")
def suggestions() -> dict[str, Suggestion]:
    """What is suggested for the paper's models, by name."""
    transformers = library("transformers")
    made = {}
    for name in (glue.BASE, glue.LARGE, glue.XXL, nlg.MEDIUM, nlg.LARGE):
        kind, sizes = PUBLISHED[name]
        short = {key: 1 for key in ("num_hidden_layers", "n_layer") if key in sizes}
        with torch.device("meta"):
            made[name] = lora.suggest(
                transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes | short))
            )
    return made


@pytest.mark.parametrize(("model", "values"), recipes())
def test_no_recipe_of_the_paper_causes_concern(model, values, suggestions):
    config = lora.LoRAConfig(r=values["r"], lora_alpha=values["lora_alpha"])
    assert concerns(suggestions[model], config, values["learning_rate"], values["batch_size"]) == []


@pytest.mark.parametrize("rank", [1, 16, 256, 512])
def test_what_is_suggested_causes_none_at_any_rank_that_its_source_measured(rank):
    assert found(r=rank, lora_alpha=32) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lora_alpha": 256}, "lora_alpha=256, r=16: lora_alpha / r is 16, and 1/4 to 8 is usual"),
        ({"r": 256, "lora_alpha": 16}, "lora_alpha=16, r=256: lora_alpha / r is 0.0625"),
        ({"lora_alpha": 64, "use_rslora": True}, "use_rslora, is 16, and 1/4 to 8 is usual"),
        ({"r": 4, "lora_alpha": 32, "use_rslora": True}, "use_rslora, is 16"),
        ({"learning_rate": 5.1e-3}, "learning_rate=0.0051: is more than 10 times above 5.0e-04"),
        ({"learning_rate": 4.9e-5}, "learning_rate=4.9e-05: is more than 10 times below 5.0e-04"),
        ({"learning_rate": 0.0}, "learning_rate=0: is more than 10 times below"),
        (
            {"batch_size": 257},
            "batch_size=257: LoRA bears large batches less well than full fine-tuning does, whatever the rank",
        ),
        ({"r": 1001}, "r=1001: is above the width of the model, 1000"),
        ({"rank_pattern": {"q_proj": 2000}}, "r=2000: is above the width"),
    ],
    ids=str,
)
def test_each_value_that_is_far_off_is_one_sentence_with_source_and_remedy(values, said):
    (concern,) = found(**values)
    assert said in concern
    assert "LoRA paper, arXiv" in concern or "LoRA Without Regret, " in concern or "github.com/" in concern
    assert "; give " in concern
    assert concern.endswith(".")


@pytest.mark.parametrize(
    "values",
    [
        {"r": 4, "lora_alpha": 32},
        {"r": 64, "lora_alpha": 16},
        {"r": 256, "lora_alpha": 16, "use_rslora": True},
        {"learning_rate": 5e-3},
        {"learning_rate": 5e-5},
        {"batch_size": 256},
        {"r": 1000},
    ],
    ids=str,
)
def test_the_edges_of_what_is_usual_cause_none(values):
    assert found(**values) == []


@pytest.mark.parametrize(
    "values",
    [
        {"lora_alpha": 1000},
        {"r": 300, "lora_alpha": 7},
        {"lora_alpha": 1000, "use_rslora": True},
        {"lora_alpha": 0.5, "use_rslora": True},
    ],
    ids=str,
)
def test_the_scaling_that_is_advised_causes_no_concern(values):
    (concern,) = found(**values)
    advised = float(concern.rpartition("give lora_alpha=")[2].rstrip("."))
    assert found(**values | {"lora_alpha": advised}) == []


def test_several_concerns_are_several_sentences_in_one_order():
    starts = [line.partition("=")[0] for line in found(r=2000, lora_alpha=1, learning_rate=1, batch_size=4096)]
    assert starts == ["lora_alpha", "learning_rate", "batch_size", "r"]


def test_a_small_model_is_advised_a_rank_that_it_has_room_for():
    suggestion = lora.suggest(mlp(4, 4))
    (concern,) = concerns(suggestion, lora.LoRAConfig(r=8, lora_alpha=16), suggestion.learning_rate, 1)
    assert concern.endswith("give r=4.")
