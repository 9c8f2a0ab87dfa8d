"""What the repository tells machines about itself: valid by its schema, and true."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GITHUB = ROOT / ".github"
FILES = [
    *(
        pytest.param(path, "github-workflows", id=path.stem)
        for path in sorted(GITHUB.glob("workflows/*.yml"))
    ),
    *(
        pytest.param(
            path, "github-issue-config" if path.stem == "config" else "github-issue-forms", id=path.stem
        )
        for path in sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))
    ),
    pytest.param(ROOT / "CITATION.cff", "citation-file-format", id="citation"),
]


def _check(path: Path, schema: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("check-jsonschema")
    command = [str(tool), "--builtin-schema", f"vendor.{schema}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("path", "schema"), FILES)
def test_it_is_valid_by_its_schema(path, schema):
    done = _check(path, schema)
    assert done.returncode == 0, done.stdout


def test_the_schemas_refuse_a_workflow_that_is_none(tmp_path):
    (tmp_path / "bad.yml").write_text("on: push\njobs: {test: {steps: [{uses: 3}]}}\n")
    assert _check(tmp_path / "bad.yml", "github-workflows").returncode != 0


def test_workflows_run_what_the_repository_has():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    steps = [
        step
        for path in GITHUB.glob("workflows/*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
    ]
    commands = [step["run"] for step in steps if "run" in step]
    assert {name for command in commands for name in re.findall(r"make ([\w-]+)", command)} <= targets
    scripts = {name for command in commands for name in re.findall(r"bash (\S+)", command)}
    assert scripts == {".ci/run"}
    assert all((ROOT / name).is_file() for name in scripts)


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_lowest_constraints_are_the_bounds_that_are_promised():
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for line in [*PROJECT["dependencies"], *extras["mine"], *extras["s3"]]]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == {requirement.name for requirement in wanted}
    for requirement in wanted:
        (bound,) = (Version(s.version) for s in requirement.specifier if s.operator == ">=")
        assert Version(pinned[requirement.name]).release[: len(bound.release)] == bound.release, requirement


def test_the_changelog_tells_of_this_version_or_of_what_comes():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", PROJECT["version"])
