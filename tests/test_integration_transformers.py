"""NDTrainer in transformers' Trainer, on networks with random weights; nothing is downloaded."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torchvision_ops", reason="needs torchvision")  # transformers looks for it
pytest.importorskip("transformers", reason="needs transformers")

from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import ndfast
from ndfast.integrations.transformers import NDTrainer
from ndfast.losses import kd_loss

K, D = 5, 8
SIZES = {
    "hidden_size": D,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": K,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
EXAMPLE = Path(__file__).parents[1] / "examples/transformers/train.py"


def vit(**config: Any) -> ViTForImageClassification:
    sizes = SIZES | {"image_size": 8, "patch_size": 4, "num_channels": 1} | config
    return ViTForImageClassification(ViTConfig(**sizes))


def bert() -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(**SIZES, vocab_size=20, max_position_embeddings=6)
    )


def rows(network: nn.Module, n: int) -> list[dict[str, Tensor]]:
    labels = torch.randint(0, K, (n,))
    if isinstance(network, BertForSequenceClassification):
        return [
            {"input_ids": ids, "labels": label}
            for ids, label in zip(torch.randint(0, 20, (n, 6)), labels, strict=True)
        ]
    return [
        {"pixel_values": image, "labels": label}
        for image, label in zip(torch.randn(n, 1, 8, 8), labels, strict=True)
    ]


def trainer(student: nn.Module, out: Path, teacher: nn.Module, **more: Any) -> NDTrainer:
    """SGD without a schedule or clipping, so that steps can be added up by hand."""
    given = {k: more.pop(k) for k in [*more] if k in TrainingArguments.__dataclass_fields__}
    arguments = TrainingArguments(
        output_dir=str(out),
        **{
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "max_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **given,
        },
    )
    more.setdefault("class_means", torch.randn(K, D))
    return NDTrainer(student, arguments, teacher=teacher, **more)


def features_of(network: ViTForImageClassification, images: Tensor) -> Tensor:
    return network.vit(images).last_hidden_state[:, 0]


def batch(n: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    images, labels = torch.randn(n, 1, 8, 8), torch.randint(0, K, (n,))
    return {"pixel_values": images, "labels": labels}, images, labels


def test_the_loss_is_the_sum_of_three(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit()
    means = torch.randn(K, D)
    ours = trainer(
        student, tmp_path, teacher, class_means=means, nd_weight=1.5, kd_weight=0.7, temperature=2.0
    )
    inputs, images, labels = batch(6)
    student.train()
    loss, outputs = ours.compute_loss(student, inputs, return_outputs=True)
    loss.backward()
    gradient = student.vit.embeddings.cls_token.grad.clone()

    student.zero_grad()
    logits, expected_logits = student(images).logits, teacher(images).logits
    expected = (
        nn.functional.cross_entropy(logits, labels)
        + 0.7 * kd_loss(logits, expected_logits, 2.0)
        + ndfast.nd_loss(
            features_of(student, images), features_of(teacher, images), means, labels, weight=1.5
        )
    )
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, student.vit.embeddings.cls_token.grad)
    torch.testing.assert_close(outputs.logits, logits)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("make", [vit, bert])  # ViT divides by num_items_in_batch, BERT does not
def test_accumulated_micro_batches_are_one_batch(make: Any, tmp_path: Path, seed: int) -> None:
    student, teacher, means = make(), make(), torch.randn(K, D)
    start = {k: v.clone() for k, v in student.state_dict().items()}
    data = rows(student, 12)
    ends = []
    for size, steps in ((12, 1), (4, 3)):
        student.load_state_dict(start)
        trainer(
            student,
            tmp_path,
            teacher,
            class_means=means,
            train_dataset=data,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            logging_strategy="no",
        ).train()
        ends.append({k: v.clone() for k, v in student.state_dict().items()})
    torch.testing.assert_close(ends[0], ends[1])
    assert not torch.equal(ends[0]["classifier.weight"], start["classifier.weight"])


def test_label_smoothing_is_the_trainers(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit()
    ours = trainer(
        student, tmp_path, teacher, nd_weight=0.0, kd_weight=0.0, label_smoothing_factor=0.3
    )
    inputs, images, labels = batch(6)
    student.train()
    expected = nn.functional.cross_entropy(student(images).logits, labels, label_smoothing=0.3)
    torch.testing.assert_close(ours.compute_loss(student, inputs), expected)


def test_evaluation_has_the_models_loss_and_no_teacher(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit()
    data = rows(student, 6)
    ours = trainer(student, tmp_path, teacher, eval_dataset=data)
    teacher.forward = None  # calling it is an error
    student.eval()
    images = torch.stack([row["pixel_values"] for row in data])
    labels = torch.stack([row["labels"] for row in data])
    expected = nn.functional.cross_entropy(student(images).logits, labels)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_stats_are_logged_as_means_of_the_steps(tmp_path: Path, seed: int) -> None:
    student, teacher, means = vit(), vit(), torch.randn(K, D)
    data = rows(student, 12)
    ours = trainer(
        student,
        tmp_path,
        teacher,
        class_means=means,
        train_dataset=data,
        learning_rate=0.0,
        per_device_train_batch_size=4,
        max_steps=6,
        logging_steps=3,  # twice an epoch of the twelve rows
    )
    ours.train()
    images = torch.stack([row["pixel_values"] for row in data])
    labels = torch.stack([row["labels"] for row in data])
    _, stats = ndfast.nd_loss(
        features_of(student, images),
        features_of(teacher, images),
        means,
        labels,
        return_stats=True,
    )
    logged = [entry for entry in ours.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        for name, value in stats._asdict().items():
            assert entry[f"nd_{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6)


def test_the_teacher_is_frozen(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit(hidden_dropout_prob=0.5)
    teacher.train()
    ours = trainer(student, tmp_path, teacher, train_dataset=rows(student, 4))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    ours.train()
    assert not any(module.training for module in teacher.modules())
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)


def test_bfloat16_reaches_both_networks(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit()
    seen = []
    for network in (student, teacher):
        network.classifier.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    trainer(student, tmp_path, teacher, train_dataset=rows(student, 4), bf16=True).train()
    assert seen == [torch.bfloat16] * 2


def test_a_projector_is_trained_and_saved_with_the_student(tmp_path: Path, seed: int) -> None:
    student, teacher = vit(), vit(hidden_size=12)
    projector = nn.Linear(D, 12)
    before = projector.weight.detach().clone()
    ours = trainer(
        student,
        tmp_path,
        teacher,
        projector=projector,
        class_means=torch.randn(K, 12),
        train_dataset=rows(student, 4),
    )
    ours.train()
    assert not torch.equal(projector.weight, before)
    assert student.state_dict()["nd_projector.weight"] is not None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"classifier": "fc"}, "classifier: ViTForImageClassification has no module 'fc'; its"),
        ({"teacher_classifier": "fc"}, "teacher_classifier: ViTForImageClassification has no"),
        ({"compute_loss_func": len}, "compute_loss_func: is not taken"),
        ({"model_init": vit}, "model_init: is not taken"),
    ],
)
def test_what_is_not_taken(more: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        trainer(vit(), tmp_path, vit(), **more)


def test_a_module_that_the_forward_leaves_out(tmp_path: Path) -> None:
    student = vit()
    student.aside = nn.Linear(D, K)
    ours = trainer(student, tmp_path, vit(), classifier="aside", teacher_classifier="classifier")
    student.train()
    with pytest.raises(RuntimeError, match="module 'aside' was not called"):
        ours.compute_loss(student, batch(2)[0])
    with pytest.raises(ValueError, match="teacher: got the student; expected a network of its own"):
        trainer(student, tmp_path, student)


@pytest.mark.long
def test_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    accuracy = float(capsys.readouterr().out.rsplit("test accuracy: ", 1)[1])
    assert accuracy > 0.6  # 0.1 by chance
