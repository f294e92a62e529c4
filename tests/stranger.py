"""Run in a process of its own, without this package: loads repositories of a Hub as their users do, and tells what
came out.

    python stranger.py OUT REPOSITORY...

For each REPOSITORY, `REPOSITORY-classifier` is there too. Writes features and logits to OUT/REPOSITORY.safetensors,
and what else there is to say to OUT/told.json.
"""

import json
import sys
from pathlib import Path


sys.modules["modeling_a2mim"] = None  # importing it is an error

import timm  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import hf_hub_download  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)


def tensors_of(output, name: str) -> dict[str, torch.Tensor]:
    """All tensors in a nested output, by their place."""
    if isinstance(output, torch.Tensor):
        return {name: output}
    pairs = output.items() if isinstance(output, dict) else enumerate(output)
    return {key: tensor for place, value in pairs for key, tensor in tensors_of(value, f"{name}.{place}").items()}


def aligned(model):
    """safetensors hands out weights at odd addresses, where some kernels of a CPU round differently."""
    for parameter in [*model.parameters(), *model.buffers()]:
        parameter.data = parameter.data.clone()
    return model.eval()


def features_only(repository: str) -> str:
    """Whether timm's backbone of a repository has its weights."""
    backbone = timm.create_model(f"hf-hub:{repository}", pretrained=True, features_only=True)
    published = {
        (t.shape, t.sum().item()) for t in load_file(hf_hub_download(repository, "model.safetensors")).values()
    }
    missing = [n for n, t in backbone.named_parameters() if (t.shape, t.sum().item()) not in published]
    return f"not of the repository: {missing}" if missing else "same weights"


@torch.no_grad()
def load(repository: str) -> tuple[dict[str, torch.Tensor], dict]:
    told = {"type": AutoConfig.from_pretrained(repository).model_type}
    processor = AutoImageProcessor.from_pretrained(repository)
    model = aligned(AutoModel.from_pretrained(repository))
    channels, height, width = model.config.pretrained_cfg["input_size"]
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy()).convert("RGB" if channels == 3 else "L")
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    output = model(pixels)
    found = {"pixels": pixels, "pooled": output.pooler_output, **tensors_of(output.last_hidden_state, "last")}

    encoder = aligned(timm.create_model(f"hf-hub:{repository}", pretrained=True))
    found |= {"timm_pooled": encoder(pixels), **tensors_of(encoder.forward_features(pixels), "timm_last")}
    told["features_only"] = features_only(repository)

    classifier = aligned(AutoModelForImageClassification.from_pretrained(f"{repository}-classifier"))
    found["logits"] = classifier(pixels).logits
    told["labels"] = list(classifier.config.id2label.values())
    theirs = aligned(timm.create_model(f"hf-hub:{repository}-classifier", pretrained=True))
    found["timm_logits"] = theirs(pixels)
    if channels == 3:
        features = pipeline("image-feature-extraction", model=model, image_processor=processor, return_tensors=True)
        found |= tensors_of(features(image), "pipeline")
        answers = pipeline("image-classification", model=classifier, image_processor=processor)(image)
        told["answers"] = {answer["label"]: answer["score"] for answer in answers}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}, told


def main(out: Path, repositories: list[str]):
    torch.set_num_threads(1)
    told = {}
    for repository in repositories:
        found, told[repository] = load(repository)
        save_file(found, out / f"{repository.replace('/', '-')}.safetensors")
    (out / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
