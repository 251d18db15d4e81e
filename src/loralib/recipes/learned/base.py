"""Where the weights of a base model are: what `--base`, or the options of a run, call it."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ...checkpoints.base_weights import Source
from ..model_sources import locate
from ..nlg import language_models


def base_weights(model: str) -> Source:
    """The folder or file of the weights of `model`; a GGUF file is loaded, in float32. Nothing is fetched: of a name on the hub
    the copy in the cache is taken, and without one the name stays a path."""
    source = locate(model)
    if source.gguf is not None:
        return language_models.load_language_model(model)[0]
    if Path(source.path).exists():
        return Path(source.path)
    try:
        return Path(snapshot_download(source.path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return Path(source.path)
