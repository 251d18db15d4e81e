"""What a merge will write is known before anything is: every tensor once, in the file that it is in."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import loralib as lora
from loralib.adapters.config_of import described
from loralib.checkpoints.checkpoint import open_checkpoint
from loralib.checkpoints.merge_plan import Plan, planned

UPDATE = lora.LoRAUpdate(torch.randn(2, 4), torch.randn(3, 2), 4)


def adapter_of(*names: str, **fields) -> lora.Adapter:
    layers = dict.fromkeys(names, UPDATE)
    return replace(lora.Adapter(described(lora.LoRAConfig(), layers), layers), **fields)


def plan_of(folder, adapter: lora.Adapter, tied="refuse") -> Plan:
    return planned(open_checkpoint(folder), adapter, tied)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shards=st.integers(1, 3))
def test_every_tensor_stays_in_its_file_and_only_adapted_ones_change(data, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    names = [f"l{i}" for i in range(data.draw(st.integers(shards, 6)))]
    files = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({f"{name}.weight": torch.zeros(3, 4) for name in names if files[name] == file}, folder / file)
    index = {"weight_map": {f"{name}.weight": file for name, file in files.items()}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    plan = plan_of(folder, adapter_of(*chosen))
    written = {target.name: file for file, targets in plan.files.items() for target in targets}
    assert written == {f"{n}.weight": files[n].replace("pytorch_model", "model").replace(".bin", ".safetensors") for n in names}
    assert {t.name.removesuffix(".weight") for t in plan.targets() if not t.is_copy} == set(chosen)
    assert all(t.nbytes == 48 and t.source == t.name for t in plan.targets())
    assert not plan.untied


@pytest.fixture
def base(tmp_path):
    save_file({"m.proj.weight": torch.randn(3, 4), "m.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    return tmp_path


def test_tensors_trained_in_full_take_their_places_or_are_added(base):
    full = {"m.norm.weight": torch.zeros(3), "head.weight": torch.ones(2, 3).half()}
    plan = plan_of(base, adapter_of("m.proj", tensors=full))
    targets = {target.name: target for target in plan.targets()}
    assert torch.equal(targets["m.norm.weight"].value, full["m.norm.weight"])
    head = targets["head.weight"]
    assert (head.dtype, head.shape, head.source, head.is_copy) == ("F16", (2, 3), "", False)


def test_the_files_of_a_base_model_get_the_prefix_of_what_is_added(base):
    adapter = adapter_of("whole.m.proj", tensors={"head.weight": torch.ones(2, 3)})
    assert {t.name for t in plan_of(base, adapter).targets()} == {"whole.m.proj.weight", "whole.m.norm.weight", "head.weight"}
    assert {t.name for t in plan_of(base, adapter_of("whole.m.proj")).targets()} == {"m.proj.weight", "m.norm.weight"}


def test_rows_of_token_embeddings_are_replaced_where_they_fit(base):
    rows = {"m.proj.weight": lora.TokenRows((2, 0), torch.ones(2, 4))}
    plan = plan_of(base, adapter_of("m.proj", rows=rows))
    assert next(t for t in plan.targets() if t.name == "m.proj.weight").rows is rows["m.proj.weight"]
    with pytest.raises(lora.FormatError, match="resize"):
        plan_of(base, adapter_of("m.proj", rows={"m.proj.weight": lora.TokenRows((3,), torch.ones(1, 4))}))


@pytest.mark.parametrize("changed", ["wte", "lm_head"])
def test_a_tied_weight_becomes_two(changed, tmp_path):
    save_file({"wte.weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    config = {"architectures": ["GPT2LMHeadModel"], "vocab_size": 3, "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(lora.FormatError, match="untie"):
        plan_of(tmp_path, adapter_of(changed))
    plan = plan_of(tmp_path, adapter_of(changed), "untie")
    assert {t.name: bool(t.changes) for t in plan.targets()} == {
        "wte.weight": changed == "wte",
        "lm_head.weight": changed == "lm_head",
    }
    assert plan.untied
    assert plan.config == config | {"tie_word_embeddings": False}
    assert all(t.source == "wte.weight" for t in plan.targets())


def test_a_quantized_model_and_weights_of_integers_are_refused(base):
    save_file({"m.proj.weight": torch.zeros(3, 4, dtype=torch.int8)}, base / "model.safetensors")
    with pytest.raises(lora.FormatError, match="stored as I8"):
        plan_of(base, adapter_of("m.proj"))
    (base / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    with pytest.raises(lora.FormatError, match="is quantized"):
        plan_of(base, adapter_of("m.proj"))
