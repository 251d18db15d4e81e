"""The questions of the LoRA paper's section 7 as grids of runs: which matrices to adapt (Table 5), of which rank (Tables 6 and
18), and how many rows suffice (Table 16).

The cells of a study differ in what it varies, and share all other options.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..architectures import ROLES
from ..config import ALL_LINEAR
from ..errors import ConfigError
from .options import TrainOptions
from .task import Method

Study = Literal["matrices", "rank", "rows"]
STUDIES: tuple[Study, ...] = get_args(Study)
Rule = Literal["paper", "rslora"]
RULES: tuple[Rule, ...] = get_args(Rule)  # update times lora_alpha / r; times lora_alpha / √r (Kalajdzievski 2023, 2312.03732)

BUDGET_OF, BUDGET_RANK = "query,value", 4  # whose parameters are the budget: the best cell of Table 5
MATRICES = (
    *("query", "key", "value", "output", "query,key", BUDGET_OF, "query,key,value,output"),  # Table 5
    *("mlp", ALL_LINEAR),
)
RANKS = (1, 2, 4, 8, 64)  # Table 6
ROWS = (100, 1_000, 10_000)  # Table 16, and all rows
LEAST_STEPS = 200
TABLE, PLOTS, PAGE, RUNS = "study.csv", ("study.png", "study.svg"), "index.html", "runs"  # in the folder of a study
_SHORT = {role[0]: role for role in ROLES if role != "mlp"} | {"all": ALL_LINEAR}

CHOSEN: Mapping[Study, tuple[str, ...]] = {  # options of runs that a study chooses itself
    "matrices": ("layers", "target_modules", "enable_lora", "slice_widths", "rank_pattern", "init_adapter"),
    "rank": ("layers", "target_modules", "enable_lora", "slice_widths", "rank_pattern", "init_adapter", "r", "use_rslora"),
    "rows": (),
}


@dataclass(frozen=True)
class Cell:
    """One cell of a study. name: of its folder. varied: what tells it from the others, by column. options: its own, by name."""

    name: str
    varied: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What it is called in sentences.

        >>> Cell("a", {"matrices": "query,value", "r": 4}, {}).title
        'query,value r=4'
        """
        named = ("r", "rows")
        parts = (f"{name}={value:,}" if name in named and value != "all" else str(value) for name, value in self.varied.items())
        return " ".join(parts)


def read_set(text: str) -> str:
    """A set of matrices by roles, which may be given by their first letters; `ConfigError` for what is none.

    >>> read_set("q,v"), read_set("mlp"), read_set("all")
    ('query,value', 'mlp', 'all-linear')
    """
    roles = [_SHORT.get(word.strip(), word.strip()) for word in text.split(",")]
    if roles == [ALL_LINEAR]:
        return ALL_LINEAR
    if unknown := [role for role in roles if role not in ROLES]:
        raise ConfigError(f"--sets {text}: {unknown[0]!r} is none of {', '.join(ROLES)} (or q, k, v, o), and not all.")
    return ",".join(dict.fromkeys(roles))


def targets(matrices: str) -> dict[str, str | None]:
    """The options that put LoRA on a set of matrices."""
    every = matrices == ALL_LINEAR
    return {"target_modules": ALL_LINEAR if every else None, "layers": None if every else matrices}


def of_matrices(ranks: Mapping[str, int]) -> list[Cell]:
    """A cell for each set of matrices, with the rank that it has by the budget."""
    return [
        Cell(_name(matrices), {"matrices": matrices, "r": r}, {"r": r, **targets(matrices)}) for matrices, r in ranks.items()
    ]


def of_ranks(sets: Sequence[str], ranks: Sequence[int], rules: Sequence[Rule]) -> list[Cell]:
    """A cell for each set of matrices, rule and rank; at r = 1, where the rules are the same, one cell for both."""
    cells = []
    for matrices in sets:
        for rule in rules:
            for r in ranks:
                both = r == 1 and len(rules) > 1
                if both and rule != rules[0]:
                    continue
                shown = {"matrices": matrices, "rule": "both" if both else rule, "r": r}
                own = {"r": r, "use_rslora": rule == "rslora" and not both, **targets(matrices)}
                cells.append(Cell(f"{_name(matrices)}-{shown['rule']}-r{r}", shown, own))
    return cells


def of_rows(
    methods: Sequence[Method], counts: Sequence[int], options: TrainOptions, available: int, least_steps: int = LEAST_STEPS
) -> list[Cell]:
    """A cell for each number of rows and method. counts: of rows, but for those that are not there; all rows come last.

    options: of the LoRA run, on all rows. least_steps: few rows are trained on for more epochs, so that there are so many.
    """
    cells = []
    for count in [*sorted({count for count in counts if count < available}), available]:
        number = "all" if count == available else count
        steps = math.ceil(count / options.batch_size)
        epochs = max(options.num_train_epochs, math.ceil(least_steps / steps))
        own = {"num_train_epochs": epochs} | ({} if number == "all" else {"max_train_rows": count})
        cells += [
            Cell(f"{method}-{number}", {"rows": number, "method": method}, own | {"method": method}) for method in methods
        ]
    return cells


def _name(matrices: str) -> str:
    return matrices.replace(",", "-")
