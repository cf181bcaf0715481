"""DistributedDataParallel over two gloo processes gives the gradient of the whole batch."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ndfast

N, D, K = 12, 9, 4


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, teacher = (torch.randn(N, D, generator=generator) for _ in range(2))
    class_means = torch.randn(K, D, generator=generator)
    return images, teacher, class_means, torch.randint(0, K, (N,), generator=generator)


class Student(nn.Module):
    """A layer, and learnable class means in the loss, which stands alone and is attached."""

    def __init__(self, class_means: Tensor, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(D, D)
        self.classifier = nn.Linear(D, K)
        self.nd_loss = ndfast.NDLoss(class_means, 1.5, learnable=True)

    def forward(self, images: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        features = self.layer(images)
        alone = self.nd_loss(features, teacher, labels)
        means = self.nd_loss.class_means
        features, attached = ndfast.attach_nd_loss(features, None, means, labels)
        return alone + attached + self.classifier(features).square().mean()


def run_rank(rank: int, seed: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    images, teacher, class_means, labels = batch(seed)
    student = DistributedDataParallel(Student(class_means, seed))
    half = slice(rank * N // 2, (rank + 1) * N // 2)
    for _ in range(2):  # the second round finds DDP's buckets as the first left them
        student.zero_grad()
        student(images[half], teacher[half], labels[half]).backward()
    if rank == 0:
        torch.save([p.grad for p in student.parameters()], results)
    dist.barrier()
    # Else it holds the group, which at its end waits for gloo's threads, as they may for Python.
    del student
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ddp_is_the_whole_batch(tmp_path, seed: int) -> None:
    results = str(tmp_path / "grads.pt")
    mp.spawn(run_rank, (seed, str(tmp_path / "store"), results), nprocs=2)
    images, teacher, class_means, labels = batch(seed)
    alone = Student(class_means, seed)
    alone(images, teacher, labels).backward()
    for got, parameter in zip(
        torch.load(results, weights_only=True), alone.parameters(), strict=True
    ):
        torch.testing.assert_close(got, parameter.grad)
