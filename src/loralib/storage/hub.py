"""Names where a path is asked for, of models that come as packages or from the Hugging Face hub: nothing is fetched, but what
was fetched before is found.

The cache is huggingface_hub's: models--OWNER--NAME/refs/main holds the name of the folder in snapshots/ with the files.
"""

import os
import re
from pathlib import Path

from . import model_packages

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def is_name(path: str | Path) -> bool:
    """Whether `path` could be a name on the hub; a text is taken as it is written.

    >>> is_name("org/model"), is_name("./model"), is_name("a/b/c"), is_name(Path("a.safetensors"))
    (True, False, False, False)
    """
    text = path if isinstance(path, str) else path.as_posix()
    return _NAME.fullmatch(text) is not None and not text.endswith((".safetensors", ".bin", ".pt", ".json"))


def cache() -> Path:
    """The folder of huggingface_hub's cache."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))


def located(path: Path) -> Path:
    """`path`, or the folder of the name that it is, in a package or in the cache, where nothing is at `path`."""
    if path.exists() or not is_name(path):
        return path
    if packaged := model_packages.folder(path.as_posix()):
        return packaged
    kept = cache() / f"models--{path.as_posix().replace('/', '--')}"
    try:
        revision = (kept / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return path
    found = kept / "snapshots" / revision
    return found if re.fullmatch(r"\w+", revision) and found.is_dir() else path


def advice(path: Path) -> str:
    """What to do when nothing is at `path`, if that could be a name on the hub; "" otherwise."""
    if known := model_packages.PACKAGES.get(path.as_posix()):
        return f"{known.hub} comes with the package {known.package}: {known.how_to_install}"
    if not is_name(path) or "/" not in path.as_posix():
        return ""
    return f"a name on the Hugging Face hub is looked for in its cache only: hf download {path.as_posix()} puts it there"
