"""One training in full, if the minutes allow: `python docs/evidence/full_run.py MINUTES FLAG ...`.

The flags are those of `ndfast train`, with --out DIR. Two epochs show what the others will take,
which is printed; the run goes on where that is no more than MINUTES, and else stops, to be
continued by the same command with more of them. On a GPU that is lent for a quarter of an hour:

    python docs/evidence/full_run.py 8 --recipe cifar100-resnet56-resnet20 --data-dir DIR \
        --teacher-weights FILE --precision bf16 --workers 4 --out runs/full
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path

from ndfast.cli import main as ndfast

TOO_LONG = 3  # the exit status


def main(minutes: float, flags: list[str]) -> int:
    """Returns ndfast's exit status, or `TOO_LONG` where the minutes do not allow it."""
    out = Path(flags[flags.index("--out") + 1])
    flags = [*flags, "--resume"]
    if status := ndfast(["train", *flags, "--max-steps", "1"]):
        return status
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    all_steps, epochs = results["all_steps"], results["config"]["epochs"]
    if epochs < 3:
        sys.exit(f"epochs: got {epochs}; expected 3 or more, two of which are measured")
    two_epochs = str(2 * all_steps // epochs)
    if status := ndfast(["train", *flags, "--max-steps", two_epochs]):
        return status
    log = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    ends = [datetime.fromisoformat(line["time"]) for line in log if line["event"] == "epoch"]
    epoch = (ends[1] - ends[0]).total_seconds()  # with its evaluation
    needed = epoch * (epochs - 2) / 60
    print(f"{epoch:.1f} s an epoch: the other {epochs - 2} take {needed:.1f} min of {minutes:g}")
    if needed > minutes:
        return TOO_LONG
    return ndfast(["train", *flags])


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
