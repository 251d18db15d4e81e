"""Dropout as a list of what is dropped: p·n·d draws and as many small integers kept, not n·d.

The places of the dropped elements are drawn one from the next, by geometric gaps. The gaps are what is kept, a byte each from
p = 0.064 on, two from 0.0012 on and eight below, and their running sum gives the places again in the backward pass. For p above
a half, for few elements, and on other devices than the CPU, a mask of bytes is drawn and kept.
"""

import math

import torch
from torch import Tensor

_EXACT = 0.01  # the smallest p for which 24 random bits a gap are enough; below it 53 are drawn
FEW = 1 << 12  # elements for which a mask is faster
_GAPS = (torch.uint8, torch.int16, torch.int64)


def draw(x: Tensor, p: float, generator: torch.Generator | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Which elements of `x` to drop, each with probability `p` and independently: what to keep until the backward pass, and the
    places it stands for. Nothing for p = 0."""
    if not p:
        return None, None
    if p > 0.5 or x.numel() < FEW or x.device.type != "cpu":
        mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(p, generator=generator)
        return mask, mask
    n = x.numel()
    gaps = draw_gaps(n, p, generator)
    places = gaps.cumsum(0, dtype=torch.int64)  # counted from 1
    while (end := int(places[-1])) <= n:
        gaps = torch.cat([gaps, draw_gaps(n - end, p, generator)])
        places = gaps.cumsum(0, dtype=torch.int64)
    count = int(torch.searchsorted(places, n, right=True))
    gaps = gaps[:count]
    if count:
        gaps[0] -= 1
    return gaps, places[:count].sub_(1)


def places(kept: Tensor | None) -> Tensor | None:
    """The places that `kept` stands for: numbers of elements of the flattened tensor, or a mask."""
    return kept if kept is None or kept.dtype == torch.bool else kept.cumsum(0, dtype=torch.int64)


def zero_(x: Tensor, places: Tensor | None) -> Tensor:
    """`x`, which is contiguous, with zeros put in the places."""
    if places is None:
        return x
    if places.dtype == torch.bool:
        return x.masked_fill_(places.view(x.shape), 0)
    x.view(-1).index_fill_(0, places, 0)
    return x


def zeroed(x: Tensor, places: Tensor | None) -> Tensor:
    """`x` with zeros in the places; a copy, where there are any."""
    return x if places is None else zero_(x.clone(memory_format=torch.contiguous_format), places)


def _bits(p: float) -> int:
    return 24 if p >= _EXACT else 53


def _dtype_of_gaps(p: float) -> torch.dtype:
    """The smallest type that holds every gap that can be drawn."""
    largest = _bits(p) * math.log(2) / -math.log1p(-p) + 2
    return next(dtype for dtype in _GAPS if torch.iinfo(dtype).max >= largest or dtype is _GAPS[-1])


def draw_gaps(n: int, p: float, generator: torch.Generator | None = None) -> Tensor:
    """The distances from one dropped element to the next, geometric with mean 1 / p: most probably enough for `n` elements."""
    count = int(n * p + 6 * math.sqrt(n * p)) + 16
    u = torch.rand(count, dtype=torch.float32 if _bits(p) == 24 else torch.float64, device="cpu", generator=generator)
    return u.neg_().log1p_().div_(math.log1p(-p)).to(_dtype_of_gaps(p)).add_(1)
