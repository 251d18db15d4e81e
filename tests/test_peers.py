"""The helper that other tests lean on: nothing is skipped in CI, and 0.1.2 stays out of our way."""

import sys

import pytest

import loralib as lora
from peers import WHEEL_0_1, data, loralib_0_1, require


def test_loralib_0_1_is_another_module_than_ours():
    theirs = loralib_0_1()
    assert sys.modules["loralib"] is lora
    assert theirs.Linear is not lora.Linear
    assert theirs.Linear.__module__ == "loralib_0_1.layers"
    assert str(WHEEL_0_1) in sys.modules["loralib_0_1.layers"].__file__


def test_what_is_missing_fails_in_ci_and_skips_elsewhere(monkeypatch):
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="a thing is missing"):
        require(False, "a thing")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="a thing is missing"):
        require(False, "a thing")
    require(True, "a thing")


def test_missing_data_fails_in_ci(monkeypatch, tmp_path):
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("LORALIB_DATA", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="nothing is missing"):
        data("nothing")
    monkeypatch.delenv("LORALIB_DATA")
    with pytest.raises(pytest.fail.Exception, match="LORALIB_DATA"):
        data("nothing")
