"""Our safetensors files are those of the safetensors library, byte for byte."""

import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loralib as lora
from loralib.storage.safetensors import DTYPES, mapped_tensors, read_header, tensor_bytes
from models import bits


def read_tensors(path):
    """The tensors and the metadata of a file."""
    header = read_header(path)
    return mapped_tensors(path, header), header.metadata


SHAPES = st.sampled_from([(), (0,), (1,), (3,), (2, 3), (2, 0, 2), (1, 2, 2)])


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.text(max_size=6).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES),
        max_size=6,
    )
)
def test_a_file_has_the_very_bytes_of_the_library(drawn):
    tensors = {name: torch.zeros(shape, dtype=torch.uint8).to(dtype) for name, (dtype, shape) in drawn.items()}
    for metadata in ({"format": "pt"}, {}):
        assert tensor_bytes(tensors, metadata) == safetensors.torch.save(tensors, metadata=metadata or None)


def test_metadata_is_in_order_however_it_was_given():
    a = tensor_bytes({}, {"b": "1", "a": "2"})
    assert a == tensor_bytes({}, {"a": "2", "b": "1"})


def test_what_is_written_is_read(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.tensor(1.5).bfloat16()}
    (tmp_path / "f").write_bytes(tensor_bytes(tensors, {"x": "y"}))
    found, metadata = read_tensors(tmp_path / "f")
    assert metadata == {"x": "y"}
    assert {name: bits(t) for name, t in found.items()} == {name: bits(t) for name, t in tensors.items()}
    header = read_header(tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    for name, entry in header.entries.items():
        assert content[header.size + entry.start : header.size + entry.end] == bits(tensors[name])


def test_a_mapped_tensor_is_alone_in_its_storage_and_writing_to_it_leaves_the_file(tmp_path):
    content = tensor_bytes({"a": torch.ones(1000), "b": torch.ones(2), "c": torch.ones(0, 3)}, {})
    (tmp_path / "f").write_bytes(content)
    tensors, _ = read_tensors(tmp_path / "f")
    assert {name: t.untyped_storage().nbytes() for name, t in tensors.items()} == {"a": 4000, "b": 8, "c": 0}
    assert len(pickle.dumps(tensors["b"])) < 1000
    tensors["b"].zero_()
    assert torch.equal(tensors["a"], torch.ones(1000))
    assert (tmp_path / "f").read_bytes() == content


def test_a_view_of_a_larger_tensor_is_written_alone():
    base = torch.randn(4, 4)
    content = tensor_bytes({"t": base.t(), "s": base[1:2]}, {})
    found = safetensors.torch.load(content)
    assert torch.equal(found["t"], base.t())
    assert torch.equal(found["s"], base[1:2])


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00{}x", b"\x03" + b"\x00" * 7 + b"{x}"]
)
def test_what_is_no_whole_file_is_refused(content, tmp_path):
    (tmp_path / "f").write_bytes(content)
    for reader in (read_header, read_tensors):
        with pytest.raises(lora.FormatError, match="not a whole safetensors file"):
            reader(tmp_path / "f")


def test_a_file_without_metadata_is_one_whose_metadata_are_null(tmp_path):
    header = b'{"__metadata__":null}   '
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header)
    assert read_header(tmp_path / "f").metadata == {}
    assert read_tensors(tmp_path / "f") == ({}, {})


def test_a_dtype_that_the_format_has_not_is_refused():
    with pytest.raises(lora.FormatError, match="complex128"):
        tensor_bytes({"z": torch.zeros(1, dtype=torch.complex128)}, {})
