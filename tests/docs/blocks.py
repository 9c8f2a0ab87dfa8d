"""The shell and Python blocks of README and docs, in order, each run by a test or marked with the reason why not.

A fence ```` ```bash no-run: needs an AWS account ```` is not run; the site drops the mark.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"),
        ROOT / "infra" / "README.md",
        *ROOT.glob("docs/**/*.md"),
    )
)
RUN = ("bash", "python")
# Key of the property of a test's report that names a block that ran.
RAN = "block of the documentation"
# Other names of the same two languages would go unnoticed.
FORBIDDEN = {"sh", "shell", "console", "zsh", "shell-session", "py", "python3", "pycon", "ipython"}
# Verbs that import torch or start Ray: too long for every push on two cores, but for one page.
_ALWAYS = {"docs/guides/mine-a-folder.md"}
_SLOW = re.compile(
    r"^\s*aligndet (mine|doctor|pretrain|pretrain-backbone|export|finetune|evaluate|regions|backbone)\b",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """page: its path in the repository. number: from 1 on the page. reason: why it is not run, None when it is."""

    page: str
    number: int
    line: int
    language: str
    reason: str | None
    code: str

    @property
    def name(self) -> str:
        """Page, number and first line, for people."""
        return f"{self.page}:{self.line} ({self.language} block {self.number}) {self.code.strip().splitlines()[0][:60]}"


def fences(page: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, language, mark, code) of every fenced block of a page."""
    text = (ROOT / page).read_text()
    for found in re.finditer(
        r"^```([\w-]*)[ \t]*([^\n]*)\n(.*?)^```[ \t]*$", text, flags=re.MULTILINE | re.DOTALL
    ):
        yield text.count("\n", 0, found.start()) + 1, found[1], found[2], found[3]


def blocks_of(page: str) -> list[Block]:
    """The shell and Python blocks of a page, in order."""
    found = []
    for line, language, mark, code in fences(page):
        if language in RUN:
            reason = mark.removeprefix("no-run:").strip() if mark.startswith("no-run:") else None
            found.append(Block(page, len(found) + 1, line, language, reason, code))
    return found


def all_blocks() -> list[Block]:
    """The shell and Python blocks of all pages."""
    return [block for page in PAGES for block in blocks_of(page)]


def is_slow(page: str) -> bool:
    """Whether a block that is run uses torch or Ray."""
    return page not in _ALWAYS and any(
        block.reason is None and block.language == "bash" and _SLOW.search(block.code)
        for block in blocks_of(page)
    )


def listing() -> str:
    """Every block with what becomes of it, and the totals."""
    lines, found = [], all_blocks()
    for block in found:
        when = "nightly" if is_slow(block.page) else "always "
        lines.append(f"not run  {block.name}: {block.reason}" if block.reason else f"{when}  {block.name}")
    return "\n".join([*lines, totals(found)])


def totals(found: list[Block]) -> str:
    """How many blocks run in every test run, how many nightly, how many never."""
    never = [block for block in found if block.reason]
    nightly = [block for block in found if block.reason is None and is_slow(block.page)]
    return (
        f"{len(found)} blocks of {len({block.page for block in found})} pages: "
        f"{len(found) - len(never) - len(nightly)} run in every test run, {len(nightly)} nightly (slow), "
        f"{len(never)} are not run and say why"
    )
