import io

import numpy as np
import PIL.Image
import tifffile
from datasets import Dataset, Features, Image, Value

from modeling_a2mim.data.pages import PagesSource, with_pages
from modeling_a2mim.data.shards import ParquetSource
from modeling_a2mim.data.sources import DatasetSource, RowsOf


COUNTS = [1, 3, 2, 1, 4]


def rows():
    images = []
    for number, count in enumerate(COUNTS):
        file = io.BytesIO()
        frames = [PIL.Image.new("L", (5, 4), 20 * page) for page in range(count)]
        if number == 2:  # an animation
            frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
            images.append({"bytes": file.getvalue(), "path": f"{number}.tif"})
            continue
        with tifffile.TiffWriter(file) as writer:
            for page in range(count):
                writer.write(np.full((4, 5), 100 * number + page, np.uint16), photometric="minisblack")
        images.append({"bytes": file.getvalue(), "path": f"{number}.tif"})
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    return Dataset.from_dict({"image": images, "label": list(range(len(COUNTS)))}, features=features)


def places(source):
    found = source.read(list(range(len(source))))
    return [(label, image["page"]) for image, label in found]


EXPECTED = [(number, page) for number, count in enumerate(COUNTS) for page in range(count)]


def test_each_page_is_a_row():
    source = with_pages(DatasetSource(rows(), "volumes").select("image", "label"), 1)
    assert isinstance(source, PagesSource)
    assert places(source) == EXPECTED
    assert source.chunks.tolist() == [11]
    assert source.file_name(0) == "0.tif"
    assert source.file_name(3) == "1.tif, page 3"
    assert source.describe(4) == "page 1 of row 2 of volumes, 2.tif"
    again = source.read([10, 0, 9])
    assert [(label, image["page"]) for image, label in again] == [(4, 3), (0, 0), (4, 2)]
    assert places(RowsOf(source, [1, 4])) == [(1, 0), (2, 0)]


def test_rows_that_are_read_together(tmp_path):
    rows().to_parquet(str(tmp_path / "a.parquet"), batch_size=2)
    shards = ParquetSource("shards", [str(tmp_path / "a.parquet")])
    assert shards.chunks.tolist() == [2, 2, 1]
    source = with_pages(shards.select("image", "label"), 1)
    assert source.chunks.tolist() == [4, 3, 4]
    assert places(source) == EXPECTED
    assert source.fingerprint != shards.fingerprint


def test_nothing_to_tell_apart():
    data = rows().select([0, 3])
    source = DatasetSource(data, "images").select("image", "label")
    assert with_pages(source, 1) is source


def test_rows_of_files():
    source = with_pages(DatasetSource(rows(), "volumes").select("image", "label"), 1)
    assert source.rows_of([4, 0, 2]) == [7, 8, 9, 10, 0, 4, 5]
    assert [label for _, label in source.read(source.rows_of([1, 3]))] == [1, 1, 1, 3]
