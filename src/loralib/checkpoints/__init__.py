"""The weights of whole models in files: read and changed there, tensor by tensor, without a model."""

from .merge import MergeReport, merge_checkpoint

__all__ = ["MergeReport", "merge_checkpoint"]
