"""What the modules around a layer say: layers that are read and not called, adapters of others, fresh heads, fused slices."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import loralib as lora
from hf import tiny
from loralib import architectures
from models import expect_refusal, injected, same_bits
from peers import library

CONFIG = lora.LoRAConfig(r=2)


def small(name: str, **config) -> nn.Module:
    """A model of transformers by the name of its class, with random weights."""
    transformers = library("transformers")
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    return cls(cls.config_class(**config)).eval()


MAMBA = {"vocab_size": 20, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}


# --- read without a call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MambaForCausalLM", "FalconMambaForCausalLM"])
def test_what_a_model_reads_without_calling_is_left_out_and_refused_by_name(name):
    model = small(name, **MAMBA)
    for layer in ("conv1d", "dt_proj"):
        refused = lambda layer=layer: lora.inject(model, lora.LoRAConfig(target_modules=[layer]))  # noqa: E731
        expect_refusal(lora.TargetError, rf"\.{layer}' of .* reads its weight without calling it", model, refused)
    bound = lora.inject(model, CONFIG)
    assert [name.rpartition(".")[2] for name in bound] == ["in_proj"]
    reasons = {name.rpartition(".")[2]: reason for name, reason in bound.left_out.items()}
    assert all("reads its weight without calling it" in reasons[layer] for layer in ("conv1d", "dt_proj"))
    assert all("fused kernel" in reasons[layer] for layer in ("x_proj", "out_proj"))
    assert reasons["lm_head"] == "it is the output embedding"


def test_what_only_a_fused_kernel_reads_can_be_named():
    model = small("MambaForCausalLM", **MAMBA)
    bound = lora.inject(model, lora.LoRAConfig(r=2, target_modules=["x_proj", "out_proj"]))
    assert [name.rpartition(".")[2] for name in bound] == ["x_proj", "out_proj"]
    assert bound.left_out == {}


def test_an_adapter_for_such_a_layer_is_not_attached():
    model = small("MambaForCausalLM", **MAMBA)
    (name,) = (name for name, _ in model.named_modules() if name.endswith("dt_proj"))
    layer = model.get_submodule(name)
    update = lora.LoRAUpdate(torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2), lora_alpha=2)
    adapter = lora.Adapter(CONFIG, {name: update})
    expect_refusal(lora.AttachError, "dt_proj: MambaMixer reads its weight", model, lambda: lora.attach(model, adapter))


def test_an_embedding_that_only_shares_its_weight_with_those_that_are_called_is_refused():
    model = small("T5ForConditionalGeneration", **T5)
    refused = lambda: lora.inject(model, lora.LoRAConfig(target_modules=["shared"]))  # noqa: E731
    expect_refusal(
        lora.TargetError, "'shared' of T5ForConditionalGeneration cannot be adapted.*without calling", model, refused
    )


def test_a_layer_that_another_module_holds_too_may_be_called_there():
    model = small("T5ForConditionalGeneration", **T5)
    model.encoder.embed_tokens = model.shared
    assert lora.inject(model, lora.LoRAConfig(r=2, target_modules=["shared"])) == ["shared"]


class EvaAttention(nn.Module):
    """As timm's: the weight of qkv is read where there is a bias to put together."""

    __module__ = "timm.models.eva"

    def __init__(self, q_bias: bool):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12, bias=False), nn.Linear(4, 4)
        self.q_bias = nn.Parameter(torch.zeros(4)) if q_bias else None


class Mine(EvaAttention):
    __module__ = "vision.mine"


class MambaMixer(nn.Module):
    """Somebody's own class, with the name of one of transformers'."""

    def __init__(self):
        super().__init__()
        self.dt_proj = nn.Linear(4, 4)


def test_timms_qkv_is_read_where_there_is_a_bias_of_its_own():
    for cls in (EvaAttention, Mine):
        assert lora.inject(nn.Sequential(cls(q_bias=True)), CONFIG) == ["0.proj"]
        assert lora.inject(nn.Sequential(cls(q_bias=False)), CONFIG) == ["0.qkv", "0.proj"]


def test_a_class_of_the_same_name_from_elsewhere_is_not_meant():
    assert lora.inject(nn.Sequential(MambaMixer()), CONFIG) == ["0.dt_proj"]


NOT_COMPUTING = ("__init__", "reset_parameters", "from_pretrained", "dtype", "device")
PREPARING = ("_init", "get_", "set_", "_resize", "_tie", "resize", "init_", "initialize", "tie_")
ONLY_ABOUT = ("dtype", "device", "shape", "data", "is_meta")


def never_called(text: str) -> Iterator[tuple[str, str]]:
    """The classes in a source file with the layers of each whose weight its methods read and which they never call."""
    for cls in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)):
        built, read, called = {}, set(), set()
        for node in ast.walk(cls):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                built |= {ast.unparse(target): ast.unparse(node.value.func) for target in node.targets}
        methods = [m for m in cls.body if isinstance(m, ast.FunctionDef) and m.name not in NOT_COMPUTING]
        for node in (node for method in methods if not method.name.startswith(PREPARING) for node in ast.walk(method)):
            if isinstance(node, ast.Call):
                called.add(ast.unparse(node.func))
            for child in ast.iter_child_nodes(node):
                about = isinstance(node, ast.Attribute) and node.attr in ONLY_ABOUT
                if (
                    isinstance(child, ast.Attribute)
                    and child.attr == "weight"
                    and isinstance(child.ctx, ast.Load)
                    and not about
                ):
                    read.add(ast.unparse(child.value))
        kinds = ("nn.Linear", "nn.Embedding", "nn.Conv1d", "nn.Conv2d")
        yield from ((cls.name, name.partition(".")[2]) for name in read - called if built.get(name) in kinds)


def test_the_scan_sees_what_is_read_and_never_called():
    text = """
class Mixer:
    def __init__(self):
        self.a, self.weight_of_b = 1, self.b.weight
        self.b = nn.Linear(2, 2)
        self.c = nn.Linear(2, 2)
        self.d = nn.Linear(2, 2)
    def forward(self, x):
        return self.b.weight @ x + self.c(x) + self.c.weight.sum() + x.to(self.d.weight.dtype)
"""
    assert list(never_called(text)) == [("Mixer", "b")]


FILLED_IN = {"to_qkv", "to_kv", "to_added_qkv"}  # by diffusers' fuse_projections; other classes call them


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pattern", "least"), [("transformers", "models/*/modeling_*.py", 50), ("diffusers", "**/*.py", 5)]
)
def test_the_table_names_everything_that_the_installed_libraries_read_without_calling(name, pattern, least):
    paths = list(Path(library(name).__file__).parent.glob(pattern))
    found = {pair for path in paths for pair in never_called(path.read_text(encoding="utf-8")) if pair[1] not in FILLED_IN}
    assert len(found) >= least
    known = {(cls, layer) for cls, layers in architectures.READ_DIRECTLY.items() for layer in layers}
    assert found - known == set()


# --- adapters of other libraries --------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value, self.table = nn.Linear(8, 8), nn.Linear(8, 8), nn.Embedding(3, 8)

    def forward(self, x):
        return self.value(self.query(x))


def with_peft(**config) -> nn.Module:
    peft = library("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, **{"target_modules": ["query"]} | config), Net())


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"target_modules": ["query", "table"]}], ids=str)
def test_under_an_adapter_of_peft_the_base_layer_is_adapted_and_no_factor_of_peft_is(config):
    model = with_peft(**config)
    bound = lora.inject(model, CONFIG)
    assert bound == ["query.base_layer", "value"]
    assert not any("lora_" in name for name in bound)
    assert {name for name in bound.left_out if "lora_A" in name} == {"query.lora_A.default"}
    lora.mark_only_lora_as_trainable(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{key}" for name in bound for key in "AB"
    }
    assert set(lora.extract(model).layers) == set(bound)


def test_a_factor_of_peft_cannot_be_named_either():
    model = with_peft()
    refused = lambda: lora.inject(model, lora.LoRAConfig(target_modules=["lora_A.default"]))  # noqa: E731
    expect_refusal(
        lora.TargetError, r"'query.lora_A.default' .* part of an adapter already, in a Linear of peft", model, refused
    )


def test_what_peft_trains_in_full_is_left_alone():
    peft = library("peft")
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["value"]))
    assert lora.inject(model, CONFIG) == ["base_model.model.query.base_layer"]


class Wrapper(nn.Module, lora.LoRALayer):
    """A LoRA layer of the user's own, whose factors are linear layers."""

    def __init__(self):
        nn.Module.__init__(self)
        lora.LoRALayer.__init__(self, r=2, lora_alpha=1, lora_dropout=0.0, merge_weights=False)
        self.base, self.lora_down, self.lora_up = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 4)


def test_the_factors_of_a_layer_of_the_users_own_are_not_adapted_and_a_module_called_lora_is():
    assert lora.inject(nn.Sequential(Wrapper()), CONFIG) == ["0.base"]
    assert lora.inject(nn.ModuleDict({"lora_head": nn.Linear(4, 4)}), CONFIG) == ["lora_head"]


# --- fresh heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
def test_a_fresh_head_is_left_out_unless_it_is_named(family, head):
    model = tiny(family, head)
    outside = {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.startswith(family.lower())}
    bound = lora.inject(model, CONFIG)
    assert outside <= bound.left_out.keys()
    assert all("starts at random: modules_to_save" in bound.left_out[name] for name in outside)
    assert len(bound) == 12 + (family == "Bert" and head == "ForSequenceClassification")  # and the pooler
    named = tiny(family, head)
    assert set(lora.inject(named, lora.LoRAConfig(r=2, target_modules=sorted(outside)))) == outside


def test_a_head_that_is_trained_in_full_says_so():
    bound = lora.inject(tiny("Bert"), lora.LoRAConfig(r=2, modules_to_save=["classifier"]))
    assert bound.left_out["classifier"] == "it is in modules_to_save"


def test_the_head_of_a_language_model_is_no_fresh_head():
    model = tiny("Bert", "ForMaskedLM")
    bound = lora.inject(model, CONFIG)
    assert "cls.predictions.transform.dense" in bound
    assert bound.left_out["cls.predictions.decoder"] == "it is the output embedding"


# --- routers ------------------------------------------------------------------------------------------------------------


def test_a_router_that_returns_several_tensors_is_left_out_and_refused_by_name():
    config = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = small("PhimoeForCausalLM", **config, num_key_value_heads=2, num_local_experts=2)
    (router,) = (name for name, module in model.named_modules() if type(module).__name__ == "PhimoeTopKRouter")
    refused = lambda: lora.inject(model, lora.LoRAConfig(target_modules=[router]))  # noqa: E731
    expect_refusal(lora.TargetError, "PhimoeTopKRouter returns several tensors", model, refused)
    ids = torch.randint(3, 20, (1, 6))
    y = model(ids).logits
    bound = lora.inject(model, CONFIG)
    assert "returns several tensors" in bound.left_out[router]
    assert any("experts" in name for name in bound)
    assert same_bits(model(ids).logits, y)


def test_what_chooses_positions_gets_no_gradient_and_is_left_out():
    config = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    moe = {"moe_intermediate_size": 8, "n_routed_experts": 2, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    model = small("DeepseekV32Model", **config, **moe, q_lora_rank=8, kv_lora_rank=8, index_head_dim=64)
    bound = lora.inject(model, CONFIG)
    assert bound
    chosen = {name: reason for name, reason in bound.left_out.items() if ".indexer." in name}
    assert len(chosen) == 3
    assert set(chosen.values()) == {"DeepseekV32Indexer only chooses positions by it, so no gradient reaches it"}


# --- slices of fused projections ----------------------------------------------------------------------------------------


THIRDS = [True, False, True]
FUSED = {
    "BloomModel": ({"hidden_size": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20}, "query_key_value"),
    "GPTNeoXModel": (
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20},
        "query_key_value",
    ),
    "CodeGenModel": ({"n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 2, "vocab_size": 20}, "qkv_proj"),
    "GPTBigCodeModel": ({"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20, "multi_query": False}, "c_attn"),
    "FalconModel": (
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20, "multi_query": False},
        "query_key_value",
    ),
    "PersimmonModel": (
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20},
        "query_key_value",
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_slices_that_alternate_between_heads_are_refused(name):
    config, layer = FUSED[name]
    model = small(name, **config)
    refused = lambda: lora.inject(model, lora.LoRAConfig(r=2, target_modules=[layer], enable_lora=THIRDS))  # noqa: E731
    expect_refusal(lora.TargetError, rf"{layer}' of {name} .* its rows alternate between query, key and value", model, refused)
    assert len(lora.inject(model, lora.LoRAConfig(r=2, target_modules=[layer]))) == 1


def shares_heads(name: str) -> nn.Module:
    common = {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 20, "pad_token_id": 0}
    if name == "GPTBigCodeModel":
        return small(name, n_embd=24, n_layer=1, n_head=6, vocab_size=20, multi_query=True)
    return small(name, **common, num_attention_heads=6, num_key_value_heads=3)


@pytest.mark.parametrize(
    ("name", "layer", "widths"), [("Phi3Model", "qkv_proj", (24, 12, 12)), ("GPTBigCodeModel", "c_attn", (24, 4, 4))]
)
def test_slices_of_heads_that_share_keys_need_their_own_widths(name, layer, widths):
    model = shares_heads(name)
    config = {"r": 2, "target_modules": [layer], "enable_lora": [True, False, True]}
    wrong = [
        {},
        {"slice_widths": {layer: [sum(widths) - 8, 4, 4] if widths[1] != 4 else [16, 8, 8]}},
        {"enable_lora": [True, True]},
    ]
    for other in wrong:
        refused = lambda other=other: lora.inject(model, lora.LoRAConfig(**config | other))  # noqa: E731
        said = rf"\[{', '.join(map(str, widths))}\] rows wide; say so in slice_widths"
        expect_refusal(lora.TargetError, said, model, refused)
    (adapted,) = lora.inject(model, lora.LoRAConfig(**config, slice_widths={layer: widths}))
    assert model.get_submodule(adapted).widths == widths


def test_slices_of_equal_width_are_adapted_where_they_lie_one_after_the_other():
    model = small("Phi3Model", hidden_size=24, intermediate_size=8, num_hidden_layers=1, vocab_size=20, pad_token_id=0,
                  num_attention_heads=6, num_key_value_heads=6)  # fmt: skip
    ids = torch.randint(1, 20, (1, 5))
    model = injected(model, target_modules=["qkv_proj"], enable_lora=THIRDS)
    y = model(ids).last_hidden_state
    with lora.merged(model):
        assert torch.allclose(model(ids).last_hidden_state, y, atol=1e-5)
