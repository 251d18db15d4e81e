"""One file for any adapter: equal adapters make equal files, and a file says what it holds or is refused."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings

import loralib as lora
from loralib.storage.safetensors import tensor_bytes
from sample_adapters import adapters


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors of a file, and its description, read by the safetensors library."""
    with safetensors.safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["loralib"])
    return safetensors.torch.load_file(path), description


@settings(max_examples=150, deadline=None)
@given(adapters())
def test_an_adapter_comes_back_equal_and_its_file_byte_for_byte(adapter):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        first, second = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
        lora.save(adapter, first, format="safetensors")
        read = lora.load(first)
        assert read == adapter
        assert read.digest() == adapter.digest()
        lora.save(read, second, format="safetensors")
        assert first.read_bytes() == second.read_bytes()


@settings(max_examples=30, deadline=None)
@given(adapters(["linear", "embedding", "conv", "grouped", "transposed"], dora=True))
def test_dora_comes_back(adapter):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        lora.save(adapter, path, format="safetensors")
        assert lora.load(path) == adapter


def test_odd_names_numbers_and_dtypes_come_back(tmp_path):
    layers = {
        'a."q".é/ü\n': lora.LoRAUpdate(torch.randn(1, 2), torch.randn(3, 1), 0.1),
        "x.lora_A": lora.LoRAUpdate(torch.randn(1, 2), torch.randn(3, 1), 7),
        "x": lora.LoRAUpdate(torch.randn(1, 2), torch.randn(3, 1), 7.0),
    }
    tensors = {"a": torch.zeros(0, 3), "x.lora_A.lora_B": torch.tensor(True), "f8": torch.ones(3).to(torch.float8_e4m3fn)}
    adapter = lora.Adapter(lora.LoRAConfig(target_modules=["q"]), layers, tensors, {"anything": 'at "all"\n'})
    lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
    assert lora.load(tmp_path / "a.safetensors") == adapter
    empty = lora.Adapter(lora.LoRAConfig(), {})
    lora.save(empty, tmp_path / "e.safetensors", format="safetensors")
    assert lora.load(tmp_path / "e.safetensors") == empty


@pytest.mark.parametrize(("max_norm", "norm_type"), [(1, 2.0), (0.5, 1), (0.0, 2.0)])
def test_what_an_embedding_does_to_its_rows_comes_back(max_norm, norm_type, tmp_path):
    update = lora.EmbeddingUpdate(torch.ones(2, 5), torch.ones(4, 2), 4, max_norm=max_norm, norm_type=norm_type)
    adapter = lora.Adapter(lora.LoRAConfig(), {"e": update})
    lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
    assert lora.load(tmp_path / "a.safetensors") == adapter


def test_the_file_is_what_its_documentation_says(tmp_path):
    adapter = lora.Adapter(
        lora.LoRAConfig(r=2),
        {"q": lora.FusedUpdate(torch.ones(4, 3), torch.ones(4, 2), 4, False, (True, False, True), (2, 5, 2))},
        {"head.bias": torch.ones(2)},
        {"task_type": "SEQ_CLS"},
        {"emb.weight": lora.TokenRows((3,), torch.ones(1, 2))},
    )
    lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
    tensors, said = parts_of(tmp_path / "a.safetensors")
    assert sorted(tensors) == ["layers.q.lora_A", "layers.q.lora_B", "rows.emb.weight", "tensors.head.bias"]
    assert said["version"] == 2
    fields = {"lora_alpha": 4, "use_rslora": False, "enable_lora": [True, False, True], "widths": [2, 5, 2]}
    assert said["layers"] == {"q": {"kind": "fused"} | fields}
    assert said["rows"] == {"emb.weight": [3]}
    assert said["metadata"] == {"task_type": "SEQ_CLS"}
    assert said["config"]["r"] == 2


@pytest.fixture
def file(tmp_path):
    adapter = lora.Adapter(lora.LoRAConfig(r=2), {"q": lora.LoRAUpdate(torch.ones(2, 3), torch.ones(4, 2), 4)})
    lora.save(adapter, tmp_path / "a.safetensors", format="safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        (
            lambda t, s: s.update(version=1),
            "version 1 of the format.* save the adapter again",
        ),
        (lambda t, s: s.update(version=3), "version 3"),
        (lambda t, s: s.pop("config"), "'config' is missing"),
        (lambda t, s: s.update(layers=[]), "'layers' is missing"),
        (lambda t, s: s.update(metadata={"a": 1}), "not text"),
        (lambda t, s: s["layers"]["q"].update(kind="Secret"), "no known kind"),
        (lambda t, s: s["layers"]["q"].update(kind="LoRAUpdate"), "no known kind"),
        (lambda t, s: s["layers"]["q"].update(kind=["x"]), "no known kind"),
        (lambda t, s: s["layers"]["q"].update(extra=1), "other fields"),
        (lambda t, s: s["layers"]["q"].update(lora_alpha="4"), "lora_alpha='4'"),
        (lambda t, s: s["layers"]["q"].update(lora_alpha=-1), "lora_alpha=-1"),
        (lambda t, s: s["layers"]["q"].update(use_rslora=1), "use_rslora=1"),
        (lambda t, s: s["config"].update(r=0), "r=0"),
        (lambda t, s: s["config"].update(unheard_of=0), "unheard_of"),
        (lambda t, s: s["layers"].update(p=s["layers"]["q"]), "layer 'p' has no lora_A"),
        (lambda t, s: s["layers"].pop("q"), "says nothing"),
        (lambda t, s: t.pop("layers.q.lora_B"), "has no lora_B"),
        (lambda t, s: t.update({"layers.q.lora_B": torch.ones(4, 3)}), "not factors of one update"),
        (lambda t, s: t.update({"layers.q.lora_B": torch.ones(4, 2, dtype=torch.int32)}), "int32"),
        (lambda t, s: t.update({"stray": torch.ones(1)}), "'stray'"),
        (lambda t, s: s.update(rows={"e": [1]}), "not whole"),
        (lambda t, s: (s.update(rows={"e": [1, 1]}), t.update({"rows.e": torch.ones(2, 2)})), "different rows"),
    ],
)
def test_what_contradicts_itself_is_refused(file, change, telling):
    tensors, said = parts_of(file)
    tensors = {name: t.clone() for name, t in tensors.items()}
    change(tensors, said)
    file.write_bytes(tensor_bytes(tensors, {"loralib": json.dumps(said)}))
    with pytest.raises(lora.FormatError, match=telling):
        lora.load(file)


def test_a_description_that_is_no_json_is_refused(file):
    tensors, _ = parts_of(file)
    file.write_bytes(tensor_bytes(tensors, {"loralib": "{" * 10_000}))
    with pytest.raises(lora.FormatError, match="not JSON"):
        lora.load(file)


def test_tensors_are_mapped_and_not_read(file, tmp_path):
    """A tensor of a large file costs memory only where it is used."""
    import resource

    big = lora.Adapter(lora.LoRAConfig(), {"q": lora.LoRAUpdate(torch.ones(64, 1 << 20), torch.ones(4, 64), 4)})
    lora.save(big, tmp_path / "big.safetensors", format="safetensors")
    del big
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    read = lora.load(tmp_path / "big.safetensors")
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert pages * resource.getpagesize() < 32 << 20, "the file has 256 MiB"
    assert float(read.layers["q"].A[5, 5]) == 1
