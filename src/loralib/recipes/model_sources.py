"""Where a model is: a name on the Hugging Face hub, a folder, a GGUF file or a folder with one, or an installed package.

Only files are looked at here; nothing is imported from a package and nothing is fetched.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError
from ..storage import model_packages
from ..storage.model_packages import GGUF, PACKAGES


@dataclass(frozen=True)
class ModelSource:
    """What transformers loads a model from.

    path: a folder or a name on the hub. gguf: the file in that folder, when the weights are GGUF. name: what saved adapters
    call the model.
    """

    path: str
    gguf: str | None
    name: str


def locate(model: str) -> ModelSource:
    """The source of `model`: a folder, a `.gguf` file, a name in `PACKAGES`, or a name on the hub.

    Raises `RunError` for a GGUF file that is missing, a folder with several of them and no other weights, and a package that is
    not installed.

    >>> locate("org/model")
    ModelSource(path='org/model', gguf=None, name='org/model')
    """
    path = Path(model)
    if path.is_dir():
        return _in_folder(path, model)
    if path.suffix.lower() == GGUF:
        if not path.is_file():
            raise RunError(f"there is no file {model}; give the path of a GGUF file, or a folder with one.")
        return ModelSource(str(path.parent), path.name, model)
    if (known := PACKAGES.get(model)) is None:
        return ModelSource(model, None, model)
    folder = model_packages.folder(model)
    if folder is None:
        raise RunError(
            f"model {model!r} ({known.hub}, {known.licence}, {known.size}) comes with the package {known.package}, which is "
            f"not installed; run: {known.how_to_install}"
        )
    return _in_folder(folder, known.hub)


def _in_folder(folder: Path, name: str) -> ModelSource:
    """The model in a folder: a GGUF file where there is no config.json."""
    files = [] if (folder / "config.json").is_file() else sorted(folder.glob(f"*{GGUF}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise RunError(f"{folder} holds {len(files)} GGUF files ({names}); give the path of one of them.")
    return ModelSource(str(folder), files[0].name if files else None, name)
