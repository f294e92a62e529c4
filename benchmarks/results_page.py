"""Put the tables of benchmarks/results/ where the documentation shows them: behind each line
`<!-- table: NAME -->`, the table of benchmarks/results/NAME.md.

    python benchmarks/results_page.py     # or make results
"""

import re
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: ([\w/]+)(?: (\d+))? -->\n)\n(?:\|.*\n)*\n?")


def table(name: str, number: int = 1) -> str:
    """The `number`-th table in a file of results, with a line's end behind each row."""
    text = (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(r"(?:^\|.*(?:\n|\Z))+", text, re.MULTILINE)[number - 1].rstrip("\n") + "\n"


def with_tables(text: str) -> str:
    """A page with the tables of today."""
    found = PLACE.sub(lambda place: f"{place[1]}\n{table(place[2], int(place[3] or 1))}\n", text)
    return found.rstrip("\n") + "\n"


def pages() -> list[Path]:
    """Those with tables of results."""
    return [path for path in sorted((ROOT / "docs").glob("*.md")) if PLACE.search(path.read_text(encoding="utf-8"))]


def main():
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := with_tables(text)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
