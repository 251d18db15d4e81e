"""What all tests share: no network, one thread (the models are tiny), random numbers that are the same in every run of a
test, and hypothesis that draws the same examples on every CI run."""

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

collect_ignore_glob = ["*conftest.py"]  # several of one name cannot be looked through for doctests

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("suite")


class TorchRandom:
    """Torch's generator, as hypothesis wants to see one, so that it seeds it before every example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()
hypothesis.register_random(TORCH_RANDOM)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt in this process and in those that the test starts.

    A shell without job control starts background jobs with SIGINT ignored, which Python and child processes inherit.
    """
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
