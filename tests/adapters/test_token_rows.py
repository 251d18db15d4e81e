"""Rows of an embedding that an adapter brings: put into the model, saved again, taken out without a trace."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import loralib as lora
from loralib.adapters.token_rows import TokenRows
from models import Tied, same_bits, snapshot

ROWS = TokenRows((3, 10), torch.arange(12.0).reshape(2, 6))
IDS = torch.tensor([[3, 1, 10]])


def adapter_with(rows: dict[str, TokenRows], **config) -> lora.Adapter:
    model = Tied()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["body"], **config))
    return replace(lora.extract(model), rows=rows)


def untied() -> Tied:
    model = Tied()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return model


def test_rows_replace_rows_and_nothing_else():
    model = untied()
    before = model.embed.weight.detach().clone()
    lora.attach(model, adapter_with({"embed.weight": ROWS}))
    after = model.embed.weight.detach()
    others = [i for i in range(11) if i not in ROWS.indices]
    assert same_bits(after[list(ROWS.indices)], ROWS.values)
    assert same_bits(after[others], before[others])
    assert same_bits(model.head.weight, before)


def test_a_head_tied_to_the_embedding_stays_tied_to_it():
    model = Tied()
    lora.attach(model, adapter_with({"embed.weight": ROWS}))
    assert model.head.weight is model.embed.weight
    assert same_bits(model.embed.weight[[3, 10]], ROWS.values)


@pytest.mark.parametrize("build", [Tied, untied])
def test_eject_and_disabled_give_the_rows_back(build):
    model = build()
    before, expected = snapshot(model), model(IDS)
    lora.attach(model, adapter_with({"embed.weight": ROWS}))
    changed = model(IDS)
    assert not torch.equal(changed, expected)
    with lora.disabled(model):
        assert same_bits(model(IDS), expected)
    assert same_bits(model(IDS), changed)
    lora.eject(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("build", [Tied, untied])
def test_extract_gives_the_adapter_back(build):
    adapter = adapter_with({"embed.weight": ROWS})
    model = build()
    lora.attach(model, adapter)
    again = lora.extract(model)
    assert again == adapter
    lora.attach(model, again)
    assert lora.extract(model) == adapter


def test_rows_are_not_trained_further():
    model = Tied()
    lora.attach(model, adapter_with({"embed.weight": ROWS}))
    lora.mark_only_lora_as_trainable(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["body.lora_A", "body.lora_B"]


@pytest.mark.parametrize(
    ("rows", "telling"),
    [
        ({"nowhere.weight": ROWS}, "no such tensor"),
        ({"embed.weight": TokenRows((11,), torch.zeros(1, 6))}, "resize"),
        ({"embed.weight": TokenRows((1,), torch.zeros(1, 5))}, r"\(5,\) in the adapter, \(6,\) in the model"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_changes(rows, telling):
    model = Tied()
    before = snapshot(model)
    with pytest.raises(lora.AttachError, match=telling):
        lora.attach(model, adapter_with(rows))
    assert snapshot(model) == before


@pytest.mark.parametrize("rows", [{}, {"embed.weight": TokenRows((4,), torch.zeros(1, 6))}])
def test_a_model_that_holds_other_rows_refuses(rows):
    model = Tied()
    lora.attach(model, adapter_with({"embed.weight": ROWS}))
    with pytest.raises(lora.AttachError, match="other rows in the model"):
        lora.attach(model, adapter_with(rows))
    assert same_bits(model.embed.weight[[3, 10]], ROWS.values)


def test_a_tie_whose_two_names_have_other_values_is_refused():
    other = TokenRows(ROWS.indices, ROWS.values + 1)
    model = Tied()
    before = snapshot(model)
    with pytest.raises(lora.AttachError, match=r"head\.weight: tied to embed\.weight in the model, and differs"):
        lora.attach(model, adapter_with({"embed.weight": ROWS, "head.weight": other}))
    full = replace(adapter_with({}), tensors={"embed.weight": torch.zeros(11, 6), "head.weight": torch.ones(11, 6)})
    with pytest.raises(lora.AttachError, match="differs from it in the adapter"):
        lora.attach(model, full)
    assert snapshot(model) == before
    lora.attach(model, adapter_with({"embed.weight": ROWS, "head.weight": ROWS}))
    assert same_bits(model.head.weight[[3, 10]], ROWS.values)


def test_rows_of_a_merged_layer_are_refused():
    model = untied()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["embed"]))
    adapter = replace(lora.extract(model), rows={"embed.weight": ROWS})
    lora.merge(model)
    with pytest.raises(lora.AttachError, match="unmerge the model first"):
        lora.attach(model, adapter)


@pytest.mark.parametrize(
    ("indices", "values"),
    [((1, 1), torch.zeros(2, 3)), ((-1,), torch.zeros(1, 3)), ((1, 2), torch.zeros(1, 3)), ((1.0,), torch.zeros(1, 3))],
)
def test_rows_must_be_numbered_one_by_one(indices, values):
    with pytest.raises(lora.ConfigError):
        TokenRows(indices, values)


def test_rows_are_values():
    again = pickle.loads(pickle.dumps(ROWS))
    assert again == ROWS
    assert hash(again) == hash(ROWS)
    assert replace(ROWS, values=ROWS.values + 1) != ROWS
    assert replace(ROWS, indices=(3, 9)) != ROWS


def test_a_dora_update_is_refused_by_layers_that_cannot_compute_it():
    model = Tied()
    adapter = adapter_with({})
    dora = replace(adapter.layers["body"], magnitude=torch.ones(6))
    before = snapshot(model)
    with pytest.raises(lora.AttachError, match="DoRA"):
        lora.attach(model, adapter.with_layers({"body": dora}))
    assert snapshot(model) == before
