"""What the examples in docstrings take for granted, as docs/reference/index.md says."""

import pytest
import torch
from torch import nn

import loralib as lora

collect_ignore_glob = ["*conftest.py"]


@pytest.fixture(autouse=True)
def assumed(doctest_namespace: dict[str, object]) -> None:
    """The names that examples use without importing them; where chance comes in, it is the same on every run."""
    doctest_namespace.update(torch=torch, nn=nn, lora=lora)
    torch.manual_seed(0)
