"""`page.neighbors`: what is found, and that vectors, model and images belong together."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from modeling_a2mim.page.neighbors import NeighborIndex, NeighborsTab

from .pages import write_embeddings


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vectors(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors.parquet"
    return write_embeddings(str(folder / "vit"), str(folder / "gallery"), path)


def index_of(folder, vectors, *models, images=None):
    return NeighborIndex(vectors, [str(images or folder / "gallery")], [str(folder / m) for m in models], models)


def test_an_image_is_its_own_neighbor(folder, vectors):
    index = index_of(folder, vectors, "resnet", "vit")
    assert index.model == "vit"
    for number, name in enumerate(index.files):
        _, _, near = index.find(str(folder / "gallery" / name), 3)
        assert near[0] == (number, pytest.approx(1, abs=1e-5))
        assert near[0][1] >= near[1][1] >= near[2][1]
    assert len(index.find(str(folder / "image.png"), 48)[2]) == 6


def test_what_the_tab_shows(folder, vectors):
    tab = NeighborsTab(index_of(folder, vectors, "vit"))
    seen, made = tab.run(str(folder / "gallery" / "<b>&.png"), 4.0)
    assert seen.size == (256, 256)
    captions = re.findall("<figcaption>(.*?)</figcaption>", made)
    assert len(captions) == 4
    assert captions[0] == "1.000 &lt;b&gt;&amp;.png"
    assert "<b>" not in made
    empty, made = tab.run(str(folder / "broken.png"), 4)
    assert empty is None
    assert "broken.png: opening: " in made


def test_thumbnails(folder, vectors, tmp_path):
    shutil.copytree(folder / "gallery", tmp_path / "gallery")
    index = index_of(folder, vectors, "vit", images=tmp_path / "gallery")
    np.testing.assert_array_equal(index.thumbnail(1), Image.open(tmp_path / "gallery" / index.files[1]))
    (tmp_path / "gallery" / index.files[1]).write_bytes(b"broken since")
    assert np.unique(np.asarray(index.thumbnail(1))).tolist() == [128]


def test_embeddings_of_another_model(folder, vectors, tmp_path):
    with pytest.raises(ValueError, match=r"^embeddings: .* with the model vit, test_vit; none .* resnet \(other weig"):
        index_of(folder, vectors, "resnet")
    other = write_embeddings(str(folder / "vit"), str(folder / "gallery"), tmp_path / "a.parquet", transform="0")
    with pytest.raises(ValueError, match=r"^embeddings: .*vit \(other transform\)"):
        index_of(folder, other, "vit")
    other = write_embeddings(str(folder / "vit"), str(folder / "gallery"), tmp_path / "b.parquet", layer="cls")
    with pytest.raises(ValueError, match=r"resnet \(layer: test_resnet has no class token"):
        index_of(folder, other, "resnet")


def test_other_images(folder, vectors, tmp_path):
    shutil.copytree(folder / "gallery", tmp_path / "fewer")
    (tmp_path / "fewer" / "4.png").unlink()
    with pytest.raises(ValueError, match=r"^images: 1 of 6 images of .* are not there, such as 4.png; name them as"):
        index_of(folder, vectors, "vit", images=tmp_path / "fewer")
    shutil.copytree(folder / "gallery", tmp_path / "others")
    first = index_of(folder, vectors, "vit").files[0]
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "others" / first)
    with pytest.raises(ValueError, match=f"^images: {first} is another image than the one of that name"):
        index_of(folder, vectors, "vit", images=tmp_path / "others")
