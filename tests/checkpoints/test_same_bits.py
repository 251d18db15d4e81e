"""Merging a model in memory and merging its files give the same bits, for every kind of layer."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import loralib as lora
from kinds import fill, hf_conv1d
from loralib.ops.autograd import merging

EVEN = {"enable_lora": [True, False, True]}
UNEVEN = {"enable_lora": [False, True, True], "slice_widths": {"0": [9, 4, 5]}}
PROJECTIONS = ["q_proj", "v_proj", "out_proj"]


@dataclass(frozen=True)
class Case:
    """make: a plain layer, or one of 0.1 with its update. config: of the injection."""

    make: Callable[[], nn.Module]
    config: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> nn.Module:
        """A model of the layer, without an update if it is not one of 0.1's."""
        return nn.Sequential(self.make())

    def adapted(self, plain: nn.Module, dtype: torch.dtype) -> nn.Module:
        """`plain` with an update of random factors."""
        model = copy.deepcopy(plain)
        if isinstance(model[0], lora.AdaptedLayer):
            for factor in (model[0].lora_A, model[0].lora_B):
                factor.data = factor.data.to(dtype)
        else:
            lora.inject(model, lora.LoRAConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["0"]} | self.config), dtype=dtype)
        return fill(model)


CASES = {
    "linear": Case(lambda: nn.Linear(11, 18)),
    "Conv1D": Case(lambda: hf_conv1d(18, 11)),
    "square Conv1D": Case(lambda: hf_conv1d(12, 12)),
    "linear of 0.1": Case(lambda: lora.Linear(11, 18, r=3, merge_weights=False)),
    "linear of 0.1, (in, out)": Case(lambda: lora.Linear(11, 18, r=3, fan_in_fan_out=True, merge_weights=False)),
    "slices": Case(lambda: nn.Linear(11, 18), EVEN),
    "slices of uneven width": Case(lambda: nn.Linear(11, 18), UNEVEN),
    "slices, (in, out)": Case(lambda: hf_conv1d(18, 11), EVEN),
    "slices of uneven width, (in, out)": Case(lambda: hf_conv1d(18, 11), UNEVEN),
    "slices of 0.1, (in, out)": Case(
        lambda: lora.MergedLinear(11, 18, r=3, enable_lora=[True, False, True], fan_in_fan_out=True, merge_weights=False)
    ),
    "embedding": Case(lambda: nn.Embedding(17, 6)),
    "embedding with padding": Case(lambda: nn.Embedding(17, 6, padding_idx=2)),
    "embedding with max_norm": Case(lambda: nn.Embedding(17, 6, padding_idx=5, max_norm=1.5)),
    "embedding with max_norm, 1-norm": Case(lambda: nn.Embedding(17, 6, max_norm=3.0, norm_type=1.0)),
    "bag": Case(lambda: nn.EmbeddingBag(17, 6, padding_idx=3)),
    "bag with max_norm": Case(lambda: nn.EmbeddingBag(17, 6, mode="max", max_norm=1.5, padding_idx=0)),
    "conv1d": Case(lambda: nn.Conv1d(6, 9, 3, groups=3)),
    "conv2d": Case(lambda: nn.Conv2d(6, 9, (2, 3))),
    "conv2d in groups": Case(lambda: nn.Conv2d(6, 8, 2, groups=2)),
    "conv3d": Case(lambda: nn.Conv3d(4, 6, (1, 2, 2), groups=2)),
    "transposed conv1d": Case(lambda: nn.ConvTranspose1d(6, 9, 3, groups=3)),
    "transposed conv2d": Case(lambda: nn.ConvTranspose2d(6, 8, (2, 3))),
    "transposed conv3d": Case(lambda: nn.ConvTranspose3d(4, 6, 2, groups=2)),
    "conv2d of 0.1": Case(lambda: lora.Conv2d(4, 6, 3, r=2, merge_weights=False)),
    "conv2d of 0.1 in groups": Case(lambda: lora.Conv2d(4, 6, 3, r=2, groups=2, merge_weights=False)),
    "transposed conv2d of 0.1": Case(lambda: lora.ConvLoRA(nn.ConvTranspose2d, 4, 6, 3, r=2, groups=2, merge_weights=False)),
    "conv1d of 0.1": Case(lambda: lora.Conv1d(5, 7, 1, r=2, merge_weights=False)),
    "bilinear": Case(lambda: nn.Bilinear(3, 4, 5)),
    "attention": Case(lambda: nn.MultiheadAttention(12, 2), {"target_modules": PROJECTIONS}),
    "attention, some projections": Case(lambda: nn.MultiheadAttention(12, 2), {"target_modules": ["k_proj"]}),
    "attention over other widths": Case(
        lambda: nn.MultiheadAttention(12, 2, kdim=7, vdim=5), {"target_modules": ["k_proj", *PROJECTIONS]}
    ),
}
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def computing(threads: int, elements: int) -> Iterator[None]:
    """So many threads of torch, and blocks of so many elements, inside the block."""
    before = torch.get_num_threads(), merging.ELEMENTS
    torch.set_num_threads(threads)
    merging.ELEMENTS = elements
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        merging.ELEMENTS = before[1]


def both(plain: nn.Module, model: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the merged `model`, and those of the files of `plain` with the same adapter merged into them."""
    weights = {
        name: t.detach().clone(memory_format=torch.contiguous_format)
        for name, t in plain.state_dict().items()
        if "lora_" not in name
    }
    save_file(weights, folder / "base.safetensors")
    lora.merge_checkpoint(folder / "base.safetensors", lora.extract(model), folder / "out", overwrite=True)
    lora.merge(model)
    merged = {name: p.detach() for name, p in model.named_parameters() if "lora_" not in name}
    return merged, load_file(folder / "out" / "model.safetensors")


def differing(merged: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    assert found.keys() == merged.keys()
    return [name for name, t in merged.items() if found[name].dtype != t.dtype or not torch.equal(found[name], t)]


@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_a_model_and_its_files_are_merged_to_the_same_bits(kind, dtype, tmp_path):
    torch.manual_seed(0)
    plain = CASES[kind].plain().to(dtype)
    for factors in (torch.float32, torch.bfloat16, torch.float64):
        model = CASES[kind].adapted(plain, factors)
        before = plain.state_dict()
        for threads, elements in ((1, merging.ELEMENTS), (2, 30)):
            with computing(threads, elements):
                merged, found = both(plain, model, tmp_path)
                assert not differing(merged, found)
                assert any(not torch.equal(t, before[name]) for name, t in merged.items())
                lora.unmerge(model)


@pytest.mark.parametrize("kind", ["linear", "Conv1D", "slices", "embedding with max_norm", "transposed conv2d", "attention"])
def test_a_final_merge_gives_the_same_bits(kind, tmp_path):
    torch.manual_seed(0)
    plain = CASES[kind].plain()
    model = CASES[kind].adapted(plain, torch.float32)
    save_file({name: t.clone() for name, t in plain.state_dict().items()}, tmp_path / "base.safetensors")
    lora.merge_checkpoint(tmp_path / "base.safetensors", lora.extract(model), tmp_path / "out")
    lora.merge(model, keep=False)
    assert not differing(dict(model.state_dict()), load_file(tmp_path / "out" / "model.safetensors"))


LARGE = {
    "linear": lambda: nn.Linear(1500, 900),
    "Conv1D": lambda: hf_conv1d(900, 1500),
    "embedding": lambda: nn.Embedding(3000, 513, max_norm=20.0),
    "transposed conv2d": lambda: nn.ConvTranspose2d(160, 120, 3),
    "conv2d of 0.1": lambda: lora.Conv2d(160, 120, 3, r=16, merge_weights=False),
    "attention": lambda: nn.MultiheadAttention(600, 2),
}


@pytest.mark.parametrize("r", [1, 16, 64])
@pytest.mark.parametrize("kind", LARGE)
def test_large_weights_have_the_same_bits_with_one_thread_and_with_two(kind, r, tmp_path):
    torch.manual_seed(0)
    targets = PROJECTIONS if kind == "attention" else ["0"]
    case = Case(LARGE[kind], {"r": r, "target_modules": targets})
    plain = case.plain()
    model = case.adapted(plain, torch.float32)
    for threads in (1, 2):
        with computing(threads, merging.ELEMENTS):
            merged, found = both(plain, model, tmp_path)
            assert not differing(merged, found)
            lora.unmerge(model)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 40),
    r=st.integers(1, 9),
    elements=st.integers(1, 400),
    kind=st.sampled_from(["linear", "Conv1D", "embedding"]),
    dtype=st.sampled_from(WEIGHTS),
    threads=st.integers(1, 2),
)
def test_the_bits_do_not_depend_on_shapes_and_blocks(rows, width, r, elements, kind, dtype, threads, tmp_path_factory):
    assume(r <= max(rows, width))
    torch.manual_seed(rows * width)
    make = {
        "linear": lambda: nn.Linear(width, rows),
        "Conv1D": lambda: hf_conv1d(rows, width),
        "embedding": lambda: nn.Embedding(rows, width, padding_idx=rows - 1, max_norm=1.0),
    }[kind]
    plain = nn.Sequential(make()).to(dtype)
    model = Case(make, {"r": r}).adapted(plain, torch.float32)
    with computing(threads, elements):
        assert not differing(*both(plain, model, tmp_path_factory.mktemp("bits")))
