"""What an evaluation on corrupted images reports, and which images it sees."""

import io
import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import distributed, nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.data.transforms import FineTuneTransform, seeded
from modeling_a2mim.evaluation.corruptions import (
    CORRUPTIONS,
    check_corruptions,
    corrupt,
)
from modeling_a2mim.evaluation.robustness import CorruptedTransform, _Batches, corruption_table, evaluate_corruptions


PHOTO = Image.fromarray(load_sample_images().images[0]).resize((341, 228)).crop((58, 2, 282, 226))
CFG = {
    "input_size": [1, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.25],
    "std": [0.5],
}
pytestmark = pytest.mark.usefixtures("one_thread")


def corrupted(image, corruption, severity, seed=0):
    return corrupt(image, corruption, severity, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["fog", "rain"],), "corruptions: unknown type 'rain'; there are gaussian_noise, "),
        ((["fog"], [1, 6]), "corruptions: unknown severity 6; there are 1, 2, 3, 4, 5"),
        ((["fog"], [0]), "corruptions: unknown severity 0"),
        ((["fog", "fog"],), "corruptions: a type is named twice: fog, fog"),
        (([],), "corruptions: expected at least one type of gaussian_noise, "),
        ((["fog"], []), "corruptions: expected at least one severity of 1, "),
    ],
)
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_corruptions(*arguments)
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate_corruptions(MeanAbove(0.5), labelled([1], [0]), CFG, *arguments)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_classifiers_view_is_corrupted(mode):
    """After the crop and before normalisation: the same as by hand, in whole steps of 1/255."""
    cfg = {**CFG, "input_size": [3, 48, 40], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_mode": mode}
    mean, std = (torch.tensor(cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
    clean = FineTuneTransform(cfg, train=False)(PHOTO)["pixel_values"] * std + mean
    seen = (clean * 255).round().byte().permute(1, 2, 0).numpy()
    for corruption in ("contrast", "jpeg_compression"):
        result = CorruptedTransform(cfg, corruption, 4)(PHOTO)["pixel_values"]
        assert result.dtype == torch.float32
        assert result.shape == (3, 48, 40)
        values = ((result * std + mean) * 255).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(values, corrupted(seen, corruption, 4), atol=1e-3)  # float32, there and back
    with pytest.raises(ValueError, match="max_pixels"):
        CorruptedTransform(cfg, "fog", 1, PixelSpec(max_pixels=100))(png(PHOTO))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def labelled(values: list, labels: list[int], cfg: dict = CFG, seed: int = 0) -> ImageSamples:
    """Images of one grey value each, or those given, as for evaluation."""
    images = [v if isinstance(v, Image.Image) else Image.new("L", (32, 32), v) for v in values]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    return ImageSamples(rows, FineTuneTransform(cfg, train=False), "image", "label", seed)


class MeanAbove(nn.Module):
    """Class 1 for images whose mean is above a threshold, class 0 for others."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, pixel_values):
        assert not self.training
        mean = (pixel_values * 0.5 + 0.25).mean((1, 2, 3))
        return SimpleNamespace(logits=torch.stack([self.threshold.expand_as(mean), mean], 1))


def test_images_depend_on_seed_corruption_severity_and_row_alone():
    photos = [PHOTO.convert("L").crop((left, 0, left + 64, 64)) for left in range(0, 100, 20)]

    def images(corruption="snow", severity=3, seed=0, **loading):
        samples = labelled(photos, [0] * 5, seed=seed)
        samples.transform = CorruptedTransform(CFG, corruption, severity)
        loader = DataLoader(samples, collate_fn=default_data_collator, **{"batch_size": 5, **loading})
        return torch.cat([batch["pixel_values"] for batch in loader])

    first = images()
    torch.rand(3), np.random.rand(3)
    for other in (images(), images(batch_size=2), images(batch_size=2, num_workers=2)):
        assert torch.equal(first, other)
    alone = labelled(photos, [0] * 5)
    alone.transform = CorruptedTransform(CFG, "snow", 3)
    assert torch.equal(alone[3]["pixel_values"], first[3])
    for other in (images(seed=1), images(severity=4)):
        assert not torch.isclose(first, other).flatten(1).all(1).any()
    # The same image in another row, and noise of another name or severity from the same draws, are not alike.
    photos[:] = [photos[0]] * 5
    rows = images("gaussian_noise", 1)
    assert len(torch.unique(rows, dim=0)) == 5
    with seeded(0):
        noise = [CorruptedTransform(CFG, "gaussian_noise", s)(photos[0])["pixel_values"] for s in (1, 2)]
    clean = FineTuneTransform(CFG, train=False)(photos[0])["pixel_values"]
    parts = torch.stack([(image - clean).flatten() for image in noise])
    assert abs(torch.corrcoef(parts)[0, 1]) < 0.15  # 1024 values, standard error 0.03; 1 if they were the same


def test_accuracies_as_by_hand():
    # Values of 0.298, 0.424 and 0.8 of 1, of which the first two are below 0.5 and the last is mislabelled. Brightness
    # adds 0.05, 0.1, 0.15, 0.2 and 0.3 (32 px): the second is right at first only, the first until the last.
    samples = labelled([76, 108, 204], [0, 0, 0])
    model = MeanAbove(0.5)
    model.train()
    result = evaluate_corruptions(model, samples, CFG, ["brightness", "contrast"], batch_size=2)
    assert model.training
    assert type(samples.transform) is FineTuneTransform
    third = 1 / 3
    assert result["clean_accuracy"] == pytest.approx(2 * third)
    assert result["corruptions"]["brightness"] == {
        "accuracy": pytest.approx([2 * third, third, third, third, 0]),
        "mean": pytest.approx(third),
    }
    assert result["corruptions"]["contrast"] == {
        "accuracy": pytest.approx([2 * third] * 5),  # images of one value have none
        "mean": pytest.approx(2 * third),
    }
    assert result["mean_corruption_accuracy"] == pytest.approx(0.5)
    assert result["mean_corruption_error"] == pytest.approx(0.5)
    assert result["relative_robustness"] == pytest.approx(0.75)
    assert (result["images"], result["constants"], result["severities"]) == (3, "CIFAR-10-C", [1, 2, 3, 4, 5])
    assert json.loads(json.dumps(result)) == result

    one = evaluate_corruptions(model, samples, CFG, ["brightness"], [5, 2], num_workers=1)
    assert one["corruptions"]["brightness"]["accuracy"] == pytest.approx([0, third])
    wrong = evaluate_corruptions(model, labelled([204], [0]), CFG, ["contrast"], [1])
    assert (wrong["clean_accuracy"], wrong["relative_robustness"]) == (0, None)
    assert "nan" not in corruption_table(wrong)
    with pytest.raises(ValueError, match="^corruptions: there are no images"):
        evaluate_corruptions(model, labelled([], []), CFG)


def test_all_75_sets_on_a_classifier():
    samples = labelled([PHOTO, 200, 30], [0, 1, 0])
    result = evaluate_corruptions(MeanAbove(0.5), samples, CFG)
    assert tuple(result["corruptions"]) == CORRUPTIONS
    every = [value for row in result["corruptions"].values() for value in row["accuracy"]]
    assert len(every) == 75
    assert result["mean_corruption_accuracy"] == pytest.approx(np.mean(every))
    assert len(corruption_table(result).splitlines()) == 2 + 15 + 1 + 2


def test_processes_share_the_batches():
    for rows, batch_size, world in ((10, 3, 2), (3, 4, 2), (7, 1, 3)):
        keys = [list(_Batches(2, rows, batch_size, rank, world)) for rank in range(world)]
        assert [len(_Batches(2, rows, batch_size, rank, world)) for rank in range(world)] == list(map(len, keys))
        assert max(len(chosen) for part in keys for _, chosen in part) <= batch_size
        seen = sorted((number, row) for part in keys for number, chosen in part for row in chosen)
        assert seen == [(number, row) for number in range(2) for row in range(rows)]


def test_two_processes_give_the_result_of_one(monkeypatch):
    """One after the other here, each with the sum of both. (With real processes it is the same, and takes 30 s.)"""
    samples = labelled([PHOTO, 76, 108, 204, 120], [1, 0, 1, 1, 1])
    arguments = MeanAbove(0.5), samples, CFG, ["brightness", "frost"], [1, 5], 2
    alone = evaluate_corruptions(*arguments)
    assert 0 < alone["mean_corruption_accuracy"] < 1
    counts = []

    def all_reduce(count):
        counts.append(count.clone())
        count.copy_(sum(counts))

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        result = evaluate_corruptions(*arguments)
    assert result == alone
    assert all(count.sum() > 0 for count in counts)


def test_table():
    result = {
        "clean_accuracy": 0.8,
        "mean_corruption_accuracy": 0.5,
        "relative_robustness": 0.625,
        "severities": [1, 5],
        "corruptions": {
            "zoom_blur": {"accuracy": [0.75, 0.25], "mean": 0.5},
            "fog": {"accuracy": [0.6251, 0.375], "mean": 0.5},
        },
        "images": 40,
        "constants": "ImageNet-C",
    }
    assert corruption_table(result).splitlines() == [
        "| corruption | severity 1 | severity 5 | mean |",
        "|---|---|---|---|",
        "| zoom blur | 0.750 | 0.250 | 0.500 |",
        "| fog | 0.625 | 0.375 | 0.500 |",
        "| **mean** | 0.688 | 0.312 | 0.500 |",
        "",
        "Accuracy on 40 images: 0.800 clean, 0.500 corrupted, 0.625 of that on clean images. "
        "Severities of ImageNet-C. This is not mCE, which divides errors by those of AlexNet on ImageNet.",
    ]
