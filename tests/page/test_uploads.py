"""`page.uploads`: what a model sees of a file, and messages in place of what cannot be shown."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.page.uploads import alert, answer, as_seen, enlarged, figures, note


pytestmark = pytest.mark.usefixtures("one_thread")


def test_nothing_in_a_text_is_html():
    for make in (note, alert):
        assert "&lt;script&gt;&amp;" in make("<script>&")


def test_answers(folder):
    empty = [None, None]
    assert answer("a.png", lambda file: (1, 2, file), empty) == [1, 2, "a.png"]
    assert answer(None, pytest.fail, empty) == [None, None, note("Upload an image.")]

    def fail(file):
        raise ValueError("no <image>")

    assert answer("/tmp/x/a.png", fail, empty) == [None, None, alert("a.png: no <image>")]
    gone = answer("/tmp/x/a.png", open, empty)[-1]
    assert "a.png: uploads are deleted after 15 minutes, and this one was; upload it again" in gone
    assert "/tmp" not in gone
    assert 'role="alert"' in answer(str(folder), open, empty)[-1]


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        answer("a.png", lambda file: 1 / 0, [])


@pytest.mark.parametrize("file", ["image.png", "alpha.png", "turned.jpg"])
def test_pixels_are_those_of_training(folder, file):
    named = load_model(str(folder / "vit"), kind="classifier")
    pixels, shown = as_seen(named.model, named.transform, str(folder / file))
    expected = named.transform({"bytes": (folder / file).read_bytes(), "path": None})["pixel_values"]
    assert torch.equal(pixels[0], expected)
    config = named.model.config
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (config.image_mean, config.image_std))
    expected = ((expected * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(shown)[::4, ::4], expected.numpy())


def test_broken_files(folder):
    named = load_model(str(folder / "vit"), kind="classifier")
    with pytest.raises(ValueError, match="broken header"):
        as_seen(named.model, named.transform, str(folder / "broken.png"))


def test_small_images_are_enlarged():
    assert enlarged(Image.new("L", (64, 100))).size == (256, 400)
    assert enlarged(Image.new("L", (300, 400))).size == (300, 400)


def test_figures_are_part_of_the_page():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    made = figures([(image, "0.5 <b>&.png")])
    assert "<figcaption>0.5 &lt;b&gt;&amp;.png</figcaption>" in made
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', made)
    assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(data))), image)
