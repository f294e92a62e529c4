"""Sources, columns, and samples that depend on nothing but seed, pass and identity."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data import (
    FineTuneTransform,
    ImageSamples,
    PassSampler,
    PreTrainTransform,
    StreamedSamples,
    find_column,
    find_validation_split,
    load_images,
    seeded,
    to_pixels,
)


@pytest.fixture
def folder(tmp_path):
    """12 images in two nested folders, one of another mode, and a file that is no image."""
    generator = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / ("cats" if i % 2 else "dogs") / f"test_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 3 else "RGB").save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def config(**kwargs):
    return A2MIMConfig(architecture="test_resnet", image_size=32, mask_patch_size=8, **kwargs)


def samples(dataset, seed=0, **kwargs):
    return ImageSamples(dataset, PreTrainTransform(config(**kwargs)), "image", seed=seed)


def test_image_folder(folder):
    dataset = load_images(folder, every_file=True)
    assert len(dataset) == 12
    assert find_column(dataset, datasets.Image, None, "image_column_name") == "image"
    assert dataset.features["label"].names == ["cats", "dogs"]
    streamed = load_images(folder, every_file=True, streaming=True)
    assert len(list(streamed)) == 12


def test_parquet_file_folder_and_saved_dataset(folder, tmp_path):
    dataset = load_images(folder, every_file=True)
    (tmp_path / "parquet").mkdir()
    dataset.to_parquet(tmp_path / "parquet" / "part.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "both")
    for source, streaming in [("parquet/part.parquet", False), ("parquet", False), ("parquet", True), ("saved", True)]:
        found = list(load_images(tmp_path / source, streaming=streaming))
        assert [np.asarray(row["image"]).sum() for row in found] == [np.asarray(i).sum() for i in dataset["image"]]
    assert len(load_images(tmp_path / "both", "test")) == 1
    assert find_validation_split(tmp_path / "both") == "test"
    with pytest.raises(ValueError, match="no split 'val'; there are train, test"):
        load_images(tmp_path / "both", "val")


def test_bundled_sample():
    train, test = load_images(), load_images(split="test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.features["label"].names[0] == "T-shirt/top"
    assert np.bincount(train["label"]).tolist() == [1000] * 10
    assert train[0]["image"].size == (28, 28)
    assert find_validation_split() == "test"


def test_sources_that_do_not_work(tmp_path):
    with pytest.raises(ValueError, match=r"/nowhere: no such file or folder"):
        load_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"/empty: no images found; expected \.bmp, "):
        load_images(tmp_path / "empty", every_file=True)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"table\.csv: expected a folder or a file ending in \.parquet"):
        load_images(tmp_path / "table.csv")
    with pytest.raises(ValueError, match=r"^nobody/nothing: neither a local folder nor a dataset"):
        load_images("nobody/nothing")


def test_columns_that_are_missing():
    dataset = datasets.Dataset.from_dict({"text": ["a"], "n": [1]})
    with pytest.raises(
        ValueError, match="^image_column_name: the dataset has no column of images; its columns are text, n"
    ):
        find_column(dataset, datasets.Image, None, "image_column_name")
    with pytest.raises(ValueError, match="^image_column_name: the dataset has no column 'photo'; it has text, n"):
        find_column(dataset, datasets.Image, "photo", "image_column_name")
    with pytest.raises(ValueError, match="^label_column_name: the dataset has no column of class labels"):
        find_column(dataset, datasets.ClassLabel, None, "label_column_name")


def test_samples_depend_on_seed_pass_and_index_alone(folder):
    dataset = load_images(folder, every_file=True)
    data = samples(dataset)
    torch.manual_seed(1)
    first = data[(2, 5)]
    torch.manual_seed(2)
    for _ in range(3):
        data[(2, 6)]
    again = data[(2, 5)]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["bool_masked_pos"], again["bool_masked_pos"])
    others = [data[(3, 5)], data[(2, 6)], samples(dataset, seed=1)[(2, 5)]]
    assert not any(torch.equal(first["pixel_values"], other["pixel_values"]) for other in others)
    assert not all(torch.equal(first["bool_masked_pos"], other["bool_masked_pos"]) for other in others)
    assert first["pixel_values"].shape == (3, 32, 32)
    assert first["bool_masked_pos"].shape == (4, 4)
    assert first["bool_masked_pos"].sum() == config().num_masked


def test_batches_do_not_depend_on_workers(folder):
    data = samples(load_images(folder, every_file=True))
    loaders = [DataLoader(data, 4, sampler=PassSampler(len(data), seed=3), num_workers=n) for n in (0, 2)]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["bool_masked_pos"], other["bool_masked_pos"])


def test_pass_sampler():
    sampler = PassSampler(100, seed=0)
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(index for _, index in first) == list(range(100))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {number for number, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    assert [i for _, i in first] != [i for _, i in PassSampler(100, seed=1)]


def test_seeded_leaves_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    with seeded(1, 2, 3):
        inside = torch.rand(1)
        np.random.rand()
    assert (torch.rand(1), np.random.rand()) == expected
    with seeded(1, 2, 3):
        assert torch.equal(torch.rand(1), inside)


def test_streamed_samples(folder):
    def stream():
        dataset = load_images(folder, every_file=True, streaming=True)
        return StreamedSamples(dataset, PreTrainTransform(config()), "image", "label", seed=0, buffer_size=4)

    one, two = stream(), stream()
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"])
        assert a["labels"] == b["labels"]
    one.set_epoch(1)
    assert any(not torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(one, two, strict=True))


def test_a_broken_image_is_named(folder):
    (folder / "cats" / "test_1.png").write_bytes(b"not a png")
    dataset = load_images(folder, every_file=True)
    broken = [
        i
        for i, name in enumerate(dataset.cast_column("image", datasets.Image(decode=False))["image"])
        if name["path"].endswith("test_1.png")
    ]
    with pytest.raises(ValueError, match=f"^row {broken[0]} of the dataset, column 'image': cannot identify"):
        samples(dataset)[broken[0]]


def test_channels():
    rgb = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert to_pixels(rgb, 1).mode == "L"
    assert to_pixels(rgb.convert("P"), 3).mode == "RGB"
    assert to_pixels(rgb, 4).mode == "RGBA"
    deep = Image.fromarray(np.array([[0, 65535], [256, 32768]], dtype=np.uint16))
    assert np.asarray(to_pixels(deep, 1)).tolist() == [[0, 255], [1, 128]]
    array = np.zeros((4, 6, 5), dtype=np.uint8)
    assert to_pixels(array, 5).shape == (5, 4, 6)
    assert to_pixels(array, 4).shape == (4, 6, 5)
    with pytest.raises(ValueError, match="^num_channels: 5, but the dataset holds RGB images"):
        to_pixels(rgb, 5)
    with pytest.raises(ValueError, match="^num_channels: expected images with 3 channel"):
        to_pixels(array, 3)
    with pytest.raises(ValueError, match="a sample holds no image"):
        to_pixels(None, 3)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pretraining_transform_normalises(channels):
    pixels = np.full((20, 30, channels), 255, dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze()) if channels in (1, 3) else pixels
    cfg = config(num_channels=channels)
    out = PreTrainTransform(cfg, train=False)(image)["pixel_values"]
    white = (1 - torch.tensor(cfg.image_mean)) / torch.tensor(cfg.image_std)
    torch.testing.assert_close(out, white.view(-1, 1, 1).expand(channels, 32, 32))


def test_fine_tuning_transform_augments_and_evaluates():
    cfg = {
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    evaluate, train = FineTuneTransform(cfg, train=False), FineTuneTransform(cfg, scale=(0.3, 1.0))
    assert torch.equal(evaluate(image)["pixel_values"], evaluate(image)["pixel_values"])
    assert not torch.equal(train(image)["pixel_values"], train(image)["pixel_values"])
    assert train(image)["pixel_values"].shape == (3, 32, 32)
