"""One change of prefix finds every layer, or it is said why none does; and which tensors are one."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import loralib as lora
from loralib.checkpoints.checkpoint import Checkpoint, Place, open_checkpoint
from loralib.checkpoints.names import Renaming, Tie, renaming, tie_of

UPDATE = lora.LoRAUpdate(torch.ones(1, 2), torch.ones(2, 1), 1)
PARTS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=3).map(".".join)


def holding(tmp_path, *names: str) -> Checkpoint:
    save_file({f"{name}.weight": torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


def found(checkpoint: Checkpoint, *layers: str) -> Renaming:
    shapes = {name: place.shape for name, place in checkpoint.tensors.items()}
    return renaming(checkpoint, dict.fromkeys(layers, UPDATE), shapes)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(PARTS, min_size=1, max_size=4, unique=True), prefix=st.sampled_from(["", "base.", "model."]))
def test_a_prefix_more_or_less_is_found(names, prefix, tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "model.safetensors"
    for held, asked in ((names, [prefix + name for name in names]), ([prefix + name for name in names], names)):
        tensors = {f"{name}.weight": Place(path, "F32", (2, 2)) for name in held}
        change = found(Checkpoint(path, (path,), tensors), *asked)
        assert [change(name) for name in asked] == held


def test_names_that_are_there_as_they_are_are_preferred(tmp_path):
    assert found(holding(tmp_path, "a.q", "a.a.q"), "a.q") == Renaming()


def test_missing_and_ambiguous_names_are_refused(tmp_path):
    checkpoint = holding(tmp_path, "x.q", "y.q", "z.other")
    with pytest.raises(lora.FormatError, match=r"2 times, in 'x\.', 'y\.'"):
        found(checkpoint, "q")
    with pytest.raises(lora.FormatError, match=r"lacks 1 of the 2 layers.*: x\.qq; nearest there: .*x\.q"):
        found(checkpoint, "x.q", "x.qq")


def tied(tmp_path, embedding: str, vocabulary: int = 5, **config) -> Tie | None:
    save_file(
        {f"{embedding}.weight": torch.zeros(vocabulary, 2), "pos.wpe.weight": torch.zeros(3, 2)}, tmp_path / "m.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 5} | config))
    return tie_of(open_checkpoint(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("architecture", "embedding", "head"),
    [
        ("GPT2LMHeadModel", "transformer.wte", "lm_head"),
        ("LlamaForCausalLM", "model.embed_tokens", "lm_head"),
        ("BertForMaskedLM", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
        ("RobertaForMaskedLM", "roberta.embeddings.word_embeddings", "lm_head.decoder"),
        ("T5ForConditionalGeneration", "shared", "lm_head"),
    ],
)
def test_a_language_model_ties_its_output_to_its_embedding(architecture, embedding, head, tmp_path):
    assert tied(tmp_path, embedding, architectures=[architecture]) == Tie(f"{embedding}.weight", f"{head}.weight")


@pytest.mark.parametrize(
    ("config", "vocabulary"),
    [
        ({"architectures": ["GPT2Model"]}, 5),
        ({"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": False}, 5),
        ({"architectures": ["GPT2LMHeadModel"]}, 6),
        ({"architectures": None}, 5),
        ({}, 5),
    ],
)
def test_everything_else_is_not_tied(config, vocabulary, tmp_path):
    assert tied(tmp_path, "wte", vocabulary, **config) is None
