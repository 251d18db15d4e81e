"""Dropout by gaps drops each element independently with the same probability, and what is kept stands for the same places."""

import math

import pytest
import torch
from torch import Tensor

from loralib.ops.autograd import dropout

RATES = [1e-4, 1e-3, 0.0099, 0.01, 0.06, 0.07, 0.1, 0.25, 0.5, 0.6, 0.9]


def drops(n: int, p: float, rounds: int) -> Tensor:
    """Which of n elements are dropped (1.0), a row a round."""
    x = torch.ones(n)
    return torch.stack([dropout.zeroed(x, dropout.draw(x, p)[1]) == 0 for _ in range(rounds)]).double()


@pytest.mark.parametrize("p", RATES)
def test_each_element_is_dropped_independently_with_the_same_probability(p):
    n, rounds = 997, 400
    dropped = drops(n, p, rounds)
    total = n * rounds
    assert abs(float(dropped.sum()) - total * p) < 5 * math.sqrt(total * p * (1 - p)) + 1
    for part in (dropped[:, : n // 3], dropped[:, -n // 3 :]):  # the beginning and the end as the rest
        assert abs(float(part.sum()) - part.numel() * p) < 5 * math.sqrt(part.numel() * p * (1 - p)) + 1
    for distance in (1, 2, 7):  # neighbours know nothing of each other
        pairs = dropped[:, distance:] * dropped[:, :-distance]
        assert abs(float(pairs.sum()) - pairs.numel() * p * p) < 6 * math.sqrt(pairs.numel() * p * p) + 1


def test_the_number_of_dropped_elements_varies_as_it_should():
    p, n = 0.1, 500
    counts = drops(n, p, 3000).sum(1)
    assert abs(float(counts.var()) / (n * p * (1 - p)) - 1) < 0.15


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_gaps_are_geometric(p):
    n = 2_000_000
    _, places = dropout.draw(torch.ones(n), p)
    gaps = places.diff()
    for gap in (1, 2, 3, 10, 50):
        expected = len(gaps) * p * (1 - p) ** (gap - 1)
        assert abs(float((gaps == gap).sum()) - expected) < 5 * math.sqrt(expected) + 1
    tail = int(5 / p)
    expected = len(gaps) * (1 - p) ** tail
    assert abs(float((gaps > tail).sum()) - expected) < 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 100, 3001])
def test_what_is_kept_stands_for_places_that_are_distinct_ordered_and_inside(n, p):
    for _ in range(30):
        kept, places = dropout.draw(torch.ones(n), p)
        again = dropout.places(kept)
        assert torch.equal(places, again)
        if p <= 0.5:
            assert torch.equal(places, places.unique())
            assert not len(places) or 0 <= int(places[0]) <= int(places[-1]) < n


@pytest.mark.parametrize(
    ("p", "dtype"), [(0.5, torch.uint8), (0.07, torch.uint8), (0.06, torch.int16), (2e-3, torch.int16), (1e-3, torch.int64)]
)
def test_gaps_are_kept_in_the_smallest_integers_that_hold_the_largest(p, dtype, monkeypatch):
    assert dropout.draw(torch.ones(1000), p)[0].dtype == dtype
    monkeypatch.setattr(torch, "rand", lambda n, dtype, **where: torch.full((n,), 1 - torch.finfo(dtype).eps / 2, dtype=dtype))
    monkeypatch.setattr(dropout, "draw_gaps", lambda n, p, generator, gaps=dropout.draw_gaps: gaps(n, p)[:3])
    largest = 1 + math.floor((24 if p >= 0.01 else 53) * math.log(2) / -math.log1p(-p))
    _, places = dropout.draw(torch.ones(2 * largest), p)
    assert places.tolist() == [largest - 1, 2 * largest - 1]  # although more had to be drawn than at first


def test_nothing_is_dropped_where_nothing_shall_be():
    x = torch.ones(3)
    kept, places = dropout.draw(x, 0.0)
    assert kept is None
    assert dropout.zeroed(x, places) is x


def test_a_default_device_does_not_matter():
    with torch.device("meta"):
        kept, places = dropout.draw(torch.ones(100, device="cpu"), 0.1)
    assert kept.device.type == places.device.type == "cpu"
