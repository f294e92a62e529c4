import pytest

from .pages import write_files, write_gallery, write_models


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """Models, files to upload, and images to find among."""
    folder = tmp_path_factory.mktemp("page")
    write_models(folder)
    write_files(folder)
    write_gallery(folder / "gallery")
    return folder
