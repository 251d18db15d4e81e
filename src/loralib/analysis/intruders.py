"""Intruder dimensions (Shuttleworth et al. 2024, 2410.21228): leading directions of an adapted weight that the weight itself
did not have, which LoRA brings with it and full fine-tuning hardly does.

    W + ΔW = Σ σᵢ·uᵢ·vᵢᵀ,   W = Σ τⱼ·xⱼ·yⱼᵀ:   i is an intruder when it is among the first and maxⱼ |uᵢ·xⱼ| is below epsilon

Weights are matrices (out, in · kernel); where τⱼ = 0, W does nothing, and has no direction. All of W is decomposed, one layer
at a time, which takes a while for large layers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import algebra
from ..adapters.adapter import Adapter, check_adapter
from ..adapters.expert_forms import apart
from ..adapters.experts_update import ExpertsUpdate
from ..adapters.updates import LoRAUpdate
from ..checkpoints.base_weights import Source, pairs
from ..config import alpha_for
from ..errors import AlgebraError, ConfigError
from ..tensors import without_autocast


@dataclass(frozen=True)
class Intruder:
    """A leading singular direction of W + ΔW that W does not have (Shuttleworth et al. 2024, 2410.21228).

    Attributes:
        index: Its place among the singular values of W + ΔW, from 0.
        singular_value: That singular value.
        similarity: Its largest |cosine| with a direction of W.

    Example:
        >>> lora.Intruder(index=0, singular_value=9.0, similarity=0.1).index
        0
    """

    index: int
    singular_value: float
    similarity: float


@without_autocast
def intruder_dimensions(
    adapter: Adapter, base: Source, top_k: int = 10, epsilon: float = 0.5
) -> dict[str, tuple[Intruder, ...]]:
    """Find the intruder dimensions of each adapted weight (Shuttleworth et al. 2024, 2410.21228).

    Args:
        adapter: The adapter.
        base: The model that it was trained on, or the folder of its weights.
        top_k: How many leading singular vectors of W + ΔW to look at.
        epsilon: The similarity below which a vector is an intruder.

    Returns:
        The intruders by layer.

    Raises:
        AlgebraError: For DoRA layers.
        LayerError: When the model does not have the adapter's layers.
        FormatError: When the files do not have them.
        ConfigError: When `top_k` or `epsilon` is out of range.
        ArgumentError: When `adapter` is not an adapter.

    Example:
        >>> base = nn.Sequential(nn.Linear(8, 8))
        >>> base[0].weight.data = torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))  # nothing goes to the last outputs
        >>> update = lora.LoRAUpdate(torch.eye(1, 8), 9 * torch.eye(8)[:, 7:], lora_alpha=1)
        >>> [found] = lora.intruder_dimensions(lora.Adapter(lora.LoRAConfig(r=1), {"0": update}), base)["0"]
        >>> found.index, round(found.similarity, 1)
        (0, 0.1)
    """
    _check(adapter, top_k, epsilon)
    return {
        name: tuple(intruder for intruder, _ in _found(name, update, W, top_k, epsilon))
        for name, update, W in _adapted(adapter, base)
    }


@without_autocast
def reduce_intruder_dimensions(
    adapter: Adapter, base: Source, top_k: int = 10, epsilon: float = 0.5, keep: float = 0.75, r: int | None = None
) -> Adapter:
    """Scale the intruder dimensions of each adapted weight, and nothing else: ΔW' = ΔW − (1 − keep)·Σ σᵢ·uᵢ·vᵢᵀ.

    Args:
        adapter: The adapter.
        base: The model that it was trained on, or the folder of its weights.
        top_k: As in `intruder_dimensions`.
        epsilon: As in `intruder_dimensions`.
        keep: What every intruder is multiplied by.
        r: The rank to bring the layers to; by default each intruder adds one.

    Returns:
        The new adapter; `adapter` itself where there is nothing to reduce.

    Raises:
        AlgebraError: For DoRA layers, and for experts whose updates are one.
        LayerError: When the model does not have the adapter's layers.
        FormatError: When the files do not have them.
        ConfigError: When `top_k`, `epsilon`, `keep` or `r` is out of range.
        ArgumentError: When `adapter` is not an adapter.

    Example:
        >>> base = nn.Sequential(nn.Linear(8, 8))
        >>> base[0].weight.data = torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
        >>> adapter = lora.Adapter(lora.LoRAConfig(), {"0": lora.LoRAUpdate(torch.eye(1, 8), 9 * torch.eye(8)[:, 7:], 1)})
        >>> reduced = lora.reduce_intruder_dimensions(adapter, base, keep=0.5)
        >>> adapter.delta("0").max(), reduced.delta("0").max().round(decimals=1)
        (tensor(9.), tensor(4.5000))
    """
    _check(adapter, top_k, epsilon)
    if not math.isfinite(keep):
        raise ConfigError(f"keep={keep!r}: must be the fraction of an intruder to keep, such as 0.75.")
    if experts := [name for name, update in adapter.layers.items() if isinstance(update, ExpertsUpdate)]:
        raise AlgebraError(f"{experts[0]}: the intruders of experts are reduced apart; give split_experts(adapter), and files.")
    layers = dict(adapter.layers)
    for name, update, W in _adapted(adapter, base):
        if intruders := [component for _, component in _found(name, update, W, top_k, epsilon)]:
            B, A = torch.cat([B for B, _ in intruders], 1), torch.cat([A for _, A in intruders])
            plain = update.plain()
            taken = plain.with_products([(B.to(plain.B.dtype), A.to(plain.A.dtype))], alpha_for(1.0, len(A)), False)
            layers[name] = algebra.added([(plain, 1), (taken, keep - 1)])
    reduced = adapter.with_layers(layers)
    return reduced if r is None else reduced.truncate(r)


def _check(adapter: Adapter, top_k: int, epsilon: float) -> None:
    check_adapter(adapter)
    if type(top_k) is not int or top_k < 1:
        raise ConfigError(f"top_k={top_k!r}: must be a positive number of singular vectors.")
    if not 0 <= epsilon <= 1:
        raise ConfigError(f"epsilon={epsilon!r}: must be a similarity from 0 to 1.")


def _adapted(adapter: Adapter, base: Source) -> Iterator[tuple[str, LoRAUpdate, Tensor]]:
    """The layers with their updates and the matrices (out, in · kernel) of their weights."""
    if dora := [name for name, update in adapter.layers.items() if update.magnitude is not None]:
        raise AlgebraError(f"{dora[0]}: a DoRA update scales all of W, so its intruders cannot be separated from it.")
    for name, update, W in pairs(adapter, base):
        if isinstance(update, ExpertsUpdate):
            matrices = zip(apart(name, update, whole=True).items(), W.unbind(0), strict=True)
            yield from ((f"{name}.{e}", own, W_e.float()) for e, ((_, own), W_e) in enumerate(matrices))
        else:
            yield name, update, W.flatten(1).float()


@without_autocast
def _found(
    name: str, update: LoRAUpdate, W: Tensor, top_k: int, epsilon: float
) -> list[tuple[Intruder, tuple[Tensor, Tensor]]]:
    """The intruders of one layer, each with its component σ·u·vᵀ as a pair of factors."""
    plain = update.plain()
    ((B, A),) = plain.products()
    adapted = W + plain.scaling * (B.to(W) @ A.to(W))
    if not torch.isfinite(adapted).all():
        raise AlgebraError(f"{name}: W + ΔW is not finite.")
    X, T, _ = torch.linalg.svd(W, full_matrices=False)
    noise = max(W.shape) * torch.finfo(W.dtype).eps
    X = X[:, noise * T[:1] < T]
    U, S, Vh = torch.linalg.svd(adapted, full_matrices=False)
    similarity = torch.cat([(U[:, :top_k].t() @ X).abs(), U.new_zeros(U[:, :top_k].shape[1], 1)], 1).amax(dim=1)
    return [
        (Intruder(i, float(S[i]), float(similarity[i])), (S[i] * U[:, i : i + 1], Vh[i : i + 1]))
        for i in range(min(top_k, len(S)))
        if similarity[i] < epsilon and S[i] > noise * S[0]
    ]
