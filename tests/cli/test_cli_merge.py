"""`loralib merge`: the files that it writes are checked, and what cannot be merged is said in a sentence."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loralib as lora
from cli.conftest import adapter, complaint, said
from loralib import ops
from loralib.checkpoints import verify
from loralib.ops.autograd import merging
from models import same_bits


@pytest.fixture
def model(tmp_path):
    """A base model's folder, an adapter's, and what the merged weights are."""
    (tmp_path / "base").mkdir()
    weights = {f"l{i}.proj.weight": torch.randn(4, 6).bfloat16() for i in range(2)}
    save_file(weights, tmp_path / "base" / "model.safetensors")
    made = adapter()
    lora.save(made, tmp_path / "a")
    merged = {name: made.layers[name.removesuffix(".weight")].effective_weight(W) for name, W in weights.items()}
    return tmp_path / "base", tmp_path / "a", merged


def test_an_adapter_is_merged_and_checked(model, tmp_path, capsys):
    base, path, merged = model
    text = said(capsys, "merge", base, path, "-o", tmp_path / "out", "--check")
    assert "Merged 2 layers into 2 of the model's tensors" in text
    assert "Checked 48 numbers of 2 tensors: all within rounding." in text
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(same_bits(found[name], W) for name, W in merged.items())
    assert "exists; add --overwrite" in complaint(capsys, "merge", base, path, "-o", tmp_path / "out")
    said(capsys, "merge", base, path, "-o", tmp_path / "out", "--overwrite", "--threads", "1")


def test_a_wrong_result_is_found_and_taken_away(model, tmp_path, capsys, monkeypatch):
    base, path, merged = model
    original = verify.open_checkpoint

    def spoilt(place):
        if Path(place) != base:
            file = Path(place) / "model.safetensors"
            save_file({name: W + (0.1 if "l1" in name else 0) for name, W in merged.items()}, file)
        return original(place)

    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    words, before = ("merge", base, path, "-o", tmp_path / "out", "--check"), names()
    with monkeypatch.context() as patch:
        patch.setattr(verify, "open_checkpoint", spoilt)
        assert "'l1.proj.weight' is off by" in complaint(capsys, *words, code=1)
        assert names() == before
    said(capsys, *words)
    good = (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setattr(verify, "open_checkpoint", spoilt)
    assert "so the result was removed" in complaint(capsys, *words, "--overwrite", code=1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == good
    assert names() == sorted([*before, "out"])


@pytest.mark.parametrize("kind", ["linear", "dora", "embedding", "conv"])
def test_the_check_accepts_every_kind_and_low_precision(kind, tmp_path):
    torch.manual_seed(0)
    A, B, shape = torch.randn(2, 40), torch.randn(70, 2), (70, 40)
    update = {
        "linear": lambda: lora.LoRAUpdate(A, B, 4),
        "dora": lambda: lora.LoRAUpdate(A, B, 4, magnitude=torch.rand(70)),
        "embedding": lambda: lora.EmbeddingUpdate(A, B, 4),
        "conv": lambda: lora.ConvolutionUpdate(A[:, :, None], B[:, :, None], 4),
    }[kind]()
    W = torch.randn(update.usual_layout.stored_shape(update.canonical_shape)).half()
    assert W.shape[0] in shape
    save_file({"x.weight": W}, tmp_path / "base.safetensors")
    made = lora.Adapter(lora.LoRAConfig(), {"x": update})
    lora.merge_checkpoint(tmp_path / "base.safetensors", made, tmp_path / "out")
    checked = verify.check_merged(tmp_path / "base.safetensors", made, tmp_path / "out")
    assert 0 < checked.worst <= 1
    assert checked.tensors == 1


def test_the_check_does_not_trust_the_arithmetic_of_the_merge(model, tmp_path, capsys, monkeypatch):
    base, path, _ = model
    right = merging.add_to_block

    def wrong(block, first, strips, scaling, out):
        right(block, first, strips, 1.5 * scaling, out)

    for module in (merging, ops):
        monkeypatch.setattr(module, "add_to_block", wrong)
    assert "is off by" in complaint(capsys, "merge", base, path, "-o", tmp_path / "out", "--check", code=1)


@pytest.mark.parametrize("layout", ["packed", "slices, (in, out)"])
def test_the_check_knows_parts_of_a_weight_and_other_layouts(layout, tmp_path):
    torch.manual_seed(0)
    if layout == "packed":
        name, W = "attn.in_proj_weight", torch.randn(120, 40)
        layers = {f"attn.{x}_proj": lora.ProjectionUpdate(torch.randn(2, 40), torch.randn(40, 2), 4) for x in "kv"}
    else:
        name, W = "c_attn.weight", torch.randn(90, 40)
        slices = {"enable_lora": (True, False, True), "widths": (10, 20, 10)}
        layers = {"c_attn": lora.FusedUpdate(torch.randn(4, 90), torch.randn(20, 2), 4, **slices)}
    save_file({name: W.bfloat16()}, tmp_path / "base.safetensors")
    made = lora.Adapter(lora.LoRAConfig(), layers)
    lora.merge_checkpoint(tmp_path / "base.safetensors", made, tmp_path / "out")
    assert 0 < verify.check_merged(tmp_path / "base.safetensors", made, tmp_path / "out").worst <= 1


def test_what_cannot_be_merged_is_said(model, tmp_path, capsys):
    base, path, _ = model
    lora.save(adapter().rename({"l0": "k0"}), tmp_path / "other")
    assert "lacks" in complaint(capsys, "merge", base, tmp_path / "other", "-o", tmp_path / "out")
    assert "no weights" in complaint(capsys, "merge", path, path, "-o", tmp_path / "out")
    assert "--threads 0" in complaint(capsys, "merge", base, path, "-o", tmp_path / "out", "--threads", "0")
    for place in (base, path, tmp_path):
        assert "what is read" in complaint(capsys, "merge", base, path, "-o", place, "--overwrite")
    assert (base / "model.safetensors").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    """The process is interrupted as soon as it has begun to write."""
    (tmp_path / "base").mkdir()
    weights = {f"l{i}.proj.weight": torch.randn(4, 6) for i in range(2)}
    save_file(weights | {"rest": torch.zeros(40 << 20)}, tmp_path / "base" / "model.safetensors")
    lora.save(adapter(), tmp_path / "a")
    code = (
        "import signal, sys, time, loralib.checkpoints.write as write\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits that it is ignored
        "copy = write.copy_bytes\n"
        "def slowly(*args):\n    time.sleep(0.3)\n    return copy(*args)\n"
        "write.copy_bytes = slowly\n"
        "from loralib.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["merge", str(tmp_path / "base"), str(tmp_path / "a"), "-o", str(tmp_path / "out"), "--threads", "1"]
    run = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if any(tmp_path.glob(".out*")):
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "interrupted" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]
