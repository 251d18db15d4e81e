"""Updates whose ΔW has singular values and vectors that are known, in factors that do not show them."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

import loralib as lora

F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(n: int, r: int, seed: int) -> Tensor:
    """r orthonormal columns (n, r)."""
    Q: Tensor = torch.linalg.qr(torch.randn(n, r, dtype=F64, generator=generator(seed)))[0]
    return Q


def apart(r: int, seed: int) -> Tensor:
    """Singular values, each from half to two thirds of the one before it."""
    ratios = 1 / (1.5 + 0.5 * torch.rand(r, dtype=F64, generator=generator(seed)))
    return 10 * ratios.cumprod(0)


def mixed(B: Tensor, A: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """B·G⁻¹ and G·A for an invertible G that is neither orthogonal nor diagonal."""
    r = len(A)
    G = orthonormal(r, r, seed) @ torch.diag(torch.linspace(1, 3, r, dtype=F64)) @ orthonormal(r, r, seed + 1)
    return B @ torch.linalg.inv(G), G @ A


def update(U: Tensor, S: Tensor, V: Tensor, seed: int = 0, lora_alpha: float = 3.0) -> lora.LoRAUpdate:
    """The update with ΔW = U·diag(S)·Vᵀ."""
    r = len(S)
    B, A = mixed(U * S * (r / lora_alpha), V.t(), seed)
    return lora.LoRAUpdate(A, B, lora_alpha)


def drawn(k: int, n: int, r: int, seed: int) -> lora.LoRAUpdate:
    """A random update of rank r with singular values apart."""
    r = min(k, n, r)
    return update(orthonormal(k, r, seed), apart(r, seed), orthonormal(n, r, seed + 1), seed + 2)


def adapter(**layers: lora.LoRAUpdate) -> lora.Adapter:
    return lora.Adapter(lora.LoRAConfig(), layers)


def dense(update: lora.LoRAUpdate) -> np.ndarray:
    """ΔW as a matrix (out, n)."""
    delta = update.delta()
    if isinstance(update, lora.EmbeddingUpdate):
        delta = delta.t()
    return delta.double().flatten(1).numpy()


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
