"""Checkpoints of loralib 0.1 as a format: what comes back, what 0.1 makes of it, and what it would misunderstand."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import loralib as lora
from models import close, same_bits
from peers import loralib_0_1
from sample_adapters import ALPHAS, DTYPES, tensor, updates

MASKS = st.lists(st.booleans(), min_size=1, max_size=4).filter(any).map(tuple)


@st.composite
def slices(draw: st.DrawFn) -> lora.LoRAUpdate:
    """An update of a fused projection whose slices are of equal width, the only ones that 0.1 has."""
    mask, (r, d, width) = draw(MASKS), (draw(st.integers(1, 4)) for _ in range(3))
    n, dtype = sum(mask), draw(st.sampled_from(DTYPES))
    A, B = tensor((n * r, d), dtype, 1), tensor((n * width, r), dtype, 2)
    return lora.FusedUpdate(A, B, 1, enable_lora=mask, widths=(width,) * len(mask))


@st.composite
def adapters_of_0_1(draw: st.DrawFn) -> lora.Adapter:
    """An adapter that 0.1 could have trained."""
    kinds = {"q": updates(["linear"]), "wte": updates(["embedding"]), "c_attn": slices()}
    layers: dict[str, lora.LoRAUpdate] = {}
    lora_alpha = draw(ALPHAS)
    for name in draw(
        st.lists(st.tuples(st.sampled_from(["h.0", "h.1"]), st.sampled_from(sorted(kinds))), min_size=1, unique=True)
    ):
        update = draw(kinds[name[1]])
        fields = dict(update.own_fields())
        layers[".".join(name)] = type(update)(update.A, update.B, lora_alpha, **fields)
    tensors = {"head.weight": torch.randn(2, 3), "h.0.q.bias": torch.ones(2)} if draw(st.booleans()) else {}
    return lora.Adapter(lora.LoRAConfig(), layers, tensors)


@given(adapters_of_0_1())
def test_an_adapter_comes_back_when_its_configuration_is_given(adapter):
    with TemporaryDirectory() as folder:
        first, second = Path(folder, "a.pt"), Path(folder, "b.pt")
        lora.save(adapter, first, format="loralib")
        read = lora.load(first, config=adapter.config)
        assert lora.detect(first) == "loralib"
        assert read.layers == adapter.layers
        assert read.tensors.keys() == adapter.tensors.keys()
        assert all(same_bits(read.tensors[name], tensor) for name, tensor in adapter.tensors.items())
        lora.save(read, second, format="loralib")
        assert first.read_bytes() == second.read_bytes()


class Model(nn.Module):
    """A small model with an embedding, a fused projection and a linear layer of the library `made_by`."""

    def __init__(self, made_by):
        super().__init__()
        torch.manual_seed(0)
        self.wte = made_by.Embedding(7, 4, r=2, lora_alpha=6, merge_weights=False)
        self.c_attn = made_by.MergedLinear(
            4, 6, r=2, lora_alpha=6, enable_lora=[True, False, True], bias=False, merge_weights=False
        )
        self.lin = made_by.Linear(6, 3, r=2, lora_alpha=6, merge_weights=False)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.lin(self.c_attn(self.wte(ids)))
        return result


IDS = torch.tensor([[0, 3, 6], [1, 1, 2]])


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator))
    return model


def test_what_0_1_saved_computes_here_what_it_computed_there(tmp_path):
    theirs = loralib_0_1()
    model = shaken(Model(theirs))
    torch.save(theirs.lora_state_dict(model, bias="lora_only"), tmp_path / "f.pt")
    config = lora.LoRAConfig(lora_alpha=6, enable_lora={"c_attn": [True, False, True]})
    adapter = lora.load(tmp_path / "f.pt", config=config)
    assert set(adapter.tensors) == {"lin.bias"}
    plain = Model(lora)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if "lora_" not in name}, strict=False)
    lora.eject(plain)
    lora.attach(plain, adapter)
    assert close(plain(IDS), model(IDS), factor=16)


def test_0_1_takes_what_we_save(tmp_path):
    ours = shaken(Model(lora))
    lora.save(lora.extract(ours), tmp_path / "f.pt", format="loralib")
    theirs = Model(loralib_0_1())
    theirs.load_state_dict(ours.state_dict())
    before = theirs(IDS)
    shaken(theirs).wte.lora_A.data.zero_()
    assert not close(theirs(IDS), before, factor=1e3)
    theirs.load_state_dict(torch.load(tmp_path / "f.pt", weights_only=True), strict=False)
    assert torch.equal(theirs(IDS), before)


UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)


@pytest.mark.parametrize(
    ("layers", "tensors", "telling"),
    [
        ({"q": UPDATE}, {"p.lora_A": torch.ones(2)}, "p.lora_A"),
        ({"q": UPDATE}, {"q.weight": torch.ones(4, 3)}, "q.weight"),
        ({"": UPDATE}, {}, "a model that is one layer"),
        (
            {"q": lora.FusedUpdate(torch.ones(2, 3), torch.ones(4, 2), 4, enable_lora=(True, False), widths=(4, 5))},
            {},
            "unequal width",
        ),
    ],
)
def test_what_would_be_misread_is_refused_and_nothing_is_written(layers, tensors, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=f"{telling}.*Nothing was written"):
        lora.save(lora.Adapter(lora.LoRAConfig(), layers, tensors), tmp_path / "f.pt", format="loralib")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{"r": 4, "lora_alpha": 4}, {"lora_alpha": 4, "rank_pattern": {"q": 4}}])
def test_another_rank_than_the_files_is_refused(config, tmp_path):
    lora.save(lora.Adapter(lora.LoRAConfig(), {"q": UPDATE}), tmp_path / "f.pt", format="loralib")
    with pytest.raises(lora.FormatError, match="layer 'q' has r=2, but config says r=4"):
        lora.load(tmp_path / "f.pt", config=lora.LoRAConfig(**config))


def test_parameters_in_a_state_dict_are_plain_tensors_of_the_adapter(tmp_path):
    model = nn.Module()
    model.q = lora.Linear(3, 4, r=2)
    model.head = nn.Linear(2, 2)
    kept = {name: p for name, p in model.named_parameters() if not name.startswith("q.") or "lora_" in name}
    torch.save(kept, tmp_path / "f.pt")
    adapter = lora.load(tmp_path / "f.pt", config=lora.LoRAConfig(lora_alpha=1))
    assert not any(t.requires_grad or type(t) is not Tensor for t in adapter.all_tensors())
