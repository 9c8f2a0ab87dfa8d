"""The figures of a dataset, the page made of them, and the page in a real browser."""

import html.parser
import json
import re
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import layout, open_dataset
from proposals.ground_truth import read_ground_truth
from proposals.quality import measure_boxes
from proposals.report import collect, render
from proposals.report import gallery as gallery_module
from proposals.report import numbers as numbers_module
from proposals.report.numbers import spread
from tests.proposals.chromium import BINARY, Browser

_HOSTILE = '<img src=x onerror=alert(1)> $name & "quotes" \'.jpg'


@pytest.fixture(scope="module")
def hostile(photos, mine_folder, tmp_path_factory):
    """A dataset whose file names are markup, with one image that was rejected."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in (_HOSTILE, "</script><script>alert(2)</script>.jpg".replace("/", "∕"), "plain.jpg"):
        shutil.copy(photos / "cat.jpg", folder / name)
    (folder / "broken.jpg").write_bytes(b"not an image")
    return mine_folder(folder, tmp_path_factory.mktemp("mined") / "<b>dataset")


@pytest.fixture(scope="module")
def page(hostile):
    dataset = open_dataset(hostile)
    return render(dataset, collect(dataset))


def test_figures_are_those_of_the_tables(mined_dataset):
    dataset = open_dataset(mined_dataset)
    found, counts = collect(dataset), [len(record.rank) for record in dataset]
    assert (found.images, found.sampled_images, found.shards) == (8, 8, 3)
    assert found.boxes_per_image["mean"] == pytest.approx(np.mean(counts))
    assert found.boxes_per_image["p50"] == pytest.approx(np.median(counts))
    boxes = np.concatenate([record.boxes for record in dataset]).astype(float)
    aspect = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert found.aspect["p5"] == pytest.approx(np.percentile(aspect, 5), rel=1e-5)
    assert 0 < found.relative_size["p5"] < found.relative_size["p95"] <= 0.8
    assert sum(found.histograms["boxes_per_image"].counts) == 8
    for name in ("relative_size", "aspect", "rank"):
        assert sum(found.histograms[name].counts) == sum(counts)


def test_cost_is_per_image_and_survives_lost_records(mined_dataset, tmp_path):
    copy = shutil.copytree(mined_dataset, tmp_path / "copy")
    timings = [
        json.loads(layout.record_path(copy, f"{i:05d}").read_text())["timing"]["total"] for i in range(3)
    ]
    cost = collect(open_dataset(copy)).cost
    assert cost.mean == pytest.approx(sum(timings) / 8)
    assert cost.percentiles["p5"] <= cost.percentiles["p50"] <= cost.percentiles["p95"]
    assert cost.percentiles["p95"] == pytest.approx(max(timings[0] / 3, timings[1] / 3, timings[2] / 2))
    for i in range(3):
        layout.record_path(copy, f"{i:05d}").unlink()
    assert collect(open_dataset(copy)).cost is None


def test_rejections_are_counted_by_reason(hostile):
    found = collect(open_dataset(hostile))
    assert found.rejected == {"decode: not_an_image": 1}
    assert found.rejected_images == 1


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e5]), st.sampled_from([-20.0, -1.0, -0.3]))
def test_negated_scores_spread_over_the_bins(seed, scale, shift):
    rank = ((np.random.default_rng(seed).random(5000) + shift) * scale).astype(np.float32)
    counts, _ = np.histogram(rank, edges := numbers_module._rank_edges(rank))
    low, high = np.percentile(rank, (1, 99))
    assert (len(edges), edges[0], edges[-1]) == (21, low, high)
    assert counts.min() > 0.02 * len(rank)


@pytest.mark.parametrize("value", [-1.0, -0.0, -1e-30, -1e30])
def test_equal_ranks_fill_one_bin(value):
    rank = np.full(9, value, np.float32)
    found = numbers_module._histogram(rank, numbers_module._rank_edges(rank))
    assert max(found.counts) == sum(found.counts) == 9
    assert (np.diff(found.edges) > 0).all()


def test_a_large_dataset_is_sampled_evenly(mined_dataset, monkeypatch):
    monkeypatch.setattr("proposals.report.numbers.SAMPLE_IMAGES", 6)
    found = collect(open_dataset(mined_dataset))
    assert (found.images, found.sampled_images) == (8, 5)  # the first and the last of three shards
    assert spread(10, 3) == [0, 4, 9]
    assert spread(0, 3) == []


def test_an_empty_dataset_has_a_page(mine_folder, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"?")
    dataset = open_dataset(mine_folder(tmp_path / "images", tmp_path / "out"))
    assert "No image can be shown" in render(dataset, collect(dataset))


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_file_names_stay_text(page):
    reader = _Reader()
    reader.feed(page)
    assert [tag for tag, _ in reader.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert [a["alt"] for tag, a in reader.tags if tag == "img"].count(_HOSTILE) == 1
    assert _HOSTILE in reader.text
    assert "<b>dataset" in reader.text


def test_the_page_asks_nothing_of_the_network(page):
    reader = _Reader()
    reader.feed(page)
    links = [a[name] for _, a in reader.tags for name in ("src", "href") if name in a]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(", page)


def test_the_gallery_is_bounded(photos, mine_folder, tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 420, 3), np.uint8)
    for i in range(5):
        cv2.imwrite(str(images / f"{i}.jpg"), np.roll(noise, i * 7, axis=1), [cv2.IMWRITE_JPEG_QUALITY, 98])
    dataset = open_dataset(mine_folder(images, tmp_path / "out"))
    one = len(gallery_module.choose(dataset, 1)[0].jpeg)
    monkeypatch.setattr(gallery_module, "MAX_BYTES", int(2.5 * one))
    assert len(gallery_module.choose(dataset, 5)) == 2
    assert len(render(dataset, collect(dataset))) < 2.5 * one + 100_000
    assert gallery_module.choose(dataset, 0) == []


def test_verbs_write_the_page_and_the_figures(mined_dataset, tmp_path):
    out = tmp_path / "report.html"
    done = CliRunner().invoke(build_app(), ["report", str(mined_dataset), "-o", str(out), "--pictures", "3"])
    assert done.exit_code == 0, done.output
    assert out.read_text("utf-8").count("<figure>") == 3
    shown = CliRunner().invoke(build_app(), ["stats", str(mined_dataset)], env={"COLUMNS": "120"})
    assert "boxes per image" in shown.output
    found = json.loads(CliRunner().invoke(build_app(), ["stats", str(mined_dataset), "--json"]).output)
    table = pq.read_table(layout.parquet_path(mined_dataset, "00000"))
    assert found["images"] == 8
    assert found["proposals"] > len(table)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BINARY is None:
        pytest.skip("no chromium on the path")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def _drawn(browser):
    return browser.evaluate(
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done("
        "[...document.querySelectorAll('.frame svg')].map(svg => svg.childElementCount)))))"
    )


@pytest.fixture(scope="module")
def with_recall(mined_dataset, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("page"), open_dataset(mined_dataset)
    images = [{"id": i, "file_name": r.uri} for i, r in enumerate(dataset)]
    box = {"category_id": 1, "bbox": [10, 10, 80, 60], "area": 4800}
    truth = {"images": images, "categories": [{"id": 1, "name": "<i>"}]}
    truth["annotations"] = [{**box, "id": i + 1, "image_id": i} for i in range(8)]
    (folder / "truth.json").write_text(json.dumps(truth))
    quality = measure_boxes([r.boxes for r in dataset], read_ground_truth(folder / "truth.json"))
    path = folder / "report.html"
    path.write_text(render(dataset, collect(dataset), quality), "utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (1440, True), (390, False), (390, True)])
def test_it_fits_the_screen_without_a_complaint(browser, with_recall, width, dark):
    browser.complaints.clear()
    browser.requests.clear()
    browser.size(width, 900, dark)
    browser.open(with_recall)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert browser.evaluate("document.querySelectorAll('.curve').length") == 6
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) == dark
    assert browser.complaints == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests)


def test_the_slider_decides_how_many_boxes_are_drawn(browser, with_recall, mined_dataset):
    browser.size(1440, 900)
    browser.open(with_recall)
    counts = [len(record.rank) for record in open_dataset(mined_dataset)]
    assert _drawn(browser) == [min(10, n) for n in counts]
    browser.evaluate("document.getElementById('count').focus()")
    browser.press("ArrowRight")
    assert _drawn(browser) == [min(11, n) for n in counts]
    assert browser.evaluate("document.getElementById('shown').value") == "11"
    browser.press("End")
    assert _drawn(browser) == [min(max(counts), 300, n) for n in counts]
    browser.press("Home")
    assert _drawn(browser) == [0] * 8


def test_hostile_names_run_nothing_in_the_browser(browser, page, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(page, "utf-8")
    browser.complaints.clear()
    browser.open(path)
    assert browser.complaints == []
    assert browser.evaluate("document.querySelectorAll('main script, main b:not(.scale b)').length") == 0
    assert browser.evaluate("document.querySelector('h1').textContent") == "<b>dataset"
