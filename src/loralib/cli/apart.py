"""`python -m loralib.cli.apart COMMAND …`: a command in a process of its own, which ends when the one that started it does.

It ends as by SIGTERM when its standard input does: the process that started it holds the other end of that pipe, which the
system closes however that process ends. (A parent's number can be looked at only now and then, and Windows keeps it.)
"""

import _thread
import os
import signal
import sys
import threading

from . import INTERRUPTED, console_script


def main() -> None:
    """Run the command in `sys.argv`, and end it when the standard input ends."""
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    console_script()


def _end_with(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # the command has not begun
        os._exit(INTERRUPTED)
    _thread.interrupt_main(signal.SIGTERM)


if __name__ == "__main__":
    main()
