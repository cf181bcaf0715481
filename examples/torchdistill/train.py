"""KD++ with torchdistill on scikit-learn's digits; the training itself is in kdpp.yaml.

python examples/torchdistill/train.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchdistill.common import yaml_util
from torchdistill.common.main_util import import_dependencies
from torchdistill.core.distillation import get_distillation_box

import ndfast

HERE = Path(__file__).parent
CLASS_MEANS = Path("runs/torchdistill/class_means.safetensors")


class Network(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


def main() -> None:
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    train = TensorDataset(images[:1500], labels[:1500])

    teacher = Network(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU())
    optimizer = torch.optim.Adam(teacher.parameters())
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[:1500]), labels[:1500]).backward()
        optimizer.step()

    means = ndfast.ClassMeans(num_classes=10, dim=64)
    means.update(teacher.body(images[:1500]), labels[:1500])
    CLASS_MEANS.parent.mkdir(parents=True, exist_ok=True)
    ndfast.save_class_means(CLASS_MEANS, means.compute(), counts=means.counts)

    config = yaml_util.load_yaml_file(str(HERE / "kdpp.yaml"))
    import_dependencies(config["dependencies"])
    student = Network(nn.Linear(64, 64), nn.ReLU())
    box = get_distillation_box(
        teacher, student, {"digits/train": train}, config["train"], torch.device("cpu"), None,
        distributed=False, lr_factor=1,
    )  # fmt: skip
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for sample_batch, targets, supp_dict in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(sample_batch, targets, supp_dict)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    accuracy = (student(images[1500:]).argmax(dim=1) == labels[1500:]).float().mean()
    print(f"test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
