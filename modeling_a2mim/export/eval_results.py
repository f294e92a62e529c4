"""What a page on the Hub shows as evaluation results: `.eval_results/*.yaml` of a published folder."""

import re

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml


PAPER = "https://arxiv.org/abs/2205.13943"
IMAGENET = "ILSVRC/imagenet-1k"
HUB_IDS = {"ImageNet-1K": IMAGENET}


def eval_results(record: dict | None) -> dict[str, str]:
    """What goes to `.eval_results/`, {file name: YAML}, and is shown on the model's page: the accuracy in percent, if
    it was measured on a dataset that has a name on the Hub, or is the paper's one number for this classifier."""
    record = record or {}
    evaluation, dataset = record.get("evaluation") or {}, record.get("evaluated_on")
    published = [row for row in record.get("published", ()) if record.get("classifier") and row["dataset"] in HUB_IDS]
    if dataset is not None and "accuracy" in evaluation and not evaluation.get("other_images"):
        notes = f"accuracy in percent on {evaluation['images']:,} images"
        notes = ", ".join(filter(None, [notes, record.get("evaluation_note")]))
        value, source = round(100 * evaluation["accuracy"], 2), {}
    elif len(published) == 1 and re.fullmatch(r"[\d.]+", published[0]["value"]):
        dataset, value = HUB_IDS[published[0]["dataset"]], float(published[0]["value"])
        notes = f"the paper's number in percent, not measured by the uploader; {published[0]['protocol']}"
        source = {"source_url": PAPER, "source_name": "A2MIM (Li et al., ICML 2023)"}
    else:
        return {}
    entry = EvalResultEntry(dataset_id=dataset, task_id="default", value=value, notes=notes, **source)
    name = re.sub(r"[^\w.-]+", "-", dataset)
    return {f"{name}.yaml": yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)}
