"""Links of a page to files outside of docs/ (figures, results, cards) work on the site, too: the files are added to it
at their path in the repository."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(\]\()\.\./([^)#\s]+)")
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")


def on_files(files, config):
    for page in sorted(Path(config.docs_dir).glob("*.md")):
        for _, path in LINK.findall(page.read_text(encoding="utf-8")):
            source = ROOT / path
            if source.is_file() and files.get_file_from_path(path) is None:
                files.append(File.generated(config, posixpath.normpath(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    if "/" not in page.file.src_uri:
        return LINK.sub(r"\1\2", markdown)
    return IMAGE.sub("", markdown)  # model cards show figures that only the published folder has
