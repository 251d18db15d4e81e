"""The names that `from loralib import *` gave in loralib 0.1 because its modules had imported them; programs rely on them."""

import math
from typing import Dict, List, Optional  # noqa: UP035

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["Dict", "F", "List", "Optional", "math", "nn", "torch"]
