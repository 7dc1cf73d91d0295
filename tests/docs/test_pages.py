"""Every block of Python and every command of README.md and docs/ runs as printed, page by page, on a small data set.

A comment ``<!-- test: 224 -> 64; resnet50 -> resnet18 -->`` before a block says what is made smaller for the test. In
blocks of shell, the lines that call ``respipe`` are run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from typer.testing import CliRunner

import respipe
from respipe.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docs" / "demo.ipynb"]

_BLOCK = re.compile(
    r"(?:<!-- test: (?P<smaller>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and text of what a page has to run, each block at the lines where it stands."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                yield "python", made_smaller("".join(cell["source"]), cell["metadata"].get("test"))
        return
    for block in _BLOCK.finditer(text):
        if block["language"] in ("python", "sh"):
            code = made_smaller(block["text"], block["smaller"])
            yield block["language"], "\n" * text.count("\n", 0, block.start("text")) + code


def made_smaller(code: str, changes: str | None) -> str:
    for change in changes.split("; ") if changes else ():
        old, new = change.split(" -> ")
        assert old in code, f"nothing to make smaller in {old!r}"
        code = code.replace(old, new)
    return code


def run_commands(text: str) -> None:
    """Run the lines of shell that call ``respipe``."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("respipe "):
            result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.stderr}"


@pytest.fixture(scope="module")
def data(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pages name: class folders, and files of the same 18 images in three classes."""
    folder = tmp_path_factory.mktemp("docs")
    for split in ("train", "val"):
        shutil.copytree(jpeg_folder, folder / "imagenet" / split)
        respipe.convert(jpeg_folder, folder / f"{split}.beton", num_workers=0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), folder / "resnet18.pth")
    save_file(timm.create_model("resnet18", num_classes=3).state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(blocks(page))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_what_a_page_shows_runs_as_printed(
    page: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for trainer in ("accelerate", "lightning", "transformers"):  # their advice about tiny runs
            warnings.filterwarnings("ignore", module=rf"{trainer}\.")
        for language, code in blocks(page):
            if language == "python":
                exec(compile(code, str(page), "exec", dont_inherit=True), names)
            else:
                run_commands(code)


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists() and not (ROOT / "benchmarks" / target).exists()
    ]
    assert not broken


def test_modules_that_are_run_as_commands_do_something() -> None:
    pages = [*PAGES, *(ROOT / name for name in ("pipelines", "tools")), ROOT / "Makefile"]
    texts = [file.read_text() for page in pages for file in ([page] if page.is_file() else page.rglob("*.py"))]
    named = {
        name for text in texts for name in re.findall(r"(?:python|\$\(python\)) -m ((?:pipelines|tools)[\w.]*)", text)
    }
    assert "pipelines.compare" in named
    silent = [
        name for name in named if '__name__ == "__main__"' not in (ROOT / f"{name.replace('.', '/')}.py").read_text()
    ]
    assert not silent
