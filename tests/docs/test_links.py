"""Relative links of README, CONTRIBUTING and docs lead to files, and to headings that are there."""

import os
import re

import pytest
from markdown.extensions.toc import slugify

from tests.docs.blocks import PAGES, ROOT


def headings(text: str) -> set[str]:
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*?)(?: #*)?$", plain, flags=re.MULTILINE)
    return {slugify(re.sub(r"[`*]|\[|\]\([^)]*\)", "", title), "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    home = (ROOT / page).parent
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        path = home / target if target else ROOT / page
        # Made when the site is built.
        if path.name == "cli.md" and path.parent.name == "reference":
            continue
        assert path.exists(), f"{page}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in headings(path.read_text()), f"{page}: {target}#{anchor}"


def linked_from(page: str) -> set[str]:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]+)", text)
    return {os.path.relpath((ROOT / page).parent / target, ROOT) for target in targets}


@pytest.mark.parametrize(
    ("start", "elsewhere"),
    # The site's home, and its pages that are made from docstrings.
    [
        ("README.md", ("docs/index.md", "docs/reference/", "docs/studies/")),
        ("docs/index.md", ("docs/index.md", "docs/studies/")),
    ],
)
def test_whoever_begins_there_finds_every_page_of_the_docs(start, elsewhere):
    pages = {page for page in PAGES if page.startswith("docs/") and not page.startswith(elsewhere)}
    assert pages - linked_from(start) == set()


def test_the_results_lead_to_every_study():
    studies = {page for page in PAGES if page.startswith("docs/studies/")}
    assert studies
    assert studies - linked_from("docs/results.md") == set()
