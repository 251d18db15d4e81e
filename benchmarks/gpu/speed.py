"""How fast steps, decoding, merging and injecting are on a device, against what others make of the same layers.

Contenders alternate in one process; times are CUDA events', ratios are medians over rounds (see `benchmarks.harness`). PEFT is
left out where it cannot be imported. A contender that runs out of memory is a row that says so.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import loralib as lora
from benchmarks import harness, peers
from benchmarks.goals import Goal, where, worst
from benchmarks.gpu.setting import NotHereError, Part, Row, Setting
from benchmarks.harness import OURS, Case, Contender, Effort, Options, by
from benchmarks.linear import DTYPES, Linear
from benchmarks.peers import FROZEN, PEFT

FULL, FORMULA, TRITON, COMPILED = "full fine-tuning", "0.1's formula", f"{OURS}, triton", "plain form, compiled"
BASE, MERGED, COPY = "bare model", f"{OURS}, merged", "a copy"


def measured(
    setting: Setting, case: Case, contenders: Mapping[str, Contender], memory: bool = True, rounds: int = 7
) -> list[Row]:
    """The rows of a case."""
    effort = Effort(2, 0.0, 0.0) if setting.tiny else Effort(rounds, 0.5)
    try:
        found = harness.rows(case, contenders, Options(setting.device, effort), memory)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        kept = {"group": case.group, "case": case.label, **asdict(case), "contender": OURS}
        return [{**kept, "note": "out of memory", "passed": None}]
    return [{**row, "passed": None} for row in found]


def with_peft(contender: Callable[[], Contender]) -> dict[str, Contender]:
    """PEFT's contender, where there is PEFT."""
    return {PEFT: contender()} if peers.peft else {}


# --- one linear layer ------------------------------------------------------------------------------------------------


class Formula(nn.Module):
    """A linear layer with its update as loralib 0.1 computes it, the factors cast where 0.1 raises."""

    def __init__(self, layer: nn.Linear, r: int, p: float, factors: torch.dtype):
        super().__init__()
        self.layer, self.p = copy.deepcopy(layer).requires_grad_(False), p
        like = {"device": layer.weight.device, "dtype": factors}
        self.A = nn.Parameter(torch.randn(r, layer.in_features, **like) * 0.02)
        self.B = nn.Parameter(torch.randn(layer.out_features, r, **like) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        y: Tensor = self.layer(x) + (F.dropout(x, self.p) @ A.t() @ B.t()) * 2.0
        return y


def of_linear(setting: Setting, case: Linear, with_compiler: bool = False) -> dict[str, Contender]:
    base = DTYPES[case.dtype]
    factors = torch.float32 if case.dtype == "mixed" else base
    layer = nn.Linear(case.d, case.k, device=setting.device, dtype=base)
    x = torch.randn(case.n, case.d, device=setting.device, dtype=base, requires_grad=True)
    options: dict[str, Any] = {"r": case.r, "lora_alpha": 2 * case.r, "lora_dropout": case.p}
    frozen, formula = peers.holder(layer), Formula(layer, case.r, case.p, factors)
    ours = peers.ours(lora, layer, factors, **options)
    found = {FROZEN: Contender(peers.step(frozen, x), frozen)}

    def theirs() -> Contender:
        model = peers.peft_layer(layer, upcast=case.dtype == "mixed", **options)
        return Contender(peers.step(model, x), model)

    found |= with_peft(theirs)
    found |= {FORMULA: Contender(peers.step(formula, x), formula), OURS: Contender(peers.step(ours, x), ours)}
    if with_compiler:
        compiled = torch.compile(ours)
        found[COMPILED] = Contender(peers.step(compiled, x), ours)
    if "triton" in setting.implementations:
        found[TRITON] = Contender(by("triton", peers.step(ours, x)), ours)
    return found


SQUARE = (8192, 4096, 4096)
SHAPES = [SQUARE, (8192, 4096, 11008), (8192, 11008, 4096), (8192, 768, 768)]
TINY = (8, 16, 16)


def linear(setting: Setting, shapes: Sequence[tuple[int, int, int]], dtypes: Sequence[str]) -> Iterator[Row]:
    for dtype in dtypes if not setting.tiny else dtypes[:1]:
        for n, d, k in shapes if not setting.tiny else [TINY]:
            for r in (8, 64) if not setting.tiny else (2,):
                for p in (0.05, 0.0):
                    case = Linear(n, d, k, r, p, dtype)
                    yield from measured(setting, case, of_linear(setting, case))


def compiled_linear(setting: Setting) -> Iterator[Row]:
    """The plain form as a compiler makes it, which is what a kernel of our own has to beat."""
    if setting.tiny:
        raise NotHereError("compiling takes longer than everything else here")
    for p in (0.05, 0.0):
        case = Linear(*SQUARE, 8, p, "mixed")
        yield from measured(setting, case, of_linear(setting, case, with_compiler=True))


# --- a language model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageModel(Case):
    """A Llama of so many blocks and a width d; r rank, p dropout; checkpoints: whether activations are computed again."""

    group_title = "Llama-shaped, {layers} x {d}, bfloat16"
    case_title = "{batch} x {length} tokens, r {r}, dropout {p:g}, checkpoints {checkpoints}"
    layers: int
    d: int
    batch: int
    length: int
    r: int
    p: float
    checkpoints: bool


def llama(setting: Setting, layers: int, d: int) -> Any:
    heads = max(2, d // 64)
    config = LlamaConfig(
        vocab_size=64 if setting.tiny else 32_000,
        hidden_size=d,
        intermediate_size=4 * d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    with torch.device(setting.device):
        return LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)


def training(model: Any, ids: Tensor, checkpoints: bool) -> Contender:
    """A whole step, AdamW included. total_bytes: weights, states of the optimizer and what a step adds at its peak."""
    model.train()
    if checkpoints:
        newer = "activation_checkpointing_enable"  # the name since transformers 5.20
        getattr(model, newer if hasattr(model, newer) else "gradient_checkpointing_enable")({"use_reentrant": False})
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=1e-4) if wanted else None
    embedded = None if wanted else model.get_input_embeddings()(ids).detach().requires_grad_()

    def step() -> None:
        given = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded}
        model(**given, labels=ids, use_cache=False).loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        else:
            embedded.grad = None

    def facts(seconds: float) -> Mapping[str, Any]:
        held = [*model.parameters(), *(t for state in (optimizer.state.values() if optimizer else ()) for t in state.values())]
        return {"tokens_per_second": ids.numel() / seconds, "held_bytes": sum(t.nbytes for t in held)}

    return Contender(step, model, facts=facts)


def language_model(setting: Setting) -> Iterator[Row]:
    """A step of a model of 1.0 B parameters, LoRA on all linear layers."""
    layers, d, batch, length, r = (1, 16, 1, 8, 2) if setting.tiny else (16, 2048, 4, 1024, 16)
    if not setting.tiny:
        setting.need(60)
    for checkpoints in (False, True):
        case = LanguageModel(layers, d, batch, length, r, 0.05, checkpoints)
        base = llama(setting, layers, d)
        ids = torch.randint(1, base.config.vocab_size, (batch, length), device=setting.device)
        options: dict[str, Any] = {"r": r, "lora_alpha": 2 * r, "lora_dropout": case.p, "target_modules": "all-linear"}
        of = partial(training, ids=ids, checkpoints=checkpoints)
        found = {
            FROZEN: of(copy.deepcopy(base)),
            FULL: of(copy.deepcopy(base).requires_grad_(True)),
            OURS: of(peers.ours_on(lora, copy.deepcopy(base), **options)),
        }
        found |= with_peft(lambda base=base, of=of, options=options: of(peers.peft_on(copy.deepcopy(base), **options)))
        for row in measured(setting, case, found, rounds=5):
            known = row.get("peak_bytes") is not None
            yield {**row, "total_bytes": row["peak_bytes"] + row["held_bytes"] if known else None}


@dataclass(frozen=True)
class Decoding(Case):
    """A Llama of so many blocks and a width d that writes `new` tokens after 32; r rank."""

    group_title = "decoding, {layers} x {d}, bfloat16"
    case_title = "{batch} x {new} tokens, r {r}"
    layers: int
    d: int
    batch: int
    new: int
    r: int


def decoding(setting: Setting) -> Iterator[Row]:
    """Greedy decoding, merged and not."""
    layers, d, new, r = (1, 16, 2, 2) if setting.tiny else (16, 2048, 32, 16)
    base = llama(setting, layers, d).eval()
    options: dict[str, Any] = {"r": r, "lora_alpha": 2 * r, "target_modules": "all-linear"}
    models = {BASE: base, OURS: peers.ours_on(lora, copy.deepcopy(base), **options).eval()}
    models[MERGED] = copy.deepcopy(models[OURS])
    lora.merge(models[MERGED])
    if peers.peft:
        models[PEFT] = peers.peft_on(copy.deepcopy(base), **options).eval()
    for batch in (1, 16):
        ids = torch.randint(1, base.config.vocab_size, (batch, 32), device=setting.device)

        def writing(model: Any, ids: Tensor = ids) -> object:
            lengths = {"max_new_tokens": new, "min_new_tokens": new}
            return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)

        def speed(seconds: float, batch: int = batch) -> Mapping[str, Any]:
            return {"tokens_per_second": batch * new / seconds}

        contenders = {name: Contender(partial(writing, model), model, facts=speed) for name, model in models.items()}
        yield from measured(setting, Decoding(layers, d, batch, new, r), contenders, memory=False, rounds=3)


# --- many layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack(Case):
    """The seven linear layers of a 7 B Llama's block, of width d, so many times, in bfloat16; r rank."""

    group_title = "{action}"
    case_title = "{blocks} blocks of width {d}, r {r}"
    action: str
    blocks: int
    d: int
    r: int


def weights(setting: Setting, blocks: int, d: int) -> dict[str, Tensor]:
    """Weights by layer name."""
    wide = d * 43 // 16
    shapes = {**{f"{x}_proj": (d, d) for x in "qkvo"}, "gate_proj": (wide, d), "up_proj": (wide, d), "down_proj": (d, wide)}
    return {
        f"{i}-{name}": torch.randn(shape, device=setting.device, dtype=torch.bfloat16)
        for i in range(blocks)
        for name, shape in shapes.items()
    }


def stack(of: Mapping[str, Tensor]) -> nn.Module:
    """Linear layers with these weights, which are shared with whoever else has them."""
    model = nn.ModuleDict()
    for name, weight in of.items():
        model[name] = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        model[name].weight = nn.Parameter(weight, requires_grad=False)
    return model


def many_layers(setting: Setting) -> Iterator[Row]:
    """Merging and unmerging, injecting, attaching, of the layers of a 7 B model."""
    blocks, d, r = (1, 32, 2) if setting.tiny else (32 if setting.free_bytes() > 70e9 else 8, 4096, 16)
    of = weights(setting, blocks, d)
    options: dict[str, Any] = {"r": r, "lora_alpha": 2 * r, "target_modules": [*of]}
    ours = peers.ours_on(lora, stack(of), **options)
    adapter = lora.extract(ours)

    def cycle(*halves: Callable[[], object]) -> Contender:
        return Contender(lambda: [half() for half in halves])

    def copied() -> None:
        for weight in of.values():
            weight.clone()

    merging = {COPY: Contender(copied), OURS: cycle(lambda: lora.merge(ours), lambda: lora.unmerge(ours))}
    if peers.peft:
        theirs = [layer for layer in peers.peft_on(stack(of), **options).modules() if hasattr(layer, "merge")]
        halves = (lambda: [layer.merge() for layer in theirs], lambda: [layer.unmerge() for layer in theirs])
        merging[PEFT] = cycle(*halves)
    yield from measured(setting, Stack("merge and unmerge", blocks, d, r), merging)

    def fresh() -> tuple[nn.Module]:
        return (stack(of),)

    injecting = {OURS: Contender(lambda model: lora.inject(model, lora.LoRAConfig(**options)), prepare=fresh)}
    injecting |= with_peft(lambda: Contender(lambda model: peers.peft_on(model, **options), prepare=fresh))
    yield from measured(setting, Stack("inject", blocks, d, r), injecting, memory=False)
    attaching = {OURS: Contender(lambda model: lora.attach(model, adapter), prepare=fresh)}
    yield from measured(setting, Stack("attach", blocks, d, r), attaching, memory=False)


PARTS: Mapping[str, Part] = {
    "linear": partial(linear, shapes=[SQUARE], dtypes=["mixed"]),
    "language model": language_model,
    "linear others": partial(linear, shapes=SHAPES[1:], dtypes=["mixed"]),
    "many layers": many_layers,
    "decoding": decoding,
    "linear dtypes": partial(linear, shapes=SHAPES, dtypes=["bfloat16", "float32"]),
    "linear compiled": compiled_linear,
}


# --- for people -------------------------------------------------------------------------------------------------------

SHOWN = {
    "milliseconds": ("ms", "{:.3g}"),
    "ratio": ("ratio", "{:.3f}"),
    "speedup": ("/ ours", "{:.2f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "saved_bytes": ("kept, MB", "{:,.1f}"),
    "peak_bytes": ("peak, MB", "{:,.1f}"),
    "total_bytes": ("in all, MB", "{:,.0f}"),
}


def table(rows: Sequence[Row]) -> str:
    """The rows of a part: a line a contender."""
    shown = {name: how for name, how in SHOWN.items() if any(row.get(name) is not None for row in rows)}
    lines = [f"{rows[0]['part'][:24]:24}" + "".join(f"{heading:>12}" for heading, _ in shown.values())]
    for label, of_case in groupby(rows, lambda row: (row.get("group", ""), row["case"])):
        lines.append(f"{label[0]}: {label[1]}" if label[0] else label[1])
        for row in of_case:
            cells = [_cell(row.get(name), how, name.endswith("_bytes")) for name, (_, how) in shown.items()]
            lines.append(f"  {row.get('contender', ''):22}" + "".join(cells) + (f"  {row['note']}" if row.get("note") else ""))
    return "\n".join(lines)


def _cell(value: float | None, how: str, is_size: bool) -> str:
    return " " * 12 if value is None else f"{how.format(value / 1e6 if is_size else value):>12}"


def goals(rows: Sequence[Row], checks: Sequence[Row]) -> list[Goal]:
    """G14 to G17, of what was measured."""
    known = [row for row in rows if row.get("contender")]
    square = [row for row in known if row.get("dtype") == "mixed" and row["d"] == row["k"] == SQUARE[1] and row["r"] <= 16]
    plain, dropped = where(square, p=0.0), where(square, p=0.05)
    models = [row for row in known if "checkpoints" in row]
    sizes = {row["contender"]: row.get("total_bytes") for row in where(models, checkpoints=False)}
    ours, theirs = sizes.get(OURS), sizes.get(PEFT)
    of_host = [row for row in checks if row["part"] in ("waiting for the device", "CUDA graphs", "compiled")]
    return [
        Goal("G14", "linear step over the frozen layer", worst(plain, "ratio", [OURS]), at_most=1.12),
        Goal("G14", "the same with dropout", worst(dropped, "ratio", [OURS]), at_most=1.20),
        Goal("G14", "times faster than PEFT with dropout", worst(dropped, "speedup", [PEFT], min), at_least=1.5),
        Goal("G15", "times faster than full fine-tuning, a model", worst(models, "speedup", [FULL], min), at_least=1.0),
        Goal("G15", "times faster than PEFT, a model", worst(models, "speedup", [PEFT], min), at_least=1.2),
        Goal("G15", "share of PEFT's memory, a model", ours / theirs if ours and theirs else None, at_most=1.0),
        Goal("G16", "share of the checks of graphs, waiting and compiling that pass", _share(of_host), at_least=1.0),
        Goal("G17", "share of all checks that pass", _share(checks), at_least=1.0),
    ]


def _share(checks: Sequence[Row]) -> float | None:
    done = [row for row in checks if row["passed"] is not None]
    return sum(row["passed"] for row in done) / len(done) if done else None
