"""`concerns`: what is far outside of what is known to work, of a configuration, a learning rate and a batch size.

Each is one sentence: the value, what is usual, who says so, and what to do. The bounds are wide enough for every recipe of the
LoRA paper.
"""

from ..config import LoRAConfig, lora_scaling
from .suggest import COOKBOOK, WITHOUT_REGRET, Suggestion

_PAPER = "the LoRA paper, arXiv 2106.09685"
_LEAST_SCALING, _GREATEST_SCALING = 1 / 4, 8
_FAR = 10
_LARGEST_BATCH = 256


def concerns(suggestion: Suggestion, config: LoRAConfig, learning_rate: float, batch_size: int) -> list[str]:
    """Sentences about values that are far outside of what is known to work; none where all is well.

    Args:
        suggestion: What `suggest` says of the model.
        config: The configuration that is to be injected.
        learning_rate: The peak learning rate for LoRA.
        batch_size: Rows in a step of the optimizer, of all devices together.

    Returns:
        A sentence for each value, fit to be printed as a warning.

    Example:
        >>> import torch
        >>> from loralib.surgery.suggest import suggest
        >>> suggestion = suggest(torch.nn.Sequential(torch.nn.Linear(768, 768)))
        >>> concerns(suggestion, suggestion.config(), suggestion.learning_rate, batch_size=32)
        []
        >>> [concern] = concerns(suggestion, suggestion.config(), 0.1, batch_size=32)
        >>> concern.partition(":")[0]
        'learning_rate=0.1'
    """
    found = (
        _of_scaling(suggestion, config),
        _of_rate(suggestion, learning_rate),
        _of_batch(batch_size),
        _of_rank(suggestion, config),
    )
    return [concern for concern in found if concern]


def _of_scaling(suggestion: Suggestion, config: LoRAConfig) -> str | None:
    """`lora_alpha` of the suggestion was measured with every rank, so it is never far off."""
    scaling, measured = config.scaling, config.lora_alpha == suggestion.lora_alpha and not config.use_rslora
    if measured or _LEAST_SCALING <= scaling <= _GREATEST_SCALING:
        return None
    rule = "lora_alpha / sqrt(r), with use_rslora," if config.use_rslora else "lora_alpha / r"
    usual = 2 / lora_scaling(config.r, 1, config.use_rslora)
    return (
        f"lora_alpha={config.lora_alpha:g}, r={config.r}: {rule} is {scaling:.3g}, and 1/4 to 8 is usual ({_PAPER}: 1 to 8); "
        f"give lora_alpha={usual:g}."
    )


def _of_rate(suggestion: Suggestion, learning_rate: float) -> str | None:
    usual = suggestion.learning_rate
    if usual / _FAR <= learning_rate <= usual * _FAR:
        return None
    where = f"more than {_FAR} times {'above' if learning_rate > usual else 'below'}"
    return (
        f"learning_rate={learning_rate:g}: is {where} {usual:.1e}, the usual one for LoRA on a model of width "
        f"{suggestion.hidden_size} ({COOKBOOK}, measured on language models); give {usual:.1e}."
    )


def _of_batch(batch_size: int) -> str | None:
    if batch_size <= _LARGEST_BATCH:
        return None
    return (
        f"batch_size={batch_size}: LoRA bears large batches less well than full fine-tuning does, whatever the rank "
        f"({WITHOUT_REGRET}), and up to {_LARGEST_BATCH} rows a step are usual; give {_LARGEST_BATCH} or fewer."
    )


def _of_rank(suggestion: Suggestion, config: LoRAConfig) -> str | None:
    r, width = max(config.r, *config.rank_pattern.values(), 0), suggestion.hidden_size
    if r <= width:
        return None
    return (
        f"r={r}: is above the width of the model, {width}, so the factors have more parameters than W; ranks far below it are "
        f"usual ({_PAPER}: 1 to 64); give r={min(suggestion.r, width)}."
    )
