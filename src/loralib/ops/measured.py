"""Whether oneDNN's kernel is faster than torch's default for a model's frozen float32 products, found by timing both here.

One shape stands for the model: that of the linear layers which hold most of its frozen weights. A pass is the product and the
gradient of its input, and the fastest pass of each kernel counts, since other work on the machine only ever adds time.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onednn
from .eligibility import ineligibility

FASTER = 1.25  # the gain from which oneDNN is taken: well above the noise, so that runs on one machine take the same kernel
SECONDS = 0.5
TOKENS = 512
TYPICAL = (1024, 1024)
_SMALLEST, _LARGEST = 1 << 17, 1 << 24  # elements of a weight: smaller ones take little time, larger ones are slow to time


def gain(model: nn.Module | None = None) -> float | None:
    """How many times as fast as torch's default oneDNN's kernel is here, for `model` or for a layer of typical size; None where
    there is nothing to time: a build without the kernel, or a model without frozen float32 products on the CPU of some size.
    """
    shape = TYPICAL if model is None else _shape(model)
    return None if shape is None or not onednn.available() else _gain(shape, torch.get_num_threads())


def _shape(model: nn.Module) -> tuple[int, int] | None:
    """The shape (k, d) of the weights that stand for a model."""
    held: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        W = module._parameters.get("weight")
        if W is not None and not isinstance(module, nn.Embedding | nn.EmbeddingBag) and _is_frozen_product(W):
            k, d = W.shape
            held[k, d] += k * d
    return max(held, key=lambda shape: held[shape], default=None)


def _is_frozen_product(W: Tensor) -> bool:
    plain = ineligibility(W) is None and W.dtype == torch.float32 and W.device.type == "cpu"
    return plain and not W.requires_grad and W.dim() == 2 and _SMALLEST <= W.numel() <= _LARGEST


@cache
def _gain(shape: tuple[int, int], threads: int) -> float:
    """threads: torch's number of threads, on which it may depend."""
    k, d = shape
    x, W, dY = torch.ones(TOKENS, d), torch.ones(k, d), torch.ones(TOKENS, k)
    with torch.no_grad():
        default, other = fastest(
            lambda: (F.linear(x, W), dY @ W),
            lambda: (onednn.product(x, W, None), onednn.product(dY, W.t(), None)),
        )
    return default / other


def fastest(*passes: Callable[[], object], within: float = SECONDS) -> list[float]:
    """The seconds of the fastest of some calls of each function, made in turn, `within` seconds in all or three times each."""
    for once in passes:
        once()
    found: list[list[float]] = [[] for _ in passes]
    end = time.perf_counter() + within
    while time.perf_counter() < end or len(found[0]) < 3:
        for once, seconds in zip(passes, found, strict=True):
            began = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - began)
    return [min(seconds) for seconds in found]
