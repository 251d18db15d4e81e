"""`python -m benchmarks NAME`: a benchmark of `benchmarks.command`, or `gpu`, which needs fewer packages than that."""

import sys
from runpy import run_module

if __name__ == "__main__":
    run_module("benchmarks.gpu.__main__" if sys.argv[1:2] == ["gpu"] else "benchmarks.command", run_name="__main__")
