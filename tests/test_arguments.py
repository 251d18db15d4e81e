"""Every exported function, given what it does not take: one LoRAError that says what was got, and nothing is changed."""

import copy
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import loralib as lora
from docstrings import raises
from loralib.errors import ArgumentError
from models import plain, snapshot, with_lora


class Pipeline:
    """What holds a model, as a Trainer does."""

    def __init__(self) -> None:
        self.unet = plain()


ADAPTER = lora.extract(with_lora())
WRONG: dict[str, Any] = {
    "None": None,
    "a number": 3,
    "a fraction": 0.5,
    "a name": "org/model",
    "a path": Path("nowhere"),
    "bytes": b"abc",
    "a class": nn.Linear,
    "our class": lora.Adapter,
    "a config class": lora.LoRAConfig,
    "a config": lora.LoRAConfig(),
    "an adapter": ADAPTER,
    "adapters": [ADAPTER],
    "a dictionary": {"r": 8},
    "nothing": {},
    "a state dict": plain().state_dict(),
    "models": [plain()],
    "a tuple": (ADAPTER, ADAPTER),
    "a tensor": torch.ones(2),
    "a model": plain(),
    "a model with LoRA": with_lora(),
    "a function": lambda x: x,
    "an object": object(),
    "a pipeline": Pipeline(),
}


def update(**changes: Any) -> lora.LoRAUpdate:
    return lora.LoRAUpdate(**({"A": torch.ones(2, 4), "B": torch.ones(4, 2), "lora_alpha": 4} | changes))


def calls(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """A call for each argument of each exported function, by `function.argument`."""
    here, out = str(folder / "adapter"), str(folder / "out")
    tensors = here + "/adapter_model.safetensors"
    return {
        "inject.model": lambda v: lora.inject(v, lora.LoRAConfig()),
        "inject.config": lambda v: lora.inject(plain(), v),
        "inject.dtype": lambda v: lora.inject(plain(), lora.LoRAConfig(), v),
        "attach.model": lambda v: lora.attach(v, ADAPTER),
        "attach.adapter": lambda v: lora.attach(plain(), v),
        "merge.model": lora.merge,
        "unmerge.model": lora.unmerge,
        "eject.model": lora.eject,
        "extract.model": lora.extract,
        "merged.model": lambda v: lora.merged(v).__enter__(),
        "disabled.model": lambda v: lora.disabled(v).__enter__(),
        "merged_state_dict.model": lora.merged_state_dict,
        "check_trained.model": lora.check_trained,
        "mark_only_lora_as_trainable.model": lora.mark_only_lora_as_trainable,
        "mark_only_lora_as_trainable.bias": lambda v: lora.mark_only_lora_as_trainable(with_lora(), v),
        "lora_state_dict.model": lora.lora_state_dict,
        "lora_state_dict.bias": lambda v: lora.lora_state_dict(with_lora(), v),
        "load_legacy.model": lambda v: lora.load_legacy(v, out + ".pt"),
        "load_legacy.path": lambda v: lora.load_legacy(with_lora(), v),
        "load.path": lora.load,
        "load.format": lambda v: lora.load(here, format=v),
        "load.config": lambda v: lora.load(here, config=v),
        "load.keys": lambda v: lora.load(tensors, keys=v),
        "load.layout": lambda v: lora.load(here, layout=v),
        "split_experts.adapter": lora.split_experts,
        "stack_experts.adapter": lora.stack_experts,
        "detect.path": lora.detect,
        "save.adapter": lambda v: lora.save(v, out),
        "save.path": lambda v: lora.save(ADAPTER, v),
        "save.format": lambda v: lora.save(ADAPTER, out, format=v),
        "save.keys": lambda v: lora.save(ADAPTER, out + ".safetensors", keys=v),
        "combine.adapters": lora.combine,
        "combine.adapters[0]": lambda v: lora.combine([v]),
        "combine.weights": lambda v: lora.combine([ADAPTER, ADAPTER], v),
        "combine.method": lambda v: lora.combine([ADAPTER, ADAPTER], method=v),
        "combine.r": lambda v: lora.combine([ADAPTER, ADAPTER], method="svd", r=v),
        "combine.energy": lambda v: lora.combine([ADAPTER, ADAPTER], method="svd", energy=v),
        "combine.density": lambda v: lora.combine([ADAPTER, ADAPTER], method="ties", density=v),
        "difference.tuned": lambda v: lora.difference(v, plain(), r=2),
        "difference.base": lambda v: lora.difference(plain(), v, r=2),
        "difference.r": lambda v: lora.difference(plain(), plain(), r=v),
        "merge_checkpoint.base": lambda v: lora.merge_checkpoint(v, ADAPTER, out),
        "merge_checkpoint.adapter": lambda v: lora.merge_checkpoint(here, v, out),
        "merge_checkpoint.output": lambda v: lora.merge_checkpoint(here, ADAPTER, v),
        "intruder_dimensions.adapter": lambda v: lora.intruder_dimensions(v, plain()),
        "intruder_dimensions.base": lambda v: lora.intruder_dimensions(ADAPTER, v),
        "subspace_similarity.a": lambda v: lora.subspace_similarity(v, ADAPTER),
        "subspace_similarity.b": lambda v: lora.subspace_similarity(ADAPTER, v),
        "subspace_similarity.of": lambda v: lora.subspace_similarity(ADAPTER, ADAPTER, v),
        "subspace_similarity.starting": lambda v: lora.subspace_similarity(ADAPTER, ADAPTER, starting=v),
        "amplification.adapter": lambda v: lora.amplification(v, plain()),
        "amplification.base": lambda v: lora.amplification(ADAPTER, v),
        "amplification.r": lambda v: lora.amplification(ADAPTER, plain(), v),
        "reduce_intruder_dimensions.adapter": lambda v: lora.reduce_intruder_dimensions(v, plain()),
        "reduce_intruder_dimensions.base": lambda v: lora.reduce_intruder_dimensions(ADAPTER, v),
        "suggest.model": lora.suggest,
        "suggest.hidden_size": lambda v: lora.suggest(plain(), hidden_size=v),
        "register_layer.layer_class": lambda v: lora.register_layer(v, lora.layers.LinearLoRA),
        "register_layer.handler": lambda v: lora.register_layer(nn.Linear, v),
        "Adapter.config": lambda v: lora.Adapter(v, {}),
        "Adapter.layers": lambda v: lora.Adapter(lora.LoRAConfig(), v),
        "Adapter.tensors": lambda v: lora.Adapter(lora.LoRAConfig(), {}, v),
        "Adapter.delta": ADAPTER.delta,
        "Adapter.part": ADAPTER.part,
        "Adapter.rename": ADAPTER.rename,
        "Adapter.truncate": ADAPTER.truncate,
        "Adapter.to.dtype": lambda v: ADAPTER.to(dtype=v),
        "Adapter.to.device": lambda v: ADAPTER.to(device=v),
        "LoRAUpdate.A": lambda v: update(A=v),
        "LoRAUpdate.B": lambda v: update(B=v),
        "TokenRows.indices": lambda v: lora.TokenRows(v, torch.ones(2, 2)),
        "TokenRows.values": lambda v: lora.TokenRows((1, 2), v),
        "LoRAConfig.r": lambda v: lora.LoRAConfig(r=v),
        "LoRAConfig.target_modules": lambda v: lora.LoRAConfig(target_modules=v),
        "LoRAConfig.bias": lambda v: lora.LoRAConfig(bias=v),
        "LoRAConfig.rank_pattern": lambda v: lora.LoRAConfig(rank_pattern=v),
        "LoRAConfig.enable_lora": lambda v: lora.LoRAConfig(enable_lora=v),
    }


def documented(call: str) -> set[str]:
    """The errors that the docstring of what a call in `calls` is about lists."""
    name, _, rest = call.partition(".")
    owner = getattr(lora, name)
    method = getattr(owner, rest.partition(".")[0], None)
    return raises(method if inspect.isfunction(method) else owner)


def test_every_exported_function_is_tried() -> None:
    functions = {name for name in lora.__all__ if inspect.isfunction(getattr(lora, name))}
    functions |= {"merged", "disabled", "LoRAConfig", "Adapter"}
    assert functions <= {name.split(".")[0] for name in calls(Path())}


@pytest.mark.filterwarnings("ignore:Sequential has no LoRA parameter")  # of a plain model that is marked
@pytest.mark.parametrize("call", calls(Path()))
def test_a_wrong_argument_is_one_error_in_our_words(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lora.save(ADAPTER, tmp_path / "adapter")
    before, adapter_before = set(os.listdir(tmp_path)), ADAPTER.digest()
    said, same, kinds = list[str](), list[bool](), set[str]()
    for wrong in WRONG.values():
        value = copy.deepcopy(wrong) if isinstance(wrong, nn.Module) else wrong
        was = snapshot(value) if isinstance(value, nn.Module) else None
        try:
            calls(tmp_path)[call](value)
        except lora.LoRAError as error:
            said.append(str(error))
            kinds.add(type(error).__name__)
            same.append(was is None or snapshot(value) == was)
        except OSError:  # a path at which nothing can be written
            same.append(call.startswith("save."))
    assert len(said) >= 10, "few of the wrong kinds are refused"
    assert [message for message in said if "\n" in message or len(message) > 500] == []
    assert all(same)
    assert kinds <= documented(call), "errors that are not under Raises:"
    assert ADAPTER.digest() == adapter_before
    assert set(os.listdir(tmp_path)) - before <= {"out", "out.safetensors", "org", "nowhere"}


@pytest.mark.parametrize(
    ("call", "wrong", "message"),
    [
        (
            "inject.model",
            "a name",
            r"model: expected a model \(torch.nn.Module\), got the text 'org/model'; load the",
        ),
        ("inject.model", "a class", r"got the class Linear; make an instance"),
        ("inject.model", "an adapter", r"got an Adapter; the model is the first argument"),
        ("inject.model", "a pipeline", r"got a Pipeline; give a model that it holds: \.unet\."),
        ("inject.config", "an adapter", r"got an Adapter; lora\.attach\(model, adapter\)"),
        ("inject.config", "a name", r"got the text 'org/model'; name the layers in a configuration"),
        ("inject.config", "a config class", r"got the class LoRAConfig; make an instance"),
        ("attach.model", "an adapter", r"the model is the first argument, as in lora\.attach\(model, adapter\)"),
        ("attach.adapter", "a state dict", r"got a dictionary of tensors; lora\.load reads the file"),
        ("attach.adapter", "a config", r"got a LoRAConfig; a configuration has no weights: lora\.inject"),
        ("merge.model", "a path", r"got the path 'nowhere'; load the model first"),
        ("save.adapter", "a model with LoRA", r"got a model \(Sequential\); lora\.extract\(model\)"),
        ("save.path", "an adapter", r"expected a path .*, got an Adapter"),
        ("load.path", "an adapter", r"it is in memory already"),
        ("combine.adapters", "an adapter", r"write lora\.combine\(\[a, b\]\)"),
    ],
)
def test_the_error_names_the_call_that_does_what_was_meant(call: str, wrong: str, message: str, tmp_path: Path) -> None:
    lora.save(ADAPTER, tmp_path / "adapter")
    with pytest.raises(ArgumentError, match=message) as caught:
        calls(tmp_path)[call](WRONG[wrong])
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, lora.LoRAError)
    assert str(caught.value).endswith("Nothing was changed.")


def test_the_same_words_in_a_call_of_two_arguments_that_were_swapped() -> None:
    with pytest.raises(ArgumentError, match="the model is the first argument"):
        lora.attach(ADAPTER, plain())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="expected an Adapter, got the text 'out'"):
        lora.save("out", ADAPTER)  # type: ignore[arg-type]
