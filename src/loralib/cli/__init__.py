"""The command line: `loralib COMMAND …`, one file per command, loaded only when it runs.

Exit codes: 0 done; 2 usage error (one sentence on stderr says how to fix it); 1 failed; 130 stopped by Ctrl-C or SIGTERM.
"""

import argparse
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import pairwise

from .. import __version__
from ..errors import ConfigError, LoRAError
from ..printing import printable
from ..train.signals import handling, interrupt
from .parsing import OneSentenceParser
from .streams import delivering

TRAINING = {
    "train": "fine-tune an encoder or a language model: LoRA and other methods",
    "compare": "compare LoRA (after a search), last layers and full fine-tuning",
    "study": "study which matrices, which rank and how many rows LoRA needs",
    "count": "count the parameters that LoRA would train",
    "evaluate": "score a run on labelled text",
    "predict": "classify new text with a run",
    "generate": "generate text with a run",
    "chat": "talk with the model of a run",
    "score": "score generated text: BLEU, NIST, ROUGE-L, CIDEr, METEOR, TER, chrF",
}
ADAPTERS = {
    "info": "show what is in an adapter: ranks, targets, counts, spectra",
    "convert": "write an adapter in another format",
    "combine": "add up adapters: exactly, to a lower rank, or with TIES or DARE",
    "extract": "make an adapter from the difference of two models' files",
    "merge": "merge an adapter into a model's files, without building the model",
}
ANALYSES = {"analyze": "show what adapters learned: tables, figures and a page"}
OTHERS = {"completion": "print a shell script that completes commands and options"}
COMMANDS = TRAINING | ADAPTERS | ANALYSES | OTHERS
OF_TEXTS = ("predict", "generate")  # commands whose arguments may be texts in any encoding

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
PATIENCE = 3.0  # seconds that another process than the first waits before it says what went wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. argv: the arguments after `loralib` (default: those of the process)."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options
    if debug:
        words.remove("--debug")
    with handling(interrupt, only_usual=True):
        return guarded(lambda: _run(words), debug)


def _run(words: list[str]) -> int:
    """Run the command that the first argument names."""
    parser = OneSentenceParser(
        prog="loralib",
        usage="COMMAND ...",
        description=f"LoRA for any PyTorch model.\n\n{_listing()}",
        epilog="loralib COMMAND --help shows the options of a command. --debug shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"loralib {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    parsed, unknown = parser.parse_known_args(words[:1])
    if unknown or parsed.command is None:
        raise ConfigError("the first argument must be a command, such as loralib train; loralib --help lists them.")
    if parsed.command not in OF_TEXTS:
        check_names(words[1:])
    code: int = import_module(f".{parsed.command}", __name__).run(words[1:])
    return code


def check_names(words: Sequence[str]) -> None:
    """Raise `ConfigError` for an empty argument, and for a path that is not text in the encoding of file names here."""
    for before, word in pairwise(["", *words]):
        option, has_value, value = word.partition("=") if word.startswith("--") else (before, True, word)
        if has_value and not value:
            where = f"the value of {option}" if option.startswith("-") else "an argument"
            raise ConfigError(f"{where} is empty; leave it out, or set the variable that it comes from.")
    with suppress(FileNotFoundError):
        words = [*words, os.getcwd()]
    for word in words:
        if any("\udc80" <= char <= "\udcff" for char in word):
            raise ConfigError(_unreadable(word))


def _unreadable(name: str) -> str:
    ours = "no valid UTF-8" if sys.getfilesystemencoding() == "utf-8" else f"not in {sys.getfilesystemencoding()}"
    return f"{name!r} is {ours}, the encoding of file names here; rename it, or set PYTHONUTF8=1 or a locale such as C.UTF-8."


def _listing() -> str:
    """The commands, in groups, with what each does."""
    adapters = "work on adapter files (no model library needed):"
    analyses = "understand what was learned:"
    groups = {"train and use a model:": TRAINING, adapters: ADAPTERS, analyses: ANALYSES, "other:": OTHERS}
    lines = [[title, *(f"  {name:<10} {summary}" for name, summary in group.items())] for title, group in groups.items()]
    return "\n\n".join("\n".join(group) for group in lines)


def guarded(work: Callable[[], int], debug: bool = False) -> int:
    """The exit code of `work`, with errors that a user can fix printed in one sentence instead of a traceback."""
    try:
        return work()
    except LoRAError as error:
        if debug:
            raise
        return complain(error.on_the_command_line(), MISUSED)
    except KeyboardInterrupt as interrupt:
        return complain(_goodbye(interrupt), INTERRUPTED)
    except ModuleNotFoundError as error:
        if debug or error.name is None or error.name.startswith("loralib"):
            raise
        extras = "llm" if error.name in ("trl", "gguf") else "train,eval,plot"
        remedy = f"install this library with its extras: pip install '.[{extras}]' in its folder"
        return complain(f"the package that provides {error.name!r} is missing; {remedy}.", MISUSED)
    except UnicodeEncodeError as error:
        if debug or not any("\udc80" <= char <= "\udcff" for char in error.object):
            raise
        return complain(_unreadable(error.object), MISUSED)
    except (MemoryError, RuntimeError) as error:
        if debug or not _is_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].partition(". Tried")[0] or "out of memory"
        return complain(f"there is not enough memory ({reason}); {_LESS_MEMORY}.", FAILED)
    except OSError as error:
        if debug:
            raise
        where = f" ({_place(error)})" if error.filename else ""
        return complain(f"{_reason(error)}{where}.", FAILED)


def _reason(error: OSError) -> str:
    """The reason of a system error, in plain words where a file is in the place of a folder."""
    in_the_way = isinstance(error, NotADirectoryError | FileExistsError)
    return "a file is in the place of a folder" if in_the_way else error.strerror or str(error)


_SIGNS_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")
_LESS_MEMORY = "a smaller --r, --device-batch-size, --max-length or --beams takes less"


def _is_of_memory(error: Exception) -> bool:
    """Whether the machine or a GPU ran out of memory."""
    message = str(error)
    return isinstance(error, MemoryError) or any(sign in message for sign in _SIGNS_OF_MEMORY)


def _place(error: OSError) -> str:
    """The file that an error is about; both files of a rename, unless the disk of the second is full."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name]
    return names[-1] if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else " → ".join(names)


def _goodbye(interrupt: KeyboardInterrupt) -> str:
    if len(interrupt.args) != 2:
        return str(interrupt) or "interrupted."
    folder, checkpoint = interrupt.args
    if checkpoint is None:
        return "interrupted before the first checkpoint; nothing was kept."
    return f"interrupted; {checkpoint} is whole. Go on with: loralib train --output {folder} --resume"


def complain(message: str, code: int) -> int:
    """Print one sentence to standard error and return `code`.

    Of several processes the first prints it. Another one waits until that has happened, since a launcher ends all when one
    has ended, and prints only what the first has not met.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0" and (code == INTERRUPTED or _ended_within(PATIENCE)):
        return code
    whose = "" if rank == "0" else f" (process {rank})"
    print(f"loralib{whose}: {printable(message)}", file=sys.stderr)
    return code


def _ended_within(seconds: float) -> bool:
    """Wait; whether a signal to end came meanwhile."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return True
    return False


def console_script() -> None:  # pragma: no cover - the installed `loralib` command
    """Entry point of the installed command: quiet libraries, then `main`, whose work no standard stream can end."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(delivering(main, complain, FAILED))
