"""KD++ with detectron2: a student R-CNN beside a frozen teacher.

python examples/detectron2/train_net.py --config-file examples/detectron2/kdpp_R50_R101.yaml
"""

from __future__ import annotations

from typing import Any

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch

from ndfast.integrations.detectron2 import add_nd_config


def main(args: Any) -> Any:
    cfg = get_cfg()
    add_nd_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
