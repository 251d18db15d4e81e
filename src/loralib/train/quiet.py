"""What transformers changes in the process: messages, progress bars and the environment are as before after a call."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings and no progress bars of transformers and huggingface_hub in the block; all is as before after it."""
    verbosity, bars, downloads = logging.get_verbosity(), logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            with warnings.catch_warnings(action="ignore"):  # that HF_HUB_DISABLE_PROGRESS_BARS forbids it
                logging.enable_progress_bar()
            if not downloads:
                disable_progress_bars()


@contextmanager
def same_environment() -> Iterator[None]:
    """Variables of the environment that the block sets (Trainer tells accelerate by them) are as before after it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
