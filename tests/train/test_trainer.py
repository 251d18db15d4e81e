"""Disks that are full."""

import errno
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from loralib.train.trainer import write_errors_named

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 256192 vs 256084"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    RuntimeError("basic_ios::clear: iostream error"),
]
OTHER = [
    OSError(errno.ENOENT, "No such file or directory"),
    OSError(errno.ENOSPC, "No space left on device", "/already/named"),
    SafetensorError("Error while deserializing header: header too large"),
    RuntimeError("shapes cannot be multiplied"),
    ValueError("x"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_told_with_the_folder_whichever_library_met_it(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk space") as told, write_errors_named(tmp_path):
        raise error
    assert told.value.filename == str(tmp_path)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_pass_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as passed, write_errors_named(tmp_path):
        raise error
    assert passed.value is error


def test_the_report_of_threads_is_given_back(tmp_path: Path) -> None:
    before = threading.excepthook
    with write_errors_named(tmp_path):
        assert threading.excepthook is not before
    assert threading.excepthook is before
