"""What holds for every test: Triton's interpreter where there is no GPU, and poisoned outputs."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Before ndfast is imported: Triton decides when a kernel is defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")
