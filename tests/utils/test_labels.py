"""Names of classes in configurations."""

from transformers import PreTrainedConfig

from modeling_a2mim.utils.labels import label_fields, label_names


def test_names_of_a_configuration():
    config = PreTrainedConfig(**label_fields(["cat", "dog", "owl"]))
    assert config.label2id == {"cat": 0, "dog": 1, "owl": 2}
    assert label_names(config) == ["cat", "dog", "owl"]
    assert label_names(PreTrainedConfig(num_labels=2)) == ["LABEL_0", "LABEL_1"]
