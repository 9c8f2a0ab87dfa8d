"""The site is built offline without a warning, and every page of it fits a desktop and a phone."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading

import pytest

from tests.docs.blocks import ROOT
from tests.proposals.chromium import BINARY, Browser

WIDTHS = (1280, 390)
# Elements of the text that stick out of the screen, and that nothing around them lets the reader scroll or cuts.
_STICKING_OUT = """
(() => {
  const limit = document.documentElement.clientWidth + 1, found = [];
  for (const element of document.querySelectorAll('.md-content *')) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= limit) continue;
    let around = element.parentElement;
    while (around && getComputedStyle(around).overflowX === 'visible') around = around.parentElement;
    if (!around || around === document.documentElement || around === document.body)
      found.push(element.tagName + ' ' + (element.textContent || element.src || '').slice(0, 60));
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def pages(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))


def test_the_picture_of_the_data_path_is_the_one_its_script_draws(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools/docs/data_path.py", tmp_path / "drawn.svg"], check=True)
    assert (tmp_path / "drawn.svg").read_text() == (ROOT / "docs/images/data_path.svg").read_text()


def test_no_page_asks_another_host_for_anything(site):
    foreign = re.compile(r"""<(?:script|link|img|iframe|source)[^>]*?(?:src|href)=["']?(?:https?:)?//""")
    assert [page for page in pages(site) if foreign.search((site / page).read_text())] == []


def test_every_page_is_in_the_menu(site):
    menu = (ROOT / "mkdocs.yml").read_text()
    assert [
        page for page in pages(site) if page != "404.html" and page.replace(".html", ".md") not in menu
    ] == []


def test_the_command_line_page_has_every_verb_and_the_api_its_classes(site):
    from proposals.cli import build_app

    reference = (site / "reference" / "cli.html").read_text()
    app = build_app()
    verbs = [c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands]
    assert len(verbs) > 15
    assert [verb for verb in verbs if f'id="aligndet-{verb}"' not in reference] == []
    api = (site / "reference" / "proposals.html").read_text()
    assert 'id="proposals.dataset.reader.open_dataset"' in api


def test_marks_for_the_tests_are_not_shown(site):
    assert [page for page in pages(site) if "bash no-run" in (site / page).read_text()] == []


@pytest.fixture
def address(site):
    """The site, served on loopback: a page of a folder may not fetch its own search index."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(BINARY is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_and_complains_of_nothing(site, address, width, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(width, 900)
        for page in pages(site):
            browser.open(f"{address}/{page}")
            wider = browser.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wider <= 0, f"{page} is {wider} px wider than {width}"
            assert browser.evaluate(_STICKING_OUT) == [], page
            assert browser.complaints == [], page
        assert [url for url in browser.requests if not url.startswith((address, "data:"))] == []
    finally:
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(BINARY is None, reason="no chromium on this machine")
def test_search_finds_a_page(site, address, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(1280, 900)
        browser.open(f"{address}/index.html")
        found = browser.evaluate(
            """
            (async () => {
              document.querySelector('label[for="__search"]').click();
              const field = document.querySelector('.md-search__input');
              field.focus();
              field.value = 'quarantined';
              field.dispatchEvent(new Event('input', {bubbles: true}));
              field.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}));
              for (let i = 0; i < 100; i++) {
                const links = [...document.querySelectorAll('.md-search-result__link')].map(a => a.href);
                if (links.length) return links;
                await new Promise(done => setTimeout(done, 100));
              }
              return [];
            })()
            """
        )
        assert any("performance" in link or "mining" in link for link in found), found
    finally:
        browser.close()
