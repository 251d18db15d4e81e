"""`loralib chat`: talk with the model of a run."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError
from ..printing import printable
from .generate import add_sampling, decoding_of
from .offline import hub_names, offline_if_unreachable
from .parsing import OneSentenceParser, add_run, add_trust
from .terminal import say, shown

if TYPE_CHECKING:
    from ..recipes.chat.session import Session

HELP = "/base answers without the adapter, and with it again; /clear forgets what was said; /quit ends (as Ctrl-D does)"


def run(words: Sequence[str]) -> int:
    """Talk until the input ends; returns the exit code."""
    parsed = parser().parse_args(words)

    from ..recipes import run_folder
    from ..recipes.presets.nlg import CHATTING

    decoding = decoding_of(parsed, CHATTING)
    options, _ = run_folder.read_options(parsed.run)
    with offline_if_unreachable(*hub_names(options)):
        from ..recipes.chat.session import Session
        from ..recipes.nlg import generator
        from ..train.quiet import quiet_transformers

        say(printable(f"Loading {options.model} and {parsed.run} …"))
        sys.stdout.flush()
        with quiet_transformers():
            session = Session(generator.open_run(parsed.run, parsed.trust_remote_code), decoding, parsed.system or "")
            _seed(parsed.seed)
            _talk(session)
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog="loralib chat",
        usage="RUN [options]",
        description="Talk with the model of a run, which must have been trained on conversations. Answers appear as they are "
        f"generated, and Ctrl-C stops one. {HELP}. Without a terminal, each line of standard input is a message.",
        examples=("loralib chat runs/mine", 'loralib chat runs/mine --system "Be brief." --temperature 0.7'),
    )
    add_run(made)
    made.add_argument("--system", metavar="TEXT", help="system message to begin with (default: what the template has)")
    add_sampling(made.add_argument_group("decoding"))
    add_trust(made)
    return made


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _talk(session: "Session") -> None:
    """Read messages and print answers, until the input ends."""
    interactive = sys.stdin.isatty()
    if interactive:
        say(HELP)
    for message in iter(lambda: _next(interactive), None):
        if message in ("/quit", "/exit"):
            return
        if message.startswith("/"):
            say(_obey(session, message))
        elif message:
            _answer(session, message)


def _next(interactive: bool) -> str | None:
    """The next message; None at the end of the input. Raises `DataError` for one in another encoding."""
    try:
        return input("> ").strip() if interactive else next(sys.stdin).strip()
    except (EOFError, StopIteration):
        return None
    except UnicodeDecodeError as error:
        reason = f"standard input is not {sys.stdin.encoding} text ({error.reason})"
        raise DataError(f"{reason}; convert it, or set PYTHONIOENCODING to its encoding.") from None


def _obey(session: "Session", command: str) -> str:
    """Do what a line that begins with / says; what to print."""
    if command == "/clear":
        session.clear()
        return "What was said is forgotten."
    if command != "/base":
        return printable(f"{command} is not known; {HELP}.")
    try:
        return "Now without the adapter." if session.switch() else "Now with the adapter."
    except ConfigError as error:
        return str(error)


def _answer(session: "Session", message: str) -> None:
    """Print the answer as it comes; Ctrl-C ends it, and not the conversation."""
    try:
        session.answer(message, _print)
        say("")
    except KeyboardInterrupt:
        say(" (stopped)")
    except DataError as error:
        say(printable(str(error)))


def _print(text: str) -> None:
    """Print a piece of an answer, whose line breaks are kept and which cannot command the terminal."""
    print(shown("\n".join(map(printable, text.split("\n")))), end="", flush=True)
