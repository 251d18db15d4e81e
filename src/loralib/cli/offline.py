"""Work offline at once if the Hugging Face hub cannot be reached; its libraries would retry for half a minute first."""

import os
import ssl
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError

from ..errors import RunError
from ..recipes.options import TrainOptions
from ..recipes.records import check_file, is_local_file
from ..storage import hub
from ..storage.model_packages import GGUF, is_package

OFFLINE, ENDPOINT, HUB = "HF_HUB_OFFLINE", "HF_ENDPOINT", "https://huggingface.co"
PATIENCE = 5.0  # seconds


def check_local(options: TrainOptions) -> None:
    """Raise `RunError` or `DataError` at once if a local model or data file does not exist."""
    model = options.model or ""
    if model and not Path(model).exists() and not hub.is_name(model):
        raise RunError(f"there is no folder {model}; --model takes a folder, or a name on the Hugging Face hub.")
    for name in (options.data, options.eval_data, options.test_data):
        if name and is_local_file(name):
            check_file(Path(name))


@contextmanager
def offline_if_unreachable(*names: str | None) -> Iterator[None]:
    """In the block the hub's libraries are offline if one of `names` is a name on the hub and the hub cannot be reached.

    They read the variable HF_HUB_OFFLINE when they are imported, so the block has to import them. Whoever set it is obeyed.
    """
    if OFFLINE in os.environ or not any(map(_is_on_the_hub, filter(None, names))) or reachable():
        yield
        return
    if os.environ.get("RANK", "0") == "0":
        print("The Hugging Face hub cannot be reached; what was downloaded before is used.", file=sys.stderr)
    with offline():
        yield


@contextmanager
def offline() -> Iterator[None]:
    """In the block the hub's libraries fetch nothing, where the block imports them; whoever set the variable is obeyed."""
    before = os.environ.get(OFFLINE)
    os.environ.setdefault(OFFLINE, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[OFFLINE]


def hub_names(options: TrainOptions) -> Iterable[str | None]:
    """What a run may have to download: its model, and its data or the task."""
    return options.model, options.data, None if options.data_dir else options.task


def reachable() -> bool:
    """Whether the hub, or the proxy before it, gives any answer within `PATIENCE`."""
    try:
        request = urllib.request.Request(os.environ.get(ENDPOINT, HUB), method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False
    return True


def _is_on_the_hub(name: str) -> bool:
    elsewhere = Path(name).exists() or is_local_file(name) or is_package(name) or name.lower().endswith(GGUF)
    return hub.is_name(name) and not elsewhere
