"""The same run with several seeds: its table, its cards, and how it goes on."""

import json

import numpy as np
import pytest

from modeling_a2mim.evaluation.summary import mean_and_interval

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
    before = (tmp_path / "out" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    again = finetune(tmp_path / "out", *argv, "--resume_from_checkpoint", "last")  # all is done
    assert again == metrics
    assert (tmp_path / "out" / "seed-0" / "model.safetensors").stat().st_mtime_ns == before
    same = ["--label_subset", tmp_path / "out" / "seed-7" / "subset.json", "--seed", 7]
    finetune(tmp_path / "same", "--model_name_or_path", pretrained, *same)
    one, two = (tmp_path / folder / "model.safetensors" for folder in ("out/seed-7", "same"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.ci
def test_a_set_of_seeds_is_not_overwritten(tmp_path, monkeypatch):
    argv = [*SCRATCH, "--labels_per_class", 1]
    finetune(tmp_path, *argv, "--seeds", 0, 1)
    before = (tmp_path / "seed-0" / "model.safetensors").read_bytes()
    for seeds, what in [((1, 2), r"results.json"), ((2,), r"results.json")]:
        with pytest.raises(
            ValueError, match=rf"^output_dir: .* holds results \({what}\) of another run; name another"
        ):
            finetune(tmp_path, *argv, "--seeds", *seeds)
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
