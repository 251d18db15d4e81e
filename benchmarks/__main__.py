"""`python -m benchmarks NAME`: a benchmark of `benchmarks.command`, or `gpu`, which needs fewer packages than that."""

import sys
from runpy import run_module

if __name__ == "__main__":
    of_gpu = sys.argv[1:2] == ["gpu"]
    if of_gpu:
        del sys.argv[1]
    run_module("benchmarks.gpu.__main__" if of_gpu else "benchmarks.command", run_name="__main__")
