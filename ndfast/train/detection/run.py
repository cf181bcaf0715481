"""The command `ndfast detect`: a teacher, its class means, and a student of it by each method."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from torch import Tensor

import ndfast
from ndfast.files import reason_of
from ndfast.train import files
from ndfast.train.config.detection_config import TORCHVISION, WIDTHS, DetectionConfig
from ndfast.train.config.methods import METHODS
from ndfast.train.detection.class_means import take_class_means
from ndfast.train.detection.coco import DetectionData, read_coco
from ndfast.train.detection.detector import Detector
from ndfast.train.detection.distiller import DetectionDistiller
from ndfast.train.detection.evaluation import average_precision, feature_metrics
from ndfast.train.detection.shapes import write_shapes
from ndfast.train.detection.small_detector import SmallDetector
from ndfast.train.detection.torchvision_detector import TorchvisionDetector
from ndfast.train.detection.trainer import DetectionTrainer
from ndfast.train.distill.teacher import read_class_means
from ndfast.train.engine.loop import count_steps
from ndfast.train.errors import ConfigError
from ndfast.train.machine.processes import build_accelerator, resolve_precision, session
from ndfast.train.machine.progress import Bars
from ndfast.train.models.weights import load_weights, save_weights, weights_digest
from ndfast.train.report import build_detection_table, write_detection_page
from ndfast.train.runs import folder
from ndfast.train.runs.records import read_log
from ndfast.train.runs.run import check_inputs, resolve_backend
from ndfast.train.runs.training import train_in

SHAPES = "shapes"
_TEST_SHARE = 3  # one drawn test image for so many training images


def run(config: DetectionConfig, console: Console) -> dict[str, Any]:
    """Trains a student by each method from the same seed, and shows what each reaches.

    Into ``config.out`` goes what `ndfast.train.runs.folder` lists, each student's under
    runs/METHOD; and, where none are given, the images, in shapes/.

    Returns:
        What `results.json` holds: "config", "environment", "data"; and "teacher" and "students",
        by method, each with the metrics of `ndfast.train.detection.evaluation`. A student has
        "losses" too, the means over its last epoch. "skipped" has the steps that each training
        left out, the teacher's too where it was trained.

    Raises:
        ConfigError: the run cannot start as it is configured.
        CheckpointError: a checkpoint or the log cannot be written; --resume goes on from the
            newest checkpoint.
        FloatingPointError: too many steps in a row had a loss or a gradient of NaN or Inf, or the
            weights came to be so.
    """
    config = replace(config, precision=resolve_precision(config.precision))
    out = Path(config.out)
    with session(config, console) as (accelerator, bars), folder.opened(config, accelerator):
        try:
            data = _prepare(accelerator, config, out, bars)
            results, logs = _train_all(accelerator, config, data, out, bars)
            if accelerator.is_main_process:
                write_detection_page(out / folder.REPORT, results, logs)
                files.write_json(out / folder.RESULTS, results)
        except OSError as error:
            raise ConfigError(
                f"out: cannot write to {str(error.filename or config.out)!r}: {reason_of(error)}"
            ) from error
    if accelerator.is_main_process:
        console.print(build_detection_table(results))
        console.print(f"Written to {config.out}")
    return results


def build_detector(config: DetectionConfig, name: str, num_classes: int) -> Detector:
    """A detector by its name, with the widths and the rows of the config.

    Raises:
        ConfigError: torchvision has none of that name.
        ModuleNotFoundError: it is torchvision's, which is not installed.
    """
    if name.startswith(TORCHVISION):
        builder = name.removeprefix(TORCHVISION)
        return TorchvisionDetector(builder, num_classes, config.rows, config.min_size)
    return SmallDetector(num_classes, WIDTHS[name], config.dim, config.rows, config.anchor_sizes)


def _prepare(
    accelerator: Accelerator, config: DetectionConfig, out: Path, bars: Bars
) -> DetectionData:
    """Reads the images, which are drawn where none are given."""
    if accelerator.is_main_process and config.data_dir is None:
        write_shapes(out / SHAPES, config.images, config.images // _TEST_SHARE)
    accelerator.wait_for_everyone()
    data = read_coco(out / SHAPES if config.data_dir is None else Path(config.data_dir))
    absent = (data.train.box_counts == 0).nonzero().flatten().tolist()
    if absent:
        names = ", ".join(data.train.class_names[label] for label in absent)
        bars.note(f"The training set has no box of {names}: no class mean, and nothing to learn")
    return data


def _train_all(
    accelerator: Accelerator, config: DetectionConfig, data: DetectionData, out: Path, bars: Bars
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The results, and by training its log."""
    _validate_setup(accelerator, config, data)
    if accelerator.is_main_process and config.teacher_weights is None:
        folder.begin(config)  # the teacher's training is a part of it
    teacher = _find_teacher(accelerator, config, data, out, bars)
    means = _find_class_means(accelerator, config, data, teacher, out)

    def measure(detector: Detector) -> dict[str, Any]:
        test = (accelerator, detector, data.test, config.batch_size)
        return average_precision(*test) | feature_metrics(*test, means)

    students, logs, ends = {}, {}, {}
    if config.teacher_weights is None:
        logs["teacher"], ends["teacher"] = _read_log(out / folder.TEACHER)
    for method in config.methods:
        own = out / folder.RUNS / method
        student = _train_one(config, data, method, teacher, means, own, bars)
        logs[method], ends[method] = _read_log(own)
        students[method] = measure(student) | {"losses": ends[method]["train"]}
    results = {
        "config": asdict(config),
        "environment": folder.run_environment(accelerator),
        "data": {"name": data.name, "train": len(data.train), "test": len(data.test)},
        "teacher": measure(teacher),
        "students": students,
        "skipped": {name: end["skipped"] for name, end in ends.items()},
    }
    return results, logs


def _validate_setup(accelerator: Accelerator, config: DetectionConfig, data: DetectionData) -> None:
    """Raises what would only be raised once a teacher has been trained, and costs nothing."""
    count_steps(config, data.train, accelerator.num_processes)
    check_inputs(config, {})
    if any(METHODS[method].nd for method in config.methods):
        resolve_backend(accelerator, config.backend)
    student, teacher = (
        build_detector(config, name, data.num_classes) for name in (config.model, config.teacher)
    )
    if student.dim != teacher.dim:
        raise ConfigError(
            f"dim: {config.model} has {student.dim} box features, {config.teacher} {teacher.dim}; "
            "they take the same number"
        )
    if config.class_means is not None:
        shape = (data.num_classes + 1, teacher.dim)
        read_class_means(Path(config.class_means), {"data": data.name}, shape)


def _train_one(
    config: DetectionConfig,
    data: DetectionData,
    method: str,
    teacher: Detector | None,
    means: Tensor | None,
    own: Path,
    bars: Bars,
) -> Detector:
    """A student by a method, or without a teacher the teacher itself; one that is done is read."""
    accelerator = build_accelerator(config)  # of its own: it collects a checkpoint's state
    role, name = ("teacher ", config.teacher) if teacher is None else ("", config.model)
    weights = own / folder.MODEL
    set_seed(config.seed)
    detector = build_detector(config, name, data.num_classes)
    if weights.exists():  # what a run that starts anew replaces was set aside
        load_weights(detector, str(weights))
        return detector.to(accelerator.device).eval()
    if accelerator.is_main_process:
        own.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    needed = None if METHODS[method].distillation is None else teacher
    distiller = DetectionDistiller(detector, method, config, means)
    trainer = DetectionTrainer(accelerator, config, data, distiller, needed)
    train_in(own, f"{role}{name}, {method}", trainer, detector, bars)
    if accelerator.is_main_process:
        save_weights(detector, weights)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return detector.eval()


def _find_teacher(
    accelerator: Accelerator, config: DetectionConfig, data: DetectionData, out: Path, bars: Bars
) -> Detector:
    if config.teacher_weights is None:
        teacher = _train_one(config, data, "ce", None, None, out / folder.TEACHER, bars)
    else:
        teacher = build_detector(config, config.teacher, data.num_classes)
        load_weights(teacher, config.teacher_weights)
    return teacher.to(accelerator.device).eval().requires_grad_(False)


def _find_class_means(
    accelerator: Accelerator,
    config: DetectionConfig,
    data: DetectionData,
    teacher: Detector,
    out: Path,
) -> Tensor:
    """Takes the class means or reads them; those that are taken are written.

    With them all that the config names has been found: from here on the folder is this run's.
    """
    metadata = {
        "teacher": config.teacher,
        "teacher_sha256": weights_digest(teacher),
        "data": data.name,
    }
    counts = None
    if config.class_means is not None:
        shape = (data.num_classes + 1, teacher.dim)
        means, _ = read_class_means(Path(config.class_means), metadata, shape)
    else:
        set_seed(config.seed)
        means, counts = take_class_means(accelerator, teacher, data.train, config.batch_size)
    if accelerator.is_main_process:
        folder.begin(config)
        if counts is not None:
            path = out / files.CLASS_MEANS
            ndfast.save_class_means(path, means, counts=counts.cpu(), **metadata)
    return means.to(accelerator.device).float()


def _read_log(own: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The log of a training that is over, and what it tells of the last epoch.

    Raises:
        ConfigError: it is gone, or tells of none, or was written before steps were skipped.
    """
    path = own / folder.LOG
    log = read_log(path) if path.exists() else []
    epochs = [record for record in log if record["event"] == "epoch"]
    if not epochs or "skipped" not in epochs[-1]:
        lacking = "skipped steps" if epochs else "epoch"
        raise ConfigError(
            f"out: {path} tells of no {lacking}, and the training in {own} is over; expected "
            "--overwrite to begin anew, or another folder"
        )
    return log, epochs[-1]
