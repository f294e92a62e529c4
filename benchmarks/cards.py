"""Write the cards in `model_cards/`: of the converted official releases, and of what `make demo` left in `demo/`.

    python benchmarks/cards.py [--demo demo]

No official file is needed: a card depends on the names and shapes of the weights, which `tests/official.py` generates.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CARDS = ROOT / "model_cards"

from modeling_a2mim.conversion.checkpoint import Official  # noqa: E402
from modeling_a2mim.conversion.config import official_config  # noqa: E402
from modeling_a2mim.encoders.meta import NoValues  # noqa: E402
from modeling_a2mim.export.model_card import model_card  # noqa: E402
from modeling_a2mim.modeling_a2mim import A2MIMForPreTraining  # noqa: E402
from modeling_a2mim.models.classifier import A2MIMForImageClassification  # noqa: E402
from tests import official  # noqa: E402


# name -> (names and shapes of the encoder, width of the token, whether there is a gamma)
RELEASES = {
    "a2mim-r50": (official.resnet((3, 4, 6, 3)), 1024, True),
    "a2mim-r101": (official.resnet((3, 4, 23, 3)), 1024, True),
    "a2mim-r152": (official.resnet((3, 8, 36, 3)), 1024, True),
    "a2mim-r200": (official.resnet((3, 24, 36, 3)), 1024, True),
    "a2mim-convnext-s": (official.convnext((3, 3, 27, 3), 96), 768, True),
    "a2mim-convnext-b": (official.convnext((3, 3, 27, 3), 128), 1024, True),
    "a2mim-vit-s": (official.vit(768, 8, 8, 2304), 768, False),
    "a2mim-vit-b": (official.vit(768, 12, 12), 768, False),
    "a2mim-vit-l": (official.vit(1024, 24, 16), 1024, False),
}
FINE_TUNED = ("a2mim-r50", "a2mim-convnext-s", "a2mim-vit-b")


def card(name: str, fine_tuned: bool):
    keys, width, gamma = RELEASES[name]
    with torch.device("meta"), NoValues():
        encoder = {key: torch.empty(shape) for key, shape in keys.items()}
        if fine_tuned:
            encoder = {re.sub("^ln1", "fc_norm", key): value for key, value in encoder.items()}  # of ViTs
            config = official_config(encoder, num_labels=1000)
            model = Official(A2MIMForImageClassification(config), "fine-tuned classifier", "A2MIM")
            return model_card(model.model, model.record, f"ORG/{name}-ft")
        config = official_config(encoder, torch.empty(width), gamma)
        model = Official(A2MIMForPreTraining(config), "pre-training checkpoint", "A2MIM")
        return model_card(model.model, model.record, f"ORG/{name}", ["pretraining/config.json"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="the output folder of `make demo`")
    args = parser.parse_args()
    for name in RELEASES:
        card(name, False).save(CARDS / f"{name}.md")
    for name in FINE_TUNED:
        card(name, True).save(CARDS / f"{name}-ft.md")
    for kind in ("encoder", "classifier"):
        shutil.copy(args.demo / kind / "README.md", CARDS / f"demo-{kind}.md")


if __name__ == "__main__":
    main()
