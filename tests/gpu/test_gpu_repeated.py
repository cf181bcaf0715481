"""Many calls: the same bits each time, and no memory lost. Other work on the GPU would disturb."""

from __future__ import annotations

import gc

import pytest
import torch
from on_gpu import WAYS, draw_inputs, step

import ndfast

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("D", "K"), [(64, 7), (64, 2), (1000, 7), (2048, 7), (2048, 2)])
def test_a_hundred_runs_give_the_same_bits(
    D: int, K: int, dtype: torch.dtype, backend: str, seed: int
) -> None:
    torch.use_deterministic_algorithms(False)  # what ndfast does without being told to
    student, teacher = torch.randn(2, 3000, D, device="cuda").to(dtype)
    class_means = torch.randn(K, D, device="cuda")
    labels = torch.randint(K, (3000,), device="cuda")
    labels[:2000] = K - 1  # blocks take parts of its rows, and a second launch adds their sums
    inputs = [x.requires_grad_() for x in (student, teacher, class_means)]

    def run(attached: bool) -> list[torch.Tensor]:
        if attached:
            features, loss = ndfast.attach_nd_loss(*inputs, labels, backend=backend)
            outputs = loss + features.float().sum()
        else:
            outputs = loss = ndfast.nd_loss(*inputs, labels, backend=backend)
        return [loss.detach(), *torch.autograd.grad(outputs, inputs)]

    for attached in (False, True):
        first = run(attached)
        for number in range(1, 100):
            names = ("loss", "student", "teacher", "class_means")
            for name, one, another in zip(names, first, run(attached), strict=True):
                what = f"{name} of run {number}, attached={attached}, seed {seed}"
                assert torch.equal(one, another), what


def memory() -> dict[str, int]:
    """What is in use, by torch and on the whole GPU, once all work is done."""
    gc.collect()
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "free": torch.cuda.mem_get_info()[0],
    }


def test_ten_thousand_calls_keep_no_memory(backend: str) -> None:
    inputs = {way: draw_inputs(way, N=64, D=256) for way in WAYS}
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()

    def calls(number: int) -> None:
        for i in range(number):
            with torch.cuda.stream(streams[i % len(streams)]):
                for way, x in inputs.items():
                    step(x, way, backend)

    calls(200)
    before = memory()
    calls(10_000 // len(WAYS) + 1)
    assert memory() == before
