"""Two processes that share a model by FSDP2 train the factors as one process does; so does a checkpointed model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import loralib as lora
from kinds import KINDS, every_kind
from mixtures import IDS, IMPLEMENTATIONS, fill, logits, mixture
from models import close

BATCH = 8


class Mixed(nn.Module):
    """A layer of each of the kinds whose step is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.fused = nn.Linear(8, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.tokens(ids).transpose(1, 2)).relu().transpose(1, 2)
        return self.out(self.fused(x).relu())


def adapted_model() -> nn.Module:
    torch.manual_seed(0)
    model = Mixed()
    masks = {"fused": [True, False, True]}
    lora.inject(model, lora.LoRAConfig(r=2, target_modules=["tokens", "conv", "fused", "out"], enable_lora=masks))
    lora.mark_only_lora_as_trainable(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape))
    return model


def batch() -> Tensor:
    return torch.arange(BATCH * 5).reshape(BATCH, 5) * 7 % 20


def train_a_part(rank: int, world: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh, model = init_device_mesh("cpu", (world,)), adapted_model()
    for layer in (model.tokens, model.conv, model.fused, model.out):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    for _ in range(2):  # the second time from what the first has resharded
        model.zero_grad()
        model(batch().chunk(world)[rank]).square().mean().backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.requires_grad}
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def adapted_mixture(how: str) -> nn.Module:
    model = mixture("Qwen3Moe", how)
    lora.inject(model, lora.LoRAConfig(r=2))
    lora.mark_only_lora_as_trainable(model)
    torch.manual_seed(0)
    return fill(model)


def train_a_part_of_a_mixture(rank: int, world: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    gradients = {}
    for how in IMPLEMENTATIONS:
        model: Any = adapted_mixture(how)
        for block in model.model.layers:
            fully_shard(block)
        fully_shard(model)
        logits(model, IDS[rank : rank + 1]).square().mean().backward()
        gradients[how] = {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.requires_grad}
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_share_a_mixture_get_the_gradients_of_one(tmp_path: Path):
    torch.multiprocessing.spawn(train_a_part_of_a_mixture, args=(2, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")
    for how in IMPLEMENTATIONS:
        model = adapted_mixture(how)
        logits(model).square().mean().backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert found[how].keys() == expected.keys()
        assert all(torch.allclose(found[how][name], grad, rtol=1e-3, atol=1e-5) for name, grad in expected.items())


@pytest.mark.slow
def test_two_processes_that_share_a_model_get_the_gradients_of_one(tmp_path: Path):
    torch.multiprocessing.spawn(train_a_part, args=(2, str(tmp_path)), nprocs=2)
    model = adapted_model()
    model(batch()).square().mean().backward()
    gradients = torch.load(tmp_path / "gradients.pt")
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    assert all(torch.allclose(gradients[name], grad, rtol=1e-4, atol=1e-5) for name, grad in expected.items())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", every_kind)
def test_checkpointed_layers_get_the_same_gradients(kind, reentrant):
    model, inputs = KINDS[kind].build()[1], KINDS[kind].inputs()
    wanted = [p for p in model.parameters() if p.requires_grad]
    model(*inputs).square().sum().backward()
    expected = [p.grad.clone() for p in wanted]
    model.zero_grad()
    anchor = torch.ones((), requires_grad=True)  # reentrant checkpoints want an input that requires a gradient

    def run(anchor: Tensor, *inputs: Tensor) -> Tensor:
        return model(*inputs) * anchor

    torch.utils.checkpoint.checkpoint(run, anchor, *inputs, use_reentrant=reentrant).square().sum().backward()
    assert all(close(p.grad, grad, factor=16) for p, grad in zip(wanted, expected, strict=True))
