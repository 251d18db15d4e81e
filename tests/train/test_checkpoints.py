"""The newest checkpoint that is whole, by the names that transformers gives its files."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from loralib.train import checkpoints
from loralib.train.checkpoints import last_whole_checkpoint


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / checkpoints.STATE).write_text("{}")
    save_file({"a": torch.ones(3)}, folder / "adapter_model.safetensors")
    torch.save({}, folder / "optimizer.pt")
    return folder


def test_the_names_are_those_of_transformers() -> None:
    assert (checkpoints.PREFIX, checkpoints.STATE) == (PREFIX_CHECKPOINT_DIR, TRAINER_STATE_NAME)


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    whole = [write(tmp_path / f"checkpoint-{step}") for step in (9, 10, 11, 12)]
    assert last_whole_checkpoint(tmp_path) == whole[3]
    (whole[3] / checkpoints.STATE).unlink()  # which is written last
    tensors = whole[2] / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert last_whole_checkpoint(tmp_path) == whole[1]
    optimizer = whole[1] / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-30])
    assert last_whole_checkpoint(tmp_path) == whole[0]


def test_a_folder_without_checkpoints_has_no_last_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "none") is None
