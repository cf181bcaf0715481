"""The ND loss on a detector's box-head features, as KD++ has it on COCO.

- `shapes`: drawn shapes as a small set; `coco`: any set in COCO's format
- `detector`: what a detector is; `small_detector` (with `proposals` and `boxes`) in plain PyTorch,
  `torchvision_detector` for torchvision's
- `distiller`: the losses; `trainer`: the training; `class_means`: the teacher's; `evaluation`
- `run`: the command
"""
