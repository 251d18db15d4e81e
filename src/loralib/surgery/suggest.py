"""`suggest`: which layers, rank, scaling and learning rate to begin with, by published rules that are named with their sources.

    LoRA's rate = 5e-5 · 10 · (2000 / hidden_size) ** p,   p = 0.781 (Llama), 0.0775 (Qwen);   full fine-tuning's is a tenth

Nothing is computed from weights, so a model on the meta device will do.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from torch import nn

from .. import layers
from ..architectures import RATE_EXPONENTS, RATE_FAMILIES, WIDTHS
from ..config import ALL_LINEAR, LoRAConfig
from ..errors import ConfigError
from ..printing import short
from .survey import Survey

WITHOUT_REGRET = "LoRA Without Regret, Schulman et al. 2025, thinkingmachines.ai/blog/lora"
COOKBOOK = "github.com/thinking-machines-lab/tinker-cookbook"
_FULL_RATE, _LORA_OVER_FULL, _REFERENCE_WIDTH = 5e-5, 10, 2000


@dataclass(frozen=True)
class Suggestion:
    """Hyper-parameters to begin with, and the published rules behind them. `print` shows them with their sources.

    Attributes:
        hidden_size: The width of the model that they are for.
        learning_rate: The peak rate for LoRA; it holds for every rank.
        full_learning_rate: The peak rate for full fine-tuning.
        sources: One line for each rule: what it says, who published it, and what it was measured on.
        target_modules: Which layers to adapt.
        r: The rank.
        lora_alpha: The numerator of the scaling.

    Example:
        >>> import loralib as lora
        >>> suggestion = lora.Suggestion(2000, learning_rate=5e-4, full_learning_rate=5e-5, sources=("a rule, its source",))
        >>> suggestion.config().scaling
        2.0
        >>> print(suggestion)
        Suggested for hidden states of width 2000:
          target_modules      all-linear
          r                   16
          lora_alpha          32
          learning_rate       5.0e-04  (full fine-tuning: 5.0e-05)
        Sources:
          - a rule, its source
    """

    hidden_size: int
    learning_rate: float
    full_learning_rate: float
    sources: tuple[str, ...]
    target_modules: str = ALL_LINEAR
    r: int = 16
    lora_alpha: float = 32

    def config(self) -> LoRAConfig:
        """The suggestion as a configuration for `inject`.

        Returns:
            A `LoRAConfig` with these `target_modules`, `r` and `lora_alpha`.

        Example:
            >>> import loralib as lora
            >>> suggestion = lora.Suggestion(2000, learning_rate=5e-4, full_learning_rate=5e-5, sources=())
            >>> suggestion.config().target_modules
            'all-linear'
        """
        return LoRAConfig(r=self.r, lora_alpha=self.lora_alpha, target_modules=self.target_modules)

    def __str__(self) -> str:
        lines = [
            f"Suggested for hidden states of width {self.hidden_size}:",
            f"  target_modules      {self.target_modules}",
            f"  r                   {self.r}",
            f"  lora_alpha          {self.lora_alpha:g}",
            f"  learning_rate       {self.learning_rate:.1e}  (full fine-tuning: {self.full_learning_rate:.1e})",
            "Sources:",
            *(
                fill(source, 110, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False)
                for source in self.sources
            ),
        ]
        return "\n".join(lines)


def suggest(model: nn.Module, *, hidden_size: int | None = None) -> Suggestion:
    """Suggest target modules, rank, scaling and learning rate for `model`, by published rules and with their sources.

    The rules were measured on language models. The learning rate depends on the width of the model and its family, not on the
    rank. The width is read from `model.config` (that of the text model, where there are several), or else from the input
    embedding or the linear layers.

    Args:
        model: Any model, injected or not; it may be on the meta device, and is not changed.
        hidden_size: The width of the hidden states, where it cannot be read.

    Returns:
        The `Suggestion`; its `config()` goes to `inject`.

    Raises:
        ConfigError: When nothing tells the width, or `hidden_size` is not a positive integer.
        ArgumentError: When `model` is not a module.

    Example:
        >>> import torch
        >>> import loralib as lora
        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(torch.nn.Embedding(1000, 512), torch.nn.Linear(512, 1000))
        >>> suggestion = lora.suggest(model)
        >>> f"{suggestion.learning_rate:.1e}", f"{suggestion.full_learning_rate:.1e}"
        ('9.0e-04', '9.0e-05')
        >>> lora.inject(model, suggestion.config())
        ['1']
    """
    read = Survey(model)
    config = _text_config(read.model)
    width = _width(read, config) if hidden_size is None else hidden_size
    if not _is_width(width):
        raise _no_width(type(read.model).__name__, hidden_size)
    kind = _stated(config, "model_type") or type(read.model).__name__
    family = RATE_FAMILIES.get(kind)
    exponent = RATE_EXPONENTS[family] if family else sum(RATE_EXPONENTS.values()) / len(RATE_EXPONENTS)
    full = _FULL_RATE * (_REFERENCE_WIDTH / width) ** exponent
    return Suggestion(width, full * _LORA_OVER_FULL, full, _sources(kind, family, exponent))


# --- the width of a model -----------------------------------------------------------------------------------------------


def _text_config(model: nn.Module) -> Any:
    """The configuration of the text model in `model`, or what it has instead; None where it has none."""
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", None)
    if callable(text_config):
        with suppress(ValueError):  # several text models
            return text_config()
    return config


def _stated(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _width(read: Survey, config: Any) -> Any:
    """The width of the hidden states of a model, or None where nothing tells it."""
    stated = next(filter(_is_width, (_stated(config, name) for name in WIDTHS)), None)
    return stated or _embedding_width(read.model) or _linear_width(read) or _widest_embedding(read)


def _embedding_width(model: nn.Module) -> int | None:
    """The width of the input embedding, where the model follows Hugging Face's protocol for it."""
    protocol = getattr(model, "get_input_embeddings", None)
    with suppress(NotImplementedError):
        width = getattr(protocol() if callable(protocol) else None, "embedding_dim", None)
        return width if _is_width(width) else None
    return None


def _linear_width(read: Survey) -> int | None:
    """The most common input width of the adapted linear layers, or of all where none is adapted."""
    sites = read.adapted or read.sites
    widths = [getattr(layer, "in_features", None) for layer in sites.values() if layers.is_linear(layer)]
    counts = Counter(width for width in widths if isinstance(width, int) and _is_width(width))
    return max(counts, key=counts.__getitem__, default=None)


def _widest_embedding(read: Survey) -> int | None:
    """The width of the embedding with the most rows."""
    found = [module for module in read.modules.values() if isinstance(module, nn.Embedding)]
    return max(found, key=lambda embedding: embedding.num_embeddings).embedding_dim if found else None


def _no_width(model: str, given: object) -> ConfigError:
    if given is not None:
        return ConfigError(f"hidden_size={short(given)}: must be a positive integer, the width of hidden states, such as 768.")
    return ConfigError(
        f"the width of {model} cannot be read: it has no config that states one ({', '.join(WIDTHS)}), no embedding and no "
        "linear layer",
        "pass it, as in lora.suggest(model, hidden_size=768)",
    )


# --- what the rules are and where they come from -----------------------------------------------------------------------------


def _sources(kind: str, family: str | None, exponent: float) -> tuple[str, ...]:
    choice = f"p = {exponent:g} for {family}"
    if family is None:
        fitted = " and ".join(f"{p:g} ({name})" for name, p in RATE_EXPONENTS.items())
        choice = f"fitted were p = {fitted}; for a {kind}, which is neither, their mean, {exponent:g}, is a guess"
    return (
        f"target_modules: all linear layers, MLP and experts included; attention alone learns less. {WITHOUT_REGRET}; "
        "supervised and reinforcement learning on Llama 3 and Qwen3. QLoRA (arXiv 2305.14314) found the same on LLaMA.",
        "r, lora_alpha: the rank is capacity and leaves the best rate as it is, with lora_alpha = 32 and the scaling of the "
        f"LoRA paper (arXiv 2106.09685), lora_alpha / r; more data needs a higher rank. {WITHOUT_REGRET}; ranks 1 to 512.",
        f"learning_rate: 5e-5 * 10 * (2000 / hidden_size) ** p; {choice}. {COOKBOOK}, an earlier version of "
        "hyperparam_utils.py; fitted to supervised fine-tuning of Llama and Qwen language models, by its own account within "
        "0.5 % of the best loss. The rates measured for them that it lists now are within a factor of 3.",
        f"full_learning_rate: a tenth of LoRA's (a fifteenth in runs under about 100 steps). {WITHOUT_REGRET}; "
        "Llama 3 and Qwen3.",
    )
