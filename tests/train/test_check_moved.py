"""Factors that the optimizer leaves as they are end training, or are named; those that it changes are never mentioned."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from torch import Tensor, nn

import loralib as lora
from hf import HEADS, QUERY_VALUE, tiny
from loralib.errors import RunError
from loralib.train.check_moved import CheckMoved, fingerprint
from models import injected, mlp

# --- fingerprints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_changes_with_every_bit(dtype):
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    values = torch.randn(3, 2, dtype=dtype)
    seen = [fingerprint(values)]
    for place in range(values.numel()):
        for bit in range(8 * dtype.itemsize):
            flipped = values.clone()
            flipped.view(integers).view(-1)[place] ^= -(2**63) if bit == 63 else torch.tensor(2**bit).to(integers)
            seen.append(fingerprint(flipped))
    assert fingerprint(values.clone()) == seen[0]
    assert seen[0] not in seen[1:]


@pytest.mark.parametrize(
    "changed", [lambda x: x.flip(0), lambda x: -x, lambda x: x + torch.tensor([1.0, -1.0, 0, 0]), lambda x: x * (1 + 2e-7)]
)
def test_a_fingerprint_changes_where_sums_do_not(changed):
    values = torch.tensor([1.0, 2.0, 3.0, -6.0])
    assert fingerprint(changed(values)) != fingerprint(values)


def test_a_fingerprint_is_one_number_whatever_the_strides_and_none_without_values():
    values = torch.randn(4, 3)
    assert isinstance(fingerprint(values), int)
    assert fingerprint(values.T) == fingerprint(values.T.contiguous()) != fingerprint(values)
    assert fingerprint(torch.empty(0)) is fingerprint(torch.empty(3, device="meta")) is None


# --- steps of an optimizer ------------------------------------------------------------------------------------------------


def trainable(model: nn.Module | None = None, **config: Any) -> nn.Module:
    """A model with fresh LoRA and the rest frozen."""
    model = model or mlp(4, 5, 3)
    lora.inject(model, lora.LoRAConfig(r=2, **config))
    lora.mark_only_lora_as_trainable(model)
    return model


def factors(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "lora_" in name]


def said_of(
    model: nn.Module,
    optimizer: Any = None,
    *,
    steps: int = 10,
    max_steps: int = 100,
    first: int = 0,
    main: bool = True,
    schedule: Any = None,
    step: Any = None,
    **how: Any,
) -> str:
    """What the callback says while the optimizer makes so many steps."""
    console = Console(file=io.StringIO(), width=1000)
    callback, args = CheckMoved(console, **how), SimpleNamespace(world_size=1)
    optimizer = optimizer or torch.optim.AdamW(factors(model), lr=1e-3)
    schedule = schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    state = SimpleNamespace(global_step=first, max_steps=max_steps, is_world_process_zero=main)
    callback.on_train_begin(args, state, None, model=model)
    for _ in range(steps):
        loss = (step or model)(torch.randn(8, 4)).square().sum()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        callback.on_optimizer_step(args, state, None, model=model, optimizer=optimizer)
        if schedule:
            schedule.step()
        optimizer.zero_grad()
        state.global_step += 1
    return console.file.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_trains_is_silent(dtype):
    model = trainable().to(dtype)
    assert said_of(model, steps=12, step=lambda x: model(x.to(dtype))) == ""


def test_a_rate_that_changes_no_more_than_a_bit_is_silent():
    model = injected(mlp(4, 5, 3))
    assert said_of(model, torch.optim.SGD(factors(model), lr=1e-7)) == ""


def of_others(model: nn.Module) -> Any:
    return torch.optim.AdamW([nn.Parameter(p.detach().clone()) for p in factors(model)], lr=1e-3)


def test_an_optimizer_that_was_made_before_injection_is_an_error():
    model = mlp(4, 5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainable(model)
    with pytest.raises(
        RunError, match="no LoRA factor of Sequential has moved in 10 steps: of 4 factors 0 are frozen and 0 are in"
    ):
        said_of(model, optimizer)


def test_frozen_factors_are_an_error():
    model = trainable().requires_grad_(False)
    with pytest.raises(RunError, match="of 4 factors 4 are frozen and 4 are in the optimizer"):
        said_of(model)


def test_a_learning_rate_of_0_is_an_error():
    model = trainable()
    with pytest.raises(RunError, match=r"4 are in the optimizer, whose learning rate is 0\. The usual causes"):
        said_of(model, torch.optim.AdamW(factors(model), lr=0.0))
    with pytest.raises(RunError, match="whose learning rate is 0"):
        said_of(model, torch.optim.AdamW(factors(model), lr=0.0), schedule=lambda step: 1.0)


def test_checkpointing_without_input_gradients_is_an_error_that_names_it():
    model = trainable()
    head = nn.Linear(3, 1)
    checkpointed = lambda x: head(torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True))  # noqa: E731
    cause = r"gradient checkpointing without input gradients; call mark_only.*use_reentrant=False"
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"), pytest.raises(RunError, match=cause):
        said_of(model, step=checkpointed)


@pytest.mark.parametrize(("steps", "fails"), [(9, False), (10, True), (11, True)])
def test_the_error_comes_after_ten_steps(steps, fails):
    model = trainable()
    if fails:
        with pytest.raises(RunError, match="in 10 steps"):
            said_of(model, of_others(model), steps=steps)
    else:
        assert said_of(model, of_others(model), steps=steps) == ""


@pytest.mark.parametrize(("first", "steps"), [(0, 3), (20, 3)], ids=["whole", "resumed"])
def test_or_after_the_last_step_of_a_shorter_run(first, steps):
    model = trainable()
    with pytest.raises(RunError, match="in 3 steps"):
        said_of(model, of_others(model), first=first, steps=steps, max_steps=first + steps)


def test_a_run_that_goes_on_is_compared_with_where_it_went_on():
    model = injected(mlp(4, 5, 3))  # not zero, as a checkpoint's
    with pytest.raises(RunError, match="has moved in 10 steps"):
        said_of(model, of_others(model), first=20)
    assert said_of(model, first=20) == ""


def test_one_layer_that_is_frozen_is_named_and_the_others_are_not():
    model = trainable(mlp(4, 5, 5, 3))
    model[2].requires_grad_(False)
    said = said_of(model, steps=25)
    assert said.count("warning: the LoRA factors of 1 layer have not moved in 10 steps: 2 (frozen). Layers that no row") == 1
    assert said_of(model, main=False) == ""


def test_a_layer_with_one_frozen_factor_is_not_named():
    model = trainable()
    for layer in (model[0], model[2]):
        layer.lora_A.requires_grad_(False)
    assert said_of(model) == ""


class Experts(nn.Module):
    """Ten experts, of which the rows need one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x)


def test_experts_without_rows_are_named_as_such_and_only_some_of_many():
    said = said_of(trainable(Experts()))
    assert "the LoRA factors of 9 layers have not moved" in said
    assert "experts.8; and 1 more. Layers that no row has needed yet, such as experts, may still move." in said


def test_a_merged_layer_is_named_as_merged():
    model = trainable(mlp(4, 5, 5, 3))
    model[4].merge()
    assert "1 layer have not moved in 10 steps: 4 (merged)." in said_of(model)


# --- warm-up, and steps that are skipped ----------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [1, 20, 10_000])
def test_a_warm_up_is_silent(warmup):
    assert said_of(trainable(), steps=12, schedule=lambda step: step / warmup) == ""


def test_steps_count_from_where_the_rate_is_above_0():
    model, late = trainable(), {"schedule": lambda step: float(step >= 15)}
    assert said_of(model, of_others(model), steps=24, **late) == ""
    with pytest.raises(RunError, match="in 10 steps"):
        said_of(model, of_others(model), steps=25, **late)


def test_a_run_that_is_all_warm_up_is_warned_of_and_goes_on():
    said = said_of(trainable(), steps=1, max_steps=1, schedule=lambda step: 0.0)
    assert (
        "warning: the LoRA factors of 2 layers have not moved in any step: 0; 2. The learning rate of the warm-up was 0" in said
    )


class Skipping(torch.optim.SGD):
    """Skips its first steps, as float16's loss scaling makes an optimizer of accelerate do."""

    skips, step_was_skipped = 15, False

    def step(self, closure: Any = None) -> None:
        self.step_was_skipped, self.skips = self.skips > 0, self.skips - 1
        if not self.step_was_skipped:
            super().step(closure)


def test_steps_that_are_skipped_do_not_count():
    model = trainable()
    assert said_of(model, Skipping(factors(model), lr=1e-2), steps=30) == ""
    said = said_of(model, Skipping(factors(model), lr=1e-2), steps=3, max_steps=3)
    assert "not moved in any step" in said
    assert "loss scaling skipped them all" in said


# --- what there is to see -------------------------------------------------------------------------------------------------


def test_a_model_without_lora_and_factors_that_are_elsewhere_are_left_alone():
    plain = mlp(4, 5, 3)
    assert said_of(plain, torch.optim.SGD(plain.parameters(), lr=0.0)) == ""
    model = trainable()
    optimizer = torch.optim.SGD(factors(model), lr=0.0)
    for layer in (model[0], model[2]):  # as ZeRO-3 leaves them between its steps
        for factor in (layer.lora_A, layer.lora_B):
            factor.data = torch.empty(0)
    assert said_of(model, optimizer, step=lambda x: x) == ""


def test_a_layer_that_was_taken_out_on_the_way_counts_as_changed():
    model = trainable(mlp(4, 5, 5, 3))
    args, state = SimpleNamespace(world_size=1), SimpleNamespace(global_step=0, max_steps=1, is_world_process_zero=True)
    callback = CheckMoved(Console(file=io.StringIO()))
    callback.on_train_begin(args, state, None, model=model)
    lora.eject(model)
    callback.on_optimizer_step(args, state, None, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert callback.console.file.getvalue() == ""


@pytest.mark.parametrize("elsewhere", [True, False])
def test_what_moved_in_another_process_has_moved(elsewhere, monkeypatch):
    """A sharded factor may be elsewhere in part."""
    model = trainable()
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flags, how: flags.fill_(1) if elsewhere else None)
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    state = SimpleNamespace(global_step=0, max_steps=1, is_world_process_zero=True)
    callback = CheckMoved(Console(file=io.StringIO()))
    callback.on_train_begin(args, state, None, model=model)
    if elsewhere:
        callback.on_optimizer_step(args, state, None, model=model, optimizer=of_others(model))
    else:
        with pytest.raises(RunError, match="in 1 step:"):
            callback.on_optimizer_step(args, state, None, model=model, optimizer=of_others(model))


# --- in a Trainer ---------------------------------------------------------------------------------------------------------


def bert() -> Any:
    model = injected(tiny("Bert"), target_modules=QUERY_VALUE["Bert"], modules_to_save=HEADS["Bert"])
    lora.mark_only_lora_as_trainable(model)
    return model


def train(folder: Path, broken: bool, checkpoint: str | None = None, **values: Any) -> str:
    """What is said of a run of `Trainer`; a broken one has an optimizer of the head alone."""
    model, console = bert(), Console(file=io.StringIO(), width=500)
    rows = [{"input_ids": [2, 3 + i % 5], "attention_mask": [1, 1], "labels": i % 2} for i in range(16)]
    how = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2} | values
    arguments = transformers.TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **how)
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=1e-3) if broken else None
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, callbacks=[CheckMoved(console)], optimizers=(optimizer, None)
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return console.file.getvalue()


def test_a_trainer_whose_optimizer_holds_other_parameters_fails_and_any_other_trains(tmp_path):
    with pytest.raises(
        RunError, match="no LoRA factor of BertForSequenceClassification has moved in 3 steps: of 8 factors 0 are fr"
    ):
        train(tmp_path / "broken", broken=True)
    assert train(tmp_path, broken=False) == ""
    assert train(tmp_path, broken=False, checkpoint=str(tmp_path / "checkpoint-2")) == ""


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_check_moved import train
from loralib.errors import RunError
folder, broken = Path(sys.argv[3]), sys.argv[4] == "broken"
try:
    said = train(folder, broken)
except RunError as error:
    said = str(error)
import torch
(folder / f"said-{torch.distributed.get_rank()}").write_text(said)
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["broken", "whole"])
def test_all_processes_come_to_the_same_end(which, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = Path(__file__).parent
    subprocess.run([*torchrun, str(script), str(here), str(here.parent), str(tmp_path), which], check=True, timeout=300)
    for rank in (0, 1):
        said = (tmp_path / f"said-{rank}").read_text()
        assert said.startswith("no LoRA factor of BertForSequenceClassification has moved") == (which == "broken")
        assert bool(said) == (which == "broken")
