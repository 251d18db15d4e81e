"""Small models, and the means to see that nothing about one has changed."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import loralib as lora
from loralib import layers


def bits(tensor: Tensor) -> bytes:
    """The very bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def close(a: Tensor, b: Tensor, factor: float = 1.0) -> bool:
    """Whether two tensors agree up to `factor` times what their coarser dtype can resolve, relative to the largest value."""
    eps = max(torch.finfo(t.dtype).eps for t in (a, b))
    a, b = a.detach().double(), b.detach().double()
    return a.shape == b.shape and bool((a - b).abs().max() <= factor * eps * (1 + b.abs().max()))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every B (which starts at zero) random values, so that the updates show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] == "lora_B":
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them; they are called 0, 2, 4 …"""
    layers: list[nn.Module] = []
    for d, k in pairwise(sizes):
        layers += [nn.Linear(d, k), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Tied(nn.Module):
    """A language model of one layer whose head is tied to its embedding."""

    def __init__(self, vocabulary: int = 11, width: int = 6):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.embed(ids)).relu())
        return logits


def trainable(model: nn.Module) -> set[str]:
    """The names of the parameters that would be trained."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def injected(model: nn.Module, **config: Any) -> nn.Module:
    """The model with an update on it whose B is random."""
    lora.inject(model, lora.LoRAConfig(**{"r": 2, "lora_alpha": 3} | config))
    return randomize(model)


def _seen(value: Any) -> Any:
    if isinstance(value, Tensor):
        content = None if value.is_meta or not hasattr(value, "shape") else hash(bits(value))
        return id(value), type(value), value.dtype, value.requires_grad, content
    if isinstance(value, dict):
        return [(key, _seen(item)) for key, item in value.items()]
    if isinstance(value, bool | int | float | str | set | frozenset | tuple | None):
        return repr(value)
    return id(value)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a model: of each module its class, attributes, parameters, buffers, children, hooks and flags, in
    order; of each tensor its identity, flags and bits."""
    return [
        (name, id(module), type(module), {key: _seen(value) for key, value in sorted(vars(module).items())})
        for name, module in model.named_modules(remove_duplicate=False)
    ]


def deltas(model: nn.Module) -> dict[str, Tensor]:
    return {name: update.delta() for name, update in lora.extract(model).layers.items()}


def expect_refusal(error: type[Exception], message: str, model: nn.Module, call: Callable[[], object]) -> None:
    """`call` must raise with `message` and leave `model` exactly as it is."""
    before = snapshot(model)
    with pytest.raises(error, match=message):
        call()
    assert snapshot(model) == before


def trained_head() -> nn.Sequential:
    """Layer 0 adapted, layer 2 trained next to it."""
    model = injected(mlp(6, 5, 4), target_modules=["0"], modules_to_save=["2"])
    with torch.no_grad():
        model[2].weight.add_(1)
    return model


class Encoder(nn.Module):
    """Nested names: `proj`, `encoder.proj`, `encoder.0.query` …, a normalization and a shared layer."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(6, 6)
        self.encoder = nn.ModuleDict({str(i): nn.ModuleDict({k: nn.Linear(6, 6) for k in ("query", "key")}) for i in range(2)})
        self.encoder["proj"] = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.again = self.proj

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.encoder[str(i)]["query"](x) + self.encoder[str(i)]["key"](x).tanh()
        return self.again(self.norm(self.encoder["proj"](self.proj(x))))


class Doubling(nn.Linear):
    """A linear layer with a forward of its own, as quantized and vendor layers have."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * F.linear(hidden, self.weight, self.bias)


def update_for(layer: nn.Linear, r: int = 2) -> lora.LoRAUpdate:
    """An update of random factors, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(r, layer.in_features, generator=generator)
    return lora.LoRAUpdate(A, torch.randn(layer.out_features, r, generator=generator), lora_alpha=3)


def adopt(layer: nn.Linear, **options: Any) -> Any:
    """`layer` with that update on it."""
    return layers.adopt(layer, update_for(layer), **options)


def delta_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What its update adds to the output of `layer`."""
    return F.linear(x, layer.update.delta().to(x.dtype))


def plain() -> nn.Sequential:
    """Two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def with_lora() -> nn.Sequential:
    """`plain` with LoRA."""
    model = plain()
    lora.inject(model, lora.LoRAConfig(r=2))
    return model
