"""The example on convolutions, made small: what it says about a real network and real images holds.

1,500 images, once, by LoRA: 81.7 % of these 2,000 test images before, 84.9 %, 84.8 % and 85.2 % after (seeds 0, 1 and 2).
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import loralib as lora
from models import same_bits
from peers import data, library

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parent.parent / "examples" / "conv_domain_shift.py"


@pytest.fixture(scope="module")
def example() -> Any:
    for name in ("PIL", "matplotlib", "rich"):
        library(name)
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder() -> Path:
    return data("cifar10_jpg", "cifar10_jpg.tar.gz").parent.parent


@pytest.fixture(scope="module")
def repaired(example: Any, folder: Path) -> SimpleNamespace:
    """A network after a short training by LoRA; its tensors and its accuracy on `test` before."""
    training, test = example.sample(folder, "train", 1500), example.sample(folder, "test", 2000)
    model = example.pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = example.accuracy(model, test)
    torch.manual_seed(0)
    example.choose_trained(model, "lora")
    (loss,) = example.train(model, training, epochs=1, learning_rate=example.LEARNING_RATES["lora"])
    return SimpleNamespace(model=model, tensors=tensors, test=test, before=before, loss=loss)


def test_the_shift_is_there(repaired: SimpleNamespace) -> None:
    assert 0.77 < repaired.before < 0.85  # 91.78 % on the original images


def test_a_short_training_repairs_some_of_it(example: Any, repaired: SimpleNamespace) -> None:
    assert repaired.loss < 1
    assert example.accuracy(repaired.model, repaired.test) > repaired.before + 0.02


def test_it_changes_no_bit_of_the_network_itself(repaired: SimpleNamespace) -> None:
    after = repaired.model.state_dict()
    assert any("running_var" in name for name in repaired.tensors)
    assert all(same_bits(after[name], tensor) for name, tensor in repaired.tensors.items())
    assert after.keys() - repaired.tensors.keys() == {name for name in after if ".lora_" in name}


def test_merged_it_predicts_the_same(example: Any, repaired: SimpleNamespace) -> None:
    some = repaired.test[:500]
    apart = example.predictions(repaired.model, some)
    with lora.merged(repaired.model):
        merged = example.predictions(repaired.model, some)
    assert (merged != apart).sum() <= 1  # another order of summation may tip one image over
    assert torch.equal(example.predictions(repaired.model, some), apart)


def test_the_saved_adapter_repairs_another_copy(example: Any, folder: Path, repaired: SimpleNamespace, tmp_path: Path) -> None:
    size, fresh = example.save_trained(repaired.model, tmp_path), example.pretrained(folder)
    assert 4 * 25_152 < size < 4 * 25_152 + 10_000
    lora.attach(fresh, lora.load(tmp_path))
    x = example.as_input(repaired.test.pixels[:64])
    assert same_bits(fresh(x), repaired.model(x))


@pytest.mark.parametrize("method", ["lora", "full", "last-layer"])
def test_before_training_the_logits_are_those_of_the_plain_network(example: Any, folder: Path, method: str) -> None:
    x, model = torch.randn(16, 3, 32, 32), example.pretrained(folder)
    plain = model(x)
    example.choose_trained(model, method)
    assert same_bits(model(x), plain)


def test_what_each_method_trains(example: Any) -> None:
    def trained(method: str) -> int:
        model = example.ResNet20()
        example.choose_trained(model, method)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def factors(d: int, k: int) -> int:
        return 4 * 9 * d + 4 * k

    stages = [6 * factors(16, 16), factors(16, 32) + 5 * factors(32, 32), factors(32, 64) + 5 * factors(64, 64)]
    assert trained("lora") == sum(stages) == 25_152
    assert (trained("full"), trained("last-layer")) == (269_722, 650)


def test_every_image_is_shifted_or_mirrored_whole(example: Any) -> None:
    pixels = torch.arange(1, 32 * 32 + 1).reshape(1, 32, 32, 1).expand(200, -1, -1, 3)
    for image in example.augmented(pixels)[..., 0]:
        inside = image[image.any(1)][:, image.any(0)]
        assert min(inside.shape) >= 28
        assert (inside.diff(dim=0) == 32).all()
        assert (inside.diff(dim=1).abs() == 1).all()
        assert inside.diff(dim=1).unique().numel() == 1


def test_the_command_line(
    example: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--images", "120", "--hold-out", "40", "--epochs", "1", "--data", str(folder), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["example", *words])
    assert example.main() == 0
    shown = capsys.readouterr().out
    assert "80 JPEG images, 1 epochs; 40 training images held out" in shown
    assert all(text in shown for text in ("25,152", "269,722", "650", "merged"))
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert lora.load(tmp_path / "lora").num_parameters() == 25_152


def test_missing_data_is_told_with_a_remedy(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORALIB_DATA", raising=False)
    for words in ([], ["--data", "x", "--epochs", "0"], ["--data", "x", "--images", "9", "--hold-out", "9"]):
        with pytest.raises(SystemExit):
            example.options(words)
    with pytest.raises(lora.DataError, match=r"missing; name the folder .* --data or LORALIB_DATA"):
        example.sample(tmp_path, "test", 10)
    (tmp_path / "cifar10_jpg").mkdir()
    (tmp_path / "cifar10_jpg" / "cifar10_jpg.tar.gz").write_bytes(b"no archive")
    with pytest.raises(lora.DataError, match="damaged"):
        example.sample(tmp_path, "test", 10)
