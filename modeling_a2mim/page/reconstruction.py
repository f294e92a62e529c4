"""The tab that shows what pre-training models reconstruct of an image."""

from collections.abc import Mapping
from typing import Any, cast

from PIL import Image

from ..analysis.comparison import NamedModel
from ..analysis.reconstruction import COLUMNS, reconstruct, reconstruction_quality, with_mask_ratio
from ..data.transforms import PreTrainTransform, seeded
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.plotting import to_pil_image
from .uploads import SHOWN_IMAGE, answer, enlarged, note


EXPLANATION = (
    "Patches of the image are hidden at random and filled with its mean colour; the model guesses what was there. "
    "Higher mask ratios leave it less to see, another seed hides other patches."
)
GIVEN = {"pixels": "", "normalised": " (the model is given the mean and the deviation of each patch)"}
LEAST, MOST = 0.05, 0.95  # mask ratio
MOST_SEEDS = 1000


def reconstruct_file(
    named: NamedModel, file: str, mask_ratio: float, seed: int
) -> tuple[list[Image.Image], dict[str, float]]:
    """The images of `COLUMNS`, of Pillow, and PSNR and SSIM.

    Raises:
        ValueError: if the file is no image, or the mask ratio hides all or nothing.
    """
    model = cast(A2MIMForPreTraining, named.model)
    transform = PreTrainTransform(with_mask_ratio(model.config, mask_ratio), train=False)
    with seeded(seed):
        sample = transform(file)
    pixels, mask = sample["pixel_values"][None], sample["bool_masked_pos"][None]
    images = reconstruct(model, pixels, mask)
    like = None if model.config.value_range is None else images["original"][0]
    looks: dict[str, Any] = {"channels": model.config.display_channels, "like": like}
    shown = [enlarged(to_pil_image(images[name][0], **looks)) for name in COLUMNS]
    return shown, reconstruction_quality(images, mask)[0]


class ReconstructTab:
    """What is shown below "Reconstruct".

    Args:
        models: pre-training models by name, the first one chosen.
    """

    name = "Reconstruct"

    def __init__(self, models: Mapping[str, NamedModel]):
        self.models = models

    def build(self, upload: Any):
        """Put the components into the tab that is open now.

        Args:
            upload: the component of the file; what is uploaded is shown in all tabs, whichever is looked at.
        """
        import gradio as gr

        names = list(self.models)
        first = cast(A2MIMForPreTraining, self.models[names[0]].model).config.mask_ratio
        gr.HTML(note(EXPLANATION), padding=False)
        with gr.Row():
            model = gr.Dropdown(names, value=names[0], label="model", elem_id="reconstruct-model")
            ratio = gr.Slider(LEAST, MOST, value=first, step=0.05, label="mask ratio")
            seed = gr.Slider(0, MOST_SEEDS, value=0, step=1, label="seed")
        images = []
        for pair in (COLUMNS[:2], COLUMNS[2:]):
            with gr.Row():
                images += [gr.Image(label=name, **SHOWN_IMAGE, min_width=120) for name in pair]
        quality = gr.HTML(note("Upload an image."), padding=False)

        inputs, outputs = [upload, model, ratio, seed], [*images, quality]

        gr.on(
            [upload.change, model.change, ratio.change, seed.change],
            self.run,
            inputs,
            outputs,
            trigger_mode="always_last",
            api_name="reconstruct",
        )

    def run(self, file: str | None, name: str, mask_ratio: float, seed: float) -> list[Any]:
        """The four images, and their quality or what is wrong, as HTML."""

        def shown(file: str) -> list[Any]:
            images, quality = reconstruct_file(self.models[name], file, mask_ratio, int(seed))
            given = GIVEN[cast(A2MIMForPreTraining, self.models[name].model).config.target]
            text = (
                f"PSNR {quality['psnr']:.1f} dB and SSIM {quality['ssim']:.2f} of the pasted image, "
                f"PSNR {quality['masked_psnr']:.1f} dB of its masked pixels{given}"
            )
            return [*images, note(text)]

        return answer(file, shown, [None] * len(COLUMNS))
