"""Serve the CPU with the Triton kernels, for Triton's interpreter: imported before what uses the ops."""

import torch

from shuffle_attention.kernels import LIBRARY
from shuffle_attention.kernels.backends import triton

triton.register(LIBRARY, "CPU")
torch.use_deterministic_algorithms(True)  # fills new memory with NaN
