"""Where the weights of a base model are: what `--base`, or the options of a run, call it."""

from pathlib import Path

from ...checkpoints.base_weights import Source
from ..model_sources import locate
from ..nlg import language_models


def base_weights(model: str) -> Source:
    """The place of the weights of `model`, as the library reads them; a GGUF file is loaded, in float32. Of a name on the hub
    the copy in the cache is read: nothing is fetched."""
    source = locate(model)
    return Path(source.path) if source.gguf is None else language_models.load_language_model(model)[0]
