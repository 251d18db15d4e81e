"""`loralib combine`, `extract` and `merge`: what they write is what they say, and what cannot be done is said in a sentence."""

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loralib as lora
from hf import logits, tiny
from loralib import ops
from loralib.checkpoints import verify
from loralib.cli import main
from loralib.ops.autograd import merging
from models import randomize, same_bits


def said(capsys, *words: object) -> str:
    """What a command prints that succeeds."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def complaint(capsys, *words: object, code: int = 2) -> str:
    """The one sentence of a command whose words are off, or that fails."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("loralib: ")
    return captured.err


def adapter(seed: int = 0, head: float | None = None, **metadata: str) -> lora.Adapter:
    torch.manual_seed(seed)
    layers = {f"l{i}.proj": lora.LoRAUpdate(torch.randn(3, 6), torch.randn(4, 3), 6) for i in range(2)}
    tensors = {} if head is None else {"head.weight": torch.full((2,), head)}
    config = lora.LoRAConfig(modules_to_save=["head"] if tensors else [])
    return lora.Adapter(config, layers, tensors, metadata)


@pytest.fixture
def two(tmp_path):
    lora.save(adapter(0, 1.0, base_model_name_or_path="one"), tmp_path / "a")
    lora.save(adapter(1, 3.0, base_model_name_or_path="two"), tmp_path / "b.safetensors", format="safetensors")
    return tmp_path / "a", tmp_path / "b.safetensors"


# --- combine --------------------------------------------------------------------------------------------------------


def test_a_weighted_sum_is_written_and_reported(two, tmp_path, capsys):
    text = said(capsys, "combine", *two, "--weights", "0.75", "-0.5", "--tensors", "first", "-o", tmp_path / "out")
    assert "0.75 * PEFT folder a: 2 layers of rank 3" in text
    assert "-0.5 * one-file adapter b.safetensors" in text
    assert "2 layers of rank 6" in text
    assert "different base models: one, two" in text
    a, b, found = (lora.load(path) for path in (*two, tmp_path / "out"))
    assert torch.allclose(found.delta("l0.proj"), 0.75 * a.delta("l0.proj") - 0.5 * b.delta("l0.proj"), atol=1e-5)


def test_a_lower_rank_tells_what_it_keeps(two, tmp_path, capsys):
    text = said(capsys, "combine", *two, "--method", "svd", "--r", "2", "--tensors", "drop", "-o", tmp_path / "out")
    found = lora.load(tmp_path / "out")
    exact = lora.combine([lora.load(path) for path in two], tensors="drop")
    share = sum(float(found.delta(n).square().sum()) for n in found.layers)
    share /= sum(float(exact.delta(n).square().sum()) for n in exact.layers)
    assert f"{share:.2%} of the exact sum's" in text
    assert found.config.r == 2


@pytest.mark.parametrize("method", ["ties", "dare", "magnitude", "dare_ties"])
def test_pruning_from_the_command_line(method, two, tmp_path, capsys):
    words = ("--method", method, "--density", "0.5", "--seed", "3", "--tensors", "average", "--weights", "0.5", "0.5")
    said(capsys, "combine", *two, *words, "-o", tmp_path / "out.safetensors", "--format", "safetensors")
    expected = lora.combine([lora.load(p) for p in two], [0.5, 0.5], method, density=0.5, seed=3, tensors="average")
    assert lora.load(tmp_path / "out.safetensors") == expected


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["--weights", "1"], "1 for 2 adapters"),
        ([], "'head.weight' was trained in full"),
        (["--r", "2", "--tensors", "drop"], "svd"),
        (["--method", "ties", "--tensors", "drop"], "density"),
        (["--method", "average"], "'average' is not one of"),
        (["--format", "kohya", "--tensors", "drop"], ".safetensors"),
    ],
)
def test_what_cannot_be_combined_is_said(words, telling, two, tmp_path, capsys):
    assert telling in complaint(capsys, "combine", *two, *words, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- extract --------------------------------------------------------------------------------------------------------


def test_an_adapter_is_extracted_and_makes_the_tuned_model_of_the_base(tmp_path, capsys):
    base = tiny("Bert")
    tuned = copy.deepcopy(base)
    lora.inject(tuned, lora.LoRAConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]))
    with torch.no_grad():
        randomize(tuned).classifier.bias.add_(1)
    lora.merge(tuned, keep=False)
    base.save_pretrained(tmp_path / "base")
    type(base).save_pretrained(tuned, tmp_path / "tuned")
    text = said(capsys, "extract", tmp_path / "tuned", tmp_path / "base", "--r", "2", "-o", tmp_path / "out")
    assert "4 layers of rank 2" in text
    assert "keep 100.00%" in text
    assert "Taken over in full: classifier.bias" in text
    fresh = tiny("Bert")
    lora.attach(fresh, lora.load(tmp_path / "out"))
    assert torch.allclose(logits(fresh), logits(tuned), atol=1e-5)
    found = json.loads(
        said(capsys, "extract", tmp_path / "tuned", tmp_path / "base", "--energy", "0.5", "--json", "-o", tmp_path / "j")
    )
    assert {row["r"] for row in found["layers"]} <= {1, 2}
    assert found["in_full"] == ["classifier.bias"]


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        ([], "give --r"),
        (["--r", "0"], "r=0"),
        (["--energy", "2"], "energy=2"),
        (["--r", "2", "--target-modules", "quary"], "query"),
        (["--r", "2"], "do not differ"),
    ],
)
def test_what_cannot_be_extracted_is_said(words, telling, tmp_path, capsys):
    tiny("Bert").save_pretrained(tmp_path / "base")
    tiny("Bert").save_pretrained(tmp_path / "tuned")
    assert telling in complaint(capsys, "extract", tmp_path / "tuned", tmp_path / "base", *words, "-o", tmp_path / "out")
    assert "no weights" in complaint(capsys, "extract", tmp_path, tmp_path / "base", "--r", "1", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- merge ----------------------------------------------------------------------------------------------------------


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
