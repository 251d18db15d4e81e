"""The digest of an adapter stands for all of its content and for nothing else."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import loralib as lora
from loralib.adapters.convolution_updates import LegacyTransposedUpdate
from loralib.adapters.digest import digest
from sample_adapters import ROWS, TWO, UPDATE, of


@pytest.mark.slow
def test_the_digest_is_the_same_in_another_process():
    code = (
        "import torch, loralib as lora; u = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4);"
        "print(lora.Adapter(lora.LoRAConfig(modules_to_save=['head']), {'a.q': u, 'a.v': u}).digest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == of().digest()


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


def digest_of(**fields) -> str:
    given = {"settings": lora.LoRAConfig(), "layers": TWO, "tensors": {"head.weight": torch.ones(2)}, "rows": {"e": ROWS}}
    return digest(**given | {"metadata": {"a": "b", "c": "d"}} | fields)


def test_the_order_of_names_and_what_layers_say_already_do_not_count():
    first = digest_of()
    assert first == digest_of(layers=dict(reversed(TWO.items())))
    assert first == digest_of(metadata={"c": "d", "a": "b"})
    assert first == digest_of(settings=lora.LoRAConfig(r=3, target_modules=["x"], use_rslora=True))
    two = {"a": torch.ones(1), "b": torch.zeros(1)}
    assert digest_of(tensors=two) == digest_of(tensors=dict(reversed(two.items())))
    assert digest_of(rows={"e": ROWS, "f": ROWS}) == digest_of(rows={"f": ROWS, "e": ROWS})
    assert first == digest_of(layers={name: replace(update, lora_alpha=4.0) for name, update in TWO.items()})


def test_every_part_counts():
    slices = lora.FusedUpdate(torch.ones(2, 3), torch.ones(2, 2), 4, False, (True, False), (2, 5))
    others = [
        {"settings": lora.LoRAConfig(lora_dropout=0.1)},
        {"settings": lora.LoRAConfig(bias="all")},
        {"settings": lora.LoRAConfig(modules_to_save=["head"])},
        {"settings": lora.LoRAConfig(fan_in_fan_out=True)},
        {"metadata": {"a": "b"}},
        {"metadata": {"a": "bc", "c": "d"}},
        {"layers": {}},
        {"layers": TWO | {"a.v": replace(UPDATE, use_rslora=True)}},
        {"layers": TWO | {"a.v": replace(UPDATE, lora_alpha=4.5)}},
        {"layers": TWO | {"a.v": replace(UPDATE, A=torch.ones(2, 3, dtype=torch.int32).view(torch.float32))}},
        {"layers": TWO | {"a.v": slices}},
        {"layers": TWO | {"a.v": replace(slices, widths=(2, 6))}},
        {"layers": {"a.q": UPDATE, "a.w": UPDATE}},
        {"tensors": {"head.bias": torch.ones(2)}},
        {"tensors": {"head.weight": torch.ones(1, 2)}},
        {"tensors": {"head.weight": torch.ones(2, dtype=torch.float64)}},
        {"tensors": {"head.weight": torch.zeros(2)}},
        {"rows": {"f": ROWS}},
        {"rows": {"e": replace(ROWS, indices=(2,))}},
        {"rows": {"e": replace(ROWS, values=torch.zeros(1, 2))}},
        {"tensors": {}, "rows": {}},
    ]
    assert len({digest_of(), *(digest_of(**fields) for fields in others)}) == len(others) + 1
