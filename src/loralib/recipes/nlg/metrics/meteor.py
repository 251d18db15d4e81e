"""METEOR 1.5 (Denkowski & Lavie 2014), by its authors' Java program, which is not part of this library.

It needs `java`, and `meteor-1.5.jar` with its folder `data` next to it. The jar is looked for where the environment variable
METEOR_JAR says, and in an installed `pycocoevalcap`. Other implementations (such as nltk's) compute other numbers, since they
lack the program's paraphrases and its weights; so there is no substitute, and without the program there is no score.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ....errors import ConfigError
from .rows import References, check, files, given

VARIABLE = "METEOR_JAR"


def find_jar(asked: Path | None = None) -> Path | None:
    """The jar: the one asked for, that of METEOR_JAR, or an installed `pycocoevalcap`'s; None when METEOR cannot be had.

    Raises `ConfigError` when it was asked for, in either way, and it or `java` is missing.
    """
    java, source = shutil.which("java"), "--meteor-jar" if asked else VARIABLE
    named = asked or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        package = find_spec("pycocoevalcap") if java else None
        places = [Path(place, "meteor", "meteor-1.5.jar") for place in (package and package.submodule_search_locations) or ()]
        return next((place for place in places if place.is_file()), None)
    if not named.is_file():
        raise ConfigError(f"{source} names {named}, which is not a file; give the path of meteor-1.5.jar.")
    if not java:
        raise ConfigError(f"METEOR needs java, which is not on the PATH; install a Java runtime, or leave {source} out.")
    return named


def meteor(predictions: Sequence[str], references: References, jar: Path) -> float:
    """The score of the whole corpus, from 0 to 1, in English and with the program's own normalisation (`-l en -norm`).

    Raises `DataError` for rows that do not fit, and `ConfigError` when the program fails.
    """
    check(predictions, references)
    expected = files([given(row) for row in references])
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "predictions"), Path(folder, "references")
        here.write_text(_lines(predictions), encoding="utf-8")
        there.write_text(_lines([text for row in zip(*expected, strict=True) for text in row]), encoding="utf-8")
        words = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar.resolve()), str(here), str(there)]
        words += ["-l", "en", "-norm", "-q", "-r", str(len(expected))]
        run = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return float(run.stdout.strip().rpartition("\n")[2])
    except ValueError:
        reason = (run.stderr.strip() or run.stdout.strip() or "it printed nothing").partition("\n")[0]
        remedy = "check that it is meteor-1.5.jar with its folder data next to it"
        raise ConfigError(f"METEOR ({jar}) gave no score ({reason:.200}); {remedy}.") from None


def _lines(texts: Sequence[str]) -> str:
    return "".join(" ".join(text.split()) + "\n" for text in texts)
