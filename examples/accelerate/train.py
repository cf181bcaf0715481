"""KD++ in a plain loop with Accelerate on scikit-learn's digits, with one process or more.

python examples/accelerate/train.py
accelerate launch --num_processes 2 examples/accelerate/train.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import ndfast

EPOCHS = 5
FOLDER = Path("runs/accelerate")


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32), nn.ReLU())
        self.classifier = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images))


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.classifier = nn.Linear(32, 10)

    def forward(
        self, images: Tensor, teacher_features: Tensor, class_means: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        features, nd = ndfast.attach_nd_loss(
            self.body(images), teacher_features, class_means, labels
        )
        return self.classifier(features), nd


def train_teacher(data: TensorDataset) -> Teacher:
    images, labels = data.tensors
    teacher = Teacher()
    optimizer = torch.optim.Adam(teacher.parameters())
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images), labels).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


def take_class_means(
    accelerator: Accelerator, teacher: Teacher, data: TensorDataset
) -> ndfast.ClassMeans:
    # A share of each process's own: a loader that Accelerate has prepared repeats rows at its end.
    own = Subset(data, range(accelerator.process_index, len(data), accelerator.num_processes))
    means = ndfast.ClassMeans(num_classes=10, dim=32)
    for images, labels in DataLoader(own, batch_size=100):
        means.update(teacher.body(images.to(accelerator.device)), labels)
    means.all_reduce(expected_count=len(data))
    return means


def main() -> None:
    accelerator = Accelerator()
    set_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    data = TensorDataset(images[:1500], labels[:1500])

    teacher = train_teacher(data).to(accelerator.device)
    means = take_class_means(accelerator, teacher, data)
    class_means = means.compute().to(accelerator.device)
    if accelerator.is_main_process:
        FOLDER.mkdir(parents=True, exist_ok=True)
        ndfast.save_class_means(FOLDER / "means.safetensors", class_means, counts=means.counts)

    student = Student()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(data, batch_size=50, shuffle=True)
    model, optimizer, loader = accelerator.prepare(student, optimizer, loader)
    for epoch in range(EPOCHS):
        for images_, labels_ in loader:
            logits, nd = model(images_, teacher.body(images_), class_means, labels_)
            loss = F.cross_entropy(logits, labels_) + nd
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}, of which ND {nd.item():.3f}")

    with torch.no_grad():
        logits = student.classifier(student.body(images[1500:].to(accelerator.device)))
    accuracy = (logits.argmax(dim=1).cpu() == labels[1500:]).float().mean()
    accelerator.print(f"{accelerator.num_processes} processes, test accuracy {accuracy:.3f}")
    # Together, and what DistributedDataParallel holds of the processes' group first: gloo's threads
    # let go of the last collective meanwhile, and must not be waited for where Python ends.
    accelerator.wait_for_everyone()
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    main()
