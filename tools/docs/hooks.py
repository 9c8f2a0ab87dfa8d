"""What `mkdocs build` adds to docs/: the command line's reference, pages that live elsewhere, links out of docs/.

mkdocs calls the functions here by their names (mkdocs.yml, `hooks`).
"""

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

# Files outside docs/ that are part of the site, by their place in it.
BORROWED = {
    "infra.md": "infra/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "schema.json": "proposals/dataset/schema.json",
}
CLI_PAGE = "reference/cli.md"
_PLACE_OF = {original: place for place, original in BORROWED.items()}
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^(\s*```\w+) no-run:.*$", flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made or borrowed."""
    for place, original in BORROWED.items():
        files.append(File.generated(config, place, content=(ROOT / original).read_text()))
    files.append(File.generated(config, CLI_PAGE, content=cli_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links that leave docs/ lead to a borrowed page, or become plain text; fences lose the mark for the tests."""
    place = page.file.src_uri
    original = PurePosixPath(BORROWED.get(place, f"docs/{place}"))

    def mended(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        leads_to = os.path.normpath(original.parent / target)
        if leads_to.startswith("docs/"):
            leads_to = leads_to.removeprefix("docs/")
        elif leads_to in _PLACE_OF:
            leads_to = _PLACE_OF[leads_to]
        elif (ROOT / leads_to).exists():
            return text
        return f"[{text}]({os.path.relpath(leads_to, PurePosixPath(place).parent)}{anchor})"

    return _LINK.sub(mended, _FENCE.sub(r"\1", markdown))


def cli_reference() -> str:
    """Every verb as Typer describes it: `typer ... utils docs`, less its list of verbs, which the menu has."""
    command = [sys.executable, "-m", "typer", str(Path(__file__).with_name("command.py"))]
    made = subprocess.run(
        [*command, "utils", "docs", "--name", "aligndet"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    page = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", made)
    return "\n".join(line.rstrip() for line in page.splitlines()) + "\n"
