"""Generating text from data: E2E, WebNLG and DART as in the LoRA paper, and data of one's own."""
