"""Weights in files are read as they were written: whole, in shards, pickled; and damage is named."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import loralib as lora
from loralib.checkpoints.checkpoint import open_checkpoint
from loralib.storage.safetensors import CODES
from models import same_bits

TENSORS = {"a.weight": torch.randn(3, 2), "b": torch.arange(4), "c": torch.tensor(2.5).bfloat16()}


def write(tensors, path):
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


def write_shards(folder, stem, tensors):
    base, _, ending = stem.rpartition(".")
    names = {name: f"{base}-{i:05d}-of-{len(tensors):05d}.{ending}" for i, name in enumerate(tensors, 1)}
    for name, file in names.items():
        write({name: tensors[name]}, folder / file)
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": names}))
    return names


STEMS = ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.bin"]


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
    stem=st.sampled_from(STEMS),
    sharded=st.booleans(),
)
def test_what_was_written_is_read(shapes, dtype, stem, sharded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tensors = {f"t{i}.weight": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    write_shards(folder, stem, tensors) if sharded else write(tensors, folder / stem)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert len(checkpoint.files) == (len(tensors) if sharded else 1)
    for name, t in tensors.items():
        place = checkpoint.tensors[name]
        assert (place.dtype, place.shape) == (CODES[dtype], tuple(t.shape))
        assert same_bits(checkpoint.tensor(name), t)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_one_file_has_the_configuration_next_to_it(name, tmp_path):
    write(TENSORS, tmp_path / name)
    assert open_checkpoint(tmp_path / name).config == {}
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert open_checkpoint(tmp_path / name).config == {"model_type": "gpt2"}


def test_safetensors_are_preferred_to_pickled_files(tmp_path):
    write({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    write(TENSORS, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


def test_an_unknown_tensor_is_a_key_error(tmp_path):
    write(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(KeyError):
        open_checkpoint(tmp_path).tensor("x")


def test_what_holds_no_weights_is_refused(tmp_path):
    with pytest.raises(lora.FormatError, match="holds no weights of a model"):
        open_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(lora.FormatError, match="not a state dict"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(lora.FormatError, match="not a whole safetensors file"):
        open_checkpoint(tmp_path)


def test_shards_have_to_be_what_the_index_says(tmp_path):
    names = write_shards(tmp_path, "model.safetensors", TENSORS)
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, telling in (
        (names | {"d": names["b"]}, "names 'd', which no file holds"),
        (names | {"d": "model-00009-of-00009.safetensors"}, "which is not in"),
        (names | {"d": "../model.safetensors"}, "which is not in"),
        ("x", "no weight_map"),
        ({"b": 3}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(lora.FormatError, match=telling):
            open_checkpoint(tmp_path)
    write({"b": TENSORS["b"]}, tmp_path / names["c"])
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(lora.FormatError, match="'b' is in both"):
        open_checkpoint(tmp_path)
