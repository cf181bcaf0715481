"""The training harness behind `ndfast train` and `ndfast compare`.

What is trained:

- `config`: what a run is made of; `options`: its fields; `recipes/`: files of it; `commands`,
  `flags`: its command line
- `data/`, `models/`: the parts; a data set or network is added there
- `methods`: which of `ndfast.losses` a student learns from, with the ND loss and without
- `teacher`: the frozen teacher and its class means; `make_class_means`: the command for them alone
- `kept_outputs`: its outputs from disk in place of its pass; `make_teacher_outputs`: the command
- `distiller`: student, projector and losses, all that is trained, in one module

How:

- `loop`: the steps and epochs of one training, with `optimizers`, `average`, `position`,
  `finite`, `skipping`, `stopwatch`
- `loss_check`: the ND loss as it trains, beside the reference; `verdicts`: what that comes to
- `evaluation`: passes over a whole data set
- `processes`, `fsdp`: device and processes by Accelerate; `allocator`: memory on the CPU
- `checkpoints`: written atomically, kept in a ring

What comes of it:

- `run`: one student from the config to the files in its `folder`; `replaced`: what --overwrite does
- `comparison`: methods and seeds in pairs; `step_times`
- `results`, `records`, `progress`, `report/`: results.json, the log, the bars, tables and pages
- `detection/`: the ND loss on the box-head features of a detector
"""
