"""What a run of `ndfast train` is made of: each field is a flag, a recipe's key, a line of help.

The defaults are KD++'s on CIFAR-100 (arXiv 2305.17007: ResNet-56 to ResNet-20).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ndfast.dispatch import BACKENDS
from ndfast.train.config.methods import METHODS
from ndfast.train.config.options import SEEDS, check_values
from ndfast.train.config.options import option as _option
from ndfast.train.data import DATA
from ndfast.train.errors import ConfigError
from ndfast.train.models import MODELS

WHAT, LOSSES, HOW = "what is trained", "losses", "optimiser and schedule"
MACHINE, LONG, OUTPUT = "machine", "long runs", "output"


@dataclass(frozen=True)
class TrainConfig:
    """One student's training, or a teacher's. Each field's metadata holds its help.

    Raises:
        ConfigError: a value is not taken.
    """

    data: str = _option("cifar100", WHAT, f"one of {', '.join(DATA)}", metavar="NAME")
    data_dir: str | None = _option(
        None, WHAT, "the folder of a data set that is on disk", metavar="DIR", may_change=True
    )
    image_size: int | None = _option(
        None, WHAT, "side of the images of a folder, in pixels (default: 224)", metavar="N", least=1
    )
    model: str = _option(
        "resnet20", WHAT, f"the student: timm:NAME, or one of {', '.join(MODELS)}", metavar="NAME"
    )
    teacher: str = _option("resnet56", WHAT, "the teacher, likewise", metavar="NAME")
    teacher_weights: str | None = _option(
        None,
        WHAT,
        "the teacher's checkpoint, or `pretrained` for timm's weights (default: the teacher is "
        "trained first, into OUT/teacher)",
        metavar="FILE",
    )
    teacher_outputs: str | None = _option(
        None,
        WHAT,
        "the folder that `ndfast teacher-outputs` made: the teacher's logits and norms are read "
        "there, and its network is not run",
        metavar="DIR",
    )
    class_means: str = _option(
        "teacher",
        WHAT,
        "`teacher`: taken from it over the training set; `augmented`: the same over images "
        "augmented as in training; `classifier`: the rows of its classifier; or a file",
        metavar="FILE",
    )
    learnable_class_means: bool = _option(False, WHAT, "train the class means with the student")
    seed: int = _option(
        0, WHAT, "of the parameters, the order, the augmentation", metavar="N", least=0, below=SEEDS
    )
    data_seed: int | None = _option(
        None,
        WHAT,
        "of the augmentation alone (default: the seed)",
        metavar="N",
        least=0,
        below=SEEDS,
    )
    probe: bool = _option(
        False,
        WHAT,
        "measure a student without the ND loss in the teacher's space too, by a projector that "
        "teaches it nothing",
    )

    method: str = _option("kd++", LOSSES, "what it learns from", choices=tuple(METHODS))
    ce_weight: float = _option(1.0, LOSSES, "factor of the cross entropy", least=0)
    distill_weight: float = _option(1.0, LOSSES, "factor of the distillation loss", least=0)
    nd_weight: float = _option(2.0, LOSSES, "factor of the ND loss", above=0)
    linear_init: str | None = _option(
        None,
        LOSSES,
        "of the linear layers of student and projector, as KD++'s authors have it by the student: "
        "`zero_bias`, or `normal`, weights and biases of standard deviation 0.01 (default: the "
        "network's own)",
        choices=("zero_bias", "normal"),
    )
    temperature: float = _option(4.0, LOSSES, "of kd, dkd and dist", above=0)
    dkd_alpha: float = _option(1.0, LOSSES, "dkd: factor of the target class's part")
    dkd_beta: float = _option(8.0, LOSSES, "dkd: factor of the other classes' part")
    dist_beta: float = _option(1.0, LOSSES, "dist: factor of the relation between classes")
    dist_gamma: float = _option(1.0, LOSSES, "dist: factor of the relation within a class")
    review_channels: int | None = _option(
        None,
        LOSSES,
        "reviewkd: channels of its fusion (default: the student's width, at most 512)",
        metavar="N",
        least=1,
    )
    distill_warmup: int = _option(
        20,
        LOSSES,
        "W epochs in which the distillation loss grows, by min(1, epoch/W) from epoch 0 on",
        least=0,
    )
    nd_warmup: int = _option(0, LOSSES, "the same for the ND loss", least=0)
    label_smoothing: float = _option(0.0, LOSSES, "of the cross entropy", least=0, below=1)
    mixup: float = _option(
        0.0, LOSSES, "alpha of mixup; the class means are mixed as well", least=0
    )
    cutmix: float = _option(
        0.0, LOSSES, "alpha of cutmix; with mixup, either by even odds", least=0
    )
    backend: str | None = _option(
        None,
        LOSSES,
        "what computes the ND loss (default: the fastest that can run)",
        choices=tuple(BACKENDS),
    )
    check_loss: bool = _option(
        False,
        LOSSES,
        "compare the ND loss and its gradient with the reference in float64, on the first "
        "ten and the logged steps; the command fails where they disagree",
        may_change=True,
    )

    epochs: int = _option(
        240, HOW, "of the student, and of a teacher that is trained first", least=1
    )
    # Batch normalisation needs two rows.
    batch_size: int = _option(64, HOW, "images a process takes at a time", least=2)
    accumulate: int = _option(1, HOW, "batches that make a step", metavar="N", least=1)
    optimizer: str = _option(
        "sgd", HOW, "sgd with momentum by default", choices=("sgd", "adamw", "lamb")
    )
    lr: float = _option(0.1, HOW, "learning rate", above=0)
    teacher_lr: float | None = _option(
        None, HOW, "of a teacher that is trained first (default: the student's)", above=0
    )
    momentum: float = _option(0.9, HOW, "of sgd", least=0)
    nesterov: bool = _option(True, HOW, "Nesterov's momentum, of sgd")
    weight_decay: float = _option(5e-4, HOW, "", least=0)
    decay_norms: bool = _option(True, HOW, "weight decay on biases and normalisation as well")
    clip_norm: float | None = _option(None, HOW, "longest gradient (default: none is cut)", least=0)
    schedule: str = _option("step", HOW, "of the learning rate", choices=("step", "cosine"))
    milestones: tuple[int, ...] = _option(
        (150, 180, 210), HOW, "step: after these epochs the rate falls", metavar="EPOCH"
    )
    lr_gamma: float = _option(0.1, HOW, "step: to this part of what it was")
    lr_warmup: int = _option(0, HOW, "epochs over which the rate grows from 0", least=0)
    ema: float | None = _option(
        None,
        HOW,
        "decay of an average of the weights, evaluated as well (default: none)",
        least=0,
        below=1,
    )

    precision: str | None = _option(
        None,
        MACHINE,
        "of the matrix products (default: what `accelerate launch` says, else fp32)",
        choices=("fp32", "bf16", "fp16"),
    )
    compile: bool = _option(False, MACHINE, "torch.compile student and teacher")
    channels_last: bool | None = _option(
        None, MACHINE, "images and weights in NHWC (default: on the CPU, where it is faster)"
    )
    deterministic: bool = _option(
        True, MACHINE, "on a GPU no TF32, and of cuDNN the deterministic kernels: slower"
    )
    workers: int = _option(0, MACHINE, "processes that load images", may_change=True, least=0)
    # Small networks gain nothing from a second thread, and wait for it where other work runs.
    threads: int = _option(1, MACHINE, "of PyTorch on the CPU", least=1)

    resume: bool = _option(
        False, LONG, "go on from the newest good checkpoint in OUT", may_change=True
    )
    overwrite: bool = _option(False, LONG, "replace a run that is in OUT", may_change=True)
    checkpoint_every: int | None = _option(
        None,
        LONG,
        "steps between checkpoints (default: an epoch)",
        metavar="N",
        may_change=True,
        least=1,
    )
    keep_checkpoints: int = _option(3, LONG, "of the newest", metavar="N", may_change=True, least=1)
    max_skipped: int = _option(
        10,
        LONG,
        "batches in a row that may be skipped for a loss or a gradient of NaN or Inf",
        metavar="N",
        least=1,
    )
    max_steps: int | None = _option(
        None,
        LONG,
        "end the student after so many (default: all epochs)",
        metavar="N",
        may_change=True,
        least=1,
    )

    out: str = _option("", OUTPUT, "the run's folder (default: runs/DATA)", metavar="DIR")
    log_every: int = _option(
        50, OUTPUT, "steps between lines of the log", metavar="N", may_change=True, least=1
    )
    tensorboard: bool = _option(False, OUTPUT, "write TensorBoard's files too", may_change=True)

    def __post_init__(self) -> None:
        check_values(self)
        if not self.out:
            name = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.data)
            object.__setattr__(self, "out", f"runs/{name}")
        if self.teacher_outputs is not None:
            self._check_teacher_outputs()
        if METHODS[self.method].distillation == "dkd" and (self.mixup or self.cutmix):
            raise ConfigError(
                f"mixup and cutmix: {self.method} takes neither, it needs one class for each image"
            )

    @property
    def augmentation_seed(self) -> int:
        """The data seed, or the seed where none is given."""
        return self.seed if self.data_seed is None else self.data_seed

    def _check_teacher_outputs(self) -> None:
        if self.mixup or self.cutmix:
            raise ConfigError(
                "teacher_outputs: got it with mixup or cutmix; the teacher must be asked about the "
                "mixture itself"
            )
        if METHODS[self.method].distillation == "reviewkd":
            raise ConfigError(
                f"teacher_outputs: got it with {self.method}, which compares feature maps; only "
                "logits and norms are kept"
            )


def without_losses(config: TrainConfig) -> TrainConfig:
    """What the runs of a comparison share: all but what they learn from, which is by default."""
    defaults: dict[str, Any] = {
        item.name: item.default for item in fields(config) if item.metadata["group"] == LOSSES
    }
    return replace(config, **defaults)
