"""A command in a process of its own, so that its peak memory is its own, and which ends when the one that started it does.

Where nothing but processors computes, the process is a copy of one that has loaded the libraries once (multiprocessing's fork
server); drivers of accelerators do not survive a copy, so there each process loads them itself.
"""

import _thread
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from types import FrameType

import torch

from ..train.signals import handling

INTERRUPTED = 130
_LIBRARIES = ["loralib.recipes.run", "loralib.recipes.nlu.text_classification", "loralib.recipes.nlg.text_generation"]


def wait_for(words: Sequence[str], module: str = "loralib") -> int:
    """Run `python -m MODULE WORDS` and wait for it to end in its own way; its exit code, or `INTERRUPTED` after Ctrl-C or
    SIGTERM.

    Both are passed on as SIGTERM. At a terminal the process has Ctrl-C already, and takes the two for one. What it prints to
    standard output is dropped.
    """
    asked: list[int] = []
    process = _context().Process(target=_run, args=(module, list(words)))  # type: ignore[attr-defined]

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if process.pid is not None:
            process.terminate()

    with handling(pass_on):
        process.start()
        if asked:
            process.terminate()
        process.join()
        code = int(process.exitcode)
        process.close()
    return INTERRUPTED if asked else code


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods() or torch.accelerator.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LIBRARIES)
    return context


def _run(module: str, words: list[str]) -> None:
    """The command, in the process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """End this process, as by SIGTERM, when the one that started it has ended, killed or not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # the command has not begun
        os._exit(INTERRUPTED)
    if sys.platform == "win32":
        _thread.interrupt_main(signal.SIGTERM)
    else:  # which wakes the main thread, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
