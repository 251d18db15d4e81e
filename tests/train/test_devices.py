"""On how many devices, by how many processes, a run computes."""

from types import SimpleNamespace

import pytest
import torch

from loralib.train import devices


@pytest.mark.parametrize(
    ("distributed", "processes", "gpus", "count", "replicas"),
    [
        (False, 1, 0, 1, 1),  # a processor
        (False, 1, 1, 1, 1),
        (False, 1, 4, 4, 4),  # replicas of DataParallel
        (True, 4, 4, 4, 1),  # torchrun
        (True, 4, 0, 4, 1),  # torchrun on processors
        (True, 1, 4, 1, 1),
    ],
)
def test_what_shares_a_batch_is_counted(distributed, processes, gpus, count, replicas, monkeypatch):
    state = SimpleNamespace(use_distributed=distributed, num_processes=processes)
    monkeypatch.setattr(devices, "processes", lambda: state)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert (devices.device_count(), devices.replicas()) == (count, replicas)


def test_without_torchrun_there_is_one_process_which_is_the_main_one():
    state = devices.processes()
    assert not state.use_distributed
    assert (state.num_processes, state.is_main_process) == (1, True)
