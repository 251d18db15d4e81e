"""What a GPU has to show, in minutes: that every operation is right on it, then how fast it is there.

Needs nothing but torch, triton, transformers, numpy and safetensors; PEFT is measured where it can be imported.
"""
