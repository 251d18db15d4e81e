"""LoRA in Hugging Face's Trainer: adapter-only checkpoints, resuming, clean interruption, progress."""
