"""Where an update is large: by block and by kind of layer, whatever names a model has."""

import math

import numpy as np
import pytest
import torch
from planted import adapter, dense, drawn

import loralib as lora
from loralib.analysis import norms_by_place
from loralib.analysis.places import kinds_of


def test_norms_stand_by_depth_and_kind() -> None:
    names = [f"bert.encoder.layer.{i}.attention.self.{kind}" for i in (0, 1, 10) for kind in ("query", "value")]
    one = adapter(**{name: drawn(5, 6, 2, seed) for seed, name in enumerate([*names, "classifier.dense"])})
    found = norms_by_place(one)
    order = [(0, "query"), (1, "query"), (10, "query"), (0, "value"), (1, "value"), (10, "value"), (None, "dense")]
    assert list(found) == order
    for name, update in one.layers.items():
        depth = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        assert found[depth, name.rpartition(".")[2]] == pytest.approx(np.linalg.norm(dense(update)))


def test_layers_of_one_place_add_up() -> None:
    experts = {f"model.layers.3.experts.{i}.up": drawn(5, 6, 2, i) for i in range(3)}
    slices = lora.FusedUpdate(torch.ones(4, 6), torch.ones(8, 2), 2, enable_lora=(True, False, True), widths=(4, 4, 4))
    found = norms_by_place(adapter(**experts, **{"model.layers.3.qkv": slices}))
    total = math.sqrt(sum(np.linalg.norm(dense(update)) ** 2 for update in experts.values()))
    assert found == {
        (3, "up"): pytest.approx(total),
        (3, "qkv[0]"): pytest.approx(math.sqrt(4 * 6) * 2),
        (3, "qkv[2]"): pytest.approx(math.sqrt(4 * 6) * 2),
    }


def test_kinds_of_one_name_are_told_apart() -> None:
    names = [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.1.layer.1.EncDecAttention.q",
        "decoder.block.1.layer.0.SelfAttention.q",
        "lm_head",
    ]
    found = kinds_of(names)
    assert found[names[2]] == "EncDecAttention.q"
    assert found[names[1]] == found[names[3]] == "decoder.block.*.layer.*.SelfAttention.q"
    assert found[names[0]] == "encoder.block.*.layer.*.SelfAttention.q"
    assert kinds_of(["blocks.0.to_out.0", "blocks.1.to_out.0"])["blocks.1.to_out.0"] == "to_out.*"
    assert kinds_of(["0", "1"]) == {"0": "*", "1": "*"}


def test_what_is_not_finite_is_refused() -> None:
    a = drawn(5, 6, 2, 0)
    with pytest.raises(lora.AlgebraError, match=r"^q: its lora_B"):
        norms_by_place(adapter(q=lora.LoRAUpdate(a.A, a.B * math.nan, 1)))
    with pytest.raises(lora.ArgumentError, match="expected an Adapter"):
        norms_by_place("path")  # type: ignore[arg-type]
