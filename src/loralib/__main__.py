"""`python -m loralib` is the `loralib` command (for `torchrun -m -- loralib train …`)."""

from .cli import console_script

console_script()
