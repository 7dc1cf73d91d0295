"""Try the lower bounds of the dependencies: ``python -m tools.lower_bounds [--resolve-only]``.

Makes an environment in which every dependency has the oldest version that pyproject.toml allows, converts a few images
there, loads them under a schedule and trains a step. Downloads PyTorch; ``--resolve-only`` asks pip for versions alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

CHECK = """
import tempfile, pathlib, numpy, torch, torchvision, respipe
from PIL import Image
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "data" / "noise").mkdir(parents=True)
for number, pixels in enumerate(numpy.random.default_rng(0).integers(0, 256, (8, 80, 96, 3), dtype="uint8")):
    Image.fromarray(pixels).save(folder / "data" / "noise" / f"{number}.jpg")
respipe.convert(folder / "data", folder / "data.beton", num_workers=0)
schedule = respipe.schedules.TRD(64, 32, 0.5, unit="step")
model = respipe.adapt(torchvision.models.resnet18(num_classes=1), schedule)
for backend in ("tiles", "reference"):
    with respipe.Loader(folder / "data.beton", schedule, batch_size=4, backend=backend) as loader:
        for images, labels in loader:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
print("the lower bounds hold")
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.lower_bounds", description=__doc__.partition("\n")[0])
    parser.add_argument("--resolve-only", action="store_true", help="install nothing")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = [text.split(",")[0].replace(">=", "==") for text in project["dependencies"]]
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        constraints = Path(folder, "oldest.txt")
        constraints.write_text("\n".join(oldest) + "\n")
        more = ["--dry-run"] if options.resolve_only else []
        install = [python, "-m", "pip", "install", *more, "--constraint", constraints, ROOT]
        subprocess.run(install, check=True)
        if not options.resolve_only:
            subprocess.run([python, "-c", CHECK], check=True, cwd=folder)


if __name__ == "__main__":
    sys.exit(main())
