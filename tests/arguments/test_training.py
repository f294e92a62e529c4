"""What follows from the arguments of training: batches and rates, optimisers, and what is refused."""

import pytest

from modeling_a2mim.arguments.training import A2MIMTrainingArguments, FineTuningArguments
from modeling_a2mim.training.length import with_length


def make(tmp_path, kind=A2MIMTrainingArguments, **kwargs):
    return kind(output_dir=str(tmp_path), use_cpu=True, **kwargs)


@pytest.mark.parametrize(
    ("given", "accumulated", "rate", "said"),
    [
        ({}, 1, 0.8, "8 images in a step (1 x 8); learning rate 0.8 as given"),
        ({"total_train_batch_size": 32}, 4, 0.8, "32 images in a step (4 x 8); learning rate 0.8 as given"),
        (
            {"total_train_batch_size": 32, "batch_scaling": "learning_rate"},
            1,
            0.2,
            "8 images in a step (1 x 8) instead of 32; learning rate scaled from 0.8 to 0.2 (linear)",
        ),
        (
            {"total_train_batch_size": 32, "batch_scaling": "learning_rate", "learning_rate_scaling": "sqrt"},
            1,
            0.4,
            "8 images in a step (1 x 8) instead of 32; learning rate scaled from 0.8 to 0.4 (sqrt)",
        ),
        (  # no accumulation gives 20
            {"total_train_batch_size": 20},
            1,
            0.32,
            "8 images in a step (1 x 8) instead of 20; learning rate scaled from 0.8 to 0.32 (linear)",
        ),
        (  # an accumulation that was asked for stays
            {"total_train_batch_size": 32, "gradient_accumulation_steps": 2},
            2,
            0.4,
            "16 images in a step (2 x 8) instead of 32; learning rate scaled from 0.8 to 0.4 (linear)",
        ),
        (
            {"total_train_batch_size": 512, "learning_rate": None, "base_learning_rate": 0.1},
            64,
            0.2,
            "512 images in a step (64 x 8); learning rate 0.2, from 0.1 for 256",
        ),
    ],
)
def test_batch_and_rate(tmp_path, given, accumulated, rate, said):
    args = make(tmp_path, **{"per_device_train_batch_size": 8, "learning_rate": 0.8, **given})
    assert args.gradient_accumulation_steps == accumulated
    assert args.learning_rate == pytest.approx(rate)
    assert args.batch_note == said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim": "adahessian"}, "^optim: adahessian needs second derivatives"),
        ({"optim": "lam"}, "^optim: 'lam' is no optimiser of transformers or timm; did you mean lamb"),
        ({"lr_milestones": [0.5, 0]}, "^lr_milestones: must be positive"),
        ({"total_train_batch_size": 0}, "^total_train_batch_size: must be at least 1"),
        ({"layer_decay": 1.5}, r"^layer_decay: must be in \(0, 1\], got 1.5"),
        ({"mixup": -1.0}, "^mixup: must be in"),
        ({"model_ema_decay": 2.0}, "^model_ema_decay: must be in"),
        ({"bce_target_thresh": 0.2}, "^bce_target_thresh: is for --bce_loss"),
    ],
)
def test_what_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, FineTuningArguments, **given)


def test_names_of_transformers_come_first(tmp_path):
    args = make(tmp_path, optim="sgd")
    assert (args.optimizer_name, args.timm_optim) == ("sgd", None)


@pytest.mark.parametrize("kind", [A2MIMTrainingArguments, FineTuningArguments])
def test_the_usual_rate_follows_the_batch(tmp_path, kind):
    """With its square root, up to the batch that it is for; each process and accumulated batch counts."""
    rate, batch = kind.USUAL_RATE
    for size, accumulated, factor in ((batch, 1, 1), (batch // 4, 1, 0.5), (batch // 4, 4, 1), (4 * batch, 1, 1)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        args = make(tmp_path, kind, **sizes)
        assert args.learning_rate == pytest.approx(rate * factor)
        assert args.batch_note.endswith(f"learning rate {args.learning_rate:g}, the usual one for so many")
    assert make(tmp_path, kind, base_learning_rate=1.5e-4, per_device_train_batch_size=16).learning_rate == (
        pytest.approx(1.5e-4 * 16 / 256)
    )


def test_fine_tuning_of_few_images_is_evaluated_ten_times(tmp_path):
    few = with_length(make(tmp_path, FineTuningArguments, per_device_train_batch_size=64), 40)
    assert few.num_train_epochs == FineTuningArguments.USUAL_EPOCHS[1]
    assert (few.eval_strategy, few.eval_steps) == ("steps", 0.1)
    many = with_length(make(tmp_path, FineTuningArguments, per_device_train_batch_size=64), 64_000)
    assert (many.num_train_epochs, many.eval_strategy) == (FineTuningArguments.USUAL_EPOCHS[0], "epoch")
    for given in ({"eval_strategy": "epoch"}, {"num_train_epochs": 50}, {"eval_strategy": "no"}):
        args = with_length(make(tmp_path, FineTuningArguments, **given), 40)
        assert args.eval_strategy == given.get("eval_strategy", "epoch")


def test_nothing_is_pinned_without_an_accelerator(tmp_path):
    """Torch warns of it at each epoch."""
    assert not make(tmp_path).dataloader_pin_memory


def test_errors_are_better_when_low(tmp_path):
    def better(metric):
        return make(tmp_path, metric_for_best_model=metric).greater_is_better

    assert [better(name) for name in ("masked_psnr", "masked_l1", "eval_masked_l1", "loss")] == [
        True,
        False,
        False,
        False,
    ]
    assert make(tmp_path, metric_for_best_model="masked_l1", greater_is_better=True).greater_is_better
