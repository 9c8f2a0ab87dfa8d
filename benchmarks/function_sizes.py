"""How long functions are: the figures of the house rule, and by name those that break it.

    python benchmarks/function_sizes.py

Counts lines from ``def`` to the last line of the body, decorators left out, of every function in the packages given
(default: the three of the product).
"""

import argparse
import ast
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("proposals", "pipeline", "aligndet_train")
LONGEST = 80


@dataclass(frozen=True, order=True)
class Function:
    """lines: from ``def`` to the end. place: ``file:line``."""

    lines: int
    place: str
    name: str


def functions(folder: Path) -> Iterator[Function]:
    """Every function and method in the Python files below ``folder``, nested ones too."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield Function(node.end_lineno - node.lineno + 1, f"{file}:{node.lineno}", node.name)


def figures(found: list[Function]) -> str:
    """One line: how many, median, 90th percentile, longest."""
    lines = sorted(function.lines for function in found)
    p90 = lines[int(0.9 * (len(lines) - 1))]
    return (
        f"{len(lines):,} functions: median {statistics.median(lines):g} lines, p90 {p90}, longest {lines[-1]}"
    )


def main() -> None:
    """Print the figures and the longest functions; exit 1 when one is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path(name) for name in PACKAGES])
    found = [function for folder in parser.parse_args().folders for function in functions(folder)]
    print(figures(found))
    for function in sorted(found, reverse=True)[:10]:
        print(f"{function.lines:4} {function.place} {function.name}")
    too_long = [function for function in found if function.lines > LONGEST]
    if too_long:
        raise SystemExit(f"{len(too_long)} functions are over {LONGEST} lines: divide them")


if __name__ == "__main__":
    main()
