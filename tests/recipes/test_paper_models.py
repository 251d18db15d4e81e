"""Full-size models without weights have the published numbers of parameters, and LoRA on them those of the paper."""

import pytest

import loralib as lora
from loralib.errors import RunError
from loralib.recipes import paper_models
from loralib.surgery.roles import role_targets
from loralib.train.measure import count_parameters


@pytest.mark.parametrize(
    ("name", "r", "layers", "width", "factors"),
    [
        ("roberta-base", 8, 12, 768, 294_912),
        ("roberta-large", 8, 24, 1024, 786_432),
        ("microsoft/deberta-v2-xxlarge", 16, 48, 1536, 4_718_592),
        ("microsoft/deberta-v2-xxlarge", 8, 48, 1536, 2_359_296),
    ],
)
def test_lora_on_the_papers_encoders(name: str, r: int, layers: int, width: int, factors: int) -> None:
    shape = paper_models.build(name, ["0", "1"])
    targets = role_targets(shape.model, ["query", "value"])["target_modules"]
    assert len(targets) == 2 * layers
    lora.inject(shape.model, lora.LoRAConfig(r=r, target_modules=targets, modules_to_save=shape.head))
    lora.mark_only_lora_as_trainable(shape.model)
    assert count_parameters(shape.model)["lora"] == factors == 2 * len(targets) * width * r
    assert all(p.is_meta for p in shape.model.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("roberta-base", 125),
        ("roberta-large", 355),
        ("deberta-v2-xxlarge", 1567),
        ("gpt2", 124),
        ("gpt2-medium", 354.92),
        ("gpt2-large", 774.03),
        ("gpt2-xl", 1558),
        ("gpt3", 174_600),
        ("minilm", 22.71),  # from its package
        pytest.param("smollm2", 134.5, marks=pytest.mark.slow),  # from a GGUF file in its package
    ],
)
def test_the_models_have_their_published_size(name: str, millions: float) -> None:
    total = count_parameters(paper_models.build(name, ["0", "1"]).model)["total"]
    assert total / 1e6 == pytest.approx(millions, rel=0.004)


def test_a_model_that_is_nowhere_is_one_error() -> None:
    with pytest.raises(RunError, match=r"shape of model 'no/such-model' cannot be had; .* one of roberta-base"):
        paper_models.build("no/such-model", None)


@pytest.mark.parametrize("name", ["minilm", pytest.param("smollm2", marks=pytest.mark.slow), "roberta-base"])
def test_a_model_is_called_what_it_was_called(name: str) -> None:
    assert paper_models.build(name, None).model.name_or_path == name
