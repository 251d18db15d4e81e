"""BitFit (Ben Zaken, Ravfogel & Goldberg 2021, 2106.10199): the biases of a model are trained, and the head with them."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from ..errors import ConfigError
from ..patterns import within
from ..surgery.trainable import is_bias


def train_biases(model: PreTrainedModel, head: Sequence[str] = ()) -> None:
    """Freeze everything but the parameters *named* bias and the modules `head`. `ConfigError` for a model without biases."""
    parameters = dict(model.named_parameters())
    if not any(is_bias(name) and not within(name, head) for name in parameters):
        raise ConfigError(
            f"method='bitfit': {model.name_or_path!r}, a {model.config.model_type} model, has no biases to train; use another "
            "method, such as lora."
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(is_bias(name) or within(name, head))
