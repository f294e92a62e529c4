"""`make methods`: the losses of other ways of pre-training are those that their papers, lightly and scikit-image have,
every method learns, and a run goes on where it was stopped."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import hog as reference_hog
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from benchmarks import images, judging, methods, methods_gpu, methods_run, methods_table, rivals
from benchmarks.in_memory import load
from modeling_a2mim import A2MIMConfig, A2MIMModel


pytestmark = pytest.mark.usefixtures("one_thread")
LIGHTLY = ("BYOL", "Barlow Twins", "SwAV", "DINO")
VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8, "global_pool": "avg", "fc_norm": False}
ENCODERS = {
    "cnn": ("test_resnet", {}, "multiscale"),
    "vit": ("vit_tiny_patch16_224", VIT, "linear"),
}


def tiny(encoder: str) -> A2MIMConfig:
    architecture, model_args, decoder = ENCODERS[encoder]
    shape = {"image_size": 32, "mask_patch_size": 8, "num_channels": 1, "decoder": decoder}
    return A2MIMConfig.for_architecture(architecture, model_args=model_args, **shape)


def bars(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, on every other image with a bright bar."""
    images = torch.randint(0, 128, (count, 1, 32, 32), generator=torch.Generator().manual_seed(count))
    images[1::2, :, :, 10:16] += 100
    return images.byte(), torch.arange(count) % 2


def needs(method: str):
    if method in LIGHTLY:
        pytest.importorskip("lightly", reason="make methods installs it")


def test_nt_xent_of_two_pairs_by_hand():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    # Each view has cosine 1 with its partner and 0 with the two views of the other image.
    expected = -math.log(math.exp(2) / (math.exp(2) + 2))
    assert rivals.nt_xent(one, other, 0.5).item() == pytest.approx(expected)
    wrong = rivals.nt_xent(one, other.flip(0), 0.5).item()
    assert wrong == pytest.approx(-math.log(1 / (math.exp(2) + 2)))


def test_nt_xent_is_that_of_lightly():
    loss = pytest.importorskip("lightly.loss", reason="make methods installs it")
    one, other = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = loss.NTXentLoss(temperature=0.3)(one, other)
    torch.testing.assert_close(rivals.nt_xent(one, other, 0.3), expected)


def test_info_nce_by_hand():
    queries, keys = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    expected = 2 * 0.2 * -math.log(math.exp(5) / (math.exp(5) + 1))
    assert rivals.info_nce(queries, keys, 0.2).item() == pytest.approx(expected, rel=1e-4)
    assert rivals.info_nce(queries, keys.flip(0), 0.2).item() == pytest.approx(0.4 * math.log(math.exp(5) + 1))


def test_hog_is_that_of_scikit_image():
    images = torch.rand(2, 1, 32, 24, generator=torch.Generator().manual_seed(0))
    options = {"pixels_per_cell": (4, 4), "cells_per_block": (1, 1), "block_norm": "L2", "feature_vector": False}
    for image, found in zip(images, rivals.hog(images), strict=True):
        expected = reference_hog(image[0].numpy(), orientations=9, **options)[:, :, 0, 0]
        np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_blur_keeps_the_mean_and_widens_a_point_by_sigma():
    images = torch.zeros(2, 1, 41, 41)
    images[:, :, 20, 20] = 1
    found = rivals.blur(images, torch.tensor([0.01, 1.3]))
    torch.testing.assert_close(found[0], images[0])
    places = torch.arange(41) - 20.0
    row = found[1, 0].sum(0)
    assert row.sum().item() == pytest.approx(1)
    assert (row * places**2).sum().sqrt().item() == pytest.approx(1.3, abs=0.02)


def test_mae_loss_is_of_masked_normalised_patches():
    method = rivals.MAE(tiny("vit"), 10)
    pixels = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = method.model(pixels, noise=noise)
        patches = F.unfold(pixels, 8, stride=8).transpose(1, 2)
        target = (patches - patches.mean(2, keepdim=True)) / (patches.var(2, keepdim=True) + 1e-6).sqrt()
        error = (output.logits - target).square().mean(2)
        hidden = noise.argsort(1).argsort(1) >= 4  # a quarter is kept, that with the least noise
        torch.testing.assert_close(method(pixels, noise), error[hidden].mean())


def test_the_encoder_of_mae_is_the_same_in_timm():
    method = rivals.MAE(tiny("vit"), 10)
    core = methods_run.encoder_with(tiny("vit"), method.encoder_weights(), 0).eval()
    pixels = torch.randn(2, 1, 32, 32)
    embeddings = method.model.vit.embeddings
    with torch.no_grad():
        patches = embeddings.patch_embeddings(pixels) + embeddings.position_embeddings[:, 1:]
        token = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        states = torch.cat([token.expand(2, -1, -1), patches], 1)
        for layer in method.model.vit.layers:
            states = layer(states)
        torch.testing.assert_close(core.encode(pixels)[0], method.model.vit.layernorm(states), atol=1e-5, rtol=1e-5)


def test_maskfeat_predicts_masked_cells_only():
    method = rivals.MaskFeat(tiny("cnn"), 10).eval()
    images, _ = bars(4)
    views = images.float() / 128 - 1
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, 1, 2] = True
    found = []
    target = rivals.hog(views)
    hook = method.model.decoder.register_forward_hook(lambda module, given, output: found.append(output))
    loss = method(views, mask)
    hook.remove()
    prediction = F.pixel_shuffle(found[0], method.model.stride)
    assert prediction.shape == target.shape
    cells = (slice(None), slice(None), slice(2, 4), slice(4, 6))  # the mask's cell of 8 px is 2 x 2 of 4 px
    torch.testing.assert_close(loss, (prediction[cells] - target[cells]).square().mean())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("method", rivals.METHODS)
@pytest.mark.slow
def test_every_method_learns_a_batch_by_its_loss_and_changes_the_encoder(method, encoder):
    needs(method)
    if (method, encoder) == ("MAE", "cnn"):
        pytest.skip("MAE leaves masked patches out, which a CNN cannot")
    images, labels = bars(16)
    torch.manual_seed(0)
    config, steps = tiny(encoder), 30
    extra = {"classes": 2} if method == "supervised" else {}
    model = rivals.METHODS[method](config, steps, **extra)
    before = model.encoder_weights()
    optimizer = torch.optim.AdamW(model.groups(1e-3), lr=1e-3)
    inputs = model.inputs(images.float() / 128 - 1, labels, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(steps):
        loss = model(*inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01 * abs(losses[0])
    weights = model.encoder_weights()
    core = methods_run.encoder_with(config, weights, 0)  # all weights, none more
    assert core.encoder.state_dict().keys() == before.keys()
    name = next(name for name in weights if name.endswith("weight") and weights[name].ndim == 4)
    assert not torch.equal(weights[name], before[name])


@pytest.mark.parametrize("method", ["BYOL", "MoCo v3", "DINO"])
def test_the_teacher_follows_slowly(method):
    needs(method)
    config, (images, _) = tiny("vit"), bars(8)
    model = rivals.METHODS[method](config, 10)
    views = torch.stack([images.float() / 128 - 1] * 2)
    model(*views)  # the first step teaches what it starts from
    own, teacher = (next(core.encoder.parameters()) for core in (model.a2mim, model.teacher))
    assert torch.equal(own, teacher)
    before = teacher.clone()
    with torch.no_grad():
        own += 1
    model(*views)
    share = 0.01 * (math.cos(math.pi / 10) + 1) / 2
    torch.testing.assert_close(teacher, before + share)
    assert not teacher.requires_grad


def test_average_precision_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    positive, values = generator.random(80) < 0.3, generator.integers(0, 20, 80) / 4  # some are equal
    expected = average_precision_score(positive, values)
    assert judging.average_precision(positive, values) == pytest.approx(expected)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Arguments to `methods.main` for a tiny encoder on few images."""
    arrays = {}
    for split in ("train", "test"):
        images, labels = bars(40)
        arrays |= {split: images[:, 0].numpy(), f"{split}_labels": labels.numpy()}
    np.savez(tmp_path / "solar_cells.npz", **arrays)
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    monkeypatch.setattr(methods, "SIZE", 32)
    monkeypatch.setattr(methods, "SETS", ("solar_cells",))
    monkeypatch.setattr(methods, "ENCODERS", {"vit": ENCODERS["vit"]})
    monkeypatch.setattr(methods, "LABELS", {n: (c, 8, 4) for n, c in (("10", 4), ("50", 8), ("all", None))})
    monkeypatch.setattr(methods, "COUNTS", {"10": 4, "50": 8, "all": None})

    def run(*args):
        command = [
            "--output",
            tmp_path / "methods.json",
            "--folder",
            tmp_path / "encoders",
            "--steps",
            10,
            "--draws",
            2,
        ]
        monkeypatch.setattr(sys, "argv", ["methods.py", *map(str, [*command, *args])])
        methods.main()
        return json.loads((tmp_path / "methods.json").read_text())

    return run


@pytest.mark.slow
def test_a_comparison_goes_on_and_its_encoders_are_timm_checkpoints(small, tmp_path, monkeypatch):
    small("--only", "scratch")
    record = small("--only", "SimCLR")
    assert list(record["runs"]) == ["solar_cells, vit, scratch, 0", "solar_cells, vit, SimCLR, 0"]
    run = record["runs"]["solar_cells, vit, SimCLR, 0"]
    assert {row["by"] for row in run["rows"]} == {"fine-tuning", "probe, last map", "probe, every stage", "k-NN"}
    assert len([row for row in run["rows"] if row["by"] == "fine-tuning"]) == 6
    assert run["pre-training"]["learning_rate"] in methods.RATES
    text = (tmp_path / "methods.md").read_text()
    assert "AUROC minus scratch" in text
    assert (tmp_path / "methods.png").stat().st_size > 1000
    folder = tmp_path / "encoders" / "solar_cells-vit-SimCLR-0"
    assert A2MIMModel.from_pretrained(folder).encoder.state_dict().keys() == set(A2MIMModel(tiny("vit")).plan.names)
    assert small("--only", "SimCLR")["runs"] == record["runs"]  # nothing is made again

    def fail(*args):
        raise AssertionError("the encoder is there")

    monkeypatch.setattr(methods, "learn", fail)
    del record["runs"]["solar_cells, vit, SimCLR, 0"]
    (tmp_path / "methods.json").write_text(json.dumps(record))
    again = small("--only", "SimCLR")["runs"]["solar_cells, vit, SimCLR, 0"]
    assert again["rows"] == run["rows"]


def test_methods_are_beside_random_weights():
    def run(encoder, method, accuracies):
        rows = [{"by": "fine-tuning", "labels": "10", "draw": n, "accuracy": a} for n, a in enumerate(accuracies)]
        return {"set": "fashion_mnist", "encoder": encoder, "method": method, "seed": 0, "rows": rows}

    runs = [run("vit", "MAE", [0.7]), run("cnn", "A2MIM", [0.3, 0.5]), run("cnn", "scratch", [0.2, 0.4])]
    record = {"runs": dict(enumerate([*runs, run("vit", "scratch", [0.5])]))}
    of = [(encoder, methods) for _, encoder, methods in methods_table.panels(record)]
    assert [encoder for encoder, _ in of] == ["cnn", "vit"]
    assert methods_table.overview("fashion_mnist", of, [("fine-tuning", "10")]).splitlines() == [
        "| accuracy, pre-trained by | cnn, fine-tuning, 10 | vit, fine-tuning, 10 |",
        "|---|---|---|",
        "| scratch | 0.300 | 0.500 |",
        "| A2MIM | **+0.100 ± 0.000** |  |",
        "| MAE |  | +0.200 |",
    ]
    for number, method in enumerate(("A2MIM", "scratch")):  # a second seed of the CNN
        record["runs"][f"second {number}"] = run("cnn", method, [0.1]) | {"seed": 1}
    assert methods_table.seeds_of(record) == "seeds of pre-training: fashion_mnist, cnn: 2; fashion_mnist, vit: 1"
    record["runs"].pop("second 1")
    assert methods_table.seeds_of(record).startswith(
        "seeds of pre-training: fashion_mnist, cnn: 1 (2 of some methods);"
    )


@pytest.mark.ci
def test_results_of_other_settings_are_not_mixed(small):
    small("--only", "scratch")
    with pytest.raises(SystemExit, match="methods.json has results of other settings"):
        small("--only", "A2MIM", "--steps", "11")
    with pytest.raises(SystemExit, match=r"^--only: nothing has \['MoCo'\] in its name, such as solar_cells, vit,"):
        small("--only", "MoCo")


def test_without_images_earlier_results_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(methods_gpu, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["methods_gpu.py", "--small", "--output", str(tmp_path / "earlier.json")])
    (tmp_path / "earlier.json").write_text("earlier")
    with pytest.raises(
        SystemExit, match="^no images; first\nsolar_cells: python benchmarks/images.py --sets solar_cells"
    ):
        methods_gpu.main()
    assert (tmp_path / "earlier.json").read_text() == "earlier"


def test_images_in_colour(tmp_path, monkeypatch):
    """Stamps on white in a square, classes with few left out; tiles of photographs, the last two held out."""
    for name, count in (("animals", 30), ("food", 40), ("space", 3)):
        for number in range(count):
            path = tmp_path / "stamps" / name / "more" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (2, 4), (number, 0, 0, 255)).save(path)
    found = images.stamps(tmp_path / "stamps")
    assert [np.bincount(found[split][1]).tolist() for split in ("train", "test")] == [[22, 30], [8, 10]]
    assert found["train"][2] == ["animals", "food"]
    square = np.asarray(found["train"][0][0])
    assert square.shape == (4, 4, 3)
    assert (square[:, [0, 3]] == 255).all()
    assert (square[:, 1:3, 1] == 0).all()

    (tmp_path / "nature").mkdir()
    for number in range(3):
        Image.new("RGB", (300, 140)).save(tmp_path / "nature" / f"{number}.jpg")
    found = images.photographs(tmp_path / "nature")
    assert [found[split][1].tolist() for split in ("train", "test")] == [[0, 0], [1, 1, 2, 2]]
    assert {tile.size for tile in found["train"][0]} == {(128, 128)}
    monkeypatch.setitem(images.SETS, "photographs", (lambda: found, None))
    pixels, labels = load(images.write_arrays("photographs", tmp_path), "train", 64)
    assert pixels.shape == (2, 3, 64, 64)
    assert labels.tolist() == [0, 0]
