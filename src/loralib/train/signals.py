"""Ctrl-C and SIGTERM: one way to end for both. Imports neither torch nor transformers."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handling(handler: Handler, *, only_usual: bool = False) -> Iterator[None]:
    """SIGINT and SIGTERM go to the handler inside the block, if this is the main thread, to which Python gives them.

    only_usual: leave alone a signal that is ignored, or has a handler that Python did not give it.
    """
    usual, here = (signal.SIG_DFL, signal.default_int_handler), threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if here and not (only_usual and signal.getsignal(n) not in usual)]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt` for either signal; a SIGTERM that follows does not disturb what cleans up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
