"""`ndfast` in which rank 1 kills itself in step 3, unless torchrun has restarted it."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ndfast.cli import main
from ndfast.train.engine.trainer import Trainer

step = Trainer.step


def step_or_die(trainer: Trainer, *arguments: Any) -> None:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and trainer.position.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    step(trainer, *arguments)


Trainer.step = step_or_die
sys.exit(main(sys.argv[1:]))
