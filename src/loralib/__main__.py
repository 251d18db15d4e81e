"""`python -m loralib` is the `loralib` command (for `torchrun -m -- loralib train …`)."""

from .cli import console_script

if __name__ == "__main__":
    console_script()
