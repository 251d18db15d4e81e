"""Generating text from data: E2E, WebNLG and DART as in the LoRA paper, and your own data."""
