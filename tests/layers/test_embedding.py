"""Updates of embeddings and of bags of them, over everything that torch's layers can be told."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from kinds import DTYPES, Holder, ScaledEmbedding, Watch, adapted, agrees, expected, fill, saved_tensors
from models import Tied, bits, close, expect_refusal, injected, randomize, same_bits, snapshot
from peers import library

V, K = 9, 4


def layer_of(r: int = 2, v: int = V, k: int = K, **options) -> lora.Embedding:
    return fill(lora.Embedding(v, k, r=r, lora_alpha=3, **{"merge_weights": False} | options))


def dense(layer: nn.Module) -> Tensor:
    """The whole table in float64, row by row."""
    rows = []
    for v, row in enumerate(layer.pristine_weight.detach().double()):
        if layer.max_norm is not None and row.norm(layer.norm_type) > layer.max_norm:
            row = row * layer.max_norm / (row.norm(layer.norm_type) + 1e-7)  # noqa: PLW2901
        update = layer.scaling * (layer.lora_B.double() @ layer.lora_A.double()[:, v])
        rows.append(row if v == layer.padding_idx else row + update)
    return torch.stack(rows)


# --- embeddings: forward is the base operation with the effective weight --------------------------------------------


@pytest.mark.filterwarnings("ignore:.*larger than both sides")
@given(
    v=st.sampled_from([1, 3, 17, 123]),
    k=st.sampled_from([1, 3, 5]),
    r=st.integers(1, 4),
    padding_idx=st.sampled_from([None, 0, -1]),
    max_norm=st.sampled_from([None, 0.5, 100.0]),
    norm_type=st.sampled_from([1.0, 2.0, math.inf]),
    scale_grad_by_freq=st.booleans(),
    sparse=st.booleans(),
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from(DTYPES),
    id_dtype=st.sampled_from([torch.int64, torch.int32]),
    evaluation=st.booleans(),
)
def test_forward_is_the_lookup_in_the_effective_weight(
    v, k, r, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, shape, dtype, id_dtype, evaluation
):
    options = dict(padding_idx=padding_idx, max_norm=max_norm, norm_type=norm_type, scale_grad_by_freq=scale_grad_by_freq)
    layer = layer_of(r, v, k, sparse=sparse, **options).to(dtype)
    x = torch.randint(v, shape, dtype=id_dtype)
    table, W, A = dense(layer), layer.weight.detach().clone(), layer.lora_A.detach().clone()
    y = layer.train(not evaluation)(x)
    assert (y.dtype, y.shape) == (dtype, (*shape, k))
    if x.numel():
        assert agrees(y, table[x], dtype, 4 * r)
    assert same_bits(layer.lora_A, A)
    looked_up = torch.zeros(v, dtype=torch.bool).index_fill(0, x.flatten().long(), True)
    assert same_bits(layer.weight[~looked_up], W[~looked_up])
    if max_norm is None:
        assert same_bits(layer.weight, W)
    y.double().sum().backward()
    assert not layer.lora_A.grad.is_sparse
    layer.merge()
    assert same_bits(layer(x), F.embedding(x, layer.effective_weight(layer.pristine_weight)))
    assert not x.numel() or agrees(layer(x), table[x], dtype, 4 * r)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (nn.Embedding, {}),
        (nn.Embedding, {"max_norm": 0.5}),
        (nn.Embedding, {"sparse": True}),
        (ScaledEmbedding, {}),
    ],
)
def test_the_row_of_the_padding_token_stays_the_bases(cls, options, merged):
    plain, model = adapted(cls(V, K, padding_idx=3, **options))
    with torch.no_grad():
        plain.layer.weight[3] = model.layer.weight[3] = 0.1
    if merged:
        lora.merge(model)
    x = torch.tensor([3, 1, 3])
    y = model(x)
    assert same_bits(y[[0, 2]], plain(x)[[0, 2]])
    assert not close(y[1], plain(x)[1])
    if not merged:
        y.square().sum().backward()
        assert not model.layer.lora_A.grad[:, 3].any()


def test_max_norm_renormalizes_the_rows_looked_up_as_the_base_does_and_no_factor():
    plain, model = adapted(nn.Embedding(V, K, max_norm=0.5))
    x = torch.tensor([1, 1, 4])
    A, B = bits(model.layer.lora_A), bits(model.layer.lora_B)
    for step in range(2):
        y, expected = model(x), plain(x)
        assert same_bits(model.layer.weight, plain.layer.weight), step
        assert close(y, expected + model.layer.scaling * (model.layer.lora_A.t()[x] @ model.layer.lora_B.t()), factor=8)
    assert (bits(model.layer.lora_A), bits(model.layer.lora_B)) == (A, B)
    W = bits(model.layer.weight)
    lora.merge(model)
    model(torch.arange(V))
    lora.unmerge(model)
    assert bits(model.layer.weight) == W


def test_a_final_merge_keeps_what_max_norm_did():
    model = adapted(nn.Embedding(V, K, max_norm=0.5))[1]
    x = torch.arange(V)
    y = copy.deepcopy(model)(x)
    lora.merge(model, keep=False)
    assert type(model.layer) is nn.Embedding
    assert all(close(model(x), y, factor=8) for _ in range(2))


def test_scale_grad_by_freq_divides_the_gradient_of_a_column_by_its_tokens_number():
    x = torch.tensor([1, 1, 1, 4])
    grads = []
    for scale in (False, True):
        torch.manual_seed(0)
        layer = layer_of(scale_grad_by_freq=scale)
        layer(x).sum().backward()
        grads.append(layer.lora_A.grad)
    assert close(grads[1][:, 1] * 3, grads[0][:, 1], factor=8)
    assert same_bits(grads[1][:, 4], grads[0][:, 4])


@pytest.mark.parametrize("layer", [nn.Embedding(V, K, sparse=True), nn.EmbeddingBag(V, K, mode="sum", sparse=True)])
def test_a_sparse_layer_has_a_sparse_gradient_of_its_weight_and_dense_ones_of_the_factors(layer):
    model = adapted(copy.deepcopy(layer))[1]
    model(torch.tensor([[1, 1, 2]])).square().sum().backward()
    assert model.layer.weight.grad.is_sparse
    assert not model.layer.lora_A.grad.is_sparse
    assert not model.layer.lora_B.grad.is_sparse
    assert set(model.layer.lora_A.grad.abs().sum(0).nonzero().flatten().tolist()) == {1, 2}


def test_the_input_may_be_passed_by_the_name_that_nn_embedding_gives_it():
    layer, x = layer_of(), torch.tensor([1, 2])
    assert torch.equal(layer(input=x), layer(x))


# --- no tensor of the table's size ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Embedding(200, 60, padding_idx=0), (torch.arange(5),)),
        (lambda: nn.Embedding(200, 60, max_norm=0.5), (torch.arange(5),)),
        (lambda: gemma(200, 60), (torch.arange(5),)),
        (lambda: nn.EmbeddingBag(200, 60), (torch.arange(6).view(2, 3),)),
        (lambda: nn.EmbeddingBag(200, 60, mode="max", padding_idx=0), (torch.arange(6).view(2, 3),)),
    ],
)
def test_neither_pass_computes_or_keeps_a_tensor_of_the_tables_size(make, x):
    model = adapted(make())[1]
    lora.mark_only_lora_as_trainable(model)
    W = model.layer.weight
    with saved_tensors() as kept, Watch([W]) as watch:
        y = model(*x)
    y_sizes = watch.sizes()
    with Watch([W]) as watch:
        y.sum().backward()
    assert y_sizes
    assert max(y_sizes | watch.sizes()) <= 200 * 2  # the factor A and its gradient
    own = {t.untyped_storage().data_ptr() for t in (W, model.layer.lora_A, model.layer.lora_B)}
    assert all(t.numel() <= 6 * 60 for t in kept if t.untyped_storage().data_ptr() not in own)


# --- the layer of 0.1 -----------------------------------------------------------------------------------------------


def test_it_starts_and_is_named_as_in_0_1():
    layer = lora.Embedding(V, K, r=2, lora_alpha=6)
    assert list(layer.state_dict()) == ["weight", "lora_A", "lora_B"]
    assert not layer.lora_A.any()
    assert layer.lora_B.std() > 0.3
    assert (layer.scaling, layer.merge_weights, layer.weight.requires_grad) == (3.0, True, False)
    assert same_bits(layer(torch.arange(V)), layer.weight)
    plain = lora.Embedding(V, K)
    assert list(plain.state_dict()) == ["weight"]
    assert plain.weight.requires_grad
    assert not plain.eval().merged


def test_eval_and_train_merge_and_unmerge_the_very_weight():
    layer, x = layer_of(merge_weights=True), torch.arange(V)
    W, y = layer.weight, layer(x)
    assert layer.eval() is layer
    assert layer.merged
    assert close(layer(x), y, factor=8)
    assert layer.train().weight is W


@pytest.mark.parametrize("r", [0, 2])
def test_a_pretrained_table_is_taken_as_it_is(r):
    table = torch.randn(V, K)
    before = table.clone()
    layer = lora.Embedding(V, K, r=r, _weight=table)
    assert same_bits(table, before)
    assert same_bits(layer.weight, before)


def test_from_pretrained_takes_the_table_and_leaves_it_alone():
    table = torch.randn(V, K)
    before = table.clone()
    layer = lora.Embedding.from_pretrained(table, padding_idx=1)
    assert same_bits(table, before)
    assert same_bits(layer(torch.arange(V)), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"r": -1}, "r=-1"), ({"r": 1.5}, "r=1.5"), ({"r": 2, "lora_alpha": 0}, "lora_alpha=0"), ({"r": None}, "r=None")],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(lora.ConfigError, match=message):
        lora.Embedding(V, K, **options)


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nn.Embedding, lambda v, k, padding_idx: gemma(v, k, embed_scale=2.5)])
def test_dropout_drops_the_whole_update_of_a_token_now_and_then(make):
    p, n = 0.3, 20_000
    model = adapted(make(V, K, padding_idx=0), lora_dropout=p)[1]
    x = torch.randint(V, (n,))
    with torch.no_grad():
        base = model.layer.base_forward(x)
        update = (model(x) - base)[x != 0]
        full = (model.eval()(x) - base)[x != 0]
    kept = update.abs().sum(-1) > 0
    assert close(update[kept], full[kept] / (1 - p), factor=32)
    assert not update[~kept].any()
    rate = float((~kept).double().mean())
    assert abs(rate - p) < 5 * math.sqrt(p * (1 - p) / len(kept))
    assert same_bits(model.train()(torch.zeros(50, dtype=torch.long)), base[x == 0][:1].expand(50, -1).contiguous())


# --- a forward of its own -------------------------------------------------------------------------------------------


class Offset(nn.Embedding):
    """Positions with an offset, as OPT's and BART's."""

    def forward(self, mask: Tensor, start: int = 0) -> Tensor:
        return super().forward(mask.cumsum(-1).long()[:, start:] + 1)


def test_a_scaled_embedding_is_scaled_merged_and_unmerged():
    model = adapted(ScaledEmbedding(V, K, padding_idx=2))[1]
    x = torch.arange(V).view(3, 3)
    y = model(x)
    assert close(y, 2.5 * F.embedding(x, model.layer.effective_weight(model.layer.weight)), factor=8)
    lora.merge(model)
    assert close(model(x), y, factor=8)
    assert same_bits(model(ids=x), model(x))
    lora.unmerge(model)
    assert same_bits(model(ids=x), y)


def gemma(v: int = V, k: int = K, **options) -> nn.Module:
    """The scaled embedding of Gemma 3."""
    module = library("transformers.models.gemma3.modeling_gemma3")
    layer: nn.Module = module.Gemma3TextScaledWordEmbedding(v, k, **{"padding_idx": 0, "embed_scale": 640**0.5} | options)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_embedding_of_gemma(dtype):
    plain, model = adapted(gemma(k=640).to(dtype))
    x = torch.arange(V)
    y = model(x)
    assert y.dtype == dtype
    with lora.merged(model):
        assert close(model(x), y, factor=8)
    assert not close(y, plain(x), factor=8)


@pytest.mark.parametrize("x", [torch.tensor([[1, 3], [4, 3]]), torch.tensor([1, 2])])
def test_the_embedding_of_t5gemma2_which_has_a_token_apart(x):
    module = library("transformers.models.t5gemma2.modeling_t5gemma2")
    layer = module.T5Gemma2TextScaledWordEmbedding(V, K, padding_idx=0, embed_scale=2.5, eoi_token_index=3)
    with torch.no_grad():
        layer.eoi_embedding.normal_()
    plain, model = adapted(layer)
    y = model(x)
    assert agrees(y, expected(plain, model, (x,)), torch.float32, 16)
    with lora.merged(model):
        assert close(model(x), y, factor=16)


@pytest.mark.parametrize("start", [0, 2])
def test_an_embedding_of_other_arguments_is_called_with_them(start):
    plain, model = adapted(Offset(V, K))
    mask = torch.ones(2, 5)
    y = model(mask, start=start)
    assert agrees(y, expected(plain, model, (mask,), start=start), torch.float32, 8)
    with lora.merged(model):
        assert close(model(mask, start), y, factor=8)


@pytest.mark.parametrize(
    ("cls", "options", "config"),
    [
        (Offset, {}, {"lora_dropout": 0.5}),
        (Offset, {"padding_idx": 1}, {"lora_dropout": 0.5}),
        (ScaledEmbedding, {"sparse": True}, {}),
    ],
)
def test_what_cannot_be_done_for_a_forward_of_its_own_is_refused(cls, options, config):
    model = Holder(cls(V, K, **options))
    before = snapshot(model)
    try:
        lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["layer"], **config))
    except lora.TargetError:
        assert snapshot(model) == before
    else:
        fill(model)
        x = torch.ones(2, 5).long()
        y = model(x, start=2) if cls is Offset else model(x)
        assert y.shape == (2, 3 if cls is Offset else 5, K)
        y.sum().backward()
        assert not model.layer.lora_A.grad.is_sparse


class Normed(nn.Embedding):
    """Embeddings that are normalized, as Muse Spark's: no linear function of the weight."""

    def forward(self, ids: Tensor) -> Tensor:
        y = super().forward(ids)
        return F.rms_norm(y, y.shape[-1:])


class Replacing(nn.Embedding):
    """One token has an embedding of its own, as in T5Gemma2."""

    def forward(self, ids: Tensor) -> Tensor:
        y = super().forward(ids)
        return y.where((ids != 3).unsqueeze(-1), torch.arange(self.embedding_dim, dtype=y.dtype))


class Shifted(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + 1


class Shaped(nn.Embedding):
    """Positions from a shape, and two results, as ProphetNet's."""

    def forward(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        positions = torch.arange(shape[1]).expand(shape)
        return super().forward(positions), positions


class Table(nn.Embedding):
    """A lookup by probabilities, as Ovis2's."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens @ self.weight


@pytest.mark.parametrize(
    ("cls", "x"),
    [
        (Normed, torch.arange(V)),
        (Replacing, torch.arange(V)),
        (Shifted, torch.arange(V)),
        (Shaped, torch.Size([2, 5])),
        (Table, torch.rand(3, V)),
    ],
)
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_a_forward_of_its_own_is_computed_with_the_effective_weight_or_refused(cls, x, padding_idx):
    model = Holder(cls(V, K, padding_idx=padding_idx))
    plain, before = copy.deepcopy(model), snapshot(model)
    try:
        lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=3, target_modules=["layer"]))
    except lora.TargetError:
        assert snapshot(model) == before
    else:
        fill(model)
        assert agrees(model(x), expected(plain, model, (x,)), torch.float32, 16)


def test_the_order_of_a_max_norm_and_a_forward_of_its_own_is_not_guessed():
    model = Holder(ScaledEmbedding(V, K, max_norm=1.0))
    call = lambda: lora.inject(model, lora.LoRAConfig(r=2, target_modules=["layer"]))  # noqa: E731
    expect_refusal(lora.TargetError, "'layer' .* a forward of its own and a max_norm", model, call)


# --- tied to a head -------------------------------------------------------------------------------------------------


def test_a_merge_of_a_tied_embedding_leaves_the_head_alone():
    model, x = Tied(), torch.arange(4)
    before = snapshot(model)
    injected(model, target_modules=["embed"])
    fill(model)
    y = model(x)
    with lora.merged(model):
        assert model.embed.weight is not model.head.weight
        assert close(model(x), y, factor=16)
    assert model.embed.weight is model.head.weight
    lora.eject(model)
    assert snapshot(model) == before


@pytest.mark.filterwarnings("ignore::loralib.MergedStateDictWarning")
def test_both_users_of_a_tied_weight_may_be_adapted():
    model, x = Tied(), torch.arange(4)
    before = snapshot(model)
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["embed", "head"]))
    fill(model)
    y = model(x)
    assert {"embed.weight", "head.weight"} <= model.state_dict().keys()
    lora.merge(model)
    assert close(model(x), y, factor=32)
    assert bits(model.state_dict()["embed.weight"]) == bits(model.state_dict()["head.weight"])
    copied = copy.deepcopy(model).half()
    lora.unmerge(copied)
    assert copied.embed.weight is copied.head.weight
    lora.eject(model)
    assert snapshot(model) == before


# --- bags: forward is the base operation with the effective weight --------------------------------------------------


def bag_inputs(draw: st.DrawFn, include_last_offset: bool) -> tuple[Tensor, ...]:
    """Token numbers in two dimensions, or in one with offsets."""
    if draw(st.booleans()):
        n, length = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        return (torch.randint(V, (n, length)),)
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randint(V, (sum(lengths),)), offsets if include_last_offset else offsets[:-1]


@given(
    data=st.data(),
    mode=st.sampled_from(["sum", "mean", "max"]),
    include_last_offset=st.booleans(),
    padding_idx=st.sampled_from([None, 0, -1]),
    max_norm=st.sampled_from([None, None, 0.5]),
    scale_grad_by_freq=st.booleans(),
    weighted=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    id_dtype=st.sampled_from([torch.int64, torch.int32]),
    r=st.integers(1, 3),
)
def test_bags_are_those_of_the_effective_weight(
    data, mode, include_last_offset, padding_idx, max_norm, scale_grad_by_freq, weighted, dtype, id_dtype, r
):
    options = dict(mode=mode, include_last_offset=include_last_offset, padding_idx=padding_idx)
    scale_grad_by_freq &= mode != "max"
    layer = nn.EmbeddingBag(V, K, max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq, **options).to(dtype)
    plain, model = adapted(layer, r=r, dtype=dtype)
    x = tuple(t.to(id_dtype) for t in bag_inputs(data.draw, include_last_offset))
    kwargs = {}
    if weighted and mode == "sum":
        kwargs = {"per_sample_weights": torch.randn(x[0].shape).to(dtype).requires_grad_()}
    table = dense(model.layer)
    exact = {key: t.detach().double().requires_grad_() for key, t in kwargs.items()}
    reference = F.embedding_bag(x[0], table, *x[1:], **options | exact)
    y = model(*x, **kwargs)
    assert y.dtype == dtype
    assert agrees(y, reference, dtype, 16 * r)
    y.double().square().sum().backward()
    for key, t in kwargs.items():
        reference.square().sum().backward()
        assert agrees(t.grad, exact[key].grad, dtype, 64)
    lora.merge(model)
    assert agrees(model(*x, **kwargs), reference, dtype, 16 * r)
    if max_norm is None:
        with torch.no_grad():
            plain.layer.weight.copy_(model.layer.weight)
        assert same_bits(model(*x, **kwargs), plain(*x, **kwargs))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_padding_token_counts_for_nothing_in_a_bag(mode):
    plain, model = adapted(nn.EmbeddingBag(V, K, mode=mode, padding_idx=3))
    x = torch.tensor([[3, 1, 3], [3, 3, 3]])
    y = model(x)
    assert same_bits(y[1], plain(x)[1])
    assert close(y[0], model(torch.tensor([[1]]))[0], factor=8)
    y.sum().backward()
    assert not model.layer.lora_A.grad[:, 3].any()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_may_be_empty(mode):
    plain, model = adapted(nn.EmbeddingBag(V, K, mode=mode))
    x = torch.empty(0, dtype=torch.long), torch.tensor([0, 0])
    for _ in range(2):
        assert same_bits(model(*x), plain(*x))
        lora.merge(model)


def test_bags_take_their_arguments_by_name():
    model = adapted(nn.EmbeddingBag(V, K, mode="sum"))[1]
    x, offsets, weights = torch.tensor([1, 2, 3]), torch.tensor([0, 2]), torch.randn(3)
    y = model(per_sample_weights=weights, input=x, offsets=offsets)
    assert same_bits(y, model(x, offsets, weights))


@pytest.mark.parametrize("mode", ["sum", "max"])
@pytest.mark.parametrize("r", [1, 2])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_bags_compile_without_a_graph_break_where_torchs_do(mode, r, padding_idx):
    torch._dynamo.reset()
    plain, model = adapted(nn.EmbeddingBag(V, K, mode=mode, padding_idx=padding_idx), r=r)
    x = torch.tensor([[1, 2], [3, 1]])
    compiled = [torch.compile(m, fullgraph=True, backend="aot_eager") for m in (plain, model)]
    assert close(compiled[0](x), plain(x))
    y = compiled[1](x)
    assert close(y, model(x), factor=4)
    y.sum().backward()
    assert model.layer.lora_A.grad is not None


# --- what cannot work -----------------------------------------------------------------------------------------------


class OwnBag(nn.EmbeddingBag):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "config", "message"),
    [
        (nn.EmbeddingBag(V, K), {"lora_dropout": 0.1}, "lora_dropout=0.1 has no meaning for the tokens of a bag"),
        (OwnBag(V, K), {}, "has a forward of its own"),
    ],
)
def test_bags_that_cannot_be_adapted_are_refused(layer, config, message):
    model = Holder(layer)
    call = lambda: lora.inject(model, lora.LoRAConfig(**{"r": 2, "target_modules": ["layer"]} | config))  # noqa: E731
    expect_refusal(lora.TargetError, f"'layer' .*{message}.* Nothing was changed", model, call)
    adapter = lora.extract(adapted(nn.EmbeddingBag(V, K))[1])
    with_dropout = lora.Adapter(lora.LoRAConfig(r=2, **config), adapter.layers)
    expect_refusal(lora.AttachError, f"layer: .*{message}", model, lambda: lora.attach(model, with_dropout))


@pytest.mark.parametrize("cls", [nn.Embedding, nn.EmbeddingBag])
def test_an_adapter_of_another_vocabulary_does_not_fit(cls):
    adapter = lora.extract(adapted(cls(V, K))[1])
    for model in (Holder(cls(V + 1, K)), adapted(cls(V, K + 1))[1]):
        message = r"layer: lora_[AB] \(.*\) in the adapter, \(.*\) in the model"
        expect_refusal(lora.AttachError, message, model, lambda m=model: lora.attach(m, adapter))


def test_embeddings_are_no_linear_layers():
    model = nn.Sequential(nn.Embedding(V, K), nn.Linear(K, 2))
    assert lora.inject(model, lora.LoRAConfig(r=2)) == ["1"]
    randomize(model)


def test_what_a_forward_on_the_instance_returns_is_not_overwritten():
    model, table = Holder(nn.Embedding(V, K)), torch.randn(2, K)
    model.layer.forward = lambda ids: table
    before = table.clone()
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["layer"]))
    fill(model)
    assert not same_bits(model(torch.tensor([1, 2])), before)
    assert same_bits(table, before)
