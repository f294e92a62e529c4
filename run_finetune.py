#!/usr/bin/env python
"""Fine-tune an encoder, train one from scratch, or probe a frozen one.

    python run_finetune.py --model_name_or_path a2mim-r50 --train_dir images/train --validation_dir images/test \
        --output_dir a2mim-r50-classifier                      # one sub-folder of images for each class
    python run_finetune.py --model_name_or_path a2mim-r50 --recipe rsb_a3 ...            # published settings
    python run_finetune.py --model_name_or_path a2mim-r50 --linear_probe ...             # or --knn
    python run_finetune.py --architecture resnet50 ...                                   # from scratch
    python run_finetune.py --task semantic-segmentation --model_name_or_path a2mim-r50 ...

`output_dir` ends up as a plain timm / transformers model with its label names (see README.md). All of transformers'
TrainingArguments work; `--help` lists everything, with `--task` that task's. `a2mim finetune` is the same.
"""

from modeling_a2mim.commands.finetune import run_script as main
from modeling_a2mim.commands.parser import run_as_command


if __name__ == "__main__":
    run_as_command(main)
