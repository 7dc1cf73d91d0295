"""Every Python block of README.md and docs/ runs as printed, a page at a time, on a small data set.

A comment ``<!-- test: 224 -> 64; resnet50 -> resnet18 -->`` before a block says what is made smaller for the test.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import respipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r"(?:<!-- test: (?P<smaller>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def python_blocks(page: Path) -> Iterator[str]:
    """The Python of a page, each block at the lines where it stands."""
    text = page.read_text()
    for block in _BLOCK.finditer(text):
        if block["language"] != "python":
            continue
        code = block["text"]
        for change in (block["smaller"] or "").split("; "):
            if change:
                old, new = change.split(" -> ")
                assert old in code, f"{page.name}: nothing to make smaller in {old!r}"
                code = code.replace(old, new)
        yield "\n" * text.count("\n", 0, block.start("text")) + code


@pytest.fixture(scope="module")
def data(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: train.beton and val.beton, of the same 18 images in three classes."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("train.beton", "val.beton"):
        respipe.convert(jpeg_folder, folder / name, num_workers=0)
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(python_blocks(page))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_python_of_a_page_runs_as_printed(page: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    names: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for code in python_blocks(page):
            exec(compile(code, str(page), "exec", dont_inherit=True), names)


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists() and not (ROOT / "benchmarks" / target).exists()
    ]
    assert not broken
