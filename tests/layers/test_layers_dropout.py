"""Dropout on the input of an update: nothing in a layer that drops nothing, and a probability where an operation may drop."""

import pickle

import pytest
import torch
from torch import nn

from loralib.layers.dropout import no_dropout, probability


def test_no_dropout_changes_nothing_and_can_be_pickled():
    x = torch.randn(3)
    assert no_dropout(x) is x
    assert pickle.loads(pickle.dumps(no_dropout)) is no_dropout


@pytest.mark.parametrize(
    ("dropout", "expected"),
    [
        (no_dropout, 0),
        (nn.Identity(), 0),
        (nn.Dropout(0.25), 0.25),
        (nn.Dropout(0.25).eval(), 0),
        (nn.Dropout(0.0), 0),
        (nn.Dropout(1.0), None),
        (nn.Dropout(0.25, inplace=True), None),
        (nn.AlphaDropout(0.25), None),
        (type("Mine", (nn.Dropout,), {})(0.25), None),
        (lambda x: x, None),
    ],
)
def test_the_probability_is_known_of_torchs_own_dropout_alone(dropout, expected):
    assert probability(dropout) == expected
