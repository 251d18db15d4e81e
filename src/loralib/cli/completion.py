"""`loralib completion`: a shell script that completes commands, options and choices.

The script holds the words, so that completing needs no Python. It is made from the parsers, so that it has every option.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from . import COMMANDS
from .parsing import OneSentenceParser

SHELLS = ("bash", "zsh")

_SCRIPT = """_loralib() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}} $word" in
{options}
    esac
    case "${{COMP_WORDS[1]}} $previous" in
{values}
    esac
    COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _loralib loralib
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def run(words: Sequence[str]) -> int:
    """Print the script; returns the exit code."""
    print(script(parser().parse_args(words).shell), end="")
    return 0


def parser() -> OneSentenceParser:
    """The parser of this command."""
    made = OneSentenceParser(
        prog="loralib completion",
        usage="SHELL",
        description="Print a shell script that completes loralib's commands and options. To complete them in all sessions, add "
        "the first example to ~/.bashrc, or the second to ~/.zshrc.",
        examples=("source <(loralib completion bash)", "source <(loralib completion zsh)"),
    )
    made.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash or zsh")
    return made


def options_of(command: str) -> dict[str, Sequence[str]]:
    """The options of a command, each with its choices, if it has any; "" is the first argument."""
    module: Any = import_module(f".{command}", __package__)
    made = module.parser()
    named: Mapping[str, Sequence[str]] = getattr(made, "choices_of", {})
    found: dict[str, Sequence[str]] = {}
    for action in made._actions:
        words = list(map(str, action.choices or named.get(action.dest, ())))
        options = [option for option in action.option_strings if not option.endswith("+")]
        found = dict.fromkeys(options or [""], words) | found
    return found


def script(shell: str) -> str:
    """The script for a shell, without the options of commands whose packages are not installed."""
    values, options = [], []
    for command in COMMANDS:
        with suppress(ModuleNotFoundError):
            known = options_of(command)
            values += [_case(f'"{command} {option or command}"', words) for option, words in known.items() if words]
            options.append(_case(f'"{command} -"*', list(filter(None, known))))
    made = _SCRIPT.format(commands=" ".join(COMMANDS), values="\n".join(values), options="\n".join(options))
    return _ZSH + made if shell == "zsh" else made


def _case(words: str, choices: Sequence[str]) -> str:
    return f'        {words}) COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$word")); return ;;'
