"""The same run with several seeds: its table, its cards, and how it goes on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.evaluation.summary import mean_and_interval
from modeling_a2mim.tasks.classification import seeds

from ...integration.test_scripts import SMALL, finetune


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


@pytest.mark.ci
def test_seeds_give_a_table_and_cards(pretrained, tmp_path):
    argv = ["--model_name_or_path", pretrained, "--labels_per_class", 2, "--seeds", 0, 7, "--add_to_card"]
    metrics = finetune(tmp_path / "out", *argv)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    values = [row["accuracy"] for row in results["results"]]
    assert [row["seed"] for row in results["results"]] == [0, 7]
    assert metrics["fine-tuning: accuracy"] == pytest.approx(np.mean(values))
    aurocs = [row["auroc"] for row in results["results"]]
    assert metrics["fine-tuning: AUROC"] == pytest.approx(np.mean(aurocs))
    evaluated = json.loads((tmp_path / "out" / "seed-7" / "eval_results.json").read_text())
    assert (evaluated["eval_auroc"], evaluated["eval_accuracy"]) == (aurocs[1], values[1])
    table = (tmp_path / "out" / "results.md").read_text()
    shown = f"{mean_and_interval(values)} |"
    assert f"| 2 labels of each class | fine-tuning | {shown}" in table
    assert f"| {mean_and_interval(aurocs)} |" in table
    counts = {row["class"]: int(row["images"]) for row in results["by_class"]}
    assert sum(counts.values()) == 20
    recalls = mean_and_interval([row["recall_Sneaker"] for row in results["results"]])
    assert f"| fine-tuning | Sneaker | {counts['Sneaker']} |" in table
    assert f"| {recalls} |" in table
    card = (tmp_path / "out" / "seed-7" / "README.md").read_text()
    recall, ranked = (evaluated[f"eval_{name}_Sneaker"] for name in ("recall", "average_precision"))
    assert f"| auroc | {aurocs[1]:.4f} |" in card
    assert f" | {recall:.4f} | {ranked:.4f} |" in card
    assert str(tmp_path) not in json.dumps(results)
    subsets = [json.loads((tmp_path / "out" / f"seed-{s}" / "subset.json").read_text()) for s in (0, 7)]
    assert [len(subset["rows"]) for subset in subsets] == [20, 20]
    assert subsets[0]["rows"] != subsets[1]["rows"]
    for folder in (tmp_path / "out" / "seed-0", pretrained):
        assert f"| fine-tuning | {shown}" in (folder / "README.md").read_text()
    assert "| 20 of zalando-datasets/fashion_mnist | 2 labels" in (pretrained / "README.md").read_text()
    for changed, message in (
        (["--learning_rate", 0.1], "^learning_rate: seed-0 was done with .*, this run has 0.1; go on with"),
        (["--labels_per_class", 1], "^labels_per_class: seed-0 was done with 2, this run has 1"),
        (["--train_image_size", 48], "^train_image_size: seed-0 was done with None, this run has"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(tmp_path / "out", *argv, *changed, "--resume_from_checkpoint", "last")
    before = (tmp_path / "out" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    again = finetune(tmp_path / "out", *argv, "--resume_from_checkpoint", "last")  # all is done
    assert again == metrics
    assert (tmp_path / "out" / "seed-0" / "model.safetensors").stat().st_mtime_ns == before
    same = ["--label_subset", tmp_path / "out" / "seed-7" / "subset.json", "--seed", 7]
    finetune(tmp_path / "same", "--model_name_or_path", pretrained, *same)
    one, two = (tmp_path / folder / "model.safetensors" for folder in ("out/seed-7", "same"))
    assert one.read_bytes() == two.read_bytes()


def test_figures_of_other_images_or_options_are_not_replaced(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(seeds, "read_record", lambda folder: dict(written))
    monkeypatch.setattr(seeds, "write_card", lambda model, folder, record, repo: written.update(record))

    def add(accuracy, images="52 of the author's", data="a"):
        rows = [{"subset": "all labels", "method": "k-NN", "accuracy": accuracy, "seeds": "1"}]
        seeds.add_measured(tmp_path, None, rows, "on images", images, data)

    for given in (("0.1",), ("0.2", "52 of the author's; knn_neighbours 5"), ("0.3", "52 of the author's", "b")):
        add(*given)
    assert [row["accuracy"] for row in written["measured"]] == ["0.1", "0.2", "0.3"]
    add("0.4")  # the first again
    assert [row["accuracy"] for row in written["measured"]] == ["0.2", "0.3", "0.4"]
    given = ClassifierArguments(knn=True, knn_neighbours=5)
    assert seeds.options_of(given, SimpleNamespace(class_weights=["balanced"])) == (
        "knn_neighbours 5, class_weights balanced"
    )


@pytest.mark.ci
def test_a_set_of_seeds_is_not_overwritten(tmp_path, monkeypatch):
    argv = [*SCRATCH, "--labels_per_class", 1]
    finetune(tmp_path, *argv, "--seeds", 0, 1)
    before = (tmp_path / "seed-0" / "model.safetensors").read_bytes()
    for others in ((1, 2), (2,)):
        with pytest.raises(ValueError, match=r"^output_dir: .* holds results \(results.json\) of another run; name"):
            finetune(tmp_path, *argv, "--seeds", *others)
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"^output_dir: .*seed-1 holds checkpoints and results \(model"):
        finetune(tmp_path, *argv, "--seeds", 2, 1)
    assert (tmp_path / "seed-0" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "seed-2").exists()

    # Stopped in the first seed, a set that overwrites has nothing left that could be taken for its own.
    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modeling_a2mim.tasks.classification.task.ClassificationTrainer.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path, *argv, "--seeds", 0, 1, "--overwrite_output_dir")
    left = {path.name for seed in (0, 1) for path in (tmp_path / f"seed-{seed}").iterdir()}
    assert left <= {"subset.json", "runs"}
    finetune(tmp_path, *argv, "--seeds", 0, 1, "--learning_rate", 0.1, "--resume_from_checkpoint", "last")
    assert (tmp_path / "seed-0" / "model.safetensors").read_bytes() != before
