"""What kind of predictions a trained model gives: classes or values of images, maps of classes, or objects."""

from pathlib import Path
from typing import Any, NamedTuple

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from ..analysis.comparison import SAFE
from ..configuration_a2mim import A2MIMConfig
from ..data.pixel_spec import PixelSpec
from ..models.detection import A2MIMDetectorConfig
from ..pretrained import CLASSIFIERS, find_file, folder_or_id, open_pretrained, plain_source
from ..utils.labels import label_names
from ..utils.value_range import ValueRange


CLASSIFIER, SEGMENTER, DETECTOR = "classifier", "segmenter", "detector"
ENDINGS = {  # of the names of transformers' classes
    "ForImageClassification": CLASSIFIER,
    "ForImageClassificationWithTeacher": CLASSIFIER,
    "ForSemanticSegmentation": SEGMENTER,
    "ForObjectDetection": DETECTOR,
}
DENSE = {SEGMENTER: AutoModelForSemanticSegmentation, DETECTOR: AutoModelForObjectDetection}


class TrainedModel(NamedTuple):
    """A model whose weights are not read yet.

    Args:
        source: its folder, or its id on the Hub.
        kind: "classifier" (regressions among them), "segmenter" or "detector".
        config: of transformers.
        hub_kwargs: `revision`, `token`.
        value_range, pages: of stored images (`PixelSpec`), in place of what the model keeps.
    """

    source: str
    kind: str
    config: PreTrainedConfig
    hub_kwargs: dict[str, Any]
    value_range: ValueRange | None = None
    pages: str | None = None

    @property
    def name(self) -> str:
        """What to call it where it is written down: without the folders of this machine."""
        return Path(self.source).resolve().name if Path(self.source).exists() else self.source

    @property
    def spec(self) -> PixelSpec:
        """What it takes of an image, as far as its configuration says."""
        return PixelSpec.from_config(self.config).with_given(self.value_range, self.pages)

    def load_dense(self) -> tuple[PreTrainedModel, Any]:
        """A segmenter or detector, and its image processor. No code of a repository is run, no pickle is read.

        Raises:
            ValueError: naming `model`, if it cannot be loaded.
        """
        PixelSpec.from_config(self.config).with_given(self.value_range, self.pages, say=True)
        try:
            model = DENSE[self.kind].from_pretrained(self.source, config=self.config, **SAFE, **self.hub_kwargs)
            return model.eval(), AutoImageProcessor.from_pretrained(self.source, **self.hub_kwargs)
        except (OSError, ValueError) as error:
            raise ValueError(f"model: {self.source} cannot be loaded: {error}") from error


def find_model(
    source: str, value_range: ValueRange | None = None, pages: str | None = None, **hub_kwargs: Any
) -> TrainedModel:
    """What is in a folder or a repository of the Hub, by its configuration. `hub_kwargs`: `revision`, `token`.
    `value_range`, `pages`: as `TrainedModel`.

    Raises:
        ValueError: naming `model`, if there is none, or none that predicts what is known here.
    """
    source = folder_or_id(plain_source(str(source)))
    try:
        if find_file(source, "config.json", **hub_kwargs) is None:
            raise no_head(source, open_pretrained(source, **hub_kwargs).what)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_kwargs)
    except (OSError, ValueError) as error:
        message = str(error).removeprefix("model_name_or_path: ").removeprefix("model: ")
        raise ValueError(f"model: {message}") from error
    kind = None
    if isinstance(config, A2MIMDetectorConfig):
        kind = DETECTOR
    elif isinstance(config, TimmWrapperConfig | A2MIMConfig):
        found = open_pretrained(source, **hub_kwargs)
        if found.kind not in CLASSIFIERS:
            raise no_head(source, found.what)
        kind = CLASSIFIER
    else:
        architecture = (config.architectures or [""])[0]
        _, word, rest = architecture.partition("For")
        kind = ENDINGS.get(word + rest)
        if kind is None and word and rest not in ("MaskedImageModeling", "PreTraining"):
            raise ValueError(
                f"model: {source} is {architecture} of transformers, whose predictions are not known here; there are "
                f"those of {', '.join(dict.fromkeys(ENDINGS.values()))}s"
            )
        if kind is None:
            raise no_head(source, f"{architecture or config.model_type} of transformers")
    return TrainedModel(source, kind, config, hub_kwargs, value_range, pages)


def no_head(source: str, what: str) -> ValueError:
    """What to say of an encoder alone."""
    return ValueError(
        f"model: {source} holds {what}, which predicts nothing: give it a head and train that with `a2mim finetune`, "
        "or write down its features with `a2mim embed`"
    )


def unique_names(config: PreTrainedConfig) -> list[str]:
    """The names of the classes; of those that several have (ImageNet has two cranes), each with its number."""
    names = label_names(config)
    while len({*names}) < len(names):  # a name with its number may be that of another class
        names = [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return names
