"""One budget of parameters for any set of matrices: how many LoRA has there, counted on a model without weights."""

import copy
from collections.abc import Sequence

from ..train.measure import count_parameters
from . import lora_setup, paper_models
from .options import TrainOptions
from .studies import BUDGET_OF, targets


def per_rank(options: TrainOptions, sets: Sequence[str]) -> dict[str, int]:
    """How many parameters LoRA of rank 1 has on each set of matrices of the run's model; each further rank has as many."""
    causal = options.kind not in ("classification", "regression")
    shape = paper_models.build(options.model or "", ["0", "1"], options.trust_remote_code, causal=causal)
    found = {}
    for matrices in sets:
        model = copy.deepcopy(shape.model)
        lora_setup.inject(model, options.updated({"r": 1, "init_adapter": None, **targets(matrices)}), shape.head)
        found[matrices] = count_parameters(model)["lora"]
    return found


def ranks_for(options: TrainOptions, sets: Sequence[str], r: int) -> dict[str, int]:
    """The rank of each set of matrices with which LoRA has about as many parameters as with `r` on query and value."""
    counts = per_rank(options, [BUDGET_OF, *sets])
    budget = r * counts[BUDGET_OF]
    return {matrices: nearest_rank(budget, counts[matrices]) for matrices in sets}


def nearest_rank(budget: int, each: int) -> int:
    """The rank, at least 1, whose parameters are nearest to the budget; of two as near, the lower. each: those of rank 1.

    >>> nearest_rank(100, 30), nearest_rank(10, 30), nearest_rank(45, 30)
    (3, 1, 1)
    """
    low = max(1, budget // each)
    return low if budget - low * each <= (low + 1) * each - budget else low + 1
