"""Options as a run's file holds them: with the values that were used where none was given, and without what has none.

Read again they are the same options: what is filled in is what they stand for.
"""

from typing import Any

from .options import HELD_OUT, TrainOptions


def resolved(options: TrainOptions) -> dict[str, Any]:
    """All options that have a value, as plain values, ready for YAML.

    >>> found = resolved(TrainOptions(model="m", data="d.tsv"))
    >>> found["learning_rate"], found["layers"], found["max_length"], "patience" in found
    (0.0005, 'query,value', 128, False)
    >>> resolved(TrainOptions.of(found)) == found
    True
    """
    used = _used(options)
    return _without_none({name: used.get(name) if value is None else value for name, value in options.to_dict().items()})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """The values but for None, in dictionaries within them too."""
    kept = {name: value for name, value in values.items() if value is not None}
    return {name: _without_none(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _used(options: TrainOptions) -> dict[str, Any]:
    """What is used for options that were not given."""
    own_data = options.task is None
    held_out = own_data and not (options.eval_data or options.eval_split)
    by_role = options.method == "lora" and not options.lora.target_modules
    return {
        "learning_rate": options.peak_learning_rate,
        "max_length": options.length,
        "metric_for_best_model": options.metric,
        "problem": options.kind if own_data else None,
        "eval_fraction": HELD_OUT if held_out else None,
        "layers": ",".join(options.roles) if by_role else None,
        "prefix_length": options.prefix or None,
        "gradient_accumulation_steps": None if options.device_batch_size else 1,
    }
