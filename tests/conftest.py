"""What all tests share: one thread (the models are tiny), and hypothesis that draws the same examples on every CI run."""

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "suite",
    deadline=None,
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
