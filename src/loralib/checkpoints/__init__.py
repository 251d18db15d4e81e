"""The weights of whole models in files: read and changed there, tensor by tensor, without a model."""
