"""Hook of mkdocs: fills in the tables that are made from ``benchmarks/*.json``, and brings the pictures beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def on_files(files: Files, config: Any) -> Files:
    """Offer the benchmarks' pictures to the pages."""
    for picture in sorted(_BENCHMARKS.glob("*.png")):
        files.append(File.generated(config, picture.name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each ``<!-- table: NAME -->`` by the table of that name."""
    return re.sub(r"<!-- table: (\w+) -->", lambda match: TABLES[match[1]](), markdown)


def _read(name: str) -> dict[str, Any]:
    return json.loads((_BENCHMARKS / f"{name}.json").read_text())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _loaders() -> str:
    results = _read("loaders_cpu")["results"]
    sizes = sorted({result["size"] for result in results}, reverse=True)
    rows = []
    for loader in dict.fromkeys(result["loader"] for result in results):
        mine = {result["size"]: result for result in results if result["loader"] == loader}
        first = next(iter(mine.values()))
        speeds = [
            f"{mine[s]['images_per_second']:,.0f} ({mine[s]['ratio_to_ffcv']:.3g}x)" if s in mine else "" for s in sizes
        ]
        fidelity = (
            "exact" if first["exact"] else " / ".join(f"{mine[s]['psnr']:.1f}" for s in (224, 96, 56) if s in mine)
        )
        name = f"**{loader}**" if loader == "respipe tiles" else loader
        rows.append([name, f"{first['bytes_per_image'] / 1000:.0f}", *speeds, fidelity])
    return _table(["loader", "KB/image", *(f"{size} px" for size in sizes), "dB at 224 / 96 / 56"], rows)


def _conversion() -> str:
    rows = [
        [
            result["conversion"],
            f"{result['images_per_second']:.0f}",
            f"{result['ratio_to_ffcv']:.2f}",
            f"{result['bytes_per_image'] / 1000:.1f}",
        ]
        for result in _read("conversion_cpu")["results"]
    ]
    return _table(["conversion", "images/s", "x FFCV", "KB/image"], rows)


def _faults() -> str:
    kinds = {"images": "damaged images", "betons": "damaged `.beton` files"}
    rows = [
        [
            f"{kinds[result['kind']]}: {result['target']}",
            f"{result['cases']:,}",
            "; ".join(f"{what} {count:,}" for what, count in result["outcomes"].items())
            + f"; a crash, hang, other image or read outside {len(result['bad'])}",
        ]
        for result in _read("faults")["results"]
    ]
    return _table(["what was tried", "cases", "what happened"], rows)


TABLES = {"conversion": _conversion, "faults": _faults, "loaders": _loaders}
