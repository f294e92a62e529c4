"""What is said of a run of pre-training before and after it, with its numbers."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import run_pretraining
from modeling_a2mim import A2MIMConfig
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.training.advice import before_training, what_to_change
from modeling_a2mim.training.length import with_length


USUAL_STEPS, USUAL_EPOCHS = A2MIMTrainingArguments.USUAL_STEPS, A2MIMTrainingArguments.USUAL_EPOCHS


def arguments(tmp_path, **kwargs):
    return A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **kwargs)


def stub(site=(14, 14), isotropic=False, **kwargs):
    """What advice looks at of a model."""
    site = SimpleNamespace(layout=SimpleNamespace(grid=site))
    core = SimpleNamespace(site=site, plan=SimpleNamespace(isotropic=isotropic))
    return SimpleNamespace(config=A2MIMConfig(**kwargs), a2mim=core)


def said(tmp_path, images=10_000, model=None, **kwargs):
    args = with_length(arguments(tmp_path, **kwargs), images)
    return before_training(model or stub(), images, args)


def test_nothing_of_a_usual_run(tmp_path):
    assert said(tmp_path) == []
    assert said(tmp_path, images=400) == []
    assert said(tmp_path, images=10**6, per_device_train_batch_size=256) == []


def test_few_steps(tmp_path):
    found = said(tmp_path, num_train_epochs=2)
    passes = arguments(tmp_path).usual_epochs(10_000)
    assert found == [
        f"314 steps, 2 passes over 10,000 images, are few: an encoder needs some {USUAL_STEPS:,} to reconstruct "
        f"({passes} passes: --num_train_epochs auto), and fewer with --decoder multiscale (--recipe small_data)"
    ]
    for model in (stub(isotropic=True), stub(decoder="multiscale")):
        assert said(tmp_path, num_train_epochs=2, model=model)[0].endswith("--num_train_epochs auto)")
    assert said(tmp_path, max_steps=20)[0].startswith("20 steps, 0.127 passes over 10,000 images, are few")


def test_auto_is_not_the_advice_where_it_makes_no_more(tmp_path):
    few, _ = said(tmp_path, images=50)
    assert few.startswith("400 steps, 400 passes over 50 images, are few: an encoder needs some")
    assert "to reconstruct (give --num_train_epochs or --max_steps), and fewer with" in few


def test_a_batch_that_is_most_of_the_data(tmp_path):
    [*_, found] = said(tmp_path, images=100)
    assert found.startswith("a step takes 64 of 100 images, most of the data")


def test_a_rate_of_another_order(tmp_path):
    usual = arguments(tmp_path).usual_learning_rate()
    for factor, far in ((0.02, True), (0.2, False), (5, False), (20, True)):
        found = said(tmp_path, learning_rate=usual * factor)
        assert found == (
            [f"a learning rate of {usual * factor:g} is far from the usual {usual:g} for 64 images"] if far else []
        )


def test_few_cells(tmp_path):
    [found] = said(tmp_path, model=stub((4, 6), image_size=(64, 96), mask_patch_size=16))
    assert found == "4 x 6 cells of 16 x 16 px are few to mask: give a smaller --mask_patch_size, for at least 6 x 6"


def test_a_token_that_is_nearly_everywhere(tmp_path):
    """8 x 8 cells of which 60% are masked, on a map of 4 x 4: a place is free if all four are, 0.4^4 = 3%."""
    [found] = said(tmp_path, model=stub((4, 4), image_size=64))
    assert found.startswith(
        "the mask token enters a map of 4 x 4, coarser than the mask of 8 x 8 cells: it is at about 97%"
    )


def test_what_to_change(tmp_path):
    args = arguments(tmp_path, learning_rate=1e-6)
    rate = f"the usual rate is {args.usual_learning_rate():g} (leave out --learning_rate and --base_learning_rate); "
    more = f"train for more steps, {USUAL_STEPS:,} or so (65 passes: --num_train_epochs auto)"
    assert what_to_change(stub(isotropic=True), args, 1968, 93) == rate + more
    found = what_to_change(stub(), arguments(tmp_path), None, 5000)
    assert found == "train for more steps, and fewer with --decoder multiscale (--recipe small_data)"


def test_rates_of_other_optimisers_are_not_compared(tmp_path):
    assert said(tmp_path, optim="sgd", learning_rate=0.5) == []
    args = arguments(tmp_path, optim="sgd")
    assert args.batch_note.endswith("the usual one for so many with AdamW; sgd may want another")


@pytest.mark.parametrize(("target", "known"), [("pixels", "image"), ("normalised", "cell")])
def test_a_run_that_has_not_learned_ends_with_a_warning(target, known, tmp_path, caplog):
    generator = np.random.default_rng(0)
    for i in range(8):
        grey = np.clip(generator.normal(128, 10, (32, 32)), 0, 255).astype(np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(grey).save(tmp_path / "images" / f"{i}.png")
    command = ["--architecture", "test_convnext", "--image_size", "32", "--num_channels", "1", "--max_steps", "1"]
    command += ["--target", target]
    caplog.set_level(logging.INFO, "a2mim")
    metrics = run_pretraining.main(
        [*command, "--use_cpu", "--train_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    )
    one, two = metrics["eval_masked_psnr"], metrics["eval_mean_fill_psnr"]
    assert one < two
    assert f"no better ({one:.1f} dB) than the mean colour of each {known} does ({two:.1f} dB)" in caplog.text
    assert f"of their {known}s' mean colour {two:.1f} dB" in caplog.text
    stated = {"pixels": "pixels", "normalised": "pixels, normalised in each cell of the mask"}[target]
    assert f"| target | {stated} |" in (tmp_path / "out" / "README.md").read_text()
    assert "It had 1 steps at a learning rate of up to" in caplog.text
    assert f"masked pixels of 8 images of the training data itself: PSNR {one:.1f} dB" in caplog.text
    assert "1 steps, 1 passes over 8 images, are few" in caplog.text


def test_a_new_encoder_is_not_worth_freezing(tmp_path):
    args = with_length(arguments(tmp_path, freeze_encoder_steps=0.1), 10_000)
    [found] = before_training(stub(), 10_000, args)
    assert found.startswith(
        "the encoder is new, and with --freeze_encoder_steps it learns nothing at first: leave that"
    )
    assert before_training(stub(), 10_000, args, from_weights=True) == []
