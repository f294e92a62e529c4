"""What a page on the Hub shows as evaluation results."""

import yaml
from huggingface_hub import parse_eval_result_entries

from modeling_a2mim.export.eval_results import eval_results

from .test_model_card import RECORD


def test_eval_results():
    files = eval_results(RECORD)
    assert list(files) == ["org-birds.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files["org-birds.yaml"]))
    assert (entry.dataset_id, entry.value) == ("org/birds", 81.25)
    assert entry.notes == "accuracy in percent on 500 images, split validation"
    for missing in ("evaluated_on", "evaluation"):
        assert eval_results({**RECORD, missing: None}) == {}
    assert eval_results({**RECORD, "evaluation": {"step": 1, "images": 1, "loss": 1.0}}) == {}
    assert eval_results(None) == {}
