"""An adapter before its first step: the model of a run, made again with the run's seed and options.

With one seed, adapters of different ranks begin with the same first rows of A, so that their directions are alike before
anything is learned. How alike is computed here, where the run's base model and data are still there.
"""

from ...adapters.adapter import Adapter
from ...errors import LoRAError
from ...surgery.extract import extract
from ..plan import implementation
from .subjects import Subject


def starting(subject: Subject) -> Adapter | str:
    """The adapter that the run of `subject` began with; a sentence where it cannot be made."""
    if subject.run is None:
        return f"{subject.path} is not a run"
    import transformers

    options = subject.run.options
    try:
        kind = implementation(options)
        data = kind.read_rows(options)
        transformers.set_seed(options.seed)  # at the same place as when the run began
        adapter = extract(kind.plan(options, data).model)
    except (LoRAError, OSError, ImportError) as error:
        return str(error)
    shapes = [{name: update.A.shape for name, update in a.layers.items()} for a in (adapter, subject.adapter)]
    return adapter if shapes[0] == shapes[1] else "the model has other layers now"
