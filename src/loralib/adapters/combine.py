"""Several adapters made one: `combine`.

    exact       Σ wᵢ·ΔWᵢ by rank concatenation
    svd         the same, brought to a lower rank without forming ΔW
    magnitude   of each ΔWᵢ the share `density` of largest entries, then Σ wᵢ·ΔWᵢ
    dare        of each ΔWᵢ a random share `density`, divided by it, then Σ wᵢ·ΔWᵢ             (Yu et al. 2023, 2311.03099)
    ties        of each wᵢ·ΔWᵢ the largest entries; where signs differ, the mean of those that agree with the elected sign
                                                                                               (Yadav et al. 2023, 2306.01708)
    dare_ties   the random share in place of the largest one, then as ties

Everything acts on the products ΔW, never on the factors. What prunes forms ΔW, a layer at a time, and the result, which has
full rank, is brought to the rank that was asked for. (Of slices, the disabled ones are not part of ΔW's entries.) ties elects
signs among the weighted updates, so that a negative weight votes against.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .. import choices
from ..arguments import check_share, wrong
from ..choices import CombineMethod, ExtraTensors, MajoritySign
from ..config import alpha_for, check_rank, python_value
from ..errors import AlgebraError, ConfigError
from ..printing import short
from ..tensors import same_bits, without_autocast
from . import algebra, low_rank
from .adapter import Adapter, agreed, check_adapter, united
from .sums import in_layer, terms_by_layer
from .token_rows import TokenRows
from .updates import LoRAUpdate

_PRUNING = ("magnitude", "dare", "ties", "dare_ties")


@without_autocast
def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    method: CombineMethod = "exact",
    *,
    r: int | None = None,
    energy: float | None = None,
    density: float | None = None,
    seed: int = 0,
    majority_sign: MajoritySign = "total",
    tensors: ExtraTensors = "same",
) -> Adapter:
    """One adapter whose updates are the weighted sum of those of `adapters`.

    - "exact": Σ wᵢ·ΔWᵢ by rank concatenation: the ranks add up.
    - "svd": the same, brought to a lower rank.
    - "magnitude": of each ΔWᵢ the fraction `density` of largest entries, then the sum.
    - "dare": of each ΔWᵢ a random fraction `density`, divided by it, then the sum (Yu et al. 2023, 2311.03099).
    - "ties": of each wᵢ·ΔWᵢ the largest entries; where signs differ, the mean of those that agree with the elected sign (Yadav
      et al. 2023, 2306.01708).
    - "dare_ties": the random fraction in place of the largest entries, then as "ties".

    A single adapter with weight 1 comes back as it is, whatever its kind, where nothing is cut off or pruned. Other sums of
    DoRA updates do not exist.

    Args:
        adapters: The adapters, one at least.
        weights: One per adapter, may be negative (default: all 1).
        method: How they are combined, see above.
        r: The rank of each layer, for all methods but "exact". Default: the largest of the adapters' ranks ("svd"), or their
            sum.
        energy: The fraction of ‖ΔW‖²_F of each layer to keep, by the smallest rank that does; with `r`, the smaller of the two.
        density: The fraction of the entries of ΔW that is kept, for methods that prune.
        seed: Of the random choice, which depends on nothing else but the adapter's place and the layer's name.
        majority_sign: How "ties" elects a sign: by the sum of the values ("total") or by their number ("frequency").
        tensors: What becomes of tensors and rows trained in full, which are values and not changes: "same" requires those that
            several adapters hold to be equal, "first" takes the first, "average" Σ wᵢ·Tᵢ, where the weights add up to 1, "drop"
            none.

    Returns:
        The new adapter, with the settings of the first.

    Raises:
        ConfigError: When the weights, the method or its options do not fit together.
        AlgebraError: When the adapters cannot be combined; it names the layer or tensor.
        ArgumentError: When `adapters` is not a list of adapters.

    Example:
        >>> A, B = torch.ones(1, 3), torch.ones(4, 1)
        >>> a, b = (lora.Adapter(lora.LoRAConfig(r=1), {"proj": lora.LoRAUpdate(A, x * B, 1)}) for x in (1.0, 5.0))
        >>> lora.combine([a, b], [1, -0.2]).delta("proj").norm()
        tensor(0.)
        >>> lora.combine([a, b], [0.5, 0.5], method="svd", r=1).delta("proj")[0].round(decimals=3)
        tensor([3., 3., 3.])
    """
    if not isinstance(adapters, Iterable) or isinstance(adapters, str | Mapping):
        raise wrong("adapters", "a list of adapters", adapters, "write lora.combine([a, b])")
    adapters = list(adapters)
    for place, adapter in enumerate(adapters):
        check_adapter(adapter, f"adapters[{place}]")
    if weights is not None and (not isinstance(weights, Iterable) or isinstance(weights, str)):
        raise wrong("weights", "a list of numbers, one for each adapter", weights)
    check_share(energy, "energy", "the share of ‖ΔW‖² to keep is such as 0.99")
    check_share(density, "density", "the share of entries to keep is such as 0.2")
    weights = _checked_weights(adapters, weights)
    _check_options(method, r, energy, density, majority_sign, tensors)
    tensors = "same" if len(adapters) == 1 and tensors != "drop" else tensors
    held = _extra_tensors(adapters, weights, tensors)
    layers: dict[str, LoRAUpdate] = {}
    for name, terms in terms_by_layer([adapter.layers for adapter in adapters], weights):
        with in_layer(name):
            for update, weight in terms if method != "exact" else ():
                algebra.check_computable(dataclasses.replace(update, lora_alpha=update.lora_alpha * (abs(weight) or 1)))
            if method == "exact":
                layers[name] = algebra.added(terms)
            elif method == "svd":
                layers[name] = algebra.truncated_sum(terms, _rank(terms, r, energy), energy)
            else:
                places = [place for place, adapter in enumerate(adapters) if name in adapter.layers]
                pruning = _Pruning(method, density or 1, majority_sign, seed, name)
                layers[name] = _pruned(terms, places, pruning, r, energy)
    if len(adapters) == 1 and tensors == "same":
        return adapters[0].with_layers(layers)
    return united(adapters, layers, *held)


def _checked_weights(adapters: list[Adapter], weights: Sequence[float] | None) -> list[float]:
    if not adapters:
        raise ConfigError("combine() needs adapters, one at least: combine([a, b], weights=[0.5, 0.5]).")
    found = [1.0] * len(adapters) if weights is None else [python_value(weight) for weight in weights]
    if len(found) != len(adapters):
        raise ConfigError(f"{len(found)} weights for {len(adapters)} adapters; give one to each.")
    for weight in found:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"weights={short(found)}: must be finite numbers, of any sign.")
    return found


def _check_options(
    method: str, r: int | None, energy: float | None, density: float | None, majority_sign: str, tensors: str
) -> None:
    for name, value, kind in (
        ("method", method, CombineMethod),
        ("majority_sign", majority_sign, MajoritySign),
        ("tensors", tensors, ExtraTensors),
    ):
        if value not in choices.names(kind):
            raise ConfigError(f"{name}={short(value)} is not known; choose one of {', '.join(choices.names(kind))}.")
    if r is not None:
        check_rank(r)
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy={short(energy)}: must be the share of the squared norm to keep, such as 0.99.")
    if method == "exact" and (r is not None or energy is not None):
        raise ConfigError("method='exact' keeps all ranks; choose method='svd' to bring the sum to a rank.")
    if method in _PRUNING and (density is None or not 0 < density <= 1):
        raise ConfigError(f"method={method!r} needs density, the share of entries to keep, such as 0.2; got {short(density)}.")
    if method not in _PRUNING and density is not None:
        raise ConfigError(f"method={method!r} prunes nothing; density is for {', '.join(_PRUNING)}.")


# --- what was trained in full ---------------------------------------------------------------------------------------

_Held = tuple[dict[str, Tensor], dict[str, TokenRows]]


def _extra_tensors(adapters: list[Adapter], weights: list[float], how: ExtraTensors) -> _Held:
    """The tensors and rows of the result."""
    if how == "same":
        return agreed(adapters)
    if how == "drop":
        return {}, {}
    tensors: dict[str, Tensor] = {}
    rows: dict[str, TokenRows] = {}
    for adapter in reversed(adapters):
        tensors |= dict(adapter.tensors)
        rows |= dict(adapter.rows)
    if how == "average":
        held = [(weight, adapter.tensors) for weight, adapter in zip(weights, adapters, strict=True)]
        tensors = {name: _average(name, [(w, t[name]) for w, t in held if name in t]) for name in tensors}
        rows = {name: _average_rows(adapters, weights, name) for name in rows}
    return tensors, rows


def _average(name: str, terms: list[tuple[float, Tensor]]) -> Tensor:
    first = terms[0][1]
    if all(same_bits(tensor, first) for _, tensor in terms):
        return first
    if not math.isclose(sum(weight for weight, _ in terms), 1, rel_tol=1e-6):
        raise AlgebraError(
            f"{name!r}: the weights of the adapters that hold it add up to {sum(w for w, _ in terms):g}, not to 1."
        )
    if not first.is_floating_point() or any(t.shape != first.shape for _, t in terms):
        raise AlgebraError(f"{name!r} cannot be averaged: it is not made of floating-point numbers, or of different shapes.")
    return sum((weight * tensor.double() for weight, tensor in terms), torch.zeros(first.shape).double()).to(first.dtype)


def _average_rows(adapters: list[Adapter], weights: list[float], name: str) -> TokenRows:
    found = [(weight, adapter.rows[name]) for weight, adapter in zip(weights, adapters, strict=True) if name in adapter.rows]
    if len({rows.indices for _, rows in found}) > 1:
        raise AlgebraError(f"{name!r}: the adapters hold different rows; combine them with tensors='first' or 'drop'.")
    return TokenRows(found[0][1].indices, _average(name, [(weight, rows.values) for weight, rows in found]))


# --- layers ---------------------------------------------------------------------------------------------------------


def _rank(terms: Sequence[algebra.Weighted], r: int | None, energy: float | None) -> int | None:
    """The rank that a layer is brought to: as asked for, or the largest that there is."""
    return max(update.r for update, _ in terms) if r is None and energy is None else r


class _Pruning:
    """What happens to the dense ΔW of the adapters of one layer."""

    def __init__(self, method: str, density: float, majority_sign: str, seed: int, name: str):
        self.random, self.elects = method.startswith("dare"), method.endswith("ties")
        self.density, self.majority_sign, self.seed, self.name = density, majority_sign, seed, name

    def kept(self, delta: Tensor, place: int) -> Tensor:
        """The share `density` of the entries of `delta` (n,), zero elsewhere."""
        if self.density == 1:
            return delta
        if self.random:
            key = hashlib.sha256(f"{self.seed} {place} {self.name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
            mask = torch.rand(delta.shape, generator=generator) < self.density
            return torch.where(mask.to(delta.device), delta / self.density, 0)
        largest = delta.abs().topk(int(self.density * len(delta)), sorted=False).indices
        return torch.zeros_like(delta).index_copy(0, largest, delta[largest])

    def joined(self, deltas: list[Tensor], weights: list[float]) -> Tensor:
        """The sum of pruned updates, with their weights; ties' disjoint mean where it is asked for."""
        weighted = torch.stack([weight * delta for weight, delta in zip(weights, deltas, strict=True)])
        if not self.elects:
            return weighted.sum(0)
        votes = weighted if self.majority_sign == "total" else weighted.sign()
        elected = torch.where(votes.sum(0) >= 0, 1, -1)
        agree = weighted.sign() == elected
        return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def _pruned(
    terms: list[algebra.Weighted], places: list[int], pruning: _Pruning, r: int | None, energy: float | None
) -> LoRAUpdate:
    """A layer of the combination of pruned updates, of the kind that the updates have. places: the adapters'."""
    if pruning.density == 1 and len(terms) == 1 and terms[0][1] == 1:
        return algebra.truncated(terms[0][0], r, energy)
    if any(update.is_dora for update, _ in terms):
        raise AlgebraError("a DoRA update is not a ΔW that could be pruned; merge it into the model first.")
    updates = [update for update, _ in algebra.alike(terms)]
    parts = [[update.scaling * (B.double() @ A.double()) for B, A in update.products()] for update in updates]
    sizes = [part.numel() for part in parts[0]]
    flat = [torch.cat([part.flatten() for part in of_update]) for of_update in parts]
    deltas = [pruning.kept(delta, place) for delta, place in zip(flat, places, strict=True)]
    joined = pruning.joined(deltas, [weight for _, weight in terms]).split(sizes)
    matrices = [part.view_as(like) for part, like in zip(joined, parts[0], strict=True)]
    return _factored(updates[0], matrices, sum(update.r for update in updates) if r is None else r, energy)


def _factored(like: LoRAUpdate, dense: list[Tensor], limit: int, energy: float | None) -> LoRAUpdate:
    """An update of the kind of `like` whose products are the best approximations of the matrices `dense`, with s = 1."""
    found = [low_rank.leading(matrix, limit * like.rows_per_rank, energy) for matrix in dense]
    r = max(math.ceil(len(svd.S) / like.rows_per_rank) for svd in found)
    pairs = [algebra.fitted(svd, r * like.rows_per_rank, like.B.dtype, like.A.dtype) for svd in found]
    return like.with_products(pairs, alpha_for(1.0, r), False)
