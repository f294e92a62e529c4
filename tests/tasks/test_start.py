"""What the arguments say of the weights that a run starts from."""

import pytest

from modeling_a2mim.arguments.dense import DenseModelArguments
from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.tasks.start import base_model_of, open_model_of_task, open_start, task_of


def test_one_source_of_weights():
    with pytest.raises(ValueError, match="^model_name_or_path: give either it or"):
        open_start(DenseModelArguments())
    both = {"architecture": "test_vit.r160_in1k"}, {"architecture": "test_vit", "pretrained": True}
    for given in both:
        with pytest.raises(ValueError, match=r"^model_name_or_path: gives the weights, and --.* others, of timm"):
            open_start(ClassifierArguments(**given, model_name_or_path="org/x"))
    with pytest.raises(ValueError, match="is a name of timm, whose weights are loaded by --architecture test_vit"):
        open_start(ClassifierArguments(model_name_or_path="test_vit.r160_in1k"))
    with pytest.raises(ValueError, match="^pretrained: needs --architecture"):
        ClassifierArguments(pretrained=True)
    with pytest.raises(ValueError, match=r"^model_name_or_path: --eval_only needs a model of this task \(segmenter\)"):
        open_model_of_task(DenseModelArguments(architecture="test_vit"), ["segmenter"])


def test_what_is_done_with_an_encoder():
    kinds = {"architecture": "test_vit"}, {"model_name_or_path": "x"}, {"linear_probe": True}, {"knn": True}
    expected = ["training from scratch", "fine-tuning", "linear probing"]
    expected.append("k-NN and logistic regression on frozen features")
    assert [task_of(ClassifierArguments(**kind)) for kind in kinds] == expected
    assert task_of(DenseModelArguments(architecture="test_vit")) == "training from scratch"
    assert task_of(DenseModelArguments(architecture="test_vit.r160_in1k")) == "fine-tuning"


def test_base_models(tmp_path):
    def base(**kwargs):
        return base_model_of(ClassifierArguments(**kwargs))

    assert (base(), base(model_name_or_path="org/name")) == (None, "org/name")
    assert base(model_name_or_path=str(tmp_path)) is None
    (tmp_path / "training.json").write_text('{"repo_id": "org/name"}')
    assert base(model_name_or_path=str(tmp_path)) == "org/name"
    assert base(model_name_or_path=f"local-dir:{tmp_path}") == "org/name"
    assert base(model_name_or_path="hf-hub:org/name") == "org/name"
    assert base(architecture="test_vit", pretrained=True) == "timm/test_vit.r160_in1k"
    assert base(architecture="test_vit", model_name_or_path="weights.pth") is None
