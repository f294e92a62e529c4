#!/usr/bin/env python
"""Pre-train any timm encoder on unlabelled images with A2MIM.

    python run_pretraining.py --architecture resnet50 --train_dir path/to/images --output_dir a2mim-r50

`output_dir` ends up as a plain timm / transformers checkpoint (see README.md). All of transformers' TrainingArguments
work; `--help` lists everything. `a2mim pretrain` is the same.
"""

from modeling_a2mim.commands.parser import run_as_command
from modeling_a2mim.commands.pretrain import run_script as main


if __name__ == "__main__":
    run_as_command(main)
