"""What arguments of models are refused."""

import pytest

from modeling_a2mim.arguments.model import KNN_LAYERS, ClassifierArguments, EncoderArguments, probe_layer


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"linear_probe": True, "knn": True}, "^knn: give either it or --linear_probe"),
        ({"eval_only": True, "knn": True}, "^eval_only: give either it or --knn"),
        ({"add_to_card": True}, "^add_to_card: --model_name_or_path is no folder with a pre-trained encoder"),
        ({"probe_layers": [1]}, "^probe_layers: is for --linear_probe and --knn"),
        ({"linear_probe": True, "probe_layers": [0, 1]}, "^probe_layers: --linear_probe trains on one layer"),
        ({"knn": True, "probe_layers": ["first"]}, "^probe_layers: expected last, all or an index .* got 'first'$"),
        ({"probe_batch_norm": True}, "^probe_batch_norm: is for --linear_probe"),
        ({"drop_path": 1.0}, r"^drop_path: must be in \[0, 1\)"),
        ({"knn": True, "knn_neighbours": 0}, "^knn_neighbours: must be at least 1, got 0"),
        ({"knn": True, "knn_temperature": 0.0}, "^knn_temperature: must be a finite number above 0, got 0.0"),
        ({"knn": True, "knn_temperature": float("nan")}, "^knn_temperature: must be a finite number above 0, got nan"),
        ({"knn": True, "probe_strength": -1.0}, "^probe_strength: must be a finite number above 0, got -1.0"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ClassifierArguments(**given)


def test_layers_that_are_probed():
    given = ClassifierArguments(knn=True, probe_layers=["last", "all", "2", "-3"])
    assert given.probe_layers == [-1, "all", 2, -3]
    assert ClassifierArguments(knn=True).probe_layers == [probe_layer(layer) for layer in KNN_LAYERS]
    assert ClassifierArguments(linear_probe=True).probe_layers is None


def test_statistics_are_numbers():
    with pytest.raises(ValueError, match="^image_std: "):
        EncoderArguments(image_std=[0.0])
    assert EncoderArguments(image_mean=[0.5], image_std=[0.25]).image_mean == [0.5]
