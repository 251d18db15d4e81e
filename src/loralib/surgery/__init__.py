"""LoRA on whole models, one verb a file: read a model, plan, and only then act, so that a call succeeds or changes nothing."""
