"""Loading whatever is there, saving whatever is asked for, and losing nothing on the way."""

import errno
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import loralib as lora
from loralib import formats
from loralib.formats.opened import Opened
from loralib.storage.safetensors import read_header
from models import same_bits
from peers import data

UPDATE = lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4)
UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def adapter_for(format: str) -> lora.Adapter:
    name = UNET if format in ("diffusers", "kohya") else "a.q"
    return lora.Adapter(lora.LoRAConfig(r=2, lora_alpha=4, target_modules=[name]), {name: UPDATE})


def path_for(format: str, folder: Path) -> Path:
    return folder / {"peft": "adapter", "diffusers": "adapter", "loralib": "adapter.pt"}.get(format, "adapter.safetensors")


CONFIG = {"loralib": lora.LoRAConfig(lora_alpha=4)}


@pytest.mark.parametrize("format", formats.FORMATS)
def test_every_format_is_recognised_and_read_again(format, tmp_path):
    path = path_for(format, tmp_path)
    adapter = adapter_for(format)
    lora.save(adapter, path, format=format)
    assert lora.detect(path) == format
    read = lora.load(path, config=CONFIG.get(format))
    assert read == adapter
    assert path.name in read.source or "pytorch_lora_weights" in read.source
    assert lora.load(path, format=format, config=CONFIG.get(format)) == adapter


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_in_writing_leaves_what_was_there(format, failing, tmp_path, monkeypatch):
    path = path_for(format, tmp_path)
    adapter = adapter_for(format)
    lora.save(adapter, path, format=format)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def fails(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fails)
    else:
        monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="No space") as error:
        lora.save(-adapter, path, format=format)
    assert error.value.filename
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("place", "config", "format", "r", "alphas", "targets", "layers", "parameters", "extra"),
    [
        ("distilbert-imdb", None, "peft", 8, 16, {"q_lin", "v_lin"}, 12, 147_456, 4),
        ("gpt2-anirudh", None, "peft", 8, 8, {"c_attn"}, 12, 294_912, 1),
        ("sd15-lora-r4", None, "diffusers", 4, 4, {"to_q", "to_k", "to_v", "0"}, 128, 797_184, 0),
        ("peft_regression_0.6.1/lora_conv2d", None, "peft", 8, 8, {"conv2d"}, 1, 440, 0),
        ("peft_regression_0.6.1/lora_emb_conv1d", None, "peft", 8, 8, {"emb", "conv1d"}, 2, 888, 0),
        ("peft_regression_0.6.1/lora_mlp", None, "peft", 8, 8, {"lin0"}, 1, 240, 0),
        ("peft_regression_0.6.1/lora_mlp_modules_to_save", None, "peft", 8, 8, {"lin0"}, 1, 240, 2),
        ("loralib-roberta-base-mnli", lora.LoRAConfig(lora_alpha=16), "loralib", 8, 16, {"query", "value"}, 24, 294_912, 4),
    ],
)
def test_adapters_found_in_the_wild_open(place, config, format, r, alphas, targets, layers, parameters, extra):
    path = data(f"adapters/{place}")
    adapter = lora.load(path, config=config)
    assert lora.detect(path) == format if format != "loralib" else lora.detect(next(path.iterdir())) == format
    assert {update.r for update in adapter.layers.values()} == {r}
    assert {update.lora_alpha for update in adapter.layers.values()} == {alphas}
    assert {name.rpartition(".")[2] for name in adapter.layers} == targets
    assert (len(adapter.layers), adapter.num_parameters(), len(adapter.tensors)) == (layers, parameters, extra)


def test_what_is_no_adapter_is_said_to_be_what_it_is(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    lora.save(adapter_for("safetensors"), tmp_path / "x.safetensors", format="safetensors")
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(2, 2)}, model / "model.safetensors")
    (tmp_path / "empty").mkdir()
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "state.pt")
    for path, telling in (
        (tmp_path / "nowhere", "does not exist"),
        (model, "holds a whole model"),
        (model / "model.safetensors", r"its tensors \(a\.weight"),
        (tmp_path / "empty", "a PEFT folder has"),
        (tmp_path / "state.pt", "names of no known format|for other names"),
    ):
        with pytest.raises(lora.FormatError, match=telling):
            lora.load(path)
    for reader in (lora.load, lora.save):
        arguments = (tmp_path / "x.safetensors",) if reader is lora.load else (adapter_for("peft"), tmp_path / "y")
        with pytest.raises(lora.FormatError, match="format='zip' is not known"):
            reader(*arguments, format="zip")
    assert not (tmp_path / "y").exists()


def test_the_tensors_of_a_peft_folder_are_known_by_their_own_name(tmp_path):
    lora.save(adapter_for("peft"), tmp_path / "a")
    assert lora.load(tmp_path / "a" / "adapter_model.safetensors") == lora.load(tmp_path / "a")


class Mark:
    """Would leave a mark when it is unpickled by a reader that executes what it reads."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", ["bare", "zip", "in a state dict"])
@pytest.mark.parametrize(
    "name", ["adapter.pt", "adapter.bin", "folder/adapter_model.bin", "a.safetensors", "model/pytorch_model.bin"]
)
def test_a_payload_is_never_executed(wrap, name, tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "folder").mkdir(exist_ok=True)
    (tmp_path / "folder" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    content = Mark(mark) if wrap != "in a state dict" else {"q.lora_A": Mark(mark), "q.lora_B": torch.ones(2, 2)}
    if wrap == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    reader = (lambda: lora.difference(path.parent, path.parent, r=1)) if "model/" in name else (lambda: lora.load(path))
    with pytest.raises(lora.FormatError):
        reader()
    with pytest.raises(lora.FormatError):
        lora.load(path, keys={".*": "x"})
    assert not mark.exists()
    pickle.loads(pickle.dumps(Mark(mark)))
    assert mark.exists(), "the payload works"


@pytest.mark.parametrize("kind", ["view", "compressed", "sparse", "quantized", "meta", "old"])
def test_pickles_that_would_grow_or_are_not_plain_are_refused(kind, tmp_path):
    path = tmp_path / "adapter.pt"
    A = torch.ones(2, 3)
    odd = {
        "view": lambda: torch.ones(1).expand(1 << 40),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(A, 0.1, 0, torch.qint8),
        "meta": lambda: torch.ones(2, 3, device="meta"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about quantized tensors
        torch.save(
            {"q.lora_A": odd.get(kind, lambda: A)(), "q.lora_B": torch.ones(4, 2)},
            path,
            _use_new_zipfile_serialization=kind != "old",
        )
    if kind == "compressed":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
    with pytest.raises(lora.FormatError):
        lora.load(path, format="loralib", config=lora.LoRAConfig())


def test_a_file_with_names_of_ones_own_is_read_and_written_by_a_key_map(tmp_path):
    adapter = lora.Adapter(
        lora.LoRAConfig(),
        {
            "a.q": UPDATE,
            "c": lora.ConvolutionUpdate(torch.randn(2, 3, 2, 2), torch.randn(4, 2, 1, 1), 0.3),
            "e": lora.EmbeddingUpdate(torch.randn(2, 7), torch.randn(3, 2), 1),
            "d": lora.LoRAUpdate(torch.randn(2, 3), torch.randn(4, 2), 4, magnitude=torch.rand(4)),
        },
        {"head.bias": torch.ones(2)},
    )
    out = {r"(.*)\.lora_(.*)": r"adapter/\1/\2", r"(.*)\.alpha": r"adapter/\1/scale", "head.bias": "other"}
    back = {r"adapter/(.*)/scale": r"\1.alpha", r"adapter/(.*)/(.*)": r"\1.lora_\2", "other": "head.bias"}
    lora.save(adapter, tmp_path / "f.safetensors", keys=out)
    read = lora.load(tmp_path / "f.safetensors", keys=back)
    assert read.layers == adapter.layers
    assert same_bits(read.tensors["head.bias"], torch.ones(2))
    names = {}
    for key in read_header(tmp_path / "f.safetensors").entries:
        layer, _, part = key.removeprefix("adapter/").rpartition("/")
        names[key] = f"{layer}.{'alpha' if part == 'scale' else 'lora_' + part}" if layer else "head.bias"
    assert lora.load(tmp_path / "f.safetensors", keys=names.__getitem__).layers == adapter.layers


def test_a_key_map_without_alphas_takes_the_configurations_or_the_rank(tmp_path):
    torch.save({"q.down": UPDATE.A, "q.up": UPDATE.B}, tmp_path / "f.pt")
    keys = {r"(.*)\.down": r"\1.lora_A", r"(.*)\.up": r"\1.lora_B"}
    assert lora.load(tmp_path / "f.pt", keys=keys).layers["q"].lora_alpha == 2
    assert lora.load(tmp_path / "f.pt", keys=keys, config=lora.LoRAConfig(lora_alpha=7)).layers["q"].lora_alpha == 7
    assert lora.load(tmp_path / "f.pt", keys=keys, config=lora.LoRAConfig(use_rslora=True)).layers["q"].use_rslora


@pytest.mark.parametrize(
    ("keys", "telling"),
    [
        ({r".*\.down": "q.lora_A"}, "makes '' of"),
        ({".*": "q.lora_A"}, "several tensors the name"),
        ({r".*\.down": "q.lora_A", r".*\.up": "other"}, "layer 'q' has no lora_B"),
        ({r".*\.down": "a", r".*\.up": "b"}, "finds no factors"),
        ({r"(.*)\.down": r"\2.lora_A", r".*\.up": "b"}, "cannot be used"),
        ({"(": "x"}, "not a regular expression"),
        (lambda key: None, "makes None of"),
    ],
)
def test_a_key_map_that_leaves_something_out_is_refused(keys, telling, tmp_path):
    torch.save({"q.down": UPDATE.A, "q.up": UPDATE.B}, tmp_path / "f.pt")
    with pytest.raises(lora.LoRAError, match=telling):
        lora.load(tmp_path / "f.pt", keys=keys)


# --- checkpoints of loralib 0.1 -------------------------------------------------------------------------------------


def test_a_checkpoint_of_0_1_needs_its_lora_alpha(tmp_path):
    torch.save({"q.lora_A": UPDATE.A, "q.lora_B": UPDATE.B}, tmp_path / "f.pt")
    with pytest.raises(lora.FormatError, match="does not say lora_alpha"):
        lora.load(tmp_path / "f.pt")
    guessed = formats.loralib_0_1.read(Opened(tmp_path / "f.pt"), unknown_alpha=True)
    assert guessed.layers["q"].scaling == 1


def test_fused_projections_and_embeddings_of_0_1(tmp_path):
    state = {"attn.lora_A": torch.randn(4, 3), "attn.lora_B": torch.randn(10, 2)}
    state |= {"model.wte.lora_A": torch.randn(2, 7), "model.wte.lora_B": torch.randn(3, 2), "head.bias": torch.ones(3)}
    torch.save({"model_state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "f.pt")
    with pytest.raises(lora.FormatError, match="'attn' fuses several projections, 2 of which"):
        lora.load(tmp_path / "f.pt", config=lora.LoRAConfig(lora_alpha=4))
    with pytest.raises(lora.FormatError, match="does not fit"):
        lora.load(tmp_path / "f.pt", config=lora.LoRAConfig(lora_alpha=4, enable_lora={"attn": [True, True, True]}))
    config = lora.LoRAConfig(lora_alpha=4, enable_lora={"attn": [True, False, True]})
    adapter = lora.load(tmp_path / "f.pt", config=config)
    assert isinstance(adapter.layers["attn"], lora.FusedUpdate)
    assert adapter.layers["attn"].widths == (5, 5, 5)
    assert isinstance(adapter.layers["model.wte"], lora.EmbeddingUpdate)
    assert set(adapter.tensors) == {"head.bias"}
    lora.save(adapter, tmp_path / "again.pt", format="loralib")
    assert (
        lora.load(tmp_path / "again.pt", config=lora.LoRAConfig(lora_alpha=4, enable_lora={"attn": [True, False, True]}))
        == adapter
    )


def test_a_whole_model_of_0_1_is_refused_with_the_remedy(tmp_path):
    layer = lora.Linear(3, 4, r=2)
    torch.save({f"q.{name}": t for name, t in layer.state_dict().items()}, tmp_path / "f.pt")
    with pytest.raises(lora.FormatError, match="load_legacy"):
        lora.load(tmp_path / "f.pt", config=lora.LoRAConfig())


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        ({"q": lora.LoRAUpdate(UPDATE.A, UPDATE.B, 4, use_rslora=True)}, "/ √r"),
        ({"q": lora.LoRAUpdate(UPDATE.A, UPDATE.B, 4, magnitude=torch.ones(4))}, "DoRA"),
        ({"q": UPDATE, "p": lora.LoRAUpdate(UPDATE.A, UPDATE.B, 5)}, "different ones"),
        ({"q": lora.ConvolutionUpdate(torch.randn(2, 3, 2), torch.randn(4, 2, 1), 4)}, "ConvolutionUpdate"),
    ],
)
def test_what_0_1_does_not_know_is_refused_and_nothing_is_written(change, telling, tmp_path):
    with pytest.raises(lora.FormatError, match=telling):
        lora.save(lora.Adapter(lora.LoRAConfig(), change), tmp_path / "f.pt", format="loralib")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", [{"format": "loralib"}, {"keys": {"(.*)": r"\1"}}])
@pytest.mark.parametrize("what", [{"metadata": {"task_type": "X"}}, {"rows": {"e": lora.TokenRows((1,), torch.ones(1, 2))}}])
def test_nothing_beside_the_tensors_is_dropped_unasked(how, what, tmp_path):
    with pytest.raises(lora.FormatError, match="has no place for"):
        lora.save(lora.Adapter(lora.LoRAConfig(), {"q": UPDATE}, **what), tmp_path / "f.pt", **how)
    assert not list(tmp_path.iterdir())


def test_0_1s_own_state_dict_is_read_and_ours_loads_in_0_1(tmp_path):
    from peers import loralib_0_1

    theirs = loralib_0_1()
    model = torch.nn.Sequential(theirs.Linear(3, 4, r=2, lora_alpha=6))
    torch.nn.init.normal_(model[0].lora_B)
    torch.save(theirs.lora_state_dict(model), tmp_path / "f.pt")
    adapter = lora.load(tmp_path / "f.pt", config=lora.LoRAConfig(lora_alpha=6))
    assert torch.allclose(adapter.delta("0"), 3 * model[0].lora_B.detach() @ model[0].lora_A.detach())
    lora.save(adapter, tmp_path / "g.pt", format="loralib")
    other = torch.nn.Sequential(theirs.Linear(3, 4, r=2, lora_alpha=6))
    other.load_state_dict(torch.load(tmp_path / "g.pt"), strict=False)
    assert same_bits(other[0].lora_B.detach(), model[0].lora_B.detach())
