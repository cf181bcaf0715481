"""KD++ with Lightning on scikit-learn's digits.

python examples/lightning/train.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ndfast
from ndfast.integrations.lightning import NDDistillation

EPOCHS = 10


class Distillation(NDDistillation):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(dim=1) == labels).float().mean())


class Network(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


def main() -> None:
    seed_everything(0)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    train = TensorDataset(images[:1500], labels[:1500])
    test = TensorDataset(images[1500:], labels[1500:])

    teacher = Network(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
    optimizer = torch.optim.Adam(teacher.parameters())
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[:1500]), labels[:1500]).backward()
        optimizer.step()

    means = ndfast.ClassMeans(num_classes=10, dim=64)
    means.update(teacher.body(images[:1500]), labels[:1500])

    student = Network(nn.Linear(64, 64), nn.ReLU())
    module = Distillation(student, teacher, means.compute(), classifier="fc", nd_weight=1.0)
    trainer = Trainer(
        max_epochs=EPOCHS,
        log_every_n_steps=10,
        default_root_dir="runs/lightning",
        enable_progress_bar=False,
    )
    trainer.fit(
        module,
        DataLoader(train, batch_size=50, shuffle=True),
        DataLoader(test, batch_size=300),
    )
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
