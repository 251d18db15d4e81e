"""PEFT's folder for layers that are not linear, or not only: what one library writes the other computes with."""

import json

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import loralib as lora
from models import close, same_bits
from peers import data, library

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class Mixed(nn.Module):
    """An embedding, a fused transformers Conv1D, convolutions and an attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.c_attn = library("transformers").pytorch_utils.Conv1D(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv1 = nn.Conv1d(8, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 3, (3, 2), stride=(1, 2))
        self.conv3 = nn.Conv3d(1, 4, 2)
        self.head = nn.Linear(4 * 2 * 3 * 2, 5)
        self.eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.c_attn(self.embed(ids))
        x = x + self.attention(x, x, x)[0]
        x = self.conv1(x.transpose(1, 2))  # (n, 6, 5)
        x = self.conv2(x.unsqueeze(1))  # (n, 3, 4, 2)
        y: Tensor = self.head(self.conv3(x.unsqueeze(1).repeat(1, 1, 1, 1, 2)[..., :3]).flatten(1))
        return y


IDS = torch.tensor([[1, 2, 3, 4, 5], [10, 0, 5, 6, 5]])
KINDS = {
    "embedding": (["embed"], {}),
    "Conv1D": (["c_attn"], {"fan_in_fan_out": True}),
    "convolutions": (["conv1", "conv2", "conv3"], {}),
    "attention": (["attention"], {}),
    "rslora": (["embed", "attention", "conv2"], {"use_rslora": True}),
    "ranks": (["embed", "attention", "conv1"], {"rank_pattern": {"attention": 3, "embed": 4}, "alpha_pattern": {"conv1": 7}}),
}


def out(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS)
        return result


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def theirs(model: nn.Module, targets: list[str], **config) -> nn.Module:
    peft = library("peft")
    return shaken(peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, **config))).eval()


def ours(model: nn.Module, **config) -> nn.Module:
    lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=6, **config))
    return shaken(model)


def read_by_peft(folder) -> nn.Module:
    return library("peft").PeftModel.from_pretrained(Mixed(), folder).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_we_compute_what_peft_computes(kind, tmp_path):
    targets, config = KINDS[kind]
    model = theirs(Mixed(), targets, **config)
    model.save_pretrained(tmp_path)
    mine = Mixed()
    lora.attach(mine, lora.load(tmp_path))
    assert close(out(mine), out(model), factor=32)
    assert not close(out(mine), out(Mixed()), factor=1e4)
    with lora.merged(mine):
        assert close(out(mine), out(model), factor=64)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_what_we_compute(kind, tmp_path):
    targets, config = KINDS[kind]
    if kind == "ranks":
        config = {"rank_pattern": {"attention.k_proj": 3, "embed": 4, "attention.out_proj": 1}, "alpha_pattern": {"conv1": 7}}
    model = ours(Mixed(), target_modules=targets, **config)
    lora.save(lora.extract(model), tmp_path)
    assert close(out(read_by_peft(tmp_path)), out(model), factor=32)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj"], ["out_proj"], ["q_proj", "out_proj"]])
def test_some_projections_of_an_attention_go_to_peft_and_come_back(targets, tmp_path):
    model = ours(Mixed(), target_modules=targets)
    adapter = lora.extract(model)
    lora.save(adapter, tmp_path)
    assert close(out(read_by_peft(tmp_path)), out(model), factor=32)
    read = lora.load(tmp_path)
    assert read.layers.keys() == adapter.layers.keys()
    for name, update in adapter.layers.items():
        assert same_bits(read.layers[name].A, update.A)
        assert same_bits(read.layers[name].B, update.B)
        assert read.layers[name].scaling == update.scaling
    other = Mixed()
    lora.attach(other, read)
    assert same_bits(out(other), out(model))


def test_projections_with_scalings_of_their_own_go_to_peft(tmp_path):
    model = ours(Mixed(), target_modules=["attention"], alpha_pattern={"k_proj": 5, "out_proj": 3})
    lora.save(lora.extract(model), tmp_path)
    assert close(out(read_by_peft(tmp_path)), out(model), factor=32)


def test_the_bias_of_an_output_projection_goes_to_peft_and_comes_back(tmp_path):
    model = ours(Mixed(), target_modules=["attention"], bias="lora_only")
    with torch.no_grad():
        model.attention.out_proj.bias.add_(1)
    adapter = lora.extract(model)
    assert set(adapter.tensors) == {"attention.out_proj.bias"}
    lora.save(adapter, tmp_path)
    assert set(lora.load(tmp_path).tensors) == {"attention.out_proj.bias"}
    other = Mixed()
    lora.attach(other, lora.load(tmp_path))
    assert same_bits(out(other), out(model))


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("widths", [(), (4, 2, 2)])
def test_an_update_of_slices_becomes_a_plain_one(use_rslora, widths, tmp_path):
    slices = {"slice_widths": {"c_attn": widths}} if widths else {}
    mask = [True, False, True] if widths else [True, False]
    model = ours(Mixed(), target_modules=["c_attn"], enable_lora=mask, use_rslora=use_rslora, **slices)
    adapter = lora.extract(model)
    lora.save(adapter, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["fan_in_fan_out"]
    assert not {"enable_lora", "slice_widths"} & config.keys()
    assert close(out(read_by_peft(tmp_path)), out(model), factor=32)
    assert torch.allclose(lora.load(tmp_path).delta("c_attn"), adapter.delta("c_attn"), atol=1e-6)


class Others(nn.Module):
    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.transposed = nn.ConvTranspose1d(4, 4, 3)
        self.bilinear = nn.Bilinear(4, 4, 4)
        self.attention = nn.MultiheadAttention(4, 2, kdim=3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("grouped", "'grouped' is for a convolution with groups"),
        ("transposed", "'transposed' is for a transposed convolution"),
        ("bilinear", "'bilinear' is for a bilinear layer"),
        ("attention", "'attention' has keys or values of another width"),
    ],
)
def test_what_peft_computes_otherwise_is_refused_and_nothing_is_written(target, message, tmp_path):
    model = Others()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=[target]))
    with pytest.raises(lora.FormatError, match=f"{message}.*Nothing was written"):
        lora.save(lora.extract(model), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# --- the outputs that PEFT 0.6.1 recorded ---------------------------------------------------------------------------


class Recorded(nn.Module):
    """The models of PEFT's own regression tests, each built right after a seed."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        self.kind = name.removeprefix("lora_").partition("_")[0]
        if self.kind == "mlp":
            self.lin0, self.lin1 = nn.Linear(10, 20), nn.Linear(20, 2)
        elif self.kind == "emb":
            self.emb, self.conv1d = nn.Embedding(100, 5), library("transformers").pytorch_utils.Conv1D(1, 5)
            self.lin0 = nn.Linear(10, 2)
        else:
            self.conv2d, self.lin0 = nn.Conv2d(5, 10, 3), nn.Linear(10, 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mlp":
            y = self.lin1(self.lin0(x.float()).relu())
        elif self.kind == "emb":
            y = self.lin0(self.conv1d(self.emb(x)).relu().flatten(1))
        else:
            y = self.lin0(self.conv2d(x.float().reshape(2, 5, 3, 3)).relu().flatten(1))
        result: Tensor = y.log_softmax(-1)
        return result


@pytest.mark.parametrize("name", ["lora_mlp", "lora_mlp_modules_to_save", "lora_emb_conv1d", "lora_conv2d"])
@pytest.mark.parametrize("merged", [False, True])
def test_adapters_of_peft_0_6_give_the_outputs_that_it_recorded(name, merged):
    folder = data("adapters", "peft_regression_0.6.1", name)
    model = Recorded(name)
    lora.attach(model, lora.load(folder))
    if merged:
        lora.merge(model)
    recorded = torch.load(folder / "output.pt", weights_only=True, map_location="cpu")
    computed = model(torch.arange(90).reshape(9, 10))
    assert ((computed - recorded).abs() <= 2e-6 * (1 + recorded.abs())).all()


def test_a_pickled_folder_of_old_is_read_as_the_safe_one_is(tmp_path):
    folder = data("adapters", "peft_regression_0.6.1", "lora_conv2d")
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True, map_location="cpu")
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / TENSORS)
    (tmp_path / CONFIG).write_text((folder / CONFIG).read_text())
    safe, pickled = lora.load(tmp_path), lora.load(folder)
    assert pickled.layers
    assert safe.layers == pickled.layers
