"""Files with custom names: a map that can be turned round loses nothing, and a careless one is refused."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import loralib as lora
from models import same_bits
from sample_adapters import adapters

OUT = {r"(.*)\.(lora_\w+|alpha)": r"net/\1:\2", r"(.*)": r"rest/\1"}
BACK = {r"net/(.*):(\w+)": r"\1.\2", r"rest/(.*)": r"\1"}


def plain(adapter: lora.Adapter) -> lora.Adapter:
    """The adapter without what such files have no place for."""
    layers = {name: replace(update, use_rslora=False) for name, update in adapter.layers.items()}
    return replace(adapter, layers=layers, rows={}, metadata={})


@given(st.one_of(adapters(["linear", "embedding", "conv"]), adapters(["linear", "embedding", "conv"], dora=True)))
def test_an_adapter_comes_back_through_a_map_and_its_inverse(drawn):
    adapter = plain(drawn)
    with TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        lora.save(adapter, path, keys=OUT)
        assert all(name.startswith(("net/", "rest/")) for name in load_file(path))
        read = lora.load(path, keys=BACK)
        assert read.layers == adapter.layers
        assert read.tensors.keys() == adapter.tensors.keys()
        assert all(same_bits(read.tensors[name], tensor) for name, tensor in adapter.tensors.items())
        first = path.read_bytes()
        lora.save(read, path, keys=OUT)
        assert path.read_bytes() == first


@given(adapters(["merged", "legacy"], extra=False))
def test_slices_and_convolutions_of_0_1_come_back_as_what_they_add(drawn):
    adapter = plain(drawn)
    with TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        lora.save(adapter, path, keys=OUT)
        read = lora.load(path, keys=BACK)
        for name in adapter.layers:
            expected = adapter.delta(name)
            eps = torch.finfo(adapter.layers[name].A.dtype).eps
            assert (read.delta(name) - expected).abs().max() <= 64 * eps * (1 + expected.abs().max())


UPDATE = lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)
SAME = {"(.*)": r"\1"}


@pytest.mark.parametrize(
    ("layers", "tensors", "telling"),
    [
        ({"q": replace(UPDATE, use_rslora=True)}, {}, "√r"),
        ({"q": UPDATE}, {"p.alpha": torch.ones(())}, "p.alpha"),
        ({"q": UPDATE}, {"p.lora_A": torch.ones(2, 3)}, "p.lora_A"),
        ({"": UPDATE}, {}, "a model that is one layer"),
        ({"q": lora.ProjectionUpdate(torch.ones(2, 3), torch.ones(3, 2), 4)}, {}, "MultiheadAttention"),
        ({"q": UPDATE}, {"__metadata__": torch.ones(2)}, "__metadata__"),
        ({"q": UPDATE}, {"a\ud800": torch.ones(2)}, "cannot have a tensor of the name"),
        ({"q": UPDATE}, {"a": torch.ones(2, dtype=torch.complex128)}, "complex128"),
    ],
)
def test_what_such_a_file_cannot_say_is_refused_and_nothing_is_written(layers, tensors, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=f"{telling}.*Nothing was written"):
        lora.save(lora.Adapter(lora.LoRAConfig(), layers, tensors), tmp_path / "f.safetensors", keys=SAME)
    assert not list(tmp_path.iterdir())


def test_an_alpha_that_contradicts_the_configuration_is_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    lora.save(lora.Adapter(lora.LoRAConfig(), {"q": UPDATE}), path, keys=SAME)
    assert lora.load(path, keys=SAME, config=lora.LoRAConfig(lora_alpha=4)).layers == {"q": UPDATE}
    with pytest.raises(lora.FormatError, match="layer 'q' has lora_alpha=4, but config says lora_alpha=5"):
        lora.load(path, keys=SAME, config=lora.LoRAConfig(lora_alpha=5))


@pytest.mark.parametrize("name", ["f.safetensors", "f.pt"])
def test_a_missing_file_is_said_to_be_missing(name, tmp_path):
    with pytest.raises(lora.FormatError, match="does not exist"):
        lora.load(tmp_path / name, keys=SAME)


@pytest.mark.parametrize(
    ("stored", "telling"),
    [
        ({"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.ones(4, 2), "q.alpha": torch.ones(2)}, "expected one number"),
        ({"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.ones(4, 2), "q.alpha": torch.tensor(-1.0)}, "alpha=-1"),
        ({"q.lora_A": torch.ones(2, 3), "q.lora_embedding_B": torch.ones(4, 2)}, "has no lora_embedding_A"),
        ({"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.ones(4, 5)}, "not factors of one update"),
        ({"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.ones(4, 2), "q.lora_magnitude": torch.ones(3)}, "magnitude"),
        ({"q.alpha": torch.ones(())}, "has no lora_A"),
        ({".lora_A": torch.ones(2, 3), ".lora_B": torch.ones(4, 2)}, "belongs to no layer"),
    ],
)
def test_parts_that_make_no_update_are_refused(stored, telling, tmp_path):
    torch.save(stored, tmp_path / "f.pt")
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(tmp_path / "f.pt", keys=SAME)


def test_two_pairs_of_factors_under_one_name_are_refused(tmp_path):
    pair = {"A": torch.ones(2, 3), "B": torch.ones(4, 2)}
    torch.save({f"q.lora_{which}{key}": t for which in ("", "embedding_") for key, t in pair.items()}, tmp_path / "f.pt")
    with pytest.raises(lora.FormatError, match="has lora_A and lora_embedding_A"):
        lora.load(tmp_path / "f.pt", keys=SAME)


# --- orientation ----------------------------------------------------------------------------------------------------


def by(A: Tensor, B: Tensor, names: tuple[str, str], folder: Path) -> lora.Adapter:
    safetensors.torch.save_file({"x.down": A.contiguous(), "x.up": B.contiguous()}, folder / "a.safetensors")
    return lora.load(folder / "a.safetensors", keys={r"(.*)\.down": rf"\1.{names[0]}", r"(.*)\.up": rf"\1.{names[1]}"})


PLAIN, AS_SAID, TRANSPOSED = ("lora_A", "lora_B"), ("lora_A.weight", "lora_B.weight"), ("lora_A.T", "lora_B.T")


@pytest.mark.parametrize(("d", "k", "r"), [(5, 4, 2), (4, 4, 2), (4, 4, 4), (4, 4, 6), (5, 4, 6), (1, 1, 1), (5, 5, 1)])
def test_the_orientation_that_a_map_states_is_the_one_that_is_read(d, k, r, tmp_path):
    A, B = torch.randn(r, d), torch.randn(k, r)
    delta = (B @ A).double()
    for adapter in (by(A, B, AS_SAID, tmp_path), by(A.t(), B.t(), TRANSPOSED, tmp_path)):
        assert torch.allclose(adapter.delta("x").double(), delta, atol=1e-6)
        assert adapter.layers["x"].r == r
    if d != k or r < d:
        assert by(A, B, PLAIN, tmp_path).layers["x"].r == r
    else:
        with pytest.raises(lora.FormatError, match=r"look like transposes.*lora_A.T and lora_B.T.*lora_A.weight"):
            by(A, B, PLAIN, tmp_path)


@pytest.mark.parametrize(("d", "k", "r"), [(5, 4, 2), (4, 4, 2), (4, 4, 4), (5, 5, 1)])
def test_transposes_are_never_read_as_what_they_are_not(d, k, r, tmp_path):
    A, B = torch.randn(r, d), torch.randn(k, r)
    with pytest.raises(lora.FormatError, match=r"look like transposes, \(in, r\) and \(r, out\)"):
        by(A.t(), B.t(), PLAIN, tmp_path)


def test_factors_of_two_orientations_are_refused(tmp_path):
    with pytest.raises(lora.FormatError, match=r"has no lora_B.T|has lora_A and"):
        by(torch.ones(2, 3), torch.ones(4, 2), ("lora_A.T", "lora_B"), tmp_path)
    with pytest.raises(lora.FormatError, match="are not matrices"):
        by(torch.ones(2, 3, 1, 1), torch.ones(4, 2, 1, 1), TRANSPOSED, tmp_path)
