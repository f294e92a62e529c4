"""Pre-train a small CNN on the bundled images from Python, with a `Trainer` as in transformers.

    python examples/pretrain_from_python.py [OUTPUT_DIR]

OUTPUT_DIR becomes a plain timm / transformers checkpoint. See `finetune_from_python.py` for what follows.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModel, set_seed

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, A2MIMTrainer, A2MIMTrainingArguments


DATA = Path(__file__).resolve().parent.parent / "data"


def main(output_dir: str = "pretrained", steps: int = 40) -> dict[str, float]:
    """Pre-train for so many steps, and load the result as any user of transformers does. Returns the metrics."""
    set_seed(0)
    images = load_dataset(str(DATA), split="train")  # a column of images; labels are ignored
    config = A2MIMConfig.for_architecture("test_convnext", image_size=32, num_channels=1, mask_patch_size=4)
    trainer = A2MIMTrainer(
        model=A2MIMForPreTraining(config),
        args=A2MIMTrainingArguments(
            output_dir,
            overwrite_output_dir=True,
            per_device_train_batch_size=32,
            max_steps=steps,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=images.select(range(1000)),
        eval_dataset=images.select(range(1000, 1100)),
    )
    trainer.train()
    metrics = trainer.evaluate()  # PSNR (dB) of the masked pixels, and of two guesses that need no training
    trainer.save_model()

    encoder = AutoModel.from_pretrained(output_dir)  # needs only transformers and timm
    print(f"{type(encoder).__name__} with {encoder.num_parameters():,} parameters in {output_dir}")
    return metrics


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
