"""All that is in a base's folder is in the merged one, but for other copies of its weights; and nothing from elsewhere."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loralib as lora


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def based(folder: Path) -> tuple[Path, lora.Adapter]:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"proj.weight": torch.ones(3, 4)}, folder / "model.safetensors")
    return folder, lora.Adapter(lora.LoRAConfig(r=1), {"proj": lora.LoRAUpdate(torch.ones(1, 4), torch.ones(3, 1), 1)})


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_folders_are_copied_and_what_is_not_is_named(tmp_path: Path) -> None:
    base, adapter = based(tmp_path / "base")
    kept = ["tokenizer.json", "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/config.json"]
    kept += ["sparse_linear.pt", "a/b/c.txt", ".gitattributes", "2_Dense/pytorch_model.bin", "modeling_own.py"]
    again = ["pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "onnx/model.onnx", "original/consolidated.00.pth"]
    again += ["openvino/openvino_model.bin", "openvino/openvino_model.xml", "consolidated.safetensors", "flax_model.msgpack"]
    fill(base, *kept, *again, ".git/config", ".cache/huggingface/x")
    own = [".loralib.lock", ".config.json.12.tmp", "inner/.config.json.lock"]
    fill(base, *own)
    report = lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert set(kept) | {"model.safetensors"} <= tree(tmp_path / "out")
    assert not {*again, *own} & tree(tmp_path / "out")
    assert set(report.left_out) == {*again, ".git/", ".cache/"}
    assert all((tmp_path / "out" / name).read_text() == name for name in kept)


def test_an_index_of_shards_is_written_anew_and_not_called_left_out(tmp_path: Path) -> None:
    base, adapter = based(tmp_path / "base")
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    index = '{"weight_map": {"proj.weight": "model-00001-of-00001.safetensors"}}'
    (base / "model.safetensors.index.json").write_text(index)
    assert lora.merge_checkpoint(base, adapter, tmp_path / "out").left_out == ()


@pytest.mark.parametrize("where", ["notes.txt", "inner/notes.txt", "folder", "config.json", "nowhere", "model.safetensors"])
def test_a_link_that_leads_out_of_the_base_is_refused_and_nothing_is_written(where: str, tmp_path: Path) -> None:
    base, adapter = based(tmp_path / "base")
    fill(tmp_path / "private", "key")
    target = {"folder": tmp_path / "private", "nowhere": tmp_path / "none"}.get(where, tmp_path / "private" / "key")
    if where == "model.safetensors":
        target = (base / where).rename(tmp_path / "private" / where)
    (base / where).parent.mkdir(exist_ok=True)
    (base / where).symlink_to(target)
    with pytest.raises(lora.FormatError, match=r"is a link that leads out of .*Nothing was written") as caught:
        lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert str(base / where) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "private"]


def test_links_within_the_base_and_those_of_the_hubs_cache_are_files_like_others(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b"
    base, adapter = based(folder / "snapshots" / "0123")
    (folder / "blobs").mkdir()
    (base / "model.safetensors").rename(folder / "blobs" / "1")
    (folder / "blobs" / "2").write_text("tokens")
    (base / "model.safetensors").symlink_to(os.path.join("..", "..", "blobs", "1"))
    (base / "vocab.txt").symlink_to(os.path.join("..", "..", "blobs", "2"))
    (base / "again.txt").symlink_to("vocab.txt")
    lora.merge_checkpoint(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "again.txt").read_text() == (tmp_path / "out" / "vocab.txt").read_text() == "tokens"
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
