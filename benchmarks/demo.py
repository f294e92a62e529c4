"""What `make demo` runs: pre-train a small encoder on the bundled images without their labels, then see what that is
worth when only a few labels are known, against the same network untrained. Everything goes through the two scripts.

    python benchmarks/demo.py [--architecture vit_tiny_patch16_224]
"""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
import transformers


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import run_finetune  # noqa: E402
import run_pretraining  # noqa: E402
from modeling_a2mim import A2MIMForPreTraining  # noqa: E402
from modeling_a2mim.data.dataset import ImageSamples  # noqa: E402
from modeling_a2mim.data.loading import load_images  # noqa: E402
from modeling_a2mim.data.subsets import draw_subset  # noqa: E402
from modeling_a2mim.data.transforms import FineTuneTransform  # noqa: E402
from modeling_a2mim.evaluation.frozen import extract_features, knn_accuracy, linear_probe_accuracy  # noqa: E402
from modeling_a2mim.export.folder import timm_pretrained_cfg, write_card  # noqa: E402
from modeling_a2mim.export.loading import load_pretraining_model  # noqa: E402
from modeling_a2mim.export.record import read_record  # noqa: E402


# Small networks for small images: a ResNet, a ConvNeXt with a stem of 2 px, and a ViT with patches of 4 px. One cell
# of the mask is one position of the map that the token enters. Other networks run in their own shape.
SMALL = {
    "resnet10t": {
        "model_args": {"channels": [24, 48, 96, 192], "stem_width": 16},
        "mask": ["--mask_patch_size", "16", "--decoder", "multiscale"],
        "passes": 1.5,
        "learning_rate": 1e-3,
        "image_size": 64,
        "batch_size": 64,
    },
    "convnext_atto": {
        "model_args": {"dims": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "patch_size": 2},
        "mask": ["--mask_patch_size", "4", "--mask_site", "0"],
        "passes": 7,
        "learning_rate": 4e-3,
        "threads": 1,
    },
    "vit_tiny_patch16_224": {
        "model_args": {"patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
        "mask": ["--mask_patch_size", "4"],
        "passes": 2,
        "learning_rate": 1e-3,
        "threads": 1,
    },
}
OTHER = {"mask": ["--mask_patch_size", "16"], "passes": 1, "learning_rate": 1e-3, "image_size": 64}


LOAD = """
import sys
sys.modules["modeling_a2mim"] = None
from transformers import AutoImageProcessor, AutoModel
import torch
model = AutoModel.from_pretrained(sys.argv[1])
output = model(torch.zeros(1, *model.config.pretrained_cfg["input_size"]))
print(type(model).__name__, "gives features", tuple(output.pooler_output.shape))
"""


def features_of(model, train, test):
    """(features, labels) of the training images, and of the test images."""
    transform = FineTuneTransform(timm_pretrained_cfg(model.a2mim), train=False)
    return [extract_features(model, ImageSamples(rows, transform, "image", "label")) for rows in (train, test)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--architecture", default="resnet10t", help="a timm model")
    parser.add_argument("--output_dir", default="demo")
    parser.add_argument("--passes", type=float, help="passes over the 10,000 unlabelled images")
    parser.add_argument("--learning_rate", type=float, help="of pre-training and of fine-tuning")
    parser.add_argument("--labels_per_class", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5, help="draws of labels for the frozen encoders")
    parser.add_argument("--fine_tuning_seeds", type=int, default=3, help="draws of labels for fine-tuning")
    args = parser.parse_args()
    start, out = time.time(), Path(args.output_dir)
    for earlier in ("encoder", "classifier"):
        shutil.rmtree(out / earlier, ignore_errors=True)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    encoder = ["--architecture", args.architecture, "--num_channels", "1"]
    recipe = SMALL.get(args.architecture, OTHER)
    passes, rate = args.passes or recipe["passes"], args.learning_rate or recipe["learning_rate"]
    encoder += ["--image_size", str(recipe.get("image_size", 32))]
    if args.architecture in SMALL:
        encoder += ["--model_args", json.dumps(recipe["model_args"])]
    quiet = ["--use_cpu", "--save_strategy", "no", "--eval_strategy", "no"]
    # On two cores, beside one process for the images: a network with little to do is fastest with one (395 images/s
    # of the ConvNeXt, against 318 with both), one with more to do with both (205 of the ResNet, against 168 with one).
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.get("threads", threads))
    workers = ["--dataloader_num_workers", "1"]

    print(f"1. Pre-training {args.architecture} on 10,000 images without labels", flush=True)
    batch_size = str(recipe.get("batch_size", 128))
    schedule = ["--num_train_epochs", str(passes), "--per_device_train_batch_size", batch_size]
    schedule += ["--learning_rate", str(rate), "--reconstruction_steps", "100"]
    run_pretraining.main(
        [*encoder, *recipe["mask"], *schedule, *quiet, *workers, "--output_dir", str(out / "encoder")]
    )
    torch.set_num_threads(threads)
    pretrained = load_pretraining_model(str(out / "encoder"))
    torch.manual_seed(0)
    untrained = A2MIMForPreTraining(pretrained.config)
    pretraining_time = time.time() - start

    few = args.labels_per_class
    print(f"\n2. Frozen encoders, {few} labels per class", flush=True)
    train, test = load_images(), load_images(split="test")
    subsets = [draw_subset(train["label"], per_class=few, seed=seed) for seed in range(args.seeds)]
    rows = sorted({index for subset in subsets for index in subset})
    place = {index: i for i, index in enumerate(rows)}
    accuracy = {}
    for name, model in (("untrained", untrained), ("pre-trained", pretrained)):
        (known, labels), judged = features_of(model, train.select(rows), test)
        for subset in subsets:
            chosen = [place[index] for index in subset]
            sample = (known[chosen], labels[chosen])
            accuracy.setdefault(("linear probe", name), []).append(linear_probe_accuracy(sample, judged, 0.1))
            accuracy.setdefault(("k-NN", name), []).append(knn_accuracy(sample, judged))

    print(f"\n3. Fine-tuning at a rate of {rate:g}, {few} labels per class", flush=True)
    logging.disable(logging.INFO)
    common = f"--labels_per_class {few} --learning_rate {rate} --num_train_epochs 25 --crop_scale 0.6 1".split()
    common += ["--per_device_train_batch_size", "50", "--per_device_eval_batch_size", "250", "--disable_tqdm", "True"]
    common += quiet
    for seed in range(args.fine_tuning_seeds):
        sources = {"untrained": encoder, "pre-trained": ["--model_name_or_path", str(out / "encoder")]}
        for name, source in sources.items():
            folder = ["--output_dir", str(out / "classifier"), "--seed", str(seed)]
            shutil.rmtree(out / "classifier", ignore_errors=True)
            with contextlib.redirect_stdout(io.StringIO()):  # its own logs
                metrics = run_finetune.main([*source, *common, *folder])
            accuracy.setdefault(("fine-tuning", name), []).append(metrics["eval_accuracy"])
            print(f"   labels {seed}, {name}: {metrics['eval_accuracy']:.3f}", flush=True)

    print(f"\n4. Accuracy on 2,000 test images, mean ± standard deviation over draws of {few} labels per class\n")
    print(f"{'':14}{'untrained':>18}{'pre-trained':>18}{'difference':>18}")
    table = {}
    for kind in ("linear probe", "k-NN", "fine-tuning"):
        one, two = (np.array(accuracy[kind, name]) for name in ("untrained", "pre-trained"))
        cells = {"untrained": one, "pre-trained": two, "difference": two - one}
        table[kind] = {name: [round(float(v), 4) for v in values] for name, values in cells.items()}
        sign = {"untrained": "", "pre-trained": "", "difference": "+"}
        print(f"{kind:14}" + "".join(f"{v.mean():{sign[n]}10.3f} ± {v.std(ddof=1):.3f}" for n, v in cells.items()))

    print("Random weights catch up where the rate of fine-tuning is higher: see docs/quickstart.md")

    # The encoder's card says what it is worth.
    rows = []
    for kind, cells in table.items():
        rows.append({f"{few} labels per class": kind})
        rows[-1] |= {n: f"{np.mean(v):{sign[n]}.3f} ± {np.std(v, ddof=1):.3f}" for n, v in cells.items()}
    place = f"on 2,000 test images, {args.seeds} draws of labels ({args.fine_tuning_seeds} for fine-tuning, "
    place += f"at a rate of {rate:g}), accuracy"
    known = read_record(out / "encoder") | {"measured": rows, "measured_on": place}
    write_card(pretrained, out / "encoder", known)

    print("\n5. Loading the encoder in a process without this package", flush=True)
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", LOAD, str(out / "encoder")], check=True, env=environment)
    record = {
        "command": " ".join(["python", "benchmarks/demo.py", *sys.argv[1:]]),
        "accuracy": table,
        "seconds": {"pre-training": round(pretraining_time), "all": round(time.time() - start)},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {m.__name__: m.__version__ for m in (torch, timm, transformers, datasets)}
        | {"python": platform.python_version()},
    }
    (out / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nIn {out}/: the encoder, a classifier, demo.json; look at {out}/encoder/README.md and its pictures")
    print(f"{time.time() - start:.0f} s in all, {pretraining_time:.0f} s of it pre-training")


if __name__ == "__main__":
    main()
