"""What `ndfast detect` takes: each field is a flag.

Weights, temperature and batch are KD++'s on COCO; its optimiser there is SGD with a rate of 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from ndfast.dispatch import BACKENDS
from ndfast.train.config.options import SEEDS, check_values, option
from ndfast.train.config.train_config import TrainConfig
from ndfast.train.errors import ConfigError

METHODS = ("ce", "kd", "kd++")
WIDTHS = {"tiny": 4, "small": 24}
TORCHVISION = "torchvision:"

_WHAT, _LOSSES, _HOW, _OUTPUT = "what is trained", "losses", "optimiser", "machine and output"
_NAMES = f"{', '.join(WIDTHS)}, or {TORCHVISION}NAME for a Faster R-CNN of torchvision's"


def _option(default: Any, group: str, text: str, **metadata: Any) -> Any:
    """A resumed run may have another value of those of the machine and the output, by default."""
    return option(default, group, text, **{"may_change": group == _OUTPUT, **metadata})


@dataclass(frozen=True)
class DetectionConfig:
    """A teacher and a student by each method. Each field's metadata holds its help.

    Raises:
        ConfigError: a value is not taken.
    """

    data_dir: str | None = _option(
        None,
        _WHAT,
        "a set in COCO's format: train/ and val/ with images, annotations/instances_train.json and "
        "instances_val.json (default: shapes are drawn, into OUT/shapes)",
        metavar="DIR",
    )
    # At least one is left to test on.
    images: int = _option(400, _WHAT, "drawn to train on; a third as many to test on", least=3)
    model: str = _option("tiny", _WHAT, f"the student: {_NAMES}", metavar="NAME")
    teacher: str = _option("small", _WHAT, "the teacher, likewise", metavar="NAME")
    teacher_weights: str | None = _option(
        None, _WHAT, "the teacher's checkpoint (default: it is trained first)", metavar="FILE"
    )
    class_means: str | None = _option(
        None,
        _WHAT,
        "of the teacher's box features, [K + 1, D], background last (default: taken from it over "
        "the training set)",
        metavar="FILE",
    )
    dim: int = _option(
        128, _WHAT, "features of the box head; torchvision's have 1024", metavar="D", least=1
    )
    # With room for foreground, a quarter of them.
    rows: int = _option(64, _WHAT, "most proposals an image that the box head trains on", least=4)
    anchor_sizes: tuple[int, ...] = _option(
        (12, 20, 32), _WHAT, "of tiny and small, in pixels", metavar="PIXELS"
    )
    min_size: int = _option(
        800, _WHAT, "shorter side that torchvision's resize images to", metavar="PIXELS", least=32
    )
    seed: int = _option(
        0, _WHAT, "of parameters, order, augmentation and rows", least=0, below=SEEDS
    )

    methods: tuple[str, ...] = _option(
        METHODS,
        _LOSSES,
        f"of {', '.join(METHODS)}: a student for each",
        choices=METHODS,
        metavar="METHOD",
    )
    kd_weight: float = _option(1.0, _LOSSES, "factor of kd, on the class logits", least=0)
    temperature: float = _option(1.0, _LOSSES, "of kd", above=0)
    nd_weight: float = _option(1.5, _LOSSES, "factor of the ND loss", above=0)
    nd_background: bool = _option(True, _LOSSES, "background is a class of the ND loss")
    backend: str | None = _option(
        None,
        _LOSSES,
        "what computes the ND loss (default: the fastest that can run)",
        choices=tuple(BACKENDS),
    )

    epochs: int = _option(
        12, _HOW, "of the students, and of a teacher that is trained first", least=1
    )
    batch_size: int = _option(8, _HOW, "images a process takes at a time", least=1)
    optimizer: str = _option("adamw", _HOW, "", choices=("adamw", "sgd"))
    lr: float = _option(
        3e-3,
        _HOW,
        "highest learning rate: it grows in the first epoch and falls by a cosine to 0",
        above=0,
    )
    momentum: float = _option(0.9, _HOW, "of sgd", least=0)
    weight_decay: float = _option(1e-4, _HOW, "", least=0)
    max_skipped: int = _option(
        10,
        _HOW,
        "steps in a row that may be skipped for a loss or a gradient of NaN or Inf",
        metavar="N",
        least=1,
    )

    precision: str | None = _option(
        None,
        _OUTPUT,
        "of the matrix products of the training (default: what `accelerate launch` says, else "
        "fp32)",
        choices=("fp32", "bf16", "fp16"),
        may_change=False,
    )
    threads: int = _option(1, _OUTPUT, "of PyTorch on the CPU", least=1)
    workers: int = _option(0, _OUTPUT, "processes that load images", least=0)
    out: str = _option("runs/detection", _OUTPUT, "the folder of what is written", metavar="DIR")
    log_every: int = _option(50, _OUTPUT, "steps between lines of the log", metavar="N", least=1)
    tensorboard: bool = _option(False, _OUTPUT, "write TensorBoard's files too")
    keep_checkpoints: int = _option(2, _OUTPUT, "of the newest epochs", metavar="N", least=1)
    resume: bool = _option(False, _OUTPUT, "go on from the newest good checkpoint in OUT")
    overwrite: bool = _option(False, _OUTPUT, "replace a run that is in OUT")

    # What `TrainConfig` chooses and a detector's training does not.
    accumulate: ClassVar[int] = 1
    checkpoint_every: ClassVar[int | None] = None
    clip_norm: ClassVar[float | None] = None
    compile: ClassVar[bool] = False
    decay_norms: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    ema: ClassVar[float | None] = None
    lr_gamma: ClassVar[float] = 1.0
    lr_warmup: ClassVar[int] = 1
    max_steps: ClassVar[int | None] = None
    milestones: ClassVar[tuple[int, ...]] = ()
    nd_warmup: ClassVar[int] = 0
    nesterov: ClassVar[bool] = False
    schedule: ClassVar[str] = "cosine"

    @property
    def augmentation_seed(self) -> int:
        """The seed, which decides all that is drawn."""
        return self.seed

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("model", "teacher"):
            value = getattr(self, name)
            if value not in WIDTHS and not value.startswith(TORCHVISION):
                raise ConfigError(f"{name}: got {value!r}; expected {_NAMES}")
        for name in ("methods", "anchor_sizes"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: got none; expected one or more")


AnyConfig: TypeAlias = TrainConfig | DetectionConfig
"""What the engine and a run's folder take."""
