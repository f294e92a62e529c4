"""Features of frozen encoders, and what nearest neighbors and logistic regression make of them."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import Dataset

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.subsets import draw_subset
from modeling_a2mim.data.transforms import FineTuneTransform
from modeling_a2mim.evaluation.frozen import (
    C_VALUES,
    LONE_C,
    _logistic_regression,
    choose_c,
    evaluate_frozen,
    extract_features,
    frozen_metrics,
    knn_accuracy,
    linear_probe_accuracy,
    nearest_neighbors,
)
from modeling_a2mim.evaluation.summary import results_table
from modeling_a2mim.export.folder import timm_pretrained_cfg
from modeling_a2mim.models.pooled_features import layer_widths

from ..families import FAMILIES, family_config


pytestmark = pytest.mark.usefixtures("one_thread")


def samples_of(images, labels=None):
    labels = range(len(images)) if labels is None else labels
    return [{"pixel_values": x, "labels": torch.tensor(y)} for x, y in zip(images, labels, strict=True)]


def clusters(per_class, classes=2, distance=20.0, width=4, seed=0):
    """Features around one corner for each class, (samples, width), and labels."""
    generator, labels = np.random.default_rng(seed), np.repeat(np.arange(classes), per_class)
    return generator.normal(size=(len(labels), width)) + distance * np.eye(classes, width)[labels], labels


def test_probe_and_neighbors_separate_what_is_separable():
    features, labels = clusters(30)
    train, test = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    for c in (1.0, None):
        assert linear_probe_accuracy(train, test, c) == 1.0
        assert linear_probe_accuracy(train, (test[0], 1 - test[1]), c) == 0.0
    for temperature in (None, 0.07, 1e-4):
        assert knn_accuracy(train, test, temperature=temperature) == 1.0
        assert knn_accuracy(train, (test[0], 1 - test[1]), temperature=temperature) == 0.0


def test_weights_of_neighbors():
    # Cosines with the query: 0.8 of class 0; 0.6 and 0.6 of class 1. Weights 1 / (1 - cosine) are 5 against 2 * 2.5;
    # of exp(cosine / t), class 0 wins if 0.2 / t > ln 2, that is t < 0.2885.
    train = np.array([[0.8, 0.6], [0.6, 0.8], [0.6, -0.8]]) * np.array([[1.0], [7.0], [0.1]])  # lengths play no part
    query = np.array([[3.0, 0.0]])

    def votes_for(label, **kwargs):
        return knn_accuracy((train, np.array([0, 1, 1])), (query, np.array([label])), **kwargs) == 1.0

    assert votes_for(0, temperature=0.28)
    assert votes_for(1, temperature=0.30)
    assert votes_for(0, temperature=0.30, neighbors=1)
    closer = np.array([[0.81, (1 - 0.81**2) ** 0.5], *train[1:]])
    assert knn_accuracy((closer, np.array([0, 1, 1])), (query, np.array([0]))) == 1.0  # 5.26 against 5


def test_strength_of_noise_and_of_signal():
    # A feature in 20 tells something, the rest is noise: a weak regression. Far clusters: any strength is right, and
    # the likelihood grows with it.
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], 20)
    noise = generator.normal(size=(40, 20))
    noise[:, 0] += labels
    assert choose_c(noise, labels) <= 0.1
    assert choose_c(*clusters(20)) >= 10.0
    assert {choose_c(noise, labels), choose_c(*clusters(2))} <= set(C_VALUES)
    features, labels = clusters(3)
    assert choose_c(features[2:], labels[2:]) == LONE_C  # one sample of class 0
    # Many: one split, quick; classes overlap, so that the strongest is not the best by far.
    features, labels = clusters(3000, distance=1.0)
    assert choose_c(features, labels) in C_VALUES


def test_figures_of_frozen_features():
    # Three of four classes are known. The votes and log-odds for each are those of scikit-learn, which ranks by them.
    features, labels = clusters(20, classes=4, distance=1.5)
    train, test = (features[::2][:30], labels[::2][:30]), (features[1::2], labels[1::2])
    known = nearest_neighbors(train, 20, 0.07)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*train)
    for classifier in (known, regression):
        found = frozen_metrics(classifier, test, 4, ["a", "b", "c", "d"])
        votes = classifier.predict_proba(test[0])
        expected = [roc_auc_score(test[1] == c, votes[:, c]) for c in range(3)] + [0.5]  # nothing is known of d
        assert found["auroc"] == pytest.approx(np.mean(expected))
        assert (found["recall_d"], found["precision_d"], found["average_precision_d"]) == (0, 0, 0.25)
        assert found["accuracy"] == classifier.score(*test)
        assert found["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(test[1], classifier.predict(test[0]))
        )
    two = (train[0][:20], train[1][:20]), (test[0][:20], test[1][:20])
    regression.fit(*two[0])
    found = frozen_metrics(regression, two[1], 2)
    assert found["auroc"] == pytest.approx(roc_auc_score(two[1][1], regression.decision_function(two[1][0])))


def test_weights_of_classes():
    # One in ten: the regression finds more of the rare class if its samples count as much as the others in all.
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [180, 20])
    features = generator.normal(size=(200, 3)) + 1.0 * labels[:, None]
    train, test = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    recalls = {}
    for weights in (None, "balanced", {0: 1.0, 1: 1.0}):
        regression = _logistic_regression(choose_c(*train, weights), weights).fit(*train)
        recalls[str(weights)] = frozen_metrics(regression, test, 2, ["good", "bad"])["recall_bad"]
    assert recalls["balanced"] > recalls["None"] == recalls["{0: 1.0, 1: 1.0}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_mean_of_the_last_map(family):
    model = A2MIMModel(family_config(family)).train()
    images = torch.randn(5, 3, 64, 64)
    features, labels = extract_features(model, samples_of(images), batch_size=2)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert model.training
    model.eval()
    with torch.no_grad():
        maps = model.feature_map(model(images).last_hidden_state, (64, 64))
    # Other batches, hence other sums in float32.
    np.testing.assert_allclose(features, maps.mean((2, 3)).numpy(), atol=1e-5)


def test_features_of_several_layers_in_many_batches(monkeypatch):
    monkeypatch.setattr("modeling_a2mim.evaluation.frozen.KEPT_BATCHES", 2)
    model, images = A2MIMForPreTraining(family_config("resnet")), torch.randn(7, 3, 64, 64)
    passes = []
    model.a2mim.encoder.layer1.register_forward_hook(lambda *args: passes.append(1))
    features, labels = extract_features(model, samples_of(images), batch_size=2, layers=[-1, 1, None])
    assert len(passes) == 4
    assert labels.tolist() == list(range(7))
    with torch.no_grad():
        model.eval()
        whole = model.a2mim(images, output_hidden_states=True)
    expected = [whole.last_hidden_state.mean((2, 3)), whole.hidden_states[1].mean((2, 3)), whole.pooler_output]
    for one, other in zip(features, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other.numpy(), atol=1e-5)  # other batches


def test_autocast_is_close_to_float32_and_training_goes_on():
    model, images = A2MIMForImageClassification(family_config("vit")).train(), torch.randn(4, 3, 64, 64)
    exact, _ = extract_features(model, samples_of(images))
    rough, _ = extract_features(model, samples_of(images), dtype=torch.bfloat16)
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    assert abs(rough - exact).max() < 0.05 * abs(exact).max()  # bfloat16 has 8 bits
    assert model.training
    model(images, labels=torch.zeros(4, dtype=torch.long)).loss.backward()


def test_layers_that_there_are_not():
    model = A2MIMModel(family_config("resnet")).train()
    with pytest.raises(ValueError, match="^probe_layers: test_resnet has 5 feature maps, there is no index 5$"):
        extract_features(model, [], layers=[5])
    with pytest.raises(RuntimeError, match="broken"):
        extract_features(model, Colours(10, broken=True), layers=[0])
    assert model.training


def test_neighbors_of_several_maps():
    """A wide map of large values, that says nothing, does not hide a narrow one; nor does the scale of a feature."""
    rng, labels = np.random.default_rng(0), np.arange(200) % 2
    noise = 100 + 10 * rng.normal(size=(200, 50))
    telling = np.stack([labels + 0.1 * rng.normal(size=200), 1000 * rng.normal(size=200)], 1)
    features = np.concatenate([telling, noise], 1)
    half = (features[:100], labels[:100]), (features[100:], labels[100:])
    assert nearest_neighbors(half[0]).score(*half[1]) < 0.7
    balanced = nearest_neighbors(half[0], widths=[2, 50])
    assert balanced.score(*half[1]) > 0.95
    scaled = [(x * np.geomspace(1e-3, 1e3, 52), y) for x, y in half]
    again = nearest_neighbors(scaled[0], widths=[2, 50])
    np.testing.assert_array_equal(again.predict(scaled[1][0]), balanced.predict(half[1][0]))
    assert set(frozen_metrics(balanced, half[1], 2)) == set(frozen_metrics(nearest_neighbors(half[0]), half[1], 2))


class Colours(Dataset):
    """Images of one of three colours and noise; counts what is read."""

    def __init__(self, count, broken=False, seed=0):
        self.labels, self.read, self.broken, self.seed = np.arange(count) % 3, [], broken, seed

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        if self.broken:
            raise RuntimeError("broken")
        self.read.append(row)
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1000 * self.seed + row))
        image = 0.3 * noise + 2 * torch.eye(3)[self.labels[row]].view(3, 1, 1)
        return {"pixel_values": image, "labels": torch.tensor(self.labels[row])}


def test_broken_images_count_for_nothing(tmp_path):
    rng, images = np.random.default_rng(0), []
    for row in range(16):
        noise = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(noise // 2 + 100 * (row % 2)).convert("RGB").save(tmp_path / f"{row}.png")
        images.append(str(tmp_path / f"{row}.png"))
    for row in (4, 5, 13):
        (tmp_path / f"{row}.png").write_bytes(b"no image")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "bright"])})
    data = datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(16)]}, features)
    model = A2MIMModel(family_config("convnext", image_size=32))
    transform = FineTuneTransform(timm_pretrained_cfg(model), train=False)

    def figures(rows, chosen, ratio=0.3):
        parts = [row for row in rows if row < 10], [row for row in rows if row >= 10]
        train, test = (
            ImageSamples(data.select(part), transform, "image", "label", max_skipped_ratio=ratio) for part in parts
        )
        return evaluate_frozen(model, train, test, {("some", 0): chosen}, [-1], neighbors=3, c=1.0)

    found = figures(list(range(16)), list(range(10)))
    assert found == figures([row for row in range(16) if row not in (4, 5, 13)], list(range(8)))
    assert {row["images"] for row in found} == {8}
    with pytest.raises(ValueError, match="^max_skipped_ratio: 2 of the 10 images"):
        figures(list(range(16)), list(range(10)), ratio=0.1)


def test_evaluation_of_a_frozen_encoder():
    model = A2MIMModel(family_config("convnext", image_size=32))
    train, test = Colours(300), Colours(30, seed=1)
    subsets = {(f"{n} per class", s): draw_subset(train.labels, per_class=n, seed=s) for n in (1, 4) for s in (0, 1)}
    rows = evaluate_frozen(model, train, test, subsets, layers=[0, -1])
    assert sorted(train.read) == sorted({row for subset in subsets.values() for row in subset})
    assert sorted(test.read) == list(range(30))
    assert [(r["subset"], r["seed"], r["layer"], r["method"]) for r in rows] == [
        (f"{n} per class", seed, layer, method)
        for n in (1, 4)
        for seed in (0, 1)
        for layer in (0, -1)
        for method in ("k-NN", "logistic regression")
    ]
    assert {r["images"] for r in rows} == {3, 12}
    # Colours are plain to see at the first map.
    assert {r["accuracy"] for r in rows if r["layer"] == 0 and r["images"] == 12} == {1.0}
    strengths = [r["strength"] for r in rows if r["method"] == "logistic regression"]
    assert set(strengths[:4]) == {LONE_C}
    assert set(strengths) <= set(C_VALUES)
    assert len(results_table(rows).splitlines()) == 2 + 2 * 2 * 2

    # The same as from the parts.
    (known,), labels = extract_features(model, train, layers=[0])
    (evaluated,), answers = extract_features(model, test, layers=[0])
    chosen = subsets["1 per class", 1]
    sample = known[chosen], labels[chosen]
    expected = knn_accuracy(sample, (evaluated, answers))
    assert next(r["accuracy"] for r in rows if (r["images"], r["seed"], r["layer"]) == (3, 1, 0)) == expected

    row = next(
        r for r in rows if r["method"] == "logistic regression" and (r["images"], r["seed"], r["layer"]) == (3, 1, 0)
    )
    assert row["accuracy"] == linear_probe_accuracy(sample, (evaluated, answers), LONE_C)

    # Neighbors in every stage are those of maps that weigh the same; `c` spares the cross-validation.
    stages = evaluate_frozen(model, train, test, {("12", 0): subsets["4 per class", 0]}, layers=["all"], c=1.0)
    (known,), labels = extract_features(model, train, layers=["all"])
    (evaluated,), _ = extract_features(model, test, layers=["all"])
    sample = known[subsets["4 per class", 0]], labels[subsets["4 per class", 0]]
    nearest = nearest_neighbors(sample, widths=layer_widths(model, "all"))
    assert stages[0]["layer"] == "all"
    assert stages[0]["accuracy"] == nearest.score(evaluated, answers)

    fixed = evaluate_frozen(model, train, test, {("all", 0): range(300)}, c=0.5, names=["red", "green", "blue"])
    assert [r.get("strength") for r in fixed] == [None, 0.5]
    assert {r["recall_green"] for r in fixed} <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
    with pytest.raises(ValueError, match="^subsets, layers: expected at least one of each"):
        evaluate_frozen(model, train, test, {})
