"""KD++ with a training task of timm on random images, under Mixup.

python examples/timm/train.py
"""

from __future__ import annotations

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy

import ndfast
from ndfast.integrations.timm import NDDistillationTask

N, K, STEPS = 16, 10, 10


def main() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", num_classes=K).eval()
    student = timm.create_model("test_vit", num_classes=K, img_size=160)
    images, labels = torch.randn(N, 3, 160, 160), torch.randint(0, K, (N,))
    labels[:K] = torch.arange(K)  # every class has a mean

    means = ndfast.ClassMeans(K, teacher.head_hidden_size)
    with torch.no_grad():
        features = teacher.forward_head(teacher.forward_features(images), pre_logits=True)
    means.update(features, labels)

    task = NDDistillationTask(
        student, teacher, means.compute(), criterion=SoftTargetCrossEntropy(), verbose=False
    )
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=1e-3)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=K)
    task.train()
    for step in range(STEPS):
        found = task(*mixup(images.clone(), labels))
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses = {name: value.item() for name, value in found.items() if name != "output"}
        print(step, {name: round(value, 3) for name, value in losses.items()})


if __name__ == "__main__":
    main()
