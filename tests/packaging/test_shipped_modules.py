"""What only tests and benchmarks use is not shipped: every module of the packages serves another one, or is started."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("proposals", "pipeline", "aligndet_train")
# Developers write proposals/dataset/schema.json with it, for everybody's readers.
OF_ITS_OWN = {"proposals.dataset.schema"}


def modules() -> dict[str, str]:
    """Text by dotted name; configs are found by their file names, packages by what is in them."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not path.stem.startswith("__") and path.parent.name != "configs"
    }


def uses(module: str, text: str) -> bool:
    parent, _, name = module.rpartition(".")
    if name not in text:
        return False
    imported = rf"from {re.escape(parent)} import (\([^)]*\b{name}\b|[^\n(]*\b{name}\b)"
    return re.search(rf"\b{re.escape(module)}\b|{imported}", text) is not None


def test_every_shipped_module_is_of_use():
    texts = modules()
    # Packages' own files import, and pyproject.toml names what is loaded by name.
    others = [path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("__*.py")]
    others.append((ROOT / "pyproject.toml").read_text())
    idle = {
        module
        for module in texts
        if not any(uses(module, text) for text in others)
        and not any(uses(module, text) for other, text in texts.items() if other != module)
    }
    assert idle == OF_ITS_OWN
