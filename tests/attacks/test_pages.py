"""The report of a stranger's dataset: every text in it stays text, whatever it holds."""

import json

import pyarrow.parquet as pq
import pytest

from proposals.dataset import layout, open_dataset
from proposals.report.numbers import collect
from proposals.report.page import render
from tests.proposals.chromium import BINARY, Browser

_SCRIPT = "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>\"'&{{7*7}}${7*7}"


@pytest.fixture
def page(copy, reseal, tmp_path):
    """The report of a dataset with a script wherever there is room for text."""
    table = pq.read_table(path := layout.parquet_path(copy, "00000"))
    import pyarrow as pa

    names = pa.array([f"{_SCRIPT}{place}.jpg" for place in range(len(table))])
    pq.write_table(table.set_column(1, table.schema.field("uri"), names), path)
    record = layout.record_path(copy, "00000")
    content = json.loads(record.read_text())
    content["timing"] = {_SCRIPT: 1e308, "decode": -1.0, "total": 1.0}
    content["versions"] = {_SCRIPT: _SCRIPT}
    content["rejected"] = [
        dict.fromkeys(("key", "uri", "stage", "reason", "detail", "traceback_hash"), _SCRIPT)
    ]
    record.write_text(json.dumps(content))

    def change(manifest):
        manifest["source"] |= {"kind": _SCRIPT, "fingerprint": _SCRIPT}
        manifest["versions"] = {_SCRIPT: _SCRIPT}

    reseal(copy, change)
    dataset = open_dataset(copy.rename(copy.with_name("<script>window.ran=1<&>")))
    written = tmp_path / "report.html"
    written.write_text(render(dataset, collect(dataset)), "utf-8")
    return written


@pytest.mark.skipif(BINARY is None, reason="no chromium on the path")
def test_nothing_of_a_dataset_runs_in_its_report(page, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page)
        assert browser.evaluate("typeof window.ran") == "undefined"
        assert browser.complaints == []
        assert (
            browser.evaluate("document.querySelectorAll('img:not([src^=\"data:image/jpeg\"])').length") == 0
        )
        assert browser.evaluate("document.body.textContent.includes('window.ran=1')")
        assert all(url.startswith(("file:", "data:")) for url in browser.requests)
    finally:
        browser.close()


def test_only_our_two_scripts_are_in_it(page):
    text = page.read_text("utf-8")
    assert text.count("<script") == 2
    assert "onerror=window.ran=1>" not in text
