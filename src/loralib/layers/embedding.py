"""LoRA on embeddings: y = W[x] + s·(B·A)ᵀ[x] = W[x] + s·Aᵀ[x]·Bᵀ.

V tokens, k wide, r rank: W (V, k), A (r, V), B (k, r). The input selects columns of A, as if it were one-hot, so the cost
is one skinny product; no tensor of size (V, k) is formed, nor is one for the gradient.

As in loralib 0.1, A starts at zero and B normal. It looks inverted, and is intended: A takes the place of a matrix whose
*rows* are selected, and with A zero only the tokens that occur are ever changed.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..adapters.embedding_update import EmbeddingUpdate
from ..adapters.layout import Layout
from ..adapters.updates import LoRAUpdate
from ..errors import LayerError
from .base import AdaptedLayer
from .dropout import probability
from .inputs import by_torchs_name, named_input, takes_x
from .merging import RESIZED


class _Lookup(AdaptedLayer):
    """What embeddings and bags of them share."""

    update_classes = (EmbeddingUpdate,)
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool

    def keep_merged(self) -> None:
        """Let the merged weight be the layer's own; `max_norm`, whose effect is in it, would undo the update and goes."""
        super().keep_merged()
        self.max_norm = None

    def check_size(self) -> None:
        """Check that the weight has as many rows as the update is for.

        Raises:
            LayerError: When it was resized.
        """
        A, W = self._parameters.get("lora_A"), self._parameters.get("weight")  # not proxies of them, while torch.fx traces
        if A is not None and W is not None and A.shape[1] != len(W):
            raise LayerError(f"This {type(self).__name__} has {len(W)} rows, and its update is for {A.shape[1]}: {RESIZED}.")

    @classmethod
    def factor_shapes(cls, layer: nn.Module, r: int, **structure: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A (r, num_embeddings), B (embedding_dim, r)."""
        assert isinstance(layer, nn.Embedding | nn.EmbeddingBag)
        return (r, layer.num_embeddings), (layer.embedding_dim, r)

    @classmethod
    def layout(cls, layer: nn.Module) -> Layout:
        """(V, k)."""
        return Layout(transposed=True)

    @classmethod
    def make_update(
        cls, layer: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, use_rslora: bool, **structure: Any
    ) -> LoRAUpdate:
        """The factors as an update of a layer like `layer`: zero for its padding row, and with its `max_norm`."""
        assert isinstance(layer, nn.Embedding | nn.EmbeddingBag)
        if layer.padding_idx is not None:
            A = A.index_fill(1, torch.tensor([layer.padding_idx], device=A.device), 0)
        return EmbeddingUpdate(A, B, lora_alpha, use_rslora, layer.max_norm or 0.0, layer.norm_type)

    @staticmethod
    def reset_factors(A: Tensor, B: Tensor) -> None:
        """A zero and B normal, as 0.1 starts them."""
        nn.init.zeros_(A)
        nn.init.normal_(B)


class EmbeddingLoRA(_Lookup):
    """LoRA for embeddings.

    padding_idx: that row of the output stays what the base gives, whatever A holds there. max_norm: renormalises the rows
    of the base's weight when they are looked up, as `nn.Embedding` does; A and B are not touched, and the update is added to
    the renormalised rows. scale_grad_by_freq: applies to A. sparse: concerns the base's weight only; the gradient of A is
    dense, (r, V). lora_dropout: drops a token's update as a whole, as dropout on a one-hot input does.

    A subclass with a forward of its own computes with that and the effective weight, (V, k), so that `lora_dropout` cannot act
    in it; but transformers' scaled embeddings, whose forward is a lookup times `embed_scale`, look up in Aᵀ as well.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """y (..., k) for token numbers x (...)."""
        if not self.acts or (has_own_forward(type(self).base_class) and not is_scaled(self)):
            return super().forward(*args, **kwargs)  # type: ignore[no-any-return]
        ids = args[0] if args else named_input(kwargs)
        self.check_size()
        y: Tensor = self.base_forward(*args, **kwargs)
        if self._carried_forward is not None:  # whose result is not ours to overwrite, and may be on another device
            y, ids = y.clone(), ids.to(self.lora_A.device)
        A, B, keep = self.lora_A, self.lora_B, self._kept(ids)
        if has_own_forward(type(self).base_class):
            t = self.forward_with(A.t(), *args, **kwargs)
            return ops.add_expanded(y, t if keep is None else t * keep.unsqueeze(-1), B, self.scaling)
        return ops.add_embedding_update(y, ids, A, B, self.scaling, keep, self.scale_grad_by_freq)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's lookup, with the weight in place."""
        if self.merged and self.max_norm is not None:  # its rows were renormalised before the update, and are not after it
            return F.embedding(args[0] if args else named_input(kwargs), self.weight, self.padding_idx)
        return super().base_forward(*args, **kwargs)

    def _kept(self, ids: Tensor) -> Tensor | None:
        """What each token's update is multiplied by (...), or None for 1 everywhere."""
        keep = None if self.padding_idx is None else (ids != self.padding_idx).to(self.lora_A.dtype)
        if probability(self.lora_dropout) != 0.0:
            keep = self.lora_dropout(torch.ones_like(ids, dtype=self.lora_A.dtype) if keep is None else keep)
        return keep

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain `layer` cannot be adapted, or None."""
        if not has_own_forward(type(layer)):
            return None
        if layer.max_norm is not None:
            return "it has both a forward of its own and a max_norm, whose order is not known"
        if layer.sparse:
            return "it has both a forward of its own and a sparse gradient, which cannot reach the factors"
        return cls.problem_of_weights(layer, 0.0 if is_scaled(layer) else lora_dropout)


def is_scaled(layer: nn.Module) -> bool:
    """Whether `layer` is one of transformers' embeddings whose forward is a lookup times `embed_scale`, and nothing else: one
    with a Parameter other than its weight does more."""
    known = [cls for cls in type(layer).__mro__ if cls.__module__.startswith("transformers.models.")]
    others = layer._parameters.keys() - {"weight", "lora_A", "lora_B"}
    return bool(known) and known[0].__name__.endswith("ScaledWordEmbedding") and not others


def has_own_forward(cls: type[nn.Module]) -> bool:
    """Whether a class of embeddings computes with a forward of its own, not torch's."""
    return cls.forward is not nn.Embedding.forward


class Embedding(EmbeddingLoRA, nn.Embedding):  # type: ignore[misc]
    """`nn.Embedding` with a LoRA update: y = W[x] + (lora_alpha / r)·Aᵀ[x]·Bᵀ.

    Shapes: x (...), y (..., embedding_dim), `lora_A` (r, num_embeddings), `lora_B` (embedding_dim, r). With r = 0 it is a plain
    embedding. With r > 0 the weight is frozen; A starts at zero and B normal, which is intended.

    Args:
        num_embeddings: As in `nn.Embedding`.
        embedding_dim: As in `nn.Embedding`.
        r: The rank, 0 for none.
        lora_alpha: The numerator of the scaling.
        merge_weights: Merge on `eval()`, unmerge on `train()`.
        **kwargs: Those of `nn.Embedding`: the update is zero at `padding_idx`; `max_norm` renormalises the rows of the weight
            and leaves A and B alone; `scale_grad_by_freq` applies to A; the gradient of A is dense, whatever `sparse` says.

    Raises:
        ConfigError: When `r` or `lora_alpha` is out of range.

    Example:
        >>> layer = lora.Embedding(10, 4, r=2, lora_alpha=4, padding_idx=0)
        >>> layer(torch.tensor([[1, 2, 0]])).shape
        torch.Size([1, 3, 4])
        >>> layer.lora_A.shape, layer.lora_B.shape
        (torch.Size([2, 10]), torch.Size([4, 2]))
    """

    base_class: ClassVar[type[nn.Module]] = nn.Embedding

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: float = 1,
        merge_weights: bool = True,
        **kwargs: Any,
    ):
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        self._given = kwargs.get("_weight") is not None
        self.build(r, lora_alpha, 0.0, merge_weights)
        del self._given

    def reset_parameters(self) -> None:
        """Draw the weight as `nn.Embedding` does, unless the constructor was given one, and the factors' starting values."""
        if not vars(self).get("_given"):
            super().reset_parameters()
        elif self.has_update:
            self.reset_factors(self.lora_A, self.lora_B)

    @takes_x
    def forward(self, x: Tensor | None = None, **named: Tensor) -> Tensor:  # type: ignore[override]
        """y (..., embedding_dim) for token numbers x (...), which torch calls `input`."""
        if x is None or (type(named) is dict and named):
            x = by_torchs_name(x, named)
        return EmbeddingLoRA.forward(self, x)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `nn.Embedding` computes; 0.1 calls the input x."""
        return super().base_forward(args[0] if args else named_input(kwargs))


class EmbeddingBagLoRA(_Lookup):
    """LoRA for bags of embeddings: Aᵀ is summed or averaged over a bag as W is. The maximum is not a linear function of
    the weight, so there the rows in use are updated before it is taken."""

    mode: str
    include_last_offset: bool

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """y (bags, k) for token numbers in bags."""
        if not self.acts:
            return super().forward(input, offsets, per_sample_weights)  # type: ignore[no-any-return]
        self.check_size()
        self.check_no_dropout()
        y: Tensor = self.base_forward(input, offsets, per_sample_weights)
        if self.mode == "max" and torch.compiler.is_compiling():  # how many rows are in use is not known in advance
            return self._bags(input, self.effective_weight(self.weight), offsets, None, self.padding_idx)
        if self.mode == "max":
            return self._maximum(input, offsets).to(y.dtype)
        A = self.lora_A.t()
        weights = None if per_sample_weights is None else per_sample_weights.to(A.dtype)
        t = self._bags(input, A, offsets, weights, self.padding_idx)
        return ops.add_expanded(y, t, self.lora_B, self.scaling)

    def base_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's bags, with the weight in place."""
        if self.merged and self.max_norm is not None:  # its rows were renormalised before the update, and are not after it
            ids, offsets, weights = args
            return self._bags(ids, self.weight, offsets, weights, self.padding_idx)
        return super().base_forward(*args, **kwargs)

    def _bags(self, ids: Tensor, W: Tensor, offsets: Tensor | None, weights: Tensor | None, padding_idx: int | None) -> Tensor:
        return F.embedding_bag(
            ids,
            W,
            offsets,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding_idx,
        )

    def _maximum(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        used, numbers = ids.unique(return_inverse=True)
        rows = ops.add_embedding_update(self.weight[used], used, self.lora_A, self.lora_B, self.scaling)
        padding = None if self.padding_idx is None else (used == self.padding_idx).nonzero().flatten().tolist()
        return self._bags(numbers, rows, offsets, None, padding[0] if padding else None)

    @classmethod
    def layer_problem(cls, layer: nn.Module, lora_dropout: float) -> str | None:
        """Why a plain `layer` cannot be adapted, or None."""
        if lora_dropout:
            return f"lora_dropout={lora_dropout} has no meaning for the tokens of a bag; exclude it or use 0"
        return None if type(layer).forward is nn.EmbeddingBag.forward else "it has a forward of its own"
