"""The configuration of an adapter follows from its layers, and injects the same layers again."""

import itertools
from dataclasses import replace

import torch

import loralib as lora
from loralib.adapters.config_of import described, united_settings
from sample_adapters import TWO, UPDATE, of


def test_the_configuration_describes_what_came_out():
    a = of({"q": UPDATE, "v": UPDATE})
    b = of({"q": lora.LoRAUpdate(torch.ones(3, 3), torch.ones(4, 3), 9)})
    total = a + b
    assert (total.config.r, dict(total.config.rank_pattern)) == (2, {"^q": 5})
    assert total.config.target_modules == ("q", "v")
    assert a.truncate(1).config.r == 1
    other = torch.nn.ModuleDict({"q": torch.nn.Linear(3, 4), "v": torch.nn.Linear(3, 4)})
    lora.attach(other, total)
    assert lora.extract(other).config.rank_pattern == total.config.rank_pattern


def test_the_configuration_injected_gives_the_same_layers():
    slices = lora.FusedUpdate(torch.ones(4, 3), torch.ones(4, 2), 7, False, (True, False, True), (2, 5, 2))
    layers = {
        "q": UPDATE,
        "v": replace(UPDATE, lora_alpha=5),
        "qkv": slices,
        "emb": lora.EmbeddingUpdate(UPDATE.A, UPDATE.B, 4),
    }
    adapter = of(layers | {"a.q": lora.LoRAUpdate(torch.ones(3, 3), torch.ones(4, 3), 4)})
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 4) for name in ("q", "v")})
    model["qkv"], model["emb"], model["head"] = torch.nn.Linear(3, 9), torch.nn.Embedding(3, 4), torch.nn.Linear(2, 2)
    model["a"] = torch.nn.ModuleDict({"q": torch.nn.Linear(3, 4)})
    lora.inject(model, adapter.config)
    found = lora.extract(model)
    assert {name: update.form() for name, update in found.layers.items()} == {n: u.form() for n, u in adapter.layers.items()}
    assert {n: u.lora_alpha for n, u in found.layers.items()} == {n: u.lora_alpha for n, u in adapter.layers.items()}
    assert found.config == adapter.config


def test_how_a_configuration_was_spelled_is_no_part_of_the_adapter():
    spelled = [
        lora.LoRAConfig(r=2, lora_alpha=4, target_modules=["a.q", "a.v"]),
        lora.LoRAConfig(r=9, target_modules=r"a\..", rank_pattern={"q": 2, r".*v": 2}, alpha_pattern={".*": 4}),
        lora.LoRAConfig(exclude_modules=["b"]),
    ]
    first, *others = [lora.Adapter(config, TWO) for config in spelled]
    for other in others:
        assert (other, other.config, hash(other), other.digest()) == (first, first.config, hash(first), first.digest())
    settings = lora.LoRAConfig(lora_dropout=0.1, bias="all", modules_to_save=["head"], fan_in_fan_out=True)
    assert lora.Adapter(replace(settings, r=3, target_modules=["x"]), TWO).settings == settings


def plain(r: int, lora_alpha: float = 4, use_rslora: bool = False) -> lora.LoRAUpdate:
    return lora.LoRAUpdate(torch.ones(r, 3), torch.ones(4, r), lora_alpha, use_rslora)


def test_most_frequent_values_are_the_defaults_and_others_are_patterns():
    config = described(lora.LoRAConfig(), {"a": plain(4, 2), "b": plain(2, 2), "c": plain(4, 8), "a.b": plain(2, 8.0)})
    assert (config.r, config.lora_alpha) == (2, 2), "the smallest of equally frequent ones"
    assert dict(config.rank_pattern) == {"^a": 4, "^c": 4}
    assert dict(config.alpha_pattern) == {"^c": 8, r"^a\.b": 8}
    assert config.target_modules == ("a", "a.b", "b", "c")
    assert not config.use_rslora
    assert described(lora.LoRAConfig(), {"a": plain(2), "b": plain(3, use_rslora=True)}).use_rslora


def test_without_layers_the_defaults_stay_and_a_model_that_is_a_layer_has_no_target():
    empty = described(lora.LoRAConfig(lora_dropout=0.1), {})
    assert empty == replace(lora.LoRAConfig(lora_dropout=0.1), target_modules=())
    assert described(lora.LoRAConfig(), {"": plain(2)}).target_modules == ()


def test_widths_are_written_down_where_they_are_not_all_the_same():
    def fused(*widths: int) -> lora.FusedUpdate:
        return lora.FusedUpdate(torch.ones(2, 3), torch.ones(widths[0], 2), 4, False, (True, False), widths)

    config = described(lora.LoRAConfig(), {"same": fused(2, 2), "other": fused(2, 5), "none": plain(2)})
    assert dict(config.enable_lora) == {"^same": (True, False), "^other": (True, False)}
    assert dict(config.slice_widths) == {"^other": (2, 5)}


def test_settings_that_are_united_train_what_any_of_them_trains():
    biases = {"none": 0, "lora_only": 1, "all": 2}
    for first, second in itertools.product(biases, biases):
        a = lora.LoRAConfig(bias=first, modules_to_save=["head", "norm"], lora_dropout=0.1)
        b = lora.LoRAConfig(bias=second, modules_to_save=["pooler", "head"], lora_dropout=0.2)
        both = united_settings([a, b], full=True)
        assert both == replace(a, modules_to_save=("head", "norm", "pooler"), bias=max(first, second, key=biases.get))
        assert united_settings([a, b], full=False) == replace(a, modules_to_save=(), bias="none")
