"""What is decompressed once."""

from pathlib import Path

import pytest

from modeling_a2mim.data.formats.cache import as_data_files, decompressed

from ...image_files import encoded, numbers, write_images, write_tar


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tars(tmp_path, kind):
    members = [(f"{n}.png", encoded(n)) for n in range(5)] + [(f"{n}.cls", b"%d" % (n % 2)) for n in range(5)]
    archive = write_tar(tmp_path / "d" / f"a.tar.{kind}", members, f"w:{kind}")
    labelled = (["0", "1"], [(n, n % 2) for n in range(5)])
    assert numbers(labels=True, train_dir=[str(archive.parent)]) == labelled
    hidden = archive.rename(archive.parent / "a.tar")  # by how it begins
    assert numbers(labels=True, dataset_name=[str(hidden)]) == labelled
    with pytest.raises(ValueError, match=r"a\.tar is compressed as a whole.*leave --streaming out"):
        numbers(train_dir=[str(hidden)], streaming=True)
    hidden.write_bytes(hidden.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.tar: cannot be decompressed"):
        decompressed([str(hidden)])


def test_names_with_signs_of_patterns_and_urls_are_files(tmp_path):
    plain, chained = (write_images(tmp_path, ["a[1].png", "k::v/b::c.png"]) / n for n in ("a[1].png", "k::v/b::c.png"))
    [first, second] = as_data_files({"train": [str(plain), str(chained)]})["train"]
    assert first == str(plain)
    assert "::" not in second
    assert Path(second).read_bytes() == chained.read_bytes()
    url = "https://host/a::b.png"
    assert as_data_files({"train": [url]})["train"] == [url]
