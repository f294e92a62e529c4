"""What the command line does with images that are not of 8 bits, before a model is built."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from safetensors.torch import load_file

import run_finetune
import run_pretraining
from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.evaluation.frozen import evaluate_frozen
from modeling_a2mim.tasks.classification import frozen


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
FAST = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "True"]
SCENE = np.random.default_rng(0).integers(16, 4060, (12, 40, 48), dtype=np.uint16)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    for number, values in enumerate(SCENE):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(path)
    return folder


def pretrain(folder, out, *flags):
    run_pretraining.main([*SMALL, *FAST, "--train_dir", str(folder), "--output_dir", str(out), *flags])
    return json.loads((out / "config.json").read_text())


@pytest.mark.ci
def test_the_range_is_found_and_kept(deep, tmp_path, caplog):
    caplog.set_level("INFO")
    auto = ["--image_mean", "auto", "--image_std", "auto"]
    found = pretrain(deep, tmp_path / "a", "--num_channels", "1", *auto)
    low, high = float(SCENE.min()), float(SCENE.max())
    assert found["stored_images"] == {"value_range": {"low": [low], "high": [high], "clip": False}}
    assert f"value_range auto: {low:g} to {high:g} become 0 to 1" in caplog.text
    shares = (SCENE - low) / (high - low)
    np.testing.assert_allclose(found["pretrained_cfg"]["mean"], [shares.mean()], atol=1e-6)
    np.testing.assert_allclose(found["pretrained_cfg"]["std"], [shares.std()], atol=1e-6)
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"values {low:g} to {high:g}, not cut off, become 0 to 1" in card
    assert f"low, high = {low}, {high}" in card

    # The same scene, stored in other types, trains the same weights.
    weights = load_file(tmp_path / "a" / "model.safetensors")
    for kind in (np.int32, np.float64):
        for number, values in enumerate(SCENE):
            path = tmp_path / kind.__name__ / "ab"[number % 2] / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values.astype(kind))
        pretrain(tmp_path / kind.__name__, tmp_path / f"out_{kind.__name__}", "--num_channels", "1", *auto)
        again = load_file(tmp_path / f"out_{kind.__name__}" / "model.safetensors")
        assert all((weights[name] == again[name]).all() for name in weights)

    # A model that goes on keeps its range, and one that is fine-tuned.
    caplog.clear()
    again = ["--model_name_or_path", str(tmp_path / "a")]
    run_pretraining.main([*again, *FAST, "--train_dir", str(deep), "--output_dir", str(tmp_path / "b")])
    assert f"value_range: {low:g} to {high:g}, not cut off, as the model has it" in caplog.text
    assert A2MIMForPreTraining.from_pretrained(tmp_path / "b" / "pretraining").config.value_range["high"] == [high]
    run_finetune.main([*again, *FAST, "--train_dir", str(deep), "--output_dir", str(tmp_path / "c")])
    assert json.loads((tmp_path / "c" / "config.json").read_text())["stored_images"] == found["stored_images"]


def test_photographs_in_a_range_of_more_bits_are_told(folder, tmp_path, caplog):
    pretrain(folder, tmp_path / "a", "--value_range", "0", "255")
    assert "are of 8 bits" not in caplog.text
    pretrain(folder, tmp_path / "b", "--value_range", "0", "4095")
    assert "value_range: images are of 8 bits, at most 255, and 0 to 4095 become 0 to 1" in caplog.text


@pytest.mark.parametrize(
    ("limits", "told"),
    [(("0", "15"), "within 0 of"), (("0", "1e7"), "within 0.0004 of"), (("1e3", "3e3"), None), (("0", "65535"), None)],
)
def test_a_range_of_other_values_is_told(deep, tmp_path, caplog, limits, told):
    """All white, or all black."""
    pretrain(deep, tmp_path / "out", "--num_channels", "1", "--value_range", *limits)
    lines = [line for line in caplog.messages if "nearly nothing will be seen" in line]
    assert len(lines) == (told is not None)
    if told:
        assert lines[0].startswith("value_range: where 0 to ")
        assert told in lines[0]


def test_photographs_stay_as_they_were(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    assert "stored_images" not in pretrain(folder, tmp_path / "a")
    assert "value_range" not in caplog.text
    assert "stored_images" not in pretrain(folder, tmp_path / "b", "--value_range", "auto")
    assert "value_range auto: images are of 8 bits; 0 to 255 become 0 to 1" in caplog.text
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_channels", "2"], r"^num_channels: row 0 of .*0.png: the image \(PNG\) has 1 channel"),
        (["--channels", "2"], r"^channels: row 0 of .*: 2 is asked for, but the image \(PNG\) has 1 channel"),
        (["--channels", "0"], "^channels: are counted from 1, got 0"),
        (["--channels", "1", "1", "--num_channels", "1"], "^channels: 2 are chosen, but num_channels is 1"),
        (["--value_range", "9", "1"], "^value_range: the lowest value must be below the highest, got 9 1"),
        (["--value_range", "0", "1", "0", "1"], "^value_range: has 2 ranges; expected one, or one for each of the 3"),
        (["--image_mean", "some"], r"^image_mean: expected a number for each channel, or auto, got \['some'\]"),
        (["--display_channels", "4"], "^display_channels: must be one or three numbers from 1 to 3"),
        (["--min_content", "0.5"], "^min_content: is of crops of --crop_pixels"),
        (["--crop_pixels", "0"], "^crop_pixels: must be at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_before_training(deep, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        pretrain(deep, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_mix_is_not_guessed(deep, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number in range(4):
        (mixed / f"{number}.png").write_bytes((deep / "ab"[number % 2] / f"{number}.png").read_bytes())
        Image.fromarray((SCENE[number] >> 8).astype(np.uint8)).save(mixed / f"{number}_8.png")
    with pytest.raises(ValueError, match=r"^value_range: images are stored in several ways \(.*4 of uint16.*\); give"):
        pretrain(mixed, tmp_path / "out", "--num_channels", "1")


@pytest.fixture(scope="module")
def of_deep(deep, tmp_path_factory):
    """Pre-trained on images of 12 bits."""
    out = tmp_path_factory.mktemp("of_deep") / "model"
    pretrain(deep, out, "--num_channels", "1")
    return out


@pytest.mark.few(1)
def test_photographs_are_not_read_as_nearly_black(of_deep, folder, tmp_path, caplog):
    """A model whose values go to 4,059 would see 0 to 255 as one grey: that is refused, unless it is asked for."""
    caplog.set_level("INFO")
    again = ["--model_name_or_path", str(of_deep), *FAST, "--train_dir", str(folder)]
    for main in (run_pretraining.main, run_finetune.main):
        with pytest.raises(ValueError, match=r"^value_range: the model takes values \d+ to 40\d\d.* are of 8 bits"):
            main([*again, "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()
    for number, main in enumerate((run_pretraining.main, run_finetune.main)):
        out = tmp_path / str(number)
        caplog.clear()
        main([*again, "--output_dir", str(out), "--value_range", "auto"])
        assert "value_range auto: images are of 8 bits; 0 to 255 become 0 to 1" in caplog.text
        found = json.loads((out / "config.json").read_text())["stored_images"]
        assert found == {"value_range": {"low": [0.0], "high": [255.0], "clip": True}}
    kept = json.loads((of_deep / "config.json").read_text())["stored_images"]["value_range"]
    words = ["--value_range", str(kept["low"][0]), str(kept["high"][0]), "unclipped"]
    run_pretraining.main([*again, "--output_dir", str(tmp_path / "asked"), *words])
    assert json.loads((tmp_path / "asked" / "config.json").read_text())["stored_images"]["value_range"] == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--auto_augment", "rand-m9-mstd0.5"], r"^auto_augment: is of photographs of 8 bits.* values \d+ to \d+"),
        (
            ["--num_channels", "4", "--color_jitter", "0.4", "--value_range", "0", "4095"],
            "^color_jitter: is for images of 1 or 3 channels.* 4;",
        ),
        (["--color_jitter", "0.4"], r"^color_jitter: cuts off .* give --value_range \d+.0 40\d\d.0, which"),
        (
            ["--corruptions", "contrast", "--value_range", "0", "9", "unclipped"],
            "^corruptions: cuts off .* 0 to 9, not",
        ),
    ],
)
def test_augmentation_of_photographs_is_refused(deep, tmp_path, flags, message):
    if "--num_channels" in flags:
        for number, values in enumerate(SCENE):
            path = tmp_path / "data" / "ab"[number % 2] / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.stack([values] * 4))
    else:
        flags = [*flags, "--num_channels", "1"]
    data = tmp_path / "data" if "4" in flags else deep
    new = ["--architecture", "test_convnext", "--image_size", "32", *FAST, "--train_dir", str(data)]
    new += ["--validation_dir", str(data)] if "--corruptions" in flags else []
    with pytest.raises(ValueError, match=message):
        run_finetune.main([*new, "--output_dir", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """8 files of 3 pages each, in two classes."""
    folder = tmp_path_factory.mktemp("scans")
    for number, values in enumerate(SCENE[:8]):
        path = folder / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        pages = np.stack([values // (1 + number % 2) + 10 * page for page in range(3)])
        tifffile.imwrite(path, pages, photometric="minisblack", metadata=None)
    return folder


def test_pages_as_samples_are_all_used(scans, tmp_path, caplog):
    """Those of the monitor, and the training samples of k-NN: what is drawn there are files, not pages."""
    caplog.set_level("INFO")
    pages = ["--num_channels", "1", "--pages", "samples", "--holdout", "2"]
    pretrain(scans, tmp_path / "a", *pages, "--monitor_dir", str(scans), "--monitor_steps", "1")
    assert "monitor: 24 of 24 images, 2 classes: monitor_dir" in caplog.text
    known = ["--model_name_or_path", str(tmp_path / "a"), "--train_dir", str(scans), "--validation_dir", str(scans)]
    for flags, count in (([], 24), (["--labels_per_class", "2"], 12)):
        drawn = []

        def evaluate(*args, drawn=drawn, **options):
            drawn.append(args)
            return evaluate_frozen(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frozen, "evaluate_frozen", evaluate)
            out = ["--output_dir", str(tmp_path / f"knn{count}"), "--use_cpu"]
            run_finetune.main([*known, *out, "--knn", "--knn_neighbours", "3", "--probe_strength", "1", *flags])
        _, train, validation, subsets, _ = drawn[0]
        (rows,) = subsets.values()
        assert (len(train), len(validation), len({*rows})) == (24, 24, count)
        assert {int(train[row]["labels"]) for row in rows} == {0, 1}


@pytest.mark.ci
def test_statistics_of_a_range_that_cuts_nothing_off(deep, tmp_path, caplog):
    """They may be beyond [0, 1]; and a model that goes on with another range says what it keeps."""
    caplog.set_level("INFO")
    words = ["--value_range", "0", "100", "unclipped", "--image_mean", "auto", "--image_std", "auto"]
    found = pretrain(deep, tmp_path / "a", "--num_channels", "1", *words)["pretrained_cfg"]
    np.testing.assert_allclose(found["mean"], [(SCENE / 100).mean()], rtol=1e-6)
    assert found["mean"][0] > 1
    again = ["--model_name_or_path", str(tmp_path / "a"), *FAST, "--train_dir", str(deep)]
    run_pretraining.main([*again, "--image_mean", "auto", "--output_dir", str(tmp_path / "b")])
    assert json.loads((tmp_path / "b" / "config.json").read_text())["pretrained_cfg"]["mean"] == found["mean"]
    assert "of other values or channels" not in caplog.text
    other = ["--value_range", "0", "200", "unclipped"]
    for number, main in enumerate((run_pretraining.main, run_finetune.main)):
        caplog.clear()
        main([*again, *other, "--output_dir", str(tmp_path / str(number))])
        assert "image_mean and image_std: as the model has it, of other values or channels" in caplog.text


def test_a_classifier_is_not_evaluated_on_photographs_that_it_sees_as_black(deep, folder, tmp_path):
    new = ["--architecture", "test_convnext", "--image_size", "32", "--num_channels", "1", "--train_dir", str(deep)]
    run_finetune.main([*new, *FAST, "--output_dir", str(tmp_path / "model")])
    again = ["--model_name_or_path", str(tmp_path / "model"), "--eval_only", "--use_cpu", "--validation_dir"]
    run_finetune.main([*again, str(deep), "--output_dir", str(tmp_path / "deep")])
    names = {"cats": "a", "dogs": "b"}
    for found in (path for path in folder.iterdir() if path.name in names):
        shutil.copytree(found, tmp_path / "photographs" / names[found.name])
    with pytest.raises(ValueError, match=r"^value_range: the model takes values .* are of 8 bits.*evaluates it as it"):
        run_finetune.main([*again, str(tmp_path / "photographs"), "--output_dir", str(tmp_path / "eval")])


def test_empty_crops_are_not_evaluated(tmp_path, caplog):
    """`--min_content` holds there as well; without it they would be scored."""
    for number, values in enumerate(SCENE):
        slide = np.full((80, 80), 4000, np.uint16)
        if number % 3:
            slide[30:60, 20:60] = values[:30, :40] // 2
        path = tmp_path / "slides" / ("train", "validation")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(slide).save(path)
    crops = ["--num_channels", "1", "--value_range", "0", "4095", "--crop_pixels", "32"]
    crops += ["--eval_strategy", "epoch", "--max_skipped_ratio", "1"]
    caplog.set_level("INFO")
    for name, flags, count in (("all", [], 0), ("some", ["--min_content", "0.3"], 2)):
        out = tmp_path / name
        caplog.clear()
        data = ["--train_dir", str(tmp_path / "slides" / "train"), "--validation_dir"]
        main = [*SMALL, *FAST, *data, str(tmp_path / "slides" / "validation"), "--output_dir", str(out), *crops]
        run_pretraining.main([*main, *flags])
        told = [line for line in caplog.text.splitlines() if "another image stands in for it" in line]
        assert len({line.partition(": of 25 crops")[0] for line in told}) == count


def test_volumes_of_nifti_with_gzip(tmp_path, caplog):
    caplog.set_level("INFO")
    for number in range(4):
        path = tmp_path / "brains" / f"sub-{number:02}" / "anat.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.Nifti1Image(SCENE.transpose(2, 1, 0)[..., :5].astype(np.int16), np.eye(4)).to_filename(path)
    pretrain(tmp_path / "brains", tmp_path / "out", "--num_channels", "1", "--pages", "samples")
    assert "20 images; test_convnext" in caplog.text
