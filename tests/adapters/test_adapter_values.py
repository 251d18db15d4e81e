"""An adapter is a value: equal when everything is, to the last bit, and never changed by what is made of it."""

import copy
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loralib as lora
from loralib.adapters.convolution_updates import LegacyTransposedUpdate
from models import same_bits
from sample_adapters import adapters

UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)


TWO = {"a.q": UPDATE, "a.v": UPDATE}
ROWS = lora.TokenRows((1,), torch.ones(1, 2))


def of(layers: dict[str, lora.LoRAUpdate] = TWO, **rest) -> lora.Adapter:
    return lora.Adapter(lora.LoRAConfig(modules_to_save=["head"]), layers, **rest)


# --- equality -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(adapters())
def test_copies_are_equal_and_have_one_hash_and_digest(adapter):
    for again in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert again == adapter
        assert hash(again) == hash(adapter)
        assert again.digest() == adapter.digest()


@settings(max_examples=80, deadline=None)
@given(adapters(), st.data())
def test_one_bit_makes_another_adapter(adapter, data):
    name = data.draw(st.sampled_from(list(adapter.layers)))
    update = adapter.layers[name]
    B = update.B.clone()
    B.view(-1).view(torch.uint8)[0] ^= 1
    other = replace(adapter, layers=dict(adapter.layers) | {name: replace(update, B=B)})
    assert other != adapter
    assert other.digest() != adapter.digest()


def test_what_makes_adapters_differ():
    adapter = of(tensors={"head.weight": torch.ones(2)}, metadata={"k": "v"}, rows={"e": ROWS})
    others = [
        replace(adapter, config=lora.LoRAConfig(lora_dropout=0.1)),
        replace(adapter, layers={"a.q": UPDATE}),
        replace(adapter, layers={"a.q": UPDATE, "a.k": UPDATE}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, lora_alpha=5)}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, use_rslora=True)}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, magnitude=torch.ones(4))}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": lora.EmbeddingUpdate(UPDATE.A, UPDATE.B, 4)}),
        replace(adapter, layers=dict(adapter.layers) | {"a.q": replace(UPDATE, A=UPDATE.A.double())}),
        replace(adapter, tensors={"head.weight": torch.ones(1, 2)}),
        replace(adapter, tensors={"head.weight": -torch.ones(2)}),
        replace(adapter, metadata={"k": "w"}),
        replace(adapter, rows={"e": lora.TokenRows((2,), torch.ones(1, 2))}),
    ]
    digests = {other.digest() for other in others}
    assert all(other != adapter for other in others)
    assert len(digests | {adapter.digest()}) == len(others) + 1
    assert replace(adapter, source="a file") == adapter
    assert replace(adapter, layers=dict(reversed(adapter.layers.items()))) == adapter
    assert adapter != "adapter"
    assert UPDATE != "update"
    nan = of({"q": replace(UPDATE, A=torch.full((2, 3), float("nan")))})
    assert nan == copy.deepcopy(nan), "bits decide"
    assert of({"q": replace(UPDATE, A=torch.zeros(2, 3))}) != of({"q": replace(UPDATE, A=-torch.zeros(2, 3))})


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process():
    code = (
        "import torch, loralib as lora; u = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4);"
        "print(lora.Adapter(lora.LoRAConfig(modules_to_save=['head']), {'a.q': u, 'a.v': u}).digest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == of().digest()


def test_nothing_can_be_put_into_an_adapter():
    adapter = of()
    with pytest.raises(FrozenInstanceError):
        adapter.config = lora.LoRAConfig()
    with pytest.raises(TypeError):
        adapter.layers["x"] = UPDATE


@settings(max_examples=60, deadline=None)
@given(adapters())
def test_no_operation_changes_the_adapter(adapter):
    before = adapter.digest()
    for operation in (
        lambda a: 2 * a,
        lambda a: -a,
        lambda a: a.scale(0),
        lambda a: a + a,
        lambda a: a - a,
        lambda a: a.truncate(1) if all(t.isfinite().all() for t in a.all_tensors()) else a,
        lambda a: a.rename({"": "x"}),
        lambda a: a.to(dtype=torch.float64),
        lambda a: a.with_metadata({"x": "y"}),
        lambda a: a.summary(),
    ):
        operation(adapter)
        assert adapter.digest() == before


# --- arithmetic -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(adapters(dtypes=[torch.float64], extra=False))
def test_sums_and_differences_are_those_of_the_updates(adapter):
    double = {name: 2 * adapter.delta(name) for name in adapter.layers}
    for found in (adapter + adapter, 3 * adapter - adapter, 0.5 * adapter + adapter * 1.5):
        assert all(torch.allclose(found.delta(name), delta, atol=1e-9) for name, delta in double.items())
    zero = adapter - adapter
    assert all(float(zero.delta(name).abs().max()) < 1e-9 * max(1.0, float(d.abs().max())) for name, d in double.items())
    assert 1 * adapter is adapter


def test_what_is_no_adapter_or_number_is_not_computed_with():
    for operation in (lambda a: a + 1, lambda a: a - "x", lambda a: a * "x", lambda a: a * a):
        with pytest.raises(TypeError):
            operation(of())


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


def test_the_kind_is_part_of_the_digest_by_a_name_of_ours():
    names = {"linear", "embedding", "convolution", "convolution_0_1", "transposed_convolution_0_1", "fused", "projection"}
    kinds = [
        lora.LoRAUpdate, lora.EmbeddingUpdate, lora.ConvolutionUpdate, lora.LegacyConvolutionUpdate, lora.FusedUpdate,
        lora.ProjectionUpdate, LegacyTransposedUpdate,
    ]  # fmt: skip
    assert {kind.kind for kind in kinds} == names
    projection = of({"q": lora.ProjectionUpdate(UPDATE.A, UPDATE.B, 4)})
    assert projection != of({"q": UPDATE})
    assert projection.digest() != of({"q": UPDATE}).digest()


def test_truncating_wants_a_rank_or_a_share():
    with pytest.raises(lora.ConfigError, match="needs a rank r"):
        of().truncate()
    with pytest.raises(lora.ConfigError, match="r=0"):
        of().truncate(0)
    with pytest.raises(lora.AlgebraError, match="energy=2"):
        of().truncate(energy=2)
    with pytest.raises(lora.AlgebraError, match=r"a\.q.*DoRA"):
        2 * of({"a.q": replace(UPDATE, magnitude=torch.ones(4))})


# --- names ----------------------------------------------------------------------------------------------------------


def test_modules_are_renamed_with_all_that_lies_in_them():
    adapter = of(tensors={"head.weight": torch.ones(2)}, rows={"a.emb.weight": ROWS})
    renamed = adapter.rename({"a": "model.b", "head": "classifier"})
    assert list(renamed.layers) == ["model.b.q", "model.b.v"]
    assert list(renamed.tensors) == ["classifier.weight"]
    assert list(renamed.rows) == ["model.b.emb.weight"]
    assert renamed.config.target_modules == ("model.b.q", "model.b.v")
    assert renamed.config.modules_to_save == ("classifier",)
    assert renamed.rename({"model.b": "a", "classifier": "head"}).layers == adapter.layers
    assert list(adapter.rename({"a.q": "q", "a": "b"}).layers) == ["q", "b.v"]
    assert list(adapter.rename(str.upper).layers) == ["A.Q", "A.V"]


@pytest.mark.parametrize(
    ("names", "telling"),
    [({"b": "c"}, "'b' fits nothing"), ({"a.q": "a.v"}, "more than one thing"), ({"a.q": ""}, "a name is needed")],
)
def test_renaming_that_cannot_be_is_refused(names, telling):
    with pytest.raises(lora.TargetError, match=telling):
        of().rename(names)


def test_a_part_is_what_lies_in_a_module():
    adapter = of({"unet.q": UPDATE, "text.q": UPDATE}, tensors={"unet.bias": torch.ones(1)})
    part = adapter.part("unet")
    assert list(part.layers) == ["q"]
    assert list(part.tensors) == ["bias"]
    with pytest.raises(lora.TargetError, match="'vae' fits nothing"):
        adapter.part("vae")


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_summary_says_what_there_is():
    mixed = {"a.q": UPDATE, "b.0.q": replace(UPDATE, use_rslora=True), "v": replace(UPDATE, magnitude=torch.ones(4))}
    adapter = of(mixed, tensors={"head.weight": torch.ones(5).bfloat16()}, rows={"e.weight": ROWS}, metadata={"task_type": "T"})
    said = replace(adapter, source="PEFT folder x").summary()
    words = [
        "PEFT folder x",
        "q (2 layers), v (1 layer)",
        "1 of 3 layers",
        "46 in factors, 5 in extra tensors",
        "head",
        "e.weight",
    ]
    for word in [*words, "task_type    T"]:
        assert word in said
    assert adapter.num_parameters() == 3 * 14 + 4
    assert "1 token rows" in repr(adapter)


def test_other_dtypes_and_devices_hold_everything():
    adapter = of(
        {"q": replace(UPDATE, magnitude=torch.ones(4))},
        tensors={"n": torch.tensor(3)},
        rows={"e": ROWS},
    )
    low = adapter.to(dtype=torch.bfloat16)
    assert {t.dtype for t in low.all_tensors()} == {torch.bfloat16, torch.int64}
    assert same_bits(low.to(dtype=torch.float32).layers["q"].A, UPDATE.A)
    assert {t.device.type for t in adapter.to(device="meta").all_tensors()} == {"meta"}
