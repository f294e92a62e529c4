"""Fine-tune a pre-trained encoder with transformers alone: `AutoModelForImageClassification` and `Trainer`.

    python examples/finetune_from_python.py [ENCODER] [OUTPUT_DIR]

ENCODER is a folder that `pretrain_from_python.py` or `run_pretraining.py` wrote. This script does not import
`modeling_a2mim`.
"""

import sys
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, set_seed


DATA = Path(__file__).resolve().parent.parent / "data"


def main(encoder: str = "pretrained", output_dir: str = "finetuned", steps: int = 40) -> dict[str, float]:
    """Train a classifier of the 10 classes on 1,000 images for so many steps. Returns the metrics of 500 others."""
    set_seed(0)
    data = load_dataset(str(DATA))
    names = data["train"].features["label"].names
    processor = AutoImageProcessor.from_pretrained(encoder)
    model = AutoModelForImageClassification.from_pretrained(encoder, num_labels=len(names))
    model.config.id2label = dict(enumerate(names))

    def transform(rows: dict) -> dict:
        images = [image.convert("L") for image in rows["image"]]  # the encoder has one channel
        return {"pixel_values": processor(images)["pixel_values"], "labels": rows["label"]}

    def accuracy(prediction) -> dict[str, float]:
        return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            max_steps=steps,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=data["train"].select(range(1000)).with_transform(transform),
        eval_dataset=data["test"].select(range(500)).with_transform(transform),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    return trainer.evaluate()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
