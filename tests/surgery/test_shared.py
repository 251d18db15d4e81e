"""Models that several processes share: every call does the right thing in all of them, or is refused in a sentence."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

import loralib as lora
from models import close, expect_refusal, injected, mlp, randomize, same_bits, trained_head
from peers import library

# --- one process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def ddp(module: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(module)


def replicated(module: nn.Module) -> nn.Module:
    """DDP without a wrapper."""
    from torch.distributed._composable.replicate import replicate

    return replicate(module)


CONFIG = lora.LoRAConfig(r=2, target_modules=["0"], modules_to_save=["2"])


@pytest.mark.parametrize("wrap", [ddp, replicated])
@pytest.mark.parametrize("nested", [False, True])
def test_nothing_is_added_to_what_ddp_keeps_in_step(nested, wrap, process_group):
    adapter = lora.extract(trained_head())
    model = nn.Sequential(wrap(mlp(6, 5, 4)), nn.Linear(4, 4)) if nested else wrap(mlp(6, 5, 4))
    adapter = adapter.rename({"": "0"}) if nested else adapter
    config = lora.LoRAConfig(r=2, target_modules=["0.0" if nested else "0"])
    message = (
        "DistributedDataParallel would not keep its new parameters the same in all processes; {} before you wrap the model"
    )
    expect_refusal(lora.LayerError, message.format("inject"), model, lambda: lora.inject(model, config))
    expect_refusal(lora.LayerError, message.format("attach"), model, lambda: lora.attach(model, adapter))
    if nested:
        assert lora.inject(model, lora.LoRAConfig(r=2, target_modules="1")) == ["1"]  # outside


def test_values_are_loaded_into_what_ddp_has_and_no_new_tensors(process_group):
    source = lora.extract(trained_head())
    inner = mlp(6, 5, 4)
    lora.inject(inner, CONFIG)
    model = ddp(inner)
    before = [id(p) for p in model.parameters()]
    assert lora.attach(model, source) == ["0"]
    assert [id(p) for p in model.parameters()] == before
    assert same_bits(inner[0].lora_B, source.layers["0"].B)
    other = ddp(injected(mlp(6, 5, 4), target_modules=["0"]))
    with pytest.raises(lora.LayerError, match=r"'2.weight' cannot be attached to: DistributedDataParallel"):
        lora.attach(other, source)


# --- DeepSpeed's ZeRO-3, by a stand-in with the attributes that it gives parameters -----------------------------------


def partition(model: nn.Module) -> nn.Module:
    """Leave each parameter empty, and its values in `ds_tensor`, as DeepSpeed does between two uses."""
    for i, p in enumerate(model.parameters()):
        p.ds_id, p.ds_shape, p.ds_tensor = i, p.shape, p.data
        p.data = torch.empty(0, dtype=p.dtype)
    return model


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The values are in their places inside the block."""
    found = [p for p in model.parameters() if hasattr(p, "ds_id")]
    for p in found:
        p.data = p.ds_tensor
    yield
    for p in found:
        p.ds_tensor, p.data = p.data, torch.empty(0, dtype=p.dtype)


def test_a_partitioned_model_is_injected_and_trained_when_deepspeed_gathers_it():
    plain, x = mlp(6, 5, 4), torch.randn(3, 6)
    y = plain(x)
    model = partition(plain)
    assert lora.inject(model, lora.LoRAConfig(r=2)) == ["0", "2"]
    with gathered(model):
        assert close(model(x), y, factor=4)
    lora.eject(model)
    with gathered(model):
        assert close(model(x), y, factor=4)


def test_what_is_trained_in_full_is_not_copied_from_empty_parameters():
    model = partition(mlp(6, 5, 4))
    call = lambda: lora.inject(model, CONFIG)  # noqa: E731
    expect_refusal(lora.TargetError, r"'2.weight' is to be trained in full, and DeepSpeed has partitioned it", model, call)
    with gathered(model):
        call()
    assert model[2].weight.numel() == 20


def test_layers_that_say_their_shape_only_by_their_weight_are_refused():
    model = partition(nn.Sequential(library("transformers.pytorch_utils").Conv1D(4, 5)))
    call = lambda: lora.inject(model, lora.LoRAConfig(r=2))  # noqa: E731
    expect_refusal(lora.TargetError, r"partitioned by DeepSpeed \(ZeRO-3\), so its shape is not known", model, call)
    attention = partition(nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)}))
    call = lambda: lora.inject(attention, lora.LoRAConfig(r=2, target_modules=["q_proj"]))  # noqa: E731
    expect_refusal(lora.TargetError, r"partitioned by DeepSpeed \(ZeRO-3\), so its shape is not known", attention, call)


@pytest.mark.parametrize("keep", [True, False])
def test_a_partitioned_weight_is_not_merged_gathered_or_not(keep):
    model = partition(injected(mlp(6, 5, 4)))
    call = lambda: lora.merge(model, keep=keep)  # noqa: E731
    expect_refusal(lora.LayerError, r"'0' cannot be merged: its weight is partitioned by DeepSpeed \(ZeRO-3\)", model, call)
    with gathered(model):
        expect_refusal(lora.LayerError, "'0' cannot be merged: its weight is partitioned", model, call)


def test_partitioned_factors_and_heads_are_neither_saved_empty_nor_overwritten():
    source = trained_head()
    adapter = lora.extract(source)
    model = partition(trained_head())

    def disable() -> None:
        with lora.disabled(model):
            pass

    with pytest.raises(lora.LayerError, match=r"holds no data .*gather them first"):
        lora.extract(model)
    with gathered(model):
        assert lora.extract(model).layers["0"].A.shape == (2, 6)
    expect_refusal(lora.AttachError, "0: its factors are shared among processes", model, lambda: lora.attach(model, adapter))
    expect_refusal(lora.LayerError, r"'2.weight' is partitioned by DeepSpeed", model, disable)
    expect_refusal(lora.LayerError, r"'2.weight' is partitioned by DeepSpeed", model, lambda: lora.eject(model))


# --- two processes --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two parts, and a head to be trained in full."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.up(x).relu()))


def net(inject: bool = True, seed: int = 0, save: bool = True, **config: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = Net()
    if inject:
        saved = ["head"] if save else []
        lora.inject(model, lora.LoRAConfig(r=2, lora_alpha=4, target_modules=["up", "down"], modules_to_save=saved, **config))
        randomize(model)
        with torch.no_grad():
            model.head.bias.add_(1)
        lora.mark_only_lora_as_trainable(model)
    return model


def rows() -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def equal(a: lora.Adapter, b: lora.Adapter) -> bool:
    pairs = [(t, b.layers[n].tensors()[k]) for n, u in a.layers.items() for k, t in u.tensors().items()]
    pairs += [(t, b.tensors[n]) for n, t in a.tensors.items()]
    return a.layers.keys() == b.layers.keys() and a.tensors.keys() == b.tensors.keys() and all(close(*pair) for pair in pairs)


def said(call: Callable[[], object]) -> str:
    """The refusal that `call` raises."""
    try:
        call()
    except lora.LoRAError as error:
        return str(error)
    return "done"


def disable(model: nn.Module) -> None:
    with lora.disabled(model):
        pass


def refusals(model: nn.Module) -> dict[str, str]:
    """What is said to everything that would change the model."""
    adapter = lora.extract(net())
    return {
        "merge": said(lambda: lora.merge(model)),
        "merge for good": said(lambda: lora.merge(model, keep=False)),
        "eject": said(lambda: lora.eject(model)),
        "disabled": said(lambda: disable(model)),
        "attach": said(lambda: lora.attach(model, adapter)),
        "inject": said(lambda: lora.inject(model, lora.LoRAConfig(r=2, target_modules=["head"]))),
    }


def under_fsdp1(mesh: Any) -> dict[str, Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    found: dict[str, Any] = {}
    expected, base = net(), net(inject=False)
    y, adapter = expected(rows()), lora.extract(expected)
    model = net()
    model.down = FullyShardedDataParallel(model.down, use_orig_params=True, device_id=torch.device("cpu"))
    model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    found["output"] = close(model(rows()), y, factor=16)
    found["refusals"] = refusals(model) | {"extract": said(lambda: lora.extract(model))}
    found["unchanged"] = close(model(rows()), y, factor=16)
    state = lora.lora_state_dict(model)
    plain = lora.lora_state_dict(expected)
    found["state"] = state.keys() == plain.keys() and all(same_bits(state[name], t) for name, t in plain.items())
    with FullyShardedDataParallel.summon_full_params(model):
        found["gathered"] = equal(lora.extract(model), adapter)
        found["refusals gathered"] = refusals(model)
    model(rows()).square().mean().backward()
    found["trains"] = close(model(rows()), y, factor=16)
    wrapped = FullyShardedDataParallel(base, use_orig_params=True, device_id=torch.device("cpu"))
    found["inject after"] = said(lambda: lora.inject(wrapped, lora.LoRAConfig(r=2, target_modules=["up"])))
    found["attach after"] = said(lambda: lora.attach(wrapped, adapter))
    return found


def under_fsdp2(mesh: Any) -> dict[str, Any]:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    found: dict[str, Any] = {}
    expected = net()
    y, adapter = expected(rows()), lora.extract(expected)
    model = net()
    for part in (model.up, model.down, model):
        fully_shard(part, mesh=mesh)
    found["output"] = close(model(rows()), y, factor=16)
    found["refusals"] = refusals(model) | {"extract": said(lambda: lora.extract(model))}
    found["unchanged"] = close(model(rows()), y, factor=16)
    found["state"] = set(lora.lora_state_dict(model)) == set(lora.lora_state_dict(expected))
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
    found["gathered"] = equal(lora.extract(model), adapter)
    found["refusals gathered"] = refusals(model)
    for part in parts:
        part.reshard()
    model(rows()).square().mean().backward()
    found["trains"] = close(model(rows()), y, factor=16)
    bare = net(save=False)
    for part in (bare.up, bare.down, bare):
        fully_shard(part, mesh=mesh)
    y_bare = net(inject=False)
    with torch.no_grad():
        y_bare.head.bias.add_(1)
    with lora.disabled(bare):  # nothing is exchanged
        found["disabled"] = close(bare(rows()), y_bare(rows()), factor=16)
    later = net(inject=False)
    fully_shard(later, mesh=mesh)
    found["inject after"] = said(lambda: lora.inject(later, lora.LoRAConfig(r=2, target_modules=["up"])))
    found["attach after"] = said(lambda: lora.attach(later, adapter))
    return found


def under_tensor_parallelism(mesh: Any) -> dict[str, Any]:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    found: dict[str, Any] = {}
    expected = net(save=False)
    y = expected(rows())
    y.square().mean().backward()
    model = parallelize_module(net(save=False), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    output = model(rows())
    found["output"] = close(output, y, factor=16)
    output.square().mean().backward()
    own, wanted = dict(model.named_parameters()), dict(expected.named_parameters())
    factors = [name for name in own if "lora_" in name]
    found["gradients"] = all(torch.allclose(own[n].grad.full_tensor(), wanted[n].grad, rtol=1e-4, atol=1e-6) for n in factors)
    found["refusals"] = refusals(model) | {"extract": said(lambda: lora.extract(model))}
    found["unchanged"] = close(model(rows()), y, factor=16)
    return found


def under_ddp(mesh: Any) -> dict[str, Any]:
    rank = torch.distributed.get_rank()
    model = net()
    wrapper = ddp(model)
    optimizer = torch.optim.SGD([p for p in wrapper.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        wrapper(rows().chunk(2)[rank]).square().mean().backward()
        optimizer.step()
    alone = net()
    optimizer = torch.optim.SGD([p for p in alone.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        alone(rows()).square().mean().backward()
        optimizer.step()
    ours, theirs = lora.lora_state_dict(model), lora.lora_state_dict(alone)
    bare = ddp(net(inject=False))
    return {
        "trains": all(torch.allclose(ours[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in theirs.items()),
        "inject after": said(lambda: lora.inject(bare, lora.LoRAConfig(r=2, target_modules=["up"]))),
        "attach after": said(lambda: lora.attach(bare, lora.extract(net()))),
    }


SCENES = {"fsdp1": under_fsdp1, "fsdp2": under_fsdp2, "tp": under_tensor_parallelism, "ddp": under_ddp}


def play(rank: int, world: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    found = {name: scene(mesh) for name, scene in SCENES.items()}
    Path(f"{folder}/{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def played() -> Iterator[list[dict[str, Any]]]:
    """What each of two processes found."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(play, args=(2, folder), nprocs=2)
        yield [json.loads(Path(f"{folder}/{rank}.json").read_text()) for rank in range(2)]


HELD = {"fsdp1": "FullyShardedDataParallel holds its parameters", "fsdp2": "fully_shard holds its parameters"}


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_what_is_computed_and_saved_by_two_processes_is_right(scene, played):
    for found in played:
        assert all(value for value in found[scene].values() if isinstance(value, bool)), found[scene]


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["fsdp1", "fsdp2", "tp"])
def test_what_two_processes_cannot_do_is_refused_in_a_sentence(scene, played):
    for found in played:
        for call, sentence in found[scene]["refusals"].items():
            allowed = scene == "tp" and call in ("disabled", "inject")
            assert allowed or ("Nothing was" in sentence and sentence != "done"), (call, sentence)
        for call, sentence in found[scene].get("refusals gathered", {}).items():
            assert HELD[scene] in sentence or (scene == "fsdp2" and call == "eject"), (call, sentence)


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["fsdp1", "fsdp2", "ddp"])
def test_an_adapter_put_on_after_the_wrapping_is_refused_by_every_process(scene, played):
    for found in played:
        for call in ("inject", "attach"):
            assert f"{call} before" in found[scene][f"{call} after"]
            assert "Nothing was changed" in found[scene][f"{call} after"]
