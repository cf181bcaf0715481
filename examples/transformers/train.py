"""KD++ with Hugging Face's Trainer on scikit-learn's digits, with two small ResNets.

python examples/transformers/train.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import ndfast
from ndfast.integrations.transformers import NDTrainer

EPOCHS = 3


def resnet(blocks: int) -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[blocks, blocks],
            layer_type="basic",
            num_labels=10,
        )
    )


def main() -> None:
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=(32, 32))
    rows = [
        {"pixel_values": image, "labels": int(digit)}
        for image, digit in zip(images, digits, strict=True)
    ]
    train, test = rows[:1500], rows[1500:]
    arguments = TrainingArguments(
        output_dir="runs/transformers",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=50,
        learning_rate=2e-3,
        logging_steps=15,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    teacher = resnet(blocks=2)
    Trainer(teacher, arguments, train_dataset=train).train()

    teacher.eval()
    means = ndfast.ClassMeans(num_classes=10, dim=32)
    for batch in DataLoader(train, batch_size=100):
        with torch.no_grad():
            features = teacher.resnet(batch["pixel_values"].to(teacher.device)).pooler_output
        means.update(features, batch["labels"])

    trainer = NDTrainer(
        resnet(blocks=1),
        arguments,
        train_dataset=train,
        eval_dataset=test,
        teacher=teacher,
        class_means=means.compute(),
        nd_weight=1.0,
        compute_metrics=lambda out: {"accuracy": (out[0].argmax(1) == out[1]).mean()},
    )
    trainer.train()
    print(f"test accuracy: {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()
