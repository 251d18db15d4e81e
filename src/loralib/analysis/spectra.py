"""The singular values of each layer's update, and what they say of its size and rank.

p = σ / Σσ,   effective rank exp(−Σ p·ln p)  (Roy and Vetterli 2007)      stable rank ‖ΔW‖²_F / σ₁²
"""

import math
from dataclasses import dataclass

from ..adapters.adapter import Adapter, check_adapter
from ..adapters.updates import LoRAUpdate
from ..errors import AlgebraError, ConfigError
from .products import Product, products_of


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one layer's ΔW, and what follows from them.

    Attributes:
        r: The rank that the layer was given.
        lora_alpha: The numerator of its scaling.
        values: The singular values, descending; None where the factors are not finite.
        intruders: How many intruder dimensions it has, where that was asked for.

    Example:
        >>> spectrum = lora.analysis.Spectrum(r=4, lora_alpha=4, values=(2.0, 2.0, 0.2, 0.0))
        >>> spectrum.rank_at(0.99), round(spectrum.stable_rank, 2), round(spectrum.effective_rank, 2)
        (2, 2.01, 2.34)
    """

    r: int
    lora_alpha: float
    values: tuple[float, ...] | None
    intruders: int | None = None

    @property
    def norm(self) -> float:
        """‖ΔW‖_F; NaN where the values are not known."""
        return math.nan if self.values is None else math.hypot(*self.values)

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖²_F / σ₁²: from 1 to the rank; 0 of a ΔW that is zero, NaN where the values are not known."""
        if self.values is None:
            return math.nan
        return (self.norm / self.values[0]) ** 2 if any(self.values) else 0.0

    @property
    def effective_rank(self) -> float:
        """exp(H) of the entropy H of σ / Σσ (Roy and Vetterli 2007): from 1 to the rank; 0 of a ΔW that is zero, NaN where the
        values are not known.
        """
        if self.values is None:
            return math.nan
        total = math.fsum(self.values)
        shares = [value / total for value in self.values if value] if total else []
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p)) if shares else 0.0

    def rank_at(self, energy: float) -> int:
        """How many singular values carry a share of ‖ΔW‖²_F.

        Args:
            energy: The share, such as 0.99.

        Returns:
            The smallest rank; 0 of a ΔW that is zero, or whose values are not known.

        Raises:
            ConfigError: When `energy` is not a share.
        """
        if not 0 < energy <= 1:
            raise ConfigError(f"energy={energy!r}: must be the share of the squared norm to keep, such as 0.99.")
        goal, carried = energy * self.norm**2 * (1 - 1e-12), 0.0
        for rank, value in enumerate(self.values or (), 1):
            carried += value**2
            if carried >= goal > 0:
                return rank
        return 0


def spectra(adapter: Adapter) -> dict[str, Spectrum]:
    """Compute the singular values of each layer's ΔW, in float64 from the factors. Of DoRA those of s·B·A.

    Args:
        adapter: The adapter.

    Returns:
        The spectra by layer, `name[i]` for slice i of a fused projection, `name.e` for expert e.

    Raises:
        ArgumentError: When `adapter` is not an adapter.

    Example:
        >>> update = lora.LoRAUpdate(torch.eye(2, 3), torch.eye(4, 2) * torch.tensor([1.0, 3.0]), lora_alpha=4)
        >>> found = lora.analysis.spectra(lora.Adapter(lora.LoRAConfig(r=2), {"proj": update}))
        >>> found["proj"].values
        (6.0, 2.0)
    """
    check_adapter(adapter)
    return {key: found for name, update in adapter.layers.items() for key, found in _of_layer(name, update, True).items()}


def spectrum_of(update: LoRAUpdate, intruders: int | None = None) -> Spectrum:
    """The spectrum of one layer as one matrix, its slices together, and experts as its blocks."""
    found = [spectrum.values for spectrum in _of_layer("", update, apart=False).values()]
    values = None if None in found else tuple(sorted((value for own in found for value in own or ()), reverse=True))
    return Spectrum(update.r, update.lora_alpha, values, intruders)


def _of_layer(name: str, update: LoRAUpdate, apart: bool) -> dict[str, Spectrum]:
    try:
        products: dict[str, Product] = products_of(name, update, apart)
    except AlgebraError:
        return {name: Spectrum(update.r, update.lora_alpha, None)}
    return {key: Spectrum(update.r, update.lora_alpha, tuple(product.values().tolist())) for key, product in products.items()}
