"""Copy the photographs that scikit-image and scikit-learn ship into a folder: real images, nothing downloaded.

python examples/collect_photographs.py demo/photographs
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

# What is a photograph of things, among textures, scans and test patterns; each with its package and folder.
PHOTOGRAPHS = {
    ("skimage", "data"): (
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg", "ihc.png",
        "moon.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg",
    ),
    ("sklearn", "datasets/images"): ("china.jpg", "flower.jpg"),
}  # fmt: skip


def package_folder(name: str) -> Path:
    """Where ``name`` is installed. Raises SystemExit saying how to install it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed; run: pip install 'aligndet[demo]'")
    return Path(spec.origin).parent


def collect(folder: Path) -> int:
    """Copy the photographs into ``folder``; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    for (package, below), names in PHOTOGRAPHS.items():
        for name in names:
            shutil.copyfile(package_folder(package) / below / name, folder / name)
    return sum(map(len, PHOTOGRAPHS.values()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    target = Path(sys.argv[1])
    print(f"{collect(target)} photographs in {target}")
