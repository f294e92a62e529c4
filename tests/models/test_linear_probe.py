"""The linear probe: what it reads, that nothing else trains, what is saved, and the same function as a classifier."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.models.linear_probe import LinearProbe
from modeling_a2mim.models.pooled_features import layer_features

from ..families import FAMILIES, family_config


pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = {0: "cat", 1: "dog", 2: "owl"}


def pretrained(family, size=64):
    """A model whose running statistics are not those of a new one, and other images."""
    model = A2MIMForPreTraining(family_config(family, image_size=size)).train()
    with torch.no_grad():
        model(torch.randn(4, 3, size, size))
    return model.eval(), torch.randn(4, 3, size, size)


def trained(model, images, **kwargs):
    """A probe after steps that moved its classifier and its statistics."""
    probe = LinearProbe.from_encoder(model, id2label=NAMES, **kwargs).train()
    optimizer = torch.optim.SGD(probe.classifier.parameters(), lr=1.0)
    for shift in (0.0, 1.0, -2.0):
        optimizer.zero_grad()
        probe(images + shift, labels=torch.tensor([0, 1, 2, 1])).loss.backward()
        optimizer.step()
    return probe.eval()


def assert_close(one, other):
    """Equal but for other orders of sums in float32."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_stages_are_not_run(family):
    model, images = pretrained(family)
    core, ran = model.a2mim, []
    for i, info in enumerate(core.encoder.feature_info):
        core.encoder.get_submodule(info["module"]).register_forward_hook(lambda *args, i=i: ran.append(i))
    probe = LinearProbe.from_encoder(model, layer=1)
    probe.a2mim = core
    probe(images)
    assert ran[-1] == max(ran) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_classifier_trains(family):
    model, images = pretrained(family)
    probe = LinearProbe.from_encoder(model, id2label=NAMES).train()
    assert {name for name, p in probe.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert probe.training
    assert not any(module.training for module in probe.a2mim.modules())
    before = copy.deepcopy(probe.a2mim.state_dict())
    output = probe(images, labels=torch.tensor([0, 1, 2, 0]))
    output.loss.backward()
    assert output.logits.shape == (4, 3)
    expected = nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(output.loss, expected)
    assert all(p.grad is None for p in probe.a2mim.parameters())
    assert probe.classifier.weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in probe.a2mim.state_dict().items())
    source = model.a2mim.encoder.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in probe.a2mim.encoder.state_dict().items())


def test_a_step_keeps_nothing_of_the_encoder():
    model, images = pretrained("vit")
    probe = LinearProbe.from_encoder(model).train()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        probe(images).logits.sum().backward()
    width = probe.classifier.in_features
    assert 0 < sum(saved) <= 4 * (4 * width + 2 * width)  # features and weights of the head, a few times


def test_batch_norm_standardises_the_features():
    model, images = pretrained("convnext")
    probe = trained(model, images)
    batches = [layer_features(probe.a2mim, images + shift, [None])[0] for shift in (0.0, 1.0, -2.0)]
    # The mean over the batches, without the first guess.
    assert_close(probe.norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    assert_close(probe.norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    features = (batches[0] - probe.norm.running_mean) / (probe.norm.running_var + 1e-6).sqrt()
    assert_close(probe(images).logits, probe.classifier(features))
    plain = trained(model, images, batch_norm=False)
    assert plain.norm is None
    assert_close(plain(images).logits, plain.classifier(batches[0]))


def test_a_batch_of_one_image():
    model, images = pretrained("resnet")
    probe = trained(model, images)
    expected, mean = probe(images[:1]).logits, probe.norm.running_mean.clone()
    probe.train()
    assert_close(probe(images[:1]).logits, expected)
    assert torch.equal(probe.norm.running_mean, mean)


@pytest.mark.parametrize(
    ("family", "layer", "batch_norm"),
    [
        *((family, None, True) for family in FAMILIES),
        ("resnet", -1, False),
        ("vit", 1, True),
        ("resnet", "all", True),
        ("vit", "all", True),
    ],
)
def test_saved_and_loaded(family, layer, batch_norm, tmp_path):
    model, images = pretrained(family)
    probe = trained(model, images, layer=layer, batch_norm=batch_norm)
    probe.save_pretrained(tmp_path)
    again, info = LinearProbe.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert (again.layer, again.norm is not None) == (probe.layer, batch_norm)
    assert again.config.id2label == NAMES
    assert not again.a2mim.training
    assert [n for n, p in again.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in probe.state_dict().items())
    # Weights at other addresses, hence other algorithms.
    assert_close(again.eval()(images).logits, probe(images).logits)


@pytest.mark.parametrize(("family", "batch_norm"), [*((family, True) for family in FAMILIES), ("convnext", False)])
def test_as_a_classifier(family, batch_norm, tmp_path):
    model, images = pretrained(family)
    probe = trained(model, images, batch_norm=batch_norm)
    classifier = probe.to_classifier()
    assert isinstance(classifier, A2MIMForImageClassification)
    assert not classifier.training
    assert classifier.config.id2label == NAMES
    assert not {"probe_layer", "probe_batch_norm"} & classifier.config.to_dict().keys()
    with torch.no_grad():
        expected, logits = probe(images).logits, classifier(images).logits
    assert expected.std() > 0.05
    # Weights are folded in float64; sums of features that are not centred round by as much as their mean is larger
    # than their deviation, here up to 1e-5 of the logits.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    classifier.save_pretrained(tmp_path)
    loaded = A2MIMForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "kwargs"),
    [
        ("resnetv2_18", {"layers": [1, 1, 1, 1]}),  # a convolution of 1x1
        ("starnet_s050", {"depths": [1, 1, 1, 1]}),  # a Linear of timm's own
        ("test_vit", {"global_pool": "avg"}),
        ("test_vit", {"global_pool": "map"}),
    ],
)
def test_as_other_classifiers(architecture, kwargs):
    config = A2MIMConfig.for_encoder(architecture=architecture, image_size=64, model_args=kwargs)
    images = torch.randn(4, 3, 64, 64)
    probe = trained(A2MIMModel(config).eval(), images)
    torch.testing.assert_close(probe.to_classifier()(images).logits, probe(images).logits, rtol=1e-4, atol=1e-4)


def test_what_is_no_classifier():
    model, _ = pretrained("resnet")
    for layer, named in ((1, "the mean of map 1"), (-1, "the mean of map 4"), ("all", "every stage")):
        probe = LinearProbe.from_encoder(model, layer=layer, id2label=NAMES)
        with pytest.raises(
            ValueError, match=f"^probe_layers: timm's classifier reads its own pooled features, not {named}$"
        ):
            probe.to_classifier()
    config = A2MIMConfig.for_encoder(
        architecture="deit_tiny_distilled_patch16_224", image_size=32, model_args={"depth": 1}
    )
    with pytest.raises(
        ValueError, match="^architecture: timm's classifier of deit_tiny_dis.* is not one linear layer"
    ):
        LinearProbe.from_encoder(A2MIMModel(config)).to_classifier()


def test_what_cannot_be_probed():
    model, images = pretrained("resnet", size=32)
    with pytest.raises(ValueError, match="^probe_layers: test_resnet has 5 feature maps, there is no index -6$"):
        LinearProbe.from_encoder(model, layer=-6)
    with pytest.raises(ValueError, match="^num_labels: a classifier needs at least one label"):
        LinearProbe(family_config("resnet", num_labels=0))
    with pytest.raises(ValueError, match=r"^pixel_values: expected \(batch, 3, height, width\)"):
        LinearProbe.from_encoder(model)(images[:, :1])


def test_from_a_classifier():
    config = family_config("resnet", id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    model, images = A2MIMForImageClassification(config).eval(), torch.randn(2, 3, 64, 64)
    probe = LinearProbe.from_encoder(model, batch_norm=False)
    assert probe.config.id2label == NAMES
    fc = model.a2mim.encoder.get_classifier()
    with torch.no_grad():
        probe.classifier.weight.copy_(fc.weight)
        probe.classifier.bias.copy_(fc.bias)
        assert_close(probe(images).logits, model(images).logits)
    assert not hasattr(model.config, "probe_layer")


class Colours(Dataset):
    """Nine images of three colours and noise."""

    def __len__(self):
        return 9

    def __getitem__(self, row):
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(row))
        return {"pixel_values": noise + 2 * torch.eye(3)[row % 3].view(3, 1, 1), "labels": row % 3}


def test_it_trains_with_a_trainer_and_goes_on(tmp_path):
    def run(folder, resume=None, **kwargs):
        torch.manual_seed(1)
        model = A2MIMModel(family_config("convnext", image_size=32))
        probe = LinearProbe.from_encoder(model, layer=0, id2label=NAMES)
        args = TrainingArguments(
            folder,
            num_train_epochs=20,
            per_device_train_batch_size=4,  # the last of each epoch is one image
            learning_rate=0.05,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **kwargs,
        )
        trainer = Trainer(probe, args, train_dataset=Colours(), eval_dataset=Colours())
        trainer.train(resume_from_checkpoint=resume)
        return probe, trainer.evaluate()["eval_loss"]

    whole, loss = run(tmp_path / "a", save_strategy="steps", save_steps=30)
    assert loss < 0.2  # a guess has ln 3
    again, _ = run(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-30"), save_strategy="no")
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
