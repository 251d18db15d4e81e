"""The rest of PEFT's folder: DoRA, trained tokens, slices of its first versions, convolutions of 0.1; and round trips."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import loralib as lora
from models import close, same_bits
from peers import library
from sample_adapters import adapters

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
CONFIG = "adapter_config.json"


class Mixed(nn.Module):
    """An embedding, a linear layer, a convolution and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(9, 4)
        self.lin = nn.Linear(4, 6)
        self.conv = nn.Conv1d(6, 5, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h: Tensor = self.conv(self.lin(self.emb(ids)).transpose(1, 2))
        return self.head(h.mean(-1))


IDS = torch.tensor([[1, 5, 8, 2], [3, 3, 0, 7]])


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS)


def changed(model: nn.Module, adapter: lora.Adapter) -> nn.Module:
    """The model with W' in the place of every adapted W, what was trained in full, and token rows."""
    model = copy.deepcopy(model)
    tensors = model.state_dict()
    for name, update in adapter.layers.items():
        tensors[f"{name}.weight"] = update.effective_weight(tensors[f"{name}.weight"])
    tensors |= dict(adapter.tensors)
    for name, rows in adapter.rows.items():
        tensors[name] = tensors[name].index_copy(0, torch.tensor(rows.indices), rows.values)
    model.load_state_dict(tensors)
    return model


def theirs(**config) -> nn.Module:
    """PEFT's model, as if trained."""
    peft = library("peft")
    wrapped = peft.get_peft_model(Mixed(), peft.LoraConfig(**{"r": 2, "lora_alpha": 3} | config))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.rand(p.shape, generator=generator))
    return wrapped


CASES = {
    "DoRA": {"target_modules": ["lin", "emb", "conv"], "use_dora": True},
    "DoRA, rsLoRA, a head": {"target_modules": ["lin"], "use_dora": True, "use_rslora": True, "modules_to_save": ["head"]},
    "tokens": {"target_modules": ["lin"], "trainable_token_indices": {"emb": [1, 8, 3]}},
    "tokens and a head": {"target_modules": ["conv"], "trainable_token_indices": {"emb": [0]}, "modules_to_save": ["head"]},
}


@pytest.mark.parametrize("case", CASES)
def test_what_peft_writes_means_here_what_it_computes_there(case, tmp_path):
    wrapped = theirs(**CASES[case])
    wrapped.save_pretrained(tmp_path)
    adapter = lora.load(tmp_path)
    assert torch.allclose(out(changed(Mixed(), adapter)), out(wrapped), atol=1e-5)
    assert not torch.allclose(out(wrapped), out(Mixed()), atol=1e-2)


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_with_our_folder_what_the_adapter_means(case, tmp_path):
    theirs(**CASES[case]).save_pretrained(tmp_path / "theirs")
    adapter = lora.load(tmp_path / "theirs")
    lora.save(adapter, tmp_path / "ours")
    loaded = library("peft").PeftModel.from_pretrained(Mixed(), tmp_path / "ours")
    assert torch.allclose(out(loaded), out(changed(Mixed(), adapter)), atol=1e-5)
    again = lora.load(tmp_path / "ours")
    assert (again.layers, again.rows) == (adapter.layers, adapter.rows)


def test_trained_tokens_attach_to_a_model(tmp_path):
    wrapped = theirs(**CASES["tokens"])
    wrapped.save_pretrained(tmp_path)
    model = Mixed()
    lora.attach(model, lora.load(tmp_path))
    assert torch.allclose(out(model), out(wrapped), atol=1e-5)
    lora.save(lora.extract(model), tmp_path / "again")
    assert torch.allclose(out(library("peft").PeftModel.from_pretrained(Mixed(), tmp_path / "again")), out(wrapped), atol=1e-5)


@pytest.mark.parametrize("one_more", [(), (1,)], ids=["2-D", "3-D"])
def test_slices_of_pefts_first_versions_are_slices(one_more, tmp_path):
    """The formula of their MergedLinear: a product of its own for each enabled slice, zero between them."""
    A, B = torch.randn(4, 5), torch.randn(6, 2)
    stem = "base_model.model.h.0.attn.c_attn"
    torch.save(
        {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B.reshape(6, 2, *one_more)}, tmp_path / "adapter_model.bin"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    config |= {"enable_lora": [True, False, True], "merge_weights": False, "bias": "none", "task_type": "CAUSAL_LM"}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    adapter = lora.load(tmp_path)
    expected = torch.cat([3 * B[:3] @ A[:2], torch.zeros(3, 5), 3 * B[3:] @ A[2:]])
    assert close(adapter.delta("h.0.attn.c_attn"), expected)
    lora.save(adapter, tmp_path / "new")
    assert close(lora.load(tmp_path / "new").delta("h.0.attn.c_attn"), expected)


def test_a_convolution_of_0_1_is_written_in_its_plain_form(tmp_path):
    peft = library("peft")
    model = nn.Sequential(lora.Conv2d(3, 30, 3, r=1, lora_alpha=2, bias=False))
    torch.nn.init.normal_(model[0].lora_B)
    lora.save(lora.extract(model), tmp_path)
    plain = nn.Sequential(nn.Conv2d(3, 30, 3, bias=False))
    plain[0].weight.data = model[0].weight.detach().clone()
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        assert torch.allclose(peft.PeftModel.from_pretrained(plain, tmp_path).eval()(x), model.train()(x), atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(adapters(["linear", "embedding", "conv"], extra=False))
def test_ranks_scalings_and_dtypes_survive_the_round_trip(adapter):
    from tempfile import TemporaryDirectory

    rslora = {name: replace(update, use_rslora=True) for name, update in adapter.layers.items()}
    for layers in (rslora, {name: replace(update, use_rslora=False) for name, update in adapter.layers.items()}):
        with TemporaryDirectory() as folder:
            lora.save(adapter.with_layers(layers), folder)
            read = lora.load(folder)
            assert read.layers == layers


@settings(max_examples=50, deadline=None)
@given(adapters(["linear", "embedding", "conv"], extra=False, dora=True))
def test_dora_survives_the_round_trip(adapter):
    from tempfile import TemporaryDirectory

    layers = {name: replace(update, use_rslora=False) for name, update in adapter.layers.items()}
    with TemporaryDirectory() as folder:
        lora.save(adapter.with_layers(layers), folder)
        assert lora.load(folder).layers == layers


UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
ROWS = lora.TokenRows((1,), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("adapter", "telling"),
    [
        (lora.Adapter(lora.LoRAConfig(), {"a": UPDATE, "b": replace(UPDATE, magnitude=torch.ones(4))}), "some are not"),
        (
            lora.Adapter(lora.LoRAConfig(), {"a": UPDATE}, rows={"a.weight": lora.TokenRows((1,), torch.ones(1, 3))}),
            "rows of 'a.weight'",
        ),
        (
            lora.Adapter(lora.LoRAConfig(), {"a": UPDATE}, rows={"a.table": lora.TokenRows((1,), torch.ones(1, 3))}),
            "rows of 'a.table'",
        ),
    ],
)
def test_what_peft_cannot_hold_is_refused_and_nothing_is_written(adapter, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=telling):
        lora.save(adapter, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "tensor", "config", "telling"),
    [
        ("a.lora_B.bias", torch.ones(4), {}, "cannot be represented"),
        ("e.token_adapter.trainable_tokens_delta", torch.ones(2, 3), {"trainable_token_indices": [1]}, "1 indices for values"),
        ("e.token_adapter.trainable_tokens_delta", torch.ones(1, 3), {"trainable_token_indices": {"f": [1]}}, "None.* for 'e'"),
        ("e.token_adapter.trainable_tokens_delta", torch.ones(1, 3), {}, "None.* for 'e'"),
        ("e.token_adapter.something", torch.ones(1, 3), {}, "trained tokens"),
        ("a.lora_magnitude_vector", torch.ones(3), {"use_dora": True}, "one number an output"),
    ],
)
def test_folders_that_contradict_themselves_are_refused(key, tensor, config, telling, tmp_path):
    lora.save(lora.Adapter(lora.LoRAConfig(), {"a": UPDATE}), tmp_path)
    from safetensors.torch import load_file, save_file

    file = tmp_path / "adapter_model.safetensors"
    save_file({name: t.clone() for name, t in load_file(file).items()} | {f"base_model.model.{key}": tensor}, file)
    said = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(said | config))
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(tmp_path)


def test_magnitudes_under_the_name_of_a_parameter_are_read(tmp_path):
    from safetensors.torch import load_file, save_file

    lora.save(lora.Adapter(lora.LoRAConfig(), {"a": replace(UPDATE, magnitude=torch.arange(4.0))}), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    renamed = {f"{n}.weight" if n.endswith("_vector") else n: t.clone() for n, t in load_file(file).items()}
    save_file(renamed, file)
    assert same_bits(lora.load(tmp_path).layers["a"].magnitude, torch.arange(4.0))
