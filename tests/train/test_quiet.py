"""Silence ends with its block, however it ends."""

import os
from collections.abc import Callable

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from loralib.train.quiet import quiet_transformers, same_environment


def state() -> tuple[int, bool, bool]:
    return logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()


@quiet_transformers()
@same_environment()
def interrupted(work: Callable[[], object]) -> None:
    work()
    raise KeyboardInterrupt


@pytest.mark.parametrize("downloads", [True, False])
@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("verbosity", [logging.WARNING, logging.DEBUG])
def test_messages_and_bars_are_as_before_after_the_block(verbosity: int, bars: bool, downloads: bool) -> None:
    before = state()
    try:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar() if bars else logging.disable_progress_bar()
        if bars and not downloads:
            disable_progress_bars()
        set_ = state()
        within: list[object] = []
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda: within.append(state()))
        assert within == [(logging.ERROR, False, False)]
        assert state() == set_
    finally:
        logging.set_verbosity(before[0])
        logging.enable_progress_bar() if before[1] else logging.disable_progress_bar()
        enable_progress_bars() if before[2] else disable_progress_bars()


def test_the_environment_is_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("GONE", "2")
    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: (os.environ.update(KEPT="3", NEW="4"), os.environ.pop("GONE")))
    assert dict(os.environ) == before
