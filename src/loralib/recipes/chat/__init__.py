"""Fine-tuning on conversations, instructions and plain text."""
