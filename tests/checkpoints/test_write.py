"""The bytes of merged files: every piece of work writes its own part, in any order and from any kind of file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import loralib as lora
from checkpoints.conftest import simple
from loralib.adapters.layout import Layout
from loralib.adapters.token_rows import TokenRows
from loralib.checkpoints import write
from loralib.checkpoints.checkpoint import Checkpoint, open_checkpoint
from loralib.checkpoints.merge_blocks import Change
from loralib.checkpoints.merge_plan import Target
from loralib.ops.autograd import merging
from loralib.storage.safetensors import read_header
from models import close, same_bits


def test_files_are_copied_where_the_system_does_not_do_it_itself(tmp_path, monkeypatch):
    base, adapter = simple(tmp_path)
    tensors = load_file(base / "model.safetensors") | {"other": torch.randn(1000)}
    save_file(tensors, base / "model.safetensors")

    def refuses(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuses)
    monkeypatch.setattr(write, "CHUNK", 512)
    lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert same_bits(load_file(tmp_path / "out" / "model.safetensors")["other"], tensors["other"])


def stored(folder: Path, tensors: dict[str, Tensor], pickled: bool = False, **metadata: str) -> Checkpoint:
    """A checkpoint of these tensors in one file."""
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata=metadata or None)
    return open_checkpoint(folder)


def copies(checkpoint: Checkpoint) -> list[Target]:
    return [Target(name, place.dtype, place.shape, name) for name, place in checkpoint.tensors.items()]


def written(checkpoint: Checkpoint, targets: list[Target], path: Path, order: Callable[[list], list] = list) -> int:
    """How many bytes the pieces of work say that they wrote."""
    with write.file_of(checkpoint, targets, path) as tasks:
        return sum(task() for task in order(tasks))


TENSORS = {
    "a": torch.randn(5, 7),
    "b": torch.arange(3),
    "c": torch.randn(3).bfloat16(),
    "empty": torch.zeros(0, 3),
    "one": torch.tensor(2.5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("order", [list, lambda tasks: tasks[::-1]], ids=["in order", "backwards"])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_tensors_are_copied_in_any_order_in_pieces_of_any_size(pickled, order, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "CHUNK", chunk)
    checkpoint = stored(tmp_path, TENSORS, pickled)
    count = written(checkpoint, copies(checkpoint), tmp_path / "out", order)
    assert count == sum(tensor.nbytes for tensor in TENSORS.values())
    found = load_file(tmp_path / "out")
    assert found.keys() == TENSORS.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in TENSORS.items())


def test_metadata_of_the_source_stay_and_where_there_are_none_the_format_is_said(tmp_path):
    for name, metadata, expected in (("x", {"author": "me"}, {"format": "pt", "author": "me"}), ("y", {}, {"format": "pt"})):
        (tmp_path / name).mkdir()
        checkpoint = stored(tmp_path / name, {"a": torch.ones(2)}, **metadata)
        written(checkpoint, copies(checkpoint), tmp_path / name / "out")
        assert read_header(tmp_path / name / "out").metadata == expected
    new = Target("a", "F32", (2,), value=torch.ones(2))
    written(checkpoint, [new], tmp_path / "new")
    assert read_header(tmp_path / "new").metadata == {"format": "pt"}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("elements", [1, 9, 1 << 20])
def test_a_weight_that_changes_is_the_effective_one_with_the_rows_of_tokens(pickled, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "ELEMENTS", elements)
    W, rows = torch.randn(6, 4), TokenRows((4, 0), torch.randn(2, 4))
    update = lora.LoRAUpdate(torch.randn(2, 4), torch.randn(6, 2), 3)
    checkpoint = stored(tmp_path, {"w": W}, pickled)
    change = Change(update, Layout())
    targets = [Target("w", "F32", (6, 4), "w", [change], rows=rows), Target("half", "F16", (6, 4), value=W.half(), rows=rows)]
    assert written(checkpoint, targets, tmp_path / "out") == 6 * 4 * (4 + 2)
    found = load_file(tmp_path / "out")
    for name, expected in (("w", update.effective_weight(W)), ("half", W.half())):
        expected[[4, 0]] = rows.values.to(expected.dtype)
        assert close(found[name], expected, factor=4)
        assert same_bits(found[name][[4, 0]], expected[[4, 0]])


def test_a_value_takes_the_dtype_of_its_place_and_is_updated_there(tmp_path):
    checkpoint, value = stored(tmp_path, {"w": torch.zeros(3, 2).half()}), torch.randn(3, 2)
    update = lora.LoRAUpdate(torch.randn(1, 2), torch.randn(3, 1), 2)
    changed = Target("w", "F16", (3, 2), "w", [Change(update, Layout())], value)
    written(checkpoint, [changed, Target("v", "F16", (3, 2), value=value)], tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert same_bits(found["v"], value.half())
    assert close(found["w"], update.effective_weight(value.half()))


@pytest.mark.parametrize("changes", [False, True])
def test_what_the_dtype_cannot_hold_is_refused_by_name(changes, tmp_path):
    checkpoint, large = stored(tmp_path, {"w": torch.ones(3, 2).half()}), torch.full((3, 2), 1e5)
    update = lora.LoRAUpdate(torch.full((1, 2), 1e3), torch.full((3, 1), 1e3), 1)
    target = Target("w", "F16", (3, 2), "w", *(([Change(update, Layout())],) if changes else ([], large)))
    with pytest.raises(lora.FormatError, match=r"'w' cannot be merged: .*Nothing was written"):
        written(checkpoint, [target], tmp_path / "out")


def test_a_file_that_is_there_is_not_written_over_and_is_named(tmp_path):
    checkpoint = stored(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(OSError, match=str(tmp_path / "out")):
        written(checkpoint, copies(checkpoint), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_an_error_on_the_way_names_the_file_and_closes_all(tmp_path, monkeypatch):
    checkpoint = stored(tmp_path, {"a": torch.ones(2)})
    opened, closed, close_, open_ = [], [], os.close, os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(open_(*args)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or close_(descriptor))
    with (
        pytest.raises(OSError, match=rf"No space left.*{tmp_path / 'out'}"),
        write.file_of(checkpoint, copies(checkpoint), tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    assert sorted(opened) == sorted(closed)


@pytest.mark.parametrize("system", ["copies all", "copies some", "copies none", "cannot"])
def test_exactly_the_bytes_asked_for_are_copied_whatever_the_system_does(system, tmp_path, monkeypatch):
    content, copy_range = bytes(range(100)), getattr(os, "copy_file_range", None)

    def some(source: int, out: int, size: int, *offsets: int) -> int:
        return copy_range(source, out, min(size, 7), *offsets)

    def cannot(*args: int) -> int:
        raise OSError(18, "Invalid cross-device link")

    calls = {"copies some": some, "copies none": lambda *args: 0, "cannot": cannot}
    if system in calls:
        monkeypatch.setattr(os, "copy_file_range", calls[system])
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b"." * 60)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("r+b") as out:
        assert write.copy_bytes(source.fileno(), 10, 5, 30, out.fileno(), 20) == 30
    assert (tmp_path / "b").read_bytes() == b"." * 25 + content[15:45] + b"." * 5


def test_a_source_that_became_shorter_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"short")
    shorter = pytest.raises(OSError, match="the file became shorter")
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("w+b") as out, shorter:
        write.copy_bytes(source.fileno(), 0, 0, 6, out.fileno(), 0)


def test_a_system_that_reads_and_writes_a_part_at_a_time_is_asked_again(tmp_path, monkeypatch):
    read, write_ = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, at: read(descriptor, [views[0][:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda descriptor, view, at: write_(descriptor, view[:3], at))
    monkeypatch.setattr(os, "copy_file_range", lambda *args: 0)
    checkpoint = stored(tmp_path, TENSORS)
    written(checkpoint, copies(checkpoint), tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert all(same_bits(found[name], tensor) for name, tensor in TENSORS.items())
