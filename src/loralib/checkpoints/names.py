"""What the tensors of a checkpoint are called, next to what an adapter calls them.

An adapter's names are those of the model that was trained. A checkpoint's may have a prefix more or less, since a base model
is saved as it is and as a part of a larger one (`h.0.attn`, `transformer.h.0.attn`): one change of prefix must serve all. The
parts of some models have other names in files than in memory (`architectures.FILE_NAMES`), or had them in older versions of
transformers. And two names may be one tensor, of which files need hold only one.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .. import architectures
from ..adapters.updates import LoRAUpdate
from ..architectures import is_embedding
from ..errors import FormatError
from ..patterns import nearest
from .checkpoint import Checkpoint
from .layouts import Shapes, tensor_of


@dataclass(frozen=True)
class Tie:
    """Two tensors that are one in the model, of which a checkpoint need hold only the first."""

    embedding: str
    head: str


class Renaming(NamedTuple):
    """The change from an adapter's names to a checkpoint's.

    parts: parts of names and what a checkpoint calls them, of one model; often none. off: what a checkpoint of a base model
    lacks before its names, as the adapter has them; often nothing. on: what a checkpoint has before them.
    """

    off: str = ""
    on: str = ""
    parts: tuple[tuple[str, str], ...] = ()

    def __call__(self, name: str) -> str:
        """What the checkpoint calls `name`.

        >>> Renaming("transformer.")("transformer.h.0.attn"), Renaming(on="transformer.")("h.0.attn")
        ('h.0.attn', 'transformer.h.0.attn')
        >>> Renaming(parts=(("model.visual", "visual"), ("layers.#.q_proj", "layer.#.q")))("x.layers.3.q_proj.weight")
        'x.layer.3.q.weight'
        """
        for old, new in self.parts:
            if match := _part(old).fullmatch(name):
                before, *numbers, after = match.groups()
                name = before + new.replace("#", "{}").format(*numbers) + after
                break
        return self.on + name.removeprefix(self.off)


@functools.cache
def _part(old: str) -> re.Pattern[str]:
    return re.compile(r"((?:.*\.)?)" + re.escape(old).replace(r"\#", r"(\d+)") + r"((?:\..*)?)")


def tie_of(checkpoint: Checkpoint) -> Tie | None:
    """The embedding and the output layer that share a tensor, if `config.json` is that of a language model that ties them."""
    config = checkpoint.config
    of_text = config.get("text_config")
    if isinstance(of_text, dict):  # of a model that takes images or sound as well
        config = {**of_text, **config}
    names = [name for name in config.get("architectures") or () if name.endswith(architectures.LANGUAGE_MODELS)]
    if not names or config.get("tie_word_embeddings", True) is not True:
        return None
    size = config.get("vocab_size")
    embeddings = [
        name
        for name, place in checkpoint.tensors.items()
        if name.endswith(".weight")
        and is_embedding(name.removesuffix(".weight"))
        and len(place.shape) == 2
        and place.shape[0] == size
    ]
    shared = [name for name in embeddings if name.rpartition(".")[0].rpartition(".")[2] == "shared"]
    if len(embeddings) != 1 and len(shared) != 1:
        return None
    family = max((start for start in architectures.OUTPUT_LAYERS if names[0].startswith(f"{start}For")), key=len, default="")
    head = f"{architectures.OUTPUT_LAYERS.get(family, 'lm_head')}.weight"
    held = [name for name in checkpoint.tensors if name.endswith(f".{head}")]
    return Tie((shared or embeddings)[0], held[0] if len(held) == 1 and head not in checkpoint.tensors else head)


def renaming(checkpoint: Checkpoint, layers: Mapping[str, LoRAUpdate], shapes: Shapes) -> Renaming:
    """The change of names under which the weight of every one of `layers` is among `shapes`; `FormatError` when there is none,
    or more than one."""
    outer, held_by = ({name.partition(".")[0] for name in names} for names in (layers, checkpoint.tensors))
    changes = [Renaming(), *(Renaming(f"{x}.") for x in sorted(outer)), *(Renaming(on=f"{x}.") for x in sorted(held_by))]
    missing: dict[Renaming, list[str]] = {}
    for parts in ((), *_tables()):
        of_parts = [change._replace(parts=parts) for change in changes]
        for new in of_parts:
            missing[new] = [name for name, update in layers.items() if not tensor_of(new(name), update, shapes)]
        found = [change for change in of_parts if not missing[change]]
        if len(found) == 1 or (found and found[0] == Renaming(parts=parts)):
            return found[0]
        if found:
            break
    if found:
        raise FormatError(
            f"{checkpoint.path} has the adapter's layers {len(found)} times, in {', '.join(repr(new.on) for new in found)}; "
            "rename the adapter's layers for one of them (Adapter.rename). Nothing was written."
        )
    best = min(missing.values(), key=len)
    held = [name.rpartition(".")[0] for name in checkpoint.tensors]
    raise FormatError(
        f"{checkpoint.path} lacks {len(best)} of the {len(layers)} layers that the adapter changes: {', '.join(best[:3])}"
        f"{' …' if len(best) > 3 else ''}; nearest there: {nearest(best[0], held)}; if these are the same layers",
        f"rename the adapter's: adapter.rename({{{best[0].partition('.')[0]!r}: …}})",
        option=f"rename the adapter's: --rename {best[0].partition('.')[0]}=NEW",
        outcome="Nothing was written.",
    )


def _tables() -> list[tuple[tuple[str, str], ...]]:
    """The parts of names that differ between memory and files, in both directions: files may be of either version."""
    pairs = [tuple(table.items()) for table in architectures.FILE_NAMES]
    both = pairs + [tuple((new, old) for old, new in table) for table in pairs]
    return [tuple(sorted(table, key=lambda pair: -len(pair[0]))) for table in both]
