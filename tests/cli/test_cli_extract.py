"""`loralib extract`: an adapter from two models."""

import copy
import json

import pytest
import torch

import loralib as lora
from cli.conftest import complaint, said
from hf import logits, tiny
from models import randomize


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
    assert "4 layers, r=2" in text
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
