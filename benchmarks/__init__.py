"""Measurements behind the project's claims: one file each, results with provenance in `results/`."""
