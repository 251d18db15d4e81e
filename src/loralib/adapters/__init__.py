"""Adapters as values: the update of each layer, arithmetic on updates, whole adapters. Nothing here knows models or files."""
