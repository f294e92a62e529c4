"""The configuration: presets, validation, and what survives a file."""

import pytest
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import AutoConfig

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.arguments.dense import DenseModelArguments
from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.models.detection import A2MIMDetectorConfig
from modeling_a2mim.tasks.encoder import build_backbone, build_classifier


# Another value than the default for every field
OTHER = {
    "architecture": "test_resnet",
    "model_args": {"zero_init_last": False, "layers": [1, 1, 1, 1]},
    "image_size": [64, 96],
    "num_channels": 2,
    "image_mean": [0.1, 0.2],
    "image_std": [0.3, 0.4],
    "value_range": {"low": [16.0, 0.0], "high": [4059.0, 1.5], "clip": False},
    "channels": [4, 2],
    "pages": "first",
    "display_channels": [2],
    "mask_ratio": 0.5,
    "mask_patch_size": [16, 32],
    "mask_fill": "zero",
    "mask_site": "layer2",
    "mask_token_mode": "replace",
    "mask_gamma_init": None,
    "decoder": "multiscale",
    "decoder_kernel_size": 3,
    "decoder_norm": False,
    "target": "normalised",
    "spatial_loss": "l1",
    "frequency_loss_weight": 0.25,
    "frequency_focal": False,
    "frequency_replacement": "target",
    "frequency_unmasked_weight": 0.125,
    "frequency_batch_average": False,
    "feature_pyramid": True,
    "crop_pct": 0.875,
    "initializer_range": 0.01,
}
RESNET = {
    "mask_fill": "mean",
    "mask_site": None,
    "mask_token_mode": "add",
    "mask_gamma_init": 1e-6,
    "spatial_loss": "focal_l1",
    "frequency_loss_weight": 0.5,
    "frequency_unmasked_weight": 1e-3,
    "frequency_replacement": "mixed",
    "frequency_batch_average": True,
    "image_size": 224,
    "mask_patch_size": 32,
    "mask_ratio": 0.6,
    "model_args": {},
}
PLAIN = {"mask_gamma_init": None, "spatial_loss": "l1"}
# Section 2 of the official settings: what differs from the ResNets
PRESETS = {
    "resnet": ("resnet50", {}),
    "convnext": ("convnext_small", {"mask_site": "stages.3.downsample", "frequency_loss_weight": 0.0}),
    "vit": ("vit_base_patch16_224", {**PLAIN, "frequency_loss_weight": 0.1, "frequency_unmasked_weight": 0.0}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            **PLAIN,
            "mask_site": "patch_embed",
            "frequency_unmasked_weight": 0.0,
            "image_size": 192,
            "model_args": {"window_size": 6},
        },
    ),
    "simmim": (
        "vit_base_patch16_224",
        {
            **PLAIN,
            "mask_fill": "none",
            "mask_site": "stem",
            "mask_token_mode": "replace",
            "frequency_loss_weight": 0.0,
        },
    ),
}
BAD = [
    ("architecture", "resnet5o"),
    ("architecture", 5),
    ("architecture", None),
    ("model_args", ["depth"]),
    *(("model_args", {name: 1}) for name in ("num_classes", "in_chans", "img_size", "pretrained", "features_only")),
    *(("num_channels", value) for value in (0, -1, 1.5, True, None)),
    *(("image_mean", value) for value in ([0.5], "abc", [0.5, 0.5, float("nan")], 0.5)),
    *(("image_std", value) for value in ([0.5], [0.5, 0.5, 0], [0.5, 0.5, -1], [0.5, 0.5, True])),
    ("image_mean", [-0.1, 0.5, 0.5]),
    *(("image_size", value) for value in (0, -224, 1.5, True, None, "224", [224], [224, 224, 3], [224, 0])),
    *(("mask_patch_size", value) for value in (0, -32, 1.5, True, "32", [32], [32, 32, 3], 30, [32, 30], 448)),
    *(("mask_ratio", value) for value in (0, 1, -0.1, 1.1, "0.6", None, True, float("nan"), 0.999)),
    *(("mask_fill", value) for value in ("noise", None, ["mean"])),
    *(("mask_site", value) for value in (1.5, True, ["layer3"])),
    *(("mask_token_mode", value) for value in ("multiply", None)),
    *(("mask_gamma_init", value) for value in ("1e-6", float("inf"), float("nan"), True)),
    *(("decoder_kernel_size", value) for value in (0, 2, -1, True, 1.0)),
    *(("decoder_norm", value) for value in (1, None, "yes")),
    *(("target", value) for value in ("normalized", "hog", None)),
    *(("spatial_loss", value) for value in ("l2", None)),
    *(("frequency_loss_weight", value) for value in (-0.5, float("inf"), None, True)),
    *(("frequency_focal", value) for value in (0, None, "no")),
    *(("frequency_replacement", value) for value in ("detach", None)),
    *(("frequency_unmasked_weight", value) for value in (-1e-3, 1.5, None)),
    *(("frequency_batch_average", value) for value in (1, None)),
    *(("crop_pct", value) for value in (0, 1.1, None, "all")),
    *(("initializer_range", value) for value in (-0.02, None, float("nan"))),
]


@pytest.mark.parametrize(
    ("field", "values", "hint"),
    [
        ("image_mean", [123.675, 116.28, 103.53], "of pixels of 0-255, divide by 255: 0.485, 0.456, 0.406"),
        ("image_std", [58.395, 57.12, 57.375], "of pixels of 0-255, divide by 255: 0.229, 0.224, 0.225"),
        ("image_mean", [0.2, 0.9, 1.5], "of pixels of 0-255, divide by 255: 0.0007843, 0.003529, 0.005882"),
        ("image_std", [12000, 11000, 9000.5], "of pixels of 0-65535, divide by 65535: 0.1831, 0.1678, 0.1373"),
    ],
)
def test_means_of_pixels_that_are_not_in_0_to_1(field, values, hint):
    message = rf"^{field}: is of pixels in \[0, 1\], got \[.*; if these are {hint}$"
    with pytest.raises(ValueError, match=message):
        A2MIMConfig(**{field: values})


def test_means_at_the_ends_of_their_range():
    """Such as of models that were trained on pixels in [0, 1] as they are."""
    unclipped = {"low": [0.0], "high": [100.0], "clip": False}
    config = A2MIMConfig(image_mean=[-2, 0, 3], image_std=[1, 2, 3], value_range=unclipped)
    assert config.image_mean == [-2, 0, 3]
    with pytest.raises(ValueError, match="^image_mean: is of pixels in"):
        A2MIMConfig(image_mean=[-2, 0, 3], value_range=unclipped | {"clip": True})
    with pytest.raises(ValueError, match="^image_std: must be positive"):
        A2MIMConfig(image_std=[1, 0, 3], value_range=unclipped)
    config = A2MIMConfig(num_channels=2, image_mean=[0, 1], image_std=[1, 1 / 255])
    assert (config.image_mean, config.image_std) == ([0, 1], [1, 1 / 255])


def test_other_values_cover_every_field():
    default = A2MIMConfig()
    assert list(OTHER) == list(A2MIMConfig.__annotations__)
    assert [name for name in OTHER if getattr(default, name) == OTHER[name]] == []


@pytest.mark.parametrize("load", [A2MIMConfig.from_pretrained, AutoConfig.from_pretrained])
def test_file_round_trip(load, tmp_path):
    config = A2MIMConfig(**OTHER)
    config.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is A2MIMConfig
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert {name: getattr(again, name) for name in OTHER} == OTHER


def test_defaults_survive_a_file(tmp_path):
    A2MIMConfig().save_pretrained(tmp_path)
    assert A2MIMConfig.from_pretrained(tmp_path).to_dict() == A2MIMConfig().to_dict()


def test_pairs_survive_a_file(tmp_path):
    config = A2MIMConfig(image_size=(64, 96), mask_patch_size=(16, 32))
    config.save_pretrained(tmp_path)
    again = A2MIMConfig.from_pretrained(tmp_path)
    assert (again.input_size, again.mask_cell_size, again.mask_grid) == ((64, 96), (16, 32), (4, 3))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    architecture, different = PRESETS[name]
    preset = getattr(A2MIMConfig, name)
    config = preset()
    assert config.architecture == architecture
    assert {field: getattr(config, field) for field in RESNET} == {**RESNET, **different}
    # What is given wins over what is preset.
    given = preset(architecture, frequency_loss_weight=0.75, mask_site=1, spatial_loss="l1", frequency_focal=False)
    expected = {**RESNET, **different, "frequency_loss_weight": 0.75, "mask_site": 1, "spatial_loss": "l1"}
    assert {field: getattr(given, field) for field in RESNET} == expected
    assert given.frequency_focal is False


def test_swin_window():
    assert A2MIMConfig.swin(model_args={"window_size": 4, "ape": True}).model_args == {"window_size": 4, "ape": True}
    assert A2MIMConfig.swin(model_args={"ape": True}).model_args == {"window_size": 6, "ape": True}
    assert A2MIMConfig.swin(image_size=224).model_args == {}


def test_swin_window_for_a_pair():
    assert A2MIMConfig.swin(image_size=(192, 192)).model_args == {"window_size": 6}


@pytest.mark.parametrize(("architecture", "family"), [("test_vit", "vit"), ("test_resnet", "resnet")])
def test_for_architecture(architecture, family):
    kwargs = {"image_size": 64, "mask_patch_size": 16}
    config = A2MIMConfig.for_architecture(architecture, **kwargs)
    assert config.to_dict() == getattr(A2MIMConfig, family)(architecture, **kwargs).to_dict()
    assert (config.spatial_loss, config.input_size) == ({"vit": "l1", "resnet": "focal_l1"}[family], (64, 64))


def test_for_architecture_takes_what_the_preset_takes():
    config = A2MIMConfig.for_architecture("test_vit", mask_token_mode="replace")
    assert config.to_dict() == A2MIMConfig.vit("test_vit", mask_token_mode="replace").to_dict()


@pytest.mark.parametrize(
    ("size", "grid"), [(224, (2, 2)), (49, (7, 7)), (7, (7, 7)), ((64, 99), (2, 3)), ([15, 2], (3, 2))]
)
def test_for_encoder(size, grid):
    """The coarsest mask that has more than one cell each way fits every size."""
    config = A2MIMConfig.for_encoder(architecture="test_resnet", image_size=size, num_labels=5)
    assert (config.architecture, config.num_labels) == ("test_resnet", 5)
    assert config.mask_grid == grid
    assert config.input_size == ((size, size) if isinstance(size, int) else tuple(size))


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_values(field, value):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        A2MIMConfig(**{field: value})


def test_messages_help():
    with pytest.raises(ValueError, match="did you mean resnet50"):
        A2MIMConfig(architecture="resnet5o")
    with pytest.raises(ValueError, match=r"sizes that do: .*\b28, 32\b"):
        A2MIMConfig(mask_patch_size=30)
    with pytest.raises(ValueError, match="use `num_labels` instead"):
        A2MIMConfig(model_args={"num_classes": 10})
    with pytest.raises(ValueError, match=r"^mask_gamma_init: must be None wh\w+ mask_token_mode is '?replace"):
        A2MIMConfig(mask_token_mode="replace")


@pytest.mark.parametrize(("slip", "field"), [("mask_ration", "mask_ratio"), ("mask_patchsize", "mask_patch_size")])
def test_slips_of_the_pen(slip, field):
    with pytest.raises(ValueError, match=rf"^{slip}: .*did you mean `{field}`"):
        A2MIMConfig(**{slip: 0.5})


@pytest.mark.parametrize(("field", "value"), [("mask_ratio", 2.0), ("mask_ration", 0.5)])
def test_bad_values_beside_a_file(field, value, tmp_path):
    A2MIMConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{field}: "):
        A2MIMConfig.from_pretrained(tmp_path, **{field: value})


def test_other_keywords_are_kept(tmp_path):
    A2MIMConfig(dataset="leaves").save_pretrained(tmp_path)
    assert A2MIMConfig.from_pretrained(tmp_path).dataset == "leaves"


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(1, [0.5], [0.5]), (3, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)), (4, [0.5] * 4, [0.5] * 4)],
)
def test_mean_and_std_of_images(channels, mean, std):
    config = A2MIMConfig(num_channels=channels)
    assert (config.image_mean, config.image_std) == (mean, std)


@pytest.mark.parametrize(
    ("size", "cell", "ratio", "grid", "masked"),
    [
        (224, 32, 0.6, (7, 7), 30),
        (192, 32, 0.6, (6, 6), 22),
        (64, 16, 0.5, (4, 4), 8),  # a whole number is not rounded up
        ((64, 96), 16, 0.1, (4, 6), 3),
        ([64, 96], [32, 16], 0.9, (2, 6), 11),
        ((32, 64), 32, 0.01, (1, 2), 1),
    ],
)
def test_number_of_masked_cells(size, cell, ratio, grid, masked):
    config = A2MIMConfig(image_size=size, mask_patch_size=cell, mask_ratio=ratio)
    assert (config.mask_grid, config.num_masked) == (grid, masked)
    assert config.input_size == ((size, size) if isinstance(size, int) else tuple(size))
    assert config.mask_cell_size == ((cell, cell) if isinstance(cell, int) else tuple(cell))


def test_labels_are_kept(tmp_path):
    names = {0: "oak", 1: "elm", 2: "fir"}
    A2MIMConfig(id2label=names, label2id={v: k for k, v in names.items()}).save_pretrained(tmp_path)
    config = A2MIMConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.id2label, config.label2id) == (3, names, {"oak": 0, "elm": 1, "fir": 2})


@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "resnet10t.my_tag", "resnet10t.", "timm/resnet10t.c3_in1k"])
def test_names_of_weights_are_no_architectures(name):
    """A new encoder under the name of trained weights would have none of them."""
    message = "names weights of timm, which a configuration does not hold; it is of resnet10t ("
    message = "a folder or repository with weights is named by --model_name_or_path" if "/" in name else message
    makes = [A2MIMConfig, A2MIMConfig.for_architecture, A2MIMConfig.simmim, A2MIMConfig.for_encoder]
    makes += [A2MIMDetectorConfig]
    for make in makes:
        with pytest.raises(ValueError, match=f"^architecture: '{name}' ") as error:
            make(architecture=name)
        assert message in str(error.value)
    with pytest.raises(
        ValueError, match=f"^architecture: ('{name}' |the weights {name} of timm|timm has no weights {name}; )"
    ):
        build_classifier(ClassifierArguments(architecture=name), ["a", "b"])
    with pytest.raises(ValueError, match=f"^architecture: '{name}' "):
        build_backbone(DenseModelArguments(architecture=name))


def test_files_that_name_weights_are_read(tmp_path):
    """Earlier versions took such names: what was trained since is in the file."""
    A2MIMConfig(architecture="resnet10t").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"resnet10t"', '"resnet10t.c3_in1k"'))
    assert A2MIMConfig.from_pretrained(tmp_path).architecture == "resnet10t"
