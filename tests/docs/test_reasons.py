"""The page on the mining job has every reason that an image can be rejected for, and no other."""

import ast
import re
from collections.abc import Iterator

from tests.docs.blocks import ROOT

PAGE = "docs/mining-job.md"
STAGES = ("read", "decode", "propose")
# Where a child of the search ends, the reason is that of an exception of its own.
ENDS_A_CHILD = "pipeline/image_process.py"


def _words(node: ast.expr) -> list[str]:
    return [
        one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


def rejections() -> Iterator[tuple[str, str]]:
    """(stage, reason) of every call whose first arguments are such."""
    for folder in ("proposals", "pipeline"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and len(node.args) >= 2
                    and _words(node.args[0]) in [[s] for s in STAGES]
                ):
                    yield from ((_words(node.args[0])[0], reason) for reason in _words(node.args[1]))


def ends_of_a_child() -> Iterator[tuple[str, str]]:
    """Those of ``_ImageFaultError(reason, detail)``."""
    for node in ast.walk(ast.parse((ROOT / ENDS_A_CHILD).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_ImageFaultError":
            yield from (("propose", reason) for reason in _words(node.args[0]))


def told() -> set[tuple[str, str]]:
    rows = re.findall(rf"^\| `({'|'.join(STAGES)})` \| (.*?) \|", (ROOT / PAGE).read_text(), re.MULTILINE)
    return {(stage, reason) for stage, cell in rows for reason in re.findall(r"`(\w+)`", cell)}


def test_every_reason_is_told_and_no_other():
    assert {*rejections(), *ends_of_a_child()} == told()
