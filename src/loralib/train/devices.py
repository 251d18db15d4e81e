"""On how many devices, by how many processes, a run computes."""

import accelerate
import torch


def processes() -> accelerate.PartialState:
    """The processes that torchrun started, on accelerators or on processors; one without it."""
    return accelerate.PartialState(cpu=not torch.accelerator.is_available())


def device_count() -> int:
    """How many devices share a batch."""
    state = processes()
    return state.num_processes if state.use_distributed else replicas()


def replicas() -> int:
    """How many devices this one process computes on: several where there are several GPUs and no torchrun."""
    return 1 if processes().use_distributed else max(1, torch.cuda.device_count())
