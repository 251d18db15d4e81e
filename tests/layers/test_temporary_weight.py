"""What a Parameter means that is assigned to a merged layer: a tie, a new base, or the end of the update."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import loralib as lora
from kinds import fill
from models import bits, close
from peers import library


class Tied(nn.Module):
    """An embedding and a head that share their weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.tie()

    def tie(self) -> None:
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


IDS = torch.tensor([[1, 2, 6], [0, 3, 5]])


@pytest.mark.parametrize("targets", [["embed"], ["head"], ["embed", "head"]])
@pytest.mark.parametrize("merged", [["embed"], ["head"], ["embed", "head"]])
def test_a_tie_that_is_made_again_is_a_tie_of_the_originals(targets, merged):
    model = Tied()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=targets))
    y, W, before = fill(model)(IDS), model.embed.weight, bits(model.embed.weight)
    for name in set(merged) & set(targets):
        model.get_submodule(name).merge()
    if isinstance(model.head, lora.AdaptedLayer):  # a plain head is not ours to watch
        model.tie()
        assert close(model(IDS), y, factor=16)
    lora.unmerge(model)
    assert model.embed.weight is W
    assert bits(W) == before
    assert close(model(IDS), y, factor=16)
    if isinstance(model.head, lora.AdaptedLayer):
        assert model.head.weight is W


def test_transformers_ties_the_weights_of_a_merged_model_as_they_were():
    transformers = library("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["embed_tokens", "lm_head"]))
    fill(model)
    ids, W = torch.tensor([[3, 4, 5]]), model.lm_head.weight
    y, before = model(ids).logits, bits(W)
    lora.merge(model)
    model.tie_weights()
    assert close(model(ids).logits, y, factor=64)
    lora.unmerge(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight is W
    assert bits(W) == before
    assert close(model(ids).logits, y)


@pytest.mark.parametrize("source", ["another module", "equal bits", "itself", "its original"])
def test_a_weight_that_is_held_elsewhere_or_equals_the_original_is_the_base(source):
    layer, x, other = fill(lora.Linear(6, 4, r=2)).eval(), torch.randn(3, 6), nn.Linear(6, 4)
    own, delta = layer.pristine_weight, layer.update.delta()
    W = {
        "another module": other.weight,
        "equal bits": nn.Parameter(own.detach().clone(), requires_grad=False),
        "itself": layer.weight,
        "its original": own,
    }[source]
    base = other.weight if source == "another module" else own
    layer.weight = W
    assert layer.merged
    assert close(layer(x), nn.functional.linear(x, base + delta, layer.bias))
    layer.train()
    assert layer.weight is (own if source == "itself" else W)
    assert bits(layer.weight) == bits(base)


def folded(make, norm, fuse, x: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    layer = fill(make()).eval()
    norm.running_var.uniform_(0.5, 2), norm.running_mean.normal_(), norm.eval()
    wanted = norm(layer(x))
    with pytest.warns(UserWarning, match="it is final, and the layer has no update any more"):
        return fuse(layer, norm), layer, wanted


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize(
    ("make", "norm", "fuse", "x"),
    [
        (lambda: lora.Linear(6, 4, r=2), nn.BatchNorm1d(4), fuse_linear_bn_eval, torch.randn(3, 6)),
        (lambda: lora.Conv2d(3, 4, 3, r=2), nn.BatchNorm2d(4), fuse_conv_bn_eval, torch.randn(2, 3, 5, 5)),
    ],
)
def test_a_batch_norm_that_is_folded_into_a_merged_layer_is_in_it_once(make, norm, fuse, x, injected):
    def build() -> nn.Module:
        if not injected:
            return make()
        model = nn.Sequential(nn.Linear(6, 4) if norm.weight.numel() == 4 and x.dim() == 2 else nn.Conv2d(3, 4, 3))
        lora.inject(model, lora.LoRAConfig(r=2, target_modules=["0"]))
        model[0].merge_weights = True
        return model[0]

    fused, layer, wanted = folded(build, norm, fuse, x)
    assert close(fused(x), wanted, factor=64)
    assert layer.merged
    assert layer.has_update  # the fused one is a copy
    for later in (fused.train(), fused.eval(), copy.deepcopy(fused)):
        assert close(later(x), wanted, factor=64)
    assert not [name for name in fused.state_dict() if "lora_" in name]


def test_a_bias_may_be_assigned_to_a_merged_layer():
    layer, x = fill(lora.Linear(6, 4, r=2)).eval(), torch.randn(3, 6)
    layer.bias = nn.Parameter(torch.ones(4))
    assert layer.merged
    y = layer(x)
    assert close(layer.train()(x), y)
