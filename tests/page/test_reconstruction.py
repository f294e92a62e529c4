"""`page.reconstruction`: the images of a file, and what the tab says of it."""

import numpy as np
import pytest

from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.page.reconstruction import ReconstructTab, reconstruct_file


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def named(folder):
    return load_model(str(folder / "vit"), kind="pretraining")


def test_images_of_a_file(named, folder):
    images, quality = reconstruct_file(named, str(folder / "image.png"), 0.5, 3)
    assert [image.size for image in images] == [(256, 256)] * 4
    assert quality.keys() == {"psnr", "masked_psnr", "mean_fill_psnr", "ssim"}
    original, masked, reconstruction, pasted = (np.asarray(image) for image in images)
    hidden = (original != masked).any(2)
    assert 0.45 < hidden.mean() < 0.55
    np.testing.assert_array_equal(pasted[~hidden], original[~hidden])
    np.testing.assert_array_equal(pasted[hidden], reconstruction[hidden])
    again, _ = reconstruct_file(named, str(folder / "image.png"), 0.5, 3)
    assert np.array_equal(again[1], masked)
    other, _ = reconstruct_file(named, str(folder / "image.png"), 0.5, 4)
    assert not np.array_equal(other[1], masked)
    for file, ratio, message in ((folder / "broken.png", 0.5, "broken"), (folder / "image.png", 0.999, "mask_ratio")):
        with pytest.raises(ValueError, match=message):
            reconstruct_file(named, str(file), ratio, 0)


def test_what_the_tab_says(named, folder):
    tab = ReconstructTab({"vit": named})
    *images, text = tab.run(str(folder / "image.png"), "vit", 0.5, 3.0)
    expected, quality = reconstruct_file(named, str(folder / "image.png"), 0.5, 3)
    assert all(np.array_equal(*pair) for pair in zip(images, expected, strict=True))
    assert f"PSNR {quality['psnr']:.1f} dB and SSIM {quality['ssim']:.2f}" in text
    *images, text = tab.run(str(folder / "broken.png"), "vit", 0.5, 0)
    assert images == [None] * 4
    assert "broken.png: opening: " in text
    assert "Upload an image." in tab.run(None, "vit", 0.5, 0)[4]
