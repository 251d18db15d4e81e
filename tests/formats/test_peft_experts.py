"""Experts in PEFT's files: what PEFT 0.21 writes and reads, what other versions and Unsloth wrote, and what cannot be told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import loralib as lora
from loralib.formats.peft_experts import taken
from mixtures import FAMILIES, fill, logits, mixture
from peers import library

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # PEFT looks for modules only

WHERE = ["experts.gate_up_proj", "experts.down_proj"]
E, D, K, R = 4, 6, 5, 2


def of_peft(family: str, folder: Path, **config: Any) -> Tensor:
    """An adapter with updates of experts that PEFT saves, and the logits of its model."""
    peft = library("peft")
    given = {"r": 2, "lora_alpha": 3, "target_modules": ["o_proj"], "target_parameters": WHERE} | config
    model = fill(peft.get_peft_model(mixture(family), peft.LoraConfig(**given)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(folder)
    return logits(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config", [{}, {"rank_pattern": {"experts.down_proj": 4}, "alpha_pattern": {"gate_up_proj": 7}}, {"use_rslora": True}]
)
def test_what_peft_writes_computes_the_same_here(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    expected = of_peft(family, tmp_path, **config)
    model = mixture(family)
    lora.attach(model, lora.load(tmp_path))
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [{}, {"rank_pattern": {"down_proj": 3}}, {"share_expert_factor": "A"}])
def test_what_is_written_computes_the_same_in_peft(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = mixture(family)
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["o_proj"], target_parameters=WHERE, **config))
    adapter = lora.extract(fill(model))
    lora.save(adapter, tmp_path)
    theirs = library("peft").PeftModel.from_pretrained(mixture(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=2e-5, rtol=0)
    again = lora.load(tmp_path)
    assert again.layers.keys() == adapter.layers.keys()
    for name in adapter.layers:
        torch.testing.assert_close(again.layers[name].delta(), adapter.layers[name].delta())


def test_one_parameter_alone(tmp_path: Path) -> None:
    expected = of_peft("Qwen3Moe", tmp_path, target_parameters=["experts.down_proj"], target_modules=[])
    adapter = lora.load(tmp_path)
    assert set(adapter.layers) == {f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)}
    model = mixture("Qwen3Moe")
    lora.attach(model, adapter)
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)


# --- layouts --------------------------------------------------------------------------------------------------------


def folder(path: Path, A: Tensor, B: Tensor, parameter: str = "down_proj", **values: Any) -> Path:
    """A folder with one update of the experts of `m.experts`."""
    path.mkdir(exist_ok=True)
    named = {"base_model.model.m.experts.lora_A.weight": A, "base_model.model.m.experts.lora_B.weight": B}
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": R, "lora_alpha": R, "target_modules": [], "target_parameters": [f"experts.{parameter}"]}
    (path / "adapter_config.json").write_text(json.dumps(config | values))
    return path


def drawn() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(E * R, D), torch.randn(K, R * E)


def rank_major(A: Tensor, B: Tensor) -> Tensor:
    return torch.einsum("ore,eri->eoi", B.reshape(len(B), R, E), A.reshape(E, R, -1))


def expert_major(A: Tensor, B: Tensor) -> Tensor:
    return torch.einsum("oer,eri->eoi", B.reshape(len(B), E, R), A.reshape(E, R, -1))


def exchanged(A: Tensor, B: Tensor) -> Tensor:
    """As PEFT 0.18 computes it for a Parameter of (E, rows, columns): A is on the rows."""
    return torch.einsum("ore,eri->eio", B.reshape(len(B), R, E), A.reshape(E, R, -1))


@pytest.mark.parametrize(
    ("values", "layout", "expected"),
    [
        ({"peft_version": "0.19.0"}, None, rank_major),
        ({"peft_version": "0.21.2"}, None, rank_major),
        ({"peft_version": "1.0.0.dev0"}, None, rank_major),
        ({"peft_version": "0.18.1"}, None, exchanged),
        ({"peft_version": "0.17.0"}, None, exchanged),
        ({"lora_B_layout": "rank_major"}, None, rank_major),
        ({"lora_B_layout": "grouped_by_expert"}, None, expert_major),
        ({"lora_B_layout": "grouped_by_expert", "peft_version": "0.21.0"}, None, expert_major),
        ({}, "rank-major", rank_major),
        ({}, "exchanged", exchanged),
        ({}, "expert-major", expert_major),
        ({"peft_version": "0.21.2"}, "expert-major", expert_major),
    ],
)
def test_every_layout_means_what_its_program_computes(values: Any, layout: Any, expected: Any, tmp_path: Path) -> None:
    A, B = drawn()
    found = lora.load(folder(tmp_path / "a", A, B, **values), layout=layout).layers["m.experts.down_proj"]
    torch.testing.assert_close(found.delta(), expected(A, B))


@pytest.mark.parametrize("values", [{}, {"peft_version": None}, {"peft_version": "unknown"}, {"peft_version": ""}])
def test_a_file_that_does_not_say_its_layout_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(lora.FormatError, match="neither its peft_version nor lora_B_layout says how they lie"):
        lora.load(folder(tmp_path / "a", *drawn(), **values))


def test_a_mark_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lora.FormatError, match="lora_B_layout='spiral' is none of rank_major, grouped_by_expert"):
        lora.load(folder(tmp_path / "a", *drawn(), lora_B_layout="spiral", peft_version="0.21.0"))


def test_square_matrices_of_old_versions_are_asked_about(tmp_path: Path) -> None:
    A, B = torch.randn(E * R, D), torch.randn(D, R * E)
    path = folder(tmp_path / "a", A, B, peft_version="0.18.1")
    with pytest.raises(lora.FormatError, match="has square matrices"):
        lora.load(path)


@pytest.mark.parametrize("transposed", [False, True])
def test_old_versions_exchange_the_sides_of_matrices_that_are_stored_as_out_and_in(transposed: bool, tmp_path: Path) -> None:
    """gate_up (2·K, D) and down (D, K): PEFT 0.18 put A on the rows of what is stored."""
    torch.manual_seed(0)
    shapes = {"gate_up_proj": (2 * K, D), "down_proj": (D, K)}  # (out, in)
    stored = {name: (shape[1], shape[0]) if transposed else shape for name, shape in shapes.items()}
    factors = {name: (torch.randn(E * R, rows), torch.randn(columns, R * E)) for name, (rows, columns) in stored.items()}
    path = folder(tmp_path / "a", *factors["down_proj"], peft_version="0.18.1", target_parameters=WHERE)
    A, B = factors["gate_up_proj"]
    held = load_file(path / "adapter_model.safetensors")
    held |= {"base_model.model.m.experts.base_layer.lora_A.weight": A, "base_model.model.m.experts.base_layer.lora_B.weight": B}
    save_file(held, path / "adapter_model.safetensors")
    found = lora.load(path).layers
    for name, (A, B) in factors.items():
        delta = exchanged(A, B)  # as it is stored
        torch.testing.assert_close(found[f"m.experts.{name}"].delta(), delta.mT if transposed else delta)


@pytest.mark.parametrize("layout", ["rank-major", "exchanged", "expert-major"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_layout_is_written_and_read_again(layout: Any, shared: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    A = torch.randn(1 if shared else E, R, D)
    update = lora.ExpertsUpdate(A, torch.randn(E, K, R), 3)
    adapter = lora.Adapter(lora.LoRAConfig(), {"m.experts.down_proj": update})
    lora.save(adapter, tmp_path / "a", layout=layout)
    found = lora.load(tmp_path / "a").layers["m.experts.down_proj"]
    torch.testing.assert_close(found.delta(), update.delta())
    held = load_file(tmp_path / "a" / "adapter_model.safetensors")
    A, B = (held[f"base_model.model.m.experts.lora_{x}.weight"] for x in "AB")
    compute = {"rank-major": rank_major, "exchanged": exchanged, "expert-major": expert_major}[layout]
    torch.testing.assert_close(update.scaling * compute(A, B), update.delta())


@pytest.mark.parametrize("transposed", [False, True])
def test_factors_of_three_dimensions_are_read_by_a_key_map(transposed: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    update = lora.ExpertsUpdate(torch.randn(1, R, D), torch.randn(E, K, R), R)
    A, B = (update.A.mT, update.B.mT) if transposed else (update.A, update.B)
    save_file({"w.down.a": A.contiguous(), "w.down.b": B.contiguous()}, tmp_path / "x.safetensors")
    end = ".T" if transposed else ""
    keys = {r"w\.down\.a": f"m.experts.down_proj.lora_A{end}", r"w\.down\.b": f"m.experts.down_proj.lora_B{end}"}
    found = lora.load(tmp_path / "x.safetensors", keys=keys)
    torch.testing.assert_close(found.delta("m.experts.down_proj"), update.delta())
    lora.save(found, tmp_path / "y.safetensors", keys=lambda name: name)
    again = lora.load(tmp_path / "y.safetensors", keys=lambda name: name)
    torch.testing.assert_close(again.delta("m.experts.down_proj"), update.delta())


def test_transposes_of_three_dimensions_are_not_taken_for_factors(tmp_path: Path) -> None:
    A, B = torch.randn(E, D, D), torch.randn(E, D, D)
    save_file({"m.lora_A": A, "m.lora_B": B}, tmp_path / "x.safetensors")
    with pytest.raises(lora.FormatError, match="look like transposes"):
        lora.load(tmp_path / "x.safetensors", keys=lambda name: name)


# --- refused --------------------------------------------------------------------------------------------------------


def test_factors_that_make_up_no_experts_are_refused(tmp_path: Path) -> None:
    A, B = drawn()
    for bad_A, bad_B in ((A[:-1], B), (A, B[:, :-1]), (A[:-1], B[:, :-1]), (A[:0], B[:, :0])):
        with pytest.raises(lora.FormatError, match="are not factors of rank 2 for as many experts"):
            lora.load(folder(tmp_path / "a", bad_A, bad_B, peft_version="0.21.0"))


def test_an_update_that_no_parameter_is_named_for_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", *drawn(), peft_version="0.21.0", target_parameters=WHERE)
    with pytest.raises(lora.FormatError, match="has updates of 1 Parameters, and target_parameters names 2"):
        lora.load(path)
    path = folder(tmp_path / "a", *drawn(), peft_version="0.21.0", target_parameters=["others.w"])
    with pytest.raises(lora.FormatError, match="no factors for target_parameters"):
        lora.load(path)


def test_nested_updates_without_a_configuration_are_refused(tmp_path: Path) -> None:
    of_peft("Qwen3Moe", tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(values | {"target_parameters": None, "rank_pattern": {}}))
    with pytest.raises(lora.FormatError):
        lora.load(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(lora.FormatError):
        lora.load(tmp_path / "adapter_model.safetensors", config=lora.LoRAConfig(lora_alpha=3))


def test_the_order_of_parameters_with_other_names_is_not_guessed(tmp_path: Path) -> None:
    update = lora.ExpertsUpdate(torch.ones(2, 1, 3), torch.ones(2, 4, 1), 1)
    two = lora.Adapter(lora.LoRAConfig(), {"m.experts.w_in": update, "m.experts.w_out": update})
    with pytest.raises(lora.FormatError, match="tell apart by their order"):
        lora.save(two, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    one = lora.Adapter(lora.LoRAConfig(), {"m.experts.w_in": update})
    lora.save(one, tmp_path / "b")
    assert lora.load(tmp_path / "b").layers == one.layers
    factors = {name: {"lora_A.weight": torch.ones(2, 3), "lora_B.weight": torch.ones(4, 2)} for name in ("m", "m.base_layer")}
    config = lora.LoRAConfig(r=1, target_parameters=["m.w_in", "m.w_out"])
    with pytest.raises(lora.FormatError, match="the order of 'w_in' is not known"):
        taken("file", factors, config, {"peft_version": "0.21.0"}, None)


def test_other_formats_say_that_they_cannot_hold_experts(tmp_path: Path) -> None:
    update = lora.ExpertsUpdate(torch.ones(2, 1, 3), torch.ones(2, 4, 1), 1)
    adapter = lora.Adapter(lora.LoRAConfig(), {"m.experts.down_proj": update})
    for format in ("kohya", "diffusers", "loralib"):
        with pytest.raises(lora.FormatError):
            lora.save(adapter, tmp_path / "x.safetensors", format)
    lora.save(adapter, tmp_path / "x.safetensors", "safetensors")
    assert lora.load(tmp_path / "x.safetensors") == adapter


@pytest.mark.parametrize("layout", ["spiral", "rank-major"])
def test_a_layout_for_what_has_none_is_refused(layout: Any, tmp_path: Path) -> None:
    update = lora.LoRAUpdate(torch.ones(1, 3), torch.ones(4, 1), 1)
    lora.save(lora.Adapter(lora.LoRAConfig(), {"q": update}), tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(lora.FormatError, match="layout"):
        lora.load(tmp_path / "x.safetensors", layout=layout)
