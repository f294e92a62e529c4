"""A page that shows what pre-trained models reconstruct of an image that is uploaded.

    python -m modeling_a2mim.app MODEL [MODEL ...]

needs gradio (`pip install 'a2mim[app]'`). `model_cards/space/` makes a Space of it.
"""

import argparse
from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image

from ..analysis.comparison import NamedModel, load_model
from ..analysis.reconstruction import COLUMNS, reconstruct, reconstruction_quality, with_mask_ratio
from ..data.transforms import PreTrainTransform, seeded
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.command import run_command
from ..utils.plotting import to_pil_image


TITLE = "A2MIM: what a masked image model sees"
EXPLANATION = (
    "Patches of the image are hidden at random and filled with its mean colour; the model guesses what was there. "
    "Higher mask ratios leave it less to see, another seed hides other patches."
)
LEAST, MOST = 0.05, 0.95  # mask ratio
MOST_SEEDS = 1000
SHOWN = 256  # pixels of the shorter side, to which small images are enlarged


def reconstruct_file(named: NamedModel, file: str, mask_ratio: float, seed: int) -> tuple[list, dict[str, float]]:
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
    shown = [to_pil_image(images[name][0]) for name in COLUMNS]
    scale = max(1, SHOWN // min(shown[0].size))
    size = [side * scale for side in shown[0].size]
    shown = [image.resize(size, Image.Resampling.NEAREST) for image in shown]
    return shown, reconstruction_quality(images, mask)[0]


def build_app(named_models: Sequence[NamedModel]):
    """The page, a `gradio.Blocks` that is not launched yet.

    Args:
        named_models: pre-training models (`load_model(..., kind="pretraining")`) to choose from, the first one chosen.

    Raises:
        ValueError: if there are none, or two have the same name.
    """
    import gradio as gr

    models = {named.name: named for named in named_models}
    if not named_models or len(models) < len(named_models):
        raise ValueError("models: expected one or more, each with its own name")
    first = cast(A2MIMForPreTraining, named_models[0].model).config.mask_ratio

    def run(file: str | None, name: str, mask_ratio: float, seed: float):
        if file is None:
            raise gr.Error("Upload an image first.", print_exception=False)
        try:
            shown, quality = reconstruct_file(models[name], file, mask_ratio, int(seed))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        words = (
            f"PSNR {quality['psnr']:.1f} dB and SSIM {quality['ssim']:.2f} of the pasted image, "
            f"PSNR {quality['masked_psnr']:.1f} dB of its masked pixels"
        )
        return *shown, words

    def update(file: str | None, *settings):
        return run(file, *settings) if file is not None else [gr.skip()] * (len(COLUMNS) + 1)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{EXPLANATION}")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.Image(type="filepath", label="image", sources=["upload", "clipboard"], height=260)
                model = gr.Dropdown(list(models), value=named_models[0].name, label="model")
                ratio = gr.Slider(LEAST, MOST, value=first, step=0.05, label="mask ratio")
                seed = gr.Slider(0, MOST_SEEDS, value=0, step=1, label="seed")
                button = gr.Button("Reconstruct", variant="primary")
            with gr.Column(scale=2):
                with gr.Row():
                    shown = [gr.Image(label=name, interactive=False, format="png") for name in COLUMNS[:2]]
                with gr.Row():
                    shown += [gr.Image(label=name, interactive=False, format="png") for name in COLUMNS[2:]]
                quality = gr.Markdown()
        inputs, outputs = [upload, model, ratio, seed], [*shown, quality]
        button.click(run, inputs, outputs, api_name="reconstruct")
        changes = [upload.change, model.change, ratio.release, seed.release]
        gr.on(changes, update, inputs, outputs, api_visibility="private")
    return page


def main(argv: list[str] | None = None):
    """Serve the page for the models that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_a2mim.app", description="A page that shows what pre-trained models reconstruct."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, or id on the Hub, of a pre-trained model")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines, too (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="make a public link through gradio's servers")
    run_command(parser, serve, argv)


def serve(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming what is missing."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError("the page needs gradio: pip install 'a2mim[app]'") from error
    named_models = [load_model(source, kind="pretraining") for source in args.models]
    for named in named_models:
        named.model.to(args.device)
    page = build_app(named_models)
    page.launch(server_name=args.host, server_port=args.port, share=args.share)
