"""Names of classes, as transformers' configurations hold them."""

from collections.abc import Iterable


def label_fields(names: Iterable[str]) -> dict[str, dict]:
    """The fields `id2label` and `label2id` of a configuration with classes of these names, in this order."""
    id2label = dict(enumerate(names))
    return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}


def label_names(config) -> list[str]:
    """The names of the classes of a configuration, in their order."""
    return [config.id2label[i] for i in range(config.num_labels)]
