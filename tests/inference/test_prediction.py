"""What a classifier says of images: the pipeline's scores, and what is decided on by them."""

import csv
import io
import json

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch.nn import functional as F
from transformers import PreTrainedConfig, ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from modeling_a2mim import A2MIMForImageClassification
from modeling_a2mim.arguments.data import MULTI, REGRESSION, SINGLE
from modeling_a2mim.commands.predict import main
from modeling_a2mim.data.decoding import open_image, to_pixels, upright
from modeling_a2mim.evaluation.decisions import DecisionRule
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.inference.models import unique_names
from modeling_a2mim.inference.prediction import Decisions, problem_type_of
from modeling_a2mim.models.linear_probe import LinearProbe

from ..small_models import make


pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["cat", "a dog, or two", "error"]
ODD = ["plain.png", 'comma, quote".png', "ünïcode 猫.jpg", "sub/line\nbreak.png"]


def classifier(folder, names=NAMES, family="resnet", **kwargs):
    """An export whose scores differ from image to image."""
    model = make(family, A2MIMForImageClassification, image_size=48, num_labels=len(names), **kwargs)
    model.config.id2label = dict(enumerate(names))
    head, channels = model.a2mim.encoder.get_classifier(), model.config.num_channels
    coarse = torch.randn(32, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval()(F.interpolate(coarse, (48, 48), mode="bicubic")).logits
        head.weight.mul_(1.5 / logits.std(0)[:, None])
        head.bias.sub_(logits.mean(0)).mul_(1.5 / logits.std(0))
    return export_model(model, folder)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine images of several sizes with names that CSV must quote, and one that is broken."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate([*ODD, *(f"{i}.png" for i in range(5))]):
        (folder / name).parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((40 + 7 * number, 90 - 5 * number), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def predict(model, images, out, *flags):
    images = images if isinstance(images, list) else [images]
    main([str(model), *map(str, images), "--out", str(out), "--num_workers", "0", "--device", "cpu", *flags])
    return (pq.read_table(out) if out.suffix == ".parquet" else pa.csv.read_csv(out)).to_pydict()


def refused(capsys, *args):
    with pytest.raises(SystemExit) as exited:
        predict(*args)
    assert exited.value.code == 2
    return capsys.readouterr().err


def scores(found, names=NAMES):
    return {
        file: [found[f"score_{name}"][i] for name in names]
        for i, file in enumerate(found["file"])
        if found["score"][i] is not None
    }


def test_the_scores_of_the_pipeline(export, photos, tmp_path, monkeypatch):
    found = scores(predict(export, photos, tmp_path / "out.parquet"))
    assert sorted(found) == sorted([*ODD, *(f"{i}.png" for i in range(5))])
    assert np.ptp([row[0] for row in found.values()]) > 0.1  # or nothing is compared
    classify = pipeline("image-classification", model=str(export), device="cpu", top_k=None)
    for name, row in found.items():
        theirs = {one["label"]: one["score"] for one in classify(Image.open(photos / name))}
        np.testing.assert_allclose(row, [theirs[n] for n in NAMES], rtol=0, atol=2e-6, err_msg=name)


def test_the_scores_of_timm(export, photos, tmp_path):
    found = scores(predict(export, photos, tmp_path / "out.csv"))
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))
    for name, row in found.items():
        with torch.no_grad():
            theirs = model(transform(Image.open(photos / name))[None]).softmax(-1)[0]
        np.testing.assert_allclose(row, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("flags", [["--batch_size", "1"], ["--batch_size", "4"], ["--num_workers", "2"]])
def test_batches_change_no_score(export, photos, tmp_path, flags):
    whole = predict(export, photos, tmp_path / "a.parquet")
    other = predict(export, photos, tmp_path / "b.parquet", *flags)
    np.testing.assert_allclose(*([*scores(t).values()] for t in (whole, other)), rtol=0, atol=2e-6)
    assert whole["class"] == other["class"]


def test_names_that_csv_must_quote(export, photos, tmp_path, caplog):
    out = tmp_path / "out.csv"
    found = predict(export, photos, out)
    files = sorted([*ODD, "broken.png", *(f"{i}.png" for i in range(5))])
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["file", "class", "score", "score_cat", "score_a dog, or two", "score_error", "error"]
    assert list(rows[0]) == list(found) == list(pandas.read_csv(out)) == columns
    for read in (found["file"], [row["file"] for row in rows], list(pandas.read_csv(out)["file"])):
        assert sorted(read) == files
    broken = next(row for row in rows if row["file"] == "broken.png")
    assert broken.pop("error").startswith("opening: no JPEG")
    assert set(broken.values()) == {"broken.png", ""}
    for row in rows:
        if row["file"] != "broken.png":
            values = {name: float(row[f"score_{name}"]) for name in NAMES}
            assert row["class"] == max(values, key=values.get)
            assert row["score"] == row[f"score_{row['class']}"]
    assert "10 images, 1 of them could not be read; " in caplog.text
    assert f"written to {out}" in caplog.text
    counts = {name: found["class"].count(name) for name in NAMES}
    assert all(f"{name}: {count}" in caplog.text for name, count in counts.items())


def test_a_threshold_on_the_command_line(export, photos, tmp_path, caplog):
    first = predict(export, photos, tmp_path / "a.csv")
    values = sorted(row[0] for row in scores(first).values())
    found = predict(export, photos, tmp_path / "b.csv", "--threshold", f"{values[3]:.4f}", "--positive_class", "cat")
    chosen = {f for f, row in scores(found).items() if row[0] >= round(values[3], 4)}
    assert {f for f, c in zip(found["file"], found["class"], strict=True) if c == "cat"} == chosen
    assert 0 < len(chosen) < 9
    assert f"decision: cat from {values[3]:.4f}"[:-1] in caplog.text
    assert "on (as given)" in caplog.text


def test_the_threshold_that_the_model_keeps(photos, tmp_path, caplog, capsys):
    folder = classifier(tmp_path / "model")
    rule = DecisionRule({"cat": 1e-6}, "fpr=0.05", 40)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decision": rule.to_config()}))
    found = predict(folder, photos, tmp_path / "a.parquet")
    assert {c for c in found["class"] if c} == {"cat"}
    assert "decision: cat from 1e-06 on (the model's own, chosen by fpr=0.05 on 40 images)" in caplog.text
    metadata = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[b"a2mim"])
    assert metadata["decision"] == rule.to_config()
    assert metadata["model"] == "model"
    other = predict(folder, photos, tmp_path / "b.csv", "--threshold", "1", "--positive_class", "cat")
    assert "cat" not in other["class"]
    assert "(the model's own, cat from 1e-06 on, is not used)" in caplog.text
    (folder / "config.json").write_text(json.dumps(config | {"decision": {"thresholds": {"cow": 0.5}}}))
    words = refused(capsys, folder, photos, tmp_path / "c.csv")
    assert "decision: that of model does not fit it: threshold: there is no class 'cow'" in words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--threshold", "f1"], "`a2mim finetune --eval_only --threshold f1` does"),
        (["--threshold", "fpr=0.1", "--positive_class", "cat"], "--threshold fpr=0.1` does"),
        (["--threshold", "2"], "threshold: expected a number in"),
        (["--threshold", "0.5"], "positive_class: name the class"),
        (["--threshold", "0.5", "--positive_class", "cow"], "positive_class: there is no class 'cow'"),
        (["--positive_class", "cat"], "positive_class: is the class that --threshold is of"),
        (["--batch_size", "0"], "batch_size: must be at least 1"),
        (["--device", "nonsense"], "device: nonsense cannot be used here"),
        (["--image_column_name", "photo"], "image_column_name: "),
        (["--dataset_revision", "v1"], "dataset_revision: is of a dataset on the Hub, and "),
        (["--dataset_config_name", "v1"], "dataset_config_name: is of a dataset on the Hub, and "),
        (["--revision", "v1"], "revision: is of a model on the Hub, and "),
    ],
)
def test_flags_that_are_wrong(export, photos, tmp_path, capsys, flags, words):
    assert words in refused(capsys, export, photos, tmp_path / "out.csv", *flags)
    assert not list(tmp_path.iterdir())


def test_several_labels(photos, tmp_path, caplog):
    folder = classifier(tmp_path / "model", problem_type=MULTI)
    found = predict(folder, photos, tmp_path / "a.parquet")
    text = predict(folder, photos, tmp_path / "a.csv")
    assert "decision: every label from 0.5 on (the usual one, as the model holds none)" in caplog.text
    logits = logits_of(folder, photos, found["file"])
    for i, name in enumerate(found["file"]):
        if name == "broken.png":
            assert found["class"][i] is None
            continue
        expected = logits[name].sigmoid()
        np.testing.assert_allclose(scores(found)[name], expected, rtol=0, atol=2e-6)
        assert found["class"][i] == [n for n, value in zip(NAMES, expected, strict=True) if value >= 0.5]
        assert text["class"][i] == ";".join(found["class"][i])
        assert found["score"][i] == max(scores(found)[name])
    lengths = {len(chosen) for chosen in found["class"] if chosen is not None}
    assert len(lengths) > 1
    totals = {name: sum(name in (chosen or ()) for chosen in found["class"]) for name in NAMES}
    assert sum(all(f"{n}: {c}" in m for n, c in totals.items()) for m in caplog.messages) == 2
    none = predict(folder, photos, tmp_path / "b.csv", "--threshold", "1")
    assert not any(none["class"])


def logits_of(folder, photos, files):
    """By transformers' own class and timm's transform."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model.pretrained_cfg, model=model))
    with torch.no_grad():
        return {f: model(transform(Image.open(photos / f))[None])[0] for f in files if f != "broken.png"}


def test_regression(photos, tmp_path, capsys):
    folder = classifier(tmp_path / "model", names=["age"], problem_type=REGRESSION)
    found = predict(folder, photos, tmp_path / "a.csv")
    assert list(found) == ["file", "value", "error"]
    for name, logits in logits_of(folder, photos, found["file"]).items():
        assert found["value"][found["file"].index(name)] == pytest.approx(logits.item(), abs=1e-5)
    assert "threshold: is for classes" in refused(capsys, folder, photos, tmp_path / "b.csv", "--threshold", "0.5")


def test_columns_of_every_kind_of_model():
    logits = torch.tensor([[0.0, 2.0], [3.0, -1.0]])
    several = Decisions(["x", "y"], REGRESSION, None)
    assert several.of(logits) == {"value_x": [0, 3], "value_y": [2, -1]}
    assert list(several.columns) == ["value_x", "value_y"]
    plain = Decisions(["file", "class"], SINGLE, None)
    assert plain.of(logits)["class"] == ["class", "file"]
    assert list(plain.columns) == ["class", "score", "score_file", "score_class"]
    lists = Decisions(["x", "y"], MULTI, DecisionRule({"*": 0.5}), lists=True)
    assert lists.of(logits)["class"] == [["x", "y"], ["x"]]
    assert Decisions(["x", "y"], MULTI, DecisionRule({"*": 0.5})).of(logits)["class"] == ["x;y", "x"]
    one = make("resnet", A2MIMForImageClassification, num_labels=1).config
    assert problem_type_of(one) == REGRESSION


def test_classes_that_share_a_name(photos, tmp_path):
    folder = classifier(tmp_path / "model", names=["crane", "cat", "crane"])
    found = predict(folder, photos, tmp_path / "a.csv")
    assert [name for name in found if name.startswith("score_")] == ["score_crane (0)", "score_cat", "score_crane (2)"]
    assert {c for c in found["class"] if c} <= {"crane (0)", "cat", "crane (2)"}


def test_images_that_are_not_plain(tmp_path):
    """Grey, turned by EXIF, with a palette and alpha: as the decoder has them, for grey and RGB models; one of 16 bits
    is none for a model of 8 bits."""
    folder, generator = tmp_path / "images", np.random.default_rng(1)
    folder.mkdir()
    values = np.asarray(Image.fromarray(generator.integers(0, 256, (4, 6), dtype=np.uint8)).resize((60, 50)))
    Image.fromarray(values).save(folder / "grey.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(values).convert("RGB").save(folder / "turned.jpg", exif=turned_by(6), quality=95)
    Image.fromarray(values).convert("P").save(folder / "palette.png")
    Image.fromarray(values).convert("RGBA").save(folder / "alpha.png")
    for channels in (1, 3):
        model = classifier(tmp_path / f"model{channels}", num_channels=channels)
        found = scores(predict(model, folder, tmp_path / f"{channels}.csv"))
        network = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
        transform = create_transform(**resolve_data_config(network.pretrained_cfg, model=network))
        assert "deep.png" not in found
        for name, row in found.items():
            pixels = to_pixels(upright(open_image(folder / name)), channels)
            with torch.no_grad():
                theirs = network(transform(pixels)[None]).softmax(-1)[0]
            np.testing.assert_allclose(row, theirs, rtol=0, atol=2e-6, err_msg=name)
        upside = Image.open(io.BytesIO((folder / "turned.jpg").read_bytes()))
        assert upside.size == (60, 50)
        assert found["turned.jpg"] != pytest.approx(found["grey.png"], abs=1e-4)


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_models_of_every_origin(photos, tmp_path, capsys):
    """A checkpoint of a run, a linear probe, a classifier of transformers, and one of timm's own repositories."""
    model = make("vit", A2MIMForImageClassification, image_size=64)
    model.save_pretrained(tmp_path / "checkpoint-3")
    LinearProbe.from_encoder(model, layer=-1).eval().save_pretrained(tmp_path / "probe")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=3
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "transformers")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "transformers")
    for source in ("checkpoint-3", "probe", "transformers"):
        found = predict(tmp_path / source, photos, tmp_path / f"{source}.csv")
        assert [name for name in found if name.startswith("score_")] == [f"score_LABEL_{i}" for i in range(3)]
        assert sum(error == "" for error in found["error"]) == 9
    theirs = pipeline("image-classification", model=str(tmp_path / "transformers"), device="cpu")
    rows = scores(predict(tmp_path / "transformers", photos, tmp_path / "t.csv"), [f"LABEL_{i}" for i in range(3)])
    for name, row in rows.items():
        expected = {one["label"]: one["score"] for one in theirs(Image.open(photos / name))}
        np.testing.assert_allclose(row, [expected[f"LABEL_{i}"] for i in range(3)], rtol=0, atol=2e-6)
    native = timm.create_model("test_resnet", num_classes=4, pretrained=False)
    timm.models.save_for_hf(native, tmp_path / "timm", model_config={"num_classes": 4}, safe_serialization=True)
    found = predict(tmp_path / "timm", photos, tmp_path / "timm.csv")
    assert sum(name.startswith("score_") for name in found) == 4


def test_models_that_predict_nothing(photos, tmp_path, capsys):
    export_model(make("resnet"), tmp_path / "encoder")
    for source in ("encoder", "encoder/pretraining"):
        words = refused(capsys, tmp_path / source, photos, tmp_path / "out.csv")
        assert "error: model: " in words
        assert "`a2mim finetune`" in words
        assert "`a2mim embed`" in words
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, tmp_path / "empty", photos, tmp_path / "out.csv")
    assert "model" in refused(capsys, tmp_path / "nowhere", photos, tmp_path / "out.csv")


def test_a_model_whose_output_is_no_number(photos, tmp_path, capsys):
    model = make("resnet", A2MIMForImageClassification, image_size=48)
    with torch.no_grad():
        model.a2mim.encoder.conv1[0].weight.fill_(float("nan"))
    export_model(model, tmp_path / "model")
    assert "dtype: the model gives no numbers" in refused(capsys, tmp_path / "model", photos, tmp_path / "out.csv")


def test_half_precision(export, photos, tmp_path):
    whole = scores(predict(export, photos, tmp_path / "a.csv"))
    for dtype in ("bfloat16", "float16"):
        half = scores(predict(export, photos, tmp_path / f"{dtype}.csv", "--dtype", dtype))
        difference = np.abs(np.subtract([*whole.values()], [*half.values()])).max()
        assert 0 < difference < 0.1


def test_names_of_classes_are_told_apart():
    """Also where the number that is added to one makes it another's."""
    config = PreTrainedConfig(id2label={0: "a", 1: "a", 2: "a (0)"})
    names = unique_names(config)
    assert len(set(names)) == 3
    assert names[2].startswith("a (0)")
