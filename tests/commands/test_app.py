"""The page for reconstructions: what it computes, and the Space as a user sees it in a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.commands.app import build_app, main, reconstruct_file
from modeling_a2mim.export.folder import export_model

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "model_cards" / "space"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, an image, and a file that is none."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("app")
    for family in ("vit", "resnet"):
        export_model(A2MIMForPreTraining(family_config(family)), folder / family)
    pixels = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


def test_images_of_a_file(folder):
    named = load_model(str(folder / "vit"), kind="pretraining")
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


def test_no_models(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(folder / "nothing")])
    assert stopped.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


def test_two_models_of_one_name(folder):
    pytest.importorskip("gradio")
    named = load_model(str(folder / "vit"), kind="pretraining")
    for named_models in ([], [named, named]):
        with pytest.raises(ValueError, match="^models: expected one or more, each with its own name"):
            build_app(named_models)


def test_files_of_the_space():
    """What the Hub reads of a Space, and that it asks for models before anything else."""
    _, front, text = (SPACE / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio"
    assert (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    assert "A2MIM_MODELS" in text
    assert (SPACE / "requirements.txt").read_text() == "a2mim[app]\n"
    run = subprocess.run([sys.executable, str(SPACE / "app.py")], env=environment(), capture_output=True, text=True)
    assert run.returncode == 1
    assert "set the variable A2MIM_MODELS" in run.stderr


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "A2MIM_MODELS"}
    return {**own, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def address(folder):
    """The Space of two models, as its app.py starts it."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = f"{folder / 'vit'} {folder / 'resnet'}"
    command = [sys.executable, str(SPACE / "app.py")]
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment(A2MIM_MODELS=models, GRADIO_SERVER_PORT=str(port)), stdout=file, stderr=file
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def page(address):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium here")  # a browser is no package of PyPI; all but the page itself is tested above
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(address, wait_until="domcontentloaded")
        yield page
        opened.close()


@pytest.mark.slow  # 20 seconds to start the Space
def test_in_a_browser(page, folder):
    """Without an image it says so; with one the four images appear, and others when a setting changes."""
    said = page.get_by_text("dB and SSIM")
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text("Upload an image first.").wait_for()
    page.locator("input[type=file]").first.set_input_files(str(folder / "image.png"))
    said.wait_for()
    first = said.inner_text()
    named = load_model(str(folder / "vit"), kind="pretraining")
    _, quality = reconstruct_file(named, str(folder / "image.png"), 0.6, 0)
    assert f"PSNR {quality['psnr']:.1f} dB and SSIM {quality['ssim']:.2f}" in first
    for label in ("original", "masked", "reconstruction", "pasted"):
        picture = page.locator(".block", has=page.get_by_text(label, exact=True)).locator("img").last
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") == 256
    ratio = page.get_by_label("number input for mask ratio")
    ratio.fill("0.2")
    ratio.press("Enter")
    page.get_by_role("button", name="Reconstruct").click()
    page.wait_for_function("before => !document.body.innerText.includes(before)", arg=first)
    said.wait_for()
    _, quality = reconstruct_file(named, str(folder / "image.png"), 0.2, 0)
    page.get_by_text(f"PSNR {quality['psnr']:.1f} dB and SSIM {quality['ssim']:.2f}").wait_for()
    page.get_by_label("model").click()
    page.get_by_role("option", name="resnet").click()
    other = load_model(str(folder / "resnet"), kind="pretraining")
    _, quality = reconstruct_file(other, str(folder / "image.png"), 0.2, 0)
    page.get_by_text(f"PSNR {quality['psnr']:.1f} dB and SSIM {quality['ssim']:.2f}").wait_for()
