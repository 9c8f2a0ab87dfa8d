"""The page: figures, charts and gallery put into the template, every text of the dataset escaped."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template

from proposals.dataset import ProposalDataset
from proposals.quality import ALL, IOUS, KS, Quality
from proposals.report.charts import bars, curves
from proposals.report.gallery import Picture, choose
from proposals.report.numbers import Cost, Histogram, Statistics

_CHARTS = {
    "boxes_per_image": ("Boxes per image", "boxes in an image"),
    "relative_size": ("Relative size", "sqrt(box area / image area)"),
    "aspect": ("Aspect", "width / height"),
    "rank": ("Rank", "rank of a box"),
}


def render(
    dataset: ProposalDataset, statistics: Statistics, quality: Quality | None = None, pictures: int = 24
) -> str:
    """One HTML page without outside resources, below 5 MB: the dataset's figures, charts and a gallery.

    quality: adds recall curves. Raises AlignDetError when an image file of the gallery is missing.
    """
    shown = choose(dataset, pictures)
    style, script = _asset("style.css"), _asset("script.js")
    boxes = json.dumps([picture.boxes for picture in shown], separators=(",", ":"))
    most = max((len(picture.boxes) // 4 for picture in shown), default=0)
    return Template(_asset("template.html")).substitute(
        policy=_policy(style, script),
        style=style,
        script=script,
        boxes=boxes,
        name=escape(statistics.name),
        lead=escape(_lead(statistics)),
        tiles=_tiles(statistics),
        most=max(most, 1),
        first=min(10, max(most, 1)),
        gallery="".join(_figure(picture) for picture in shown) or "<p>No image can be shown.</p>",
        sample=escape(_sample_note(statistics)),
        charts="".join(_chart(name, histogram) for name, histogram in statistics.histograms.items()),
        recall="" if quality is None else _recall(quality),
        tables=_tables(statistics),
    )


def _asset(name: str) -> str:
    return files("proposals.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    # No network, and no script but ours even if an escape were ever forgotten.
    return (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _lead(statistics: Statistics) -> str:
    recipe = statistics.recipe
    return (
        f"Class-agnostic boxes by selective search, {recipe['mode']} mode at {recipe['max_side']} px, "
        f"{recipe['rank']} order, filter {recipe['filter']}"
    )


def _tiles(statistics: Statistics) -> str:
    images = max(statistics.images, 1)
    tiles = {
        "images": f"{statistics.images:,}",
        "boxes": _compact(statistics.proposals),
        "boxes per image": f"{statistics.proposals / images:,.0f}",
        "rejected": f"{statistics.rejected_images:,}",
        "on disk": _size(statistics.bytes),
    }
    if statistics.cost is not None:
        tiles["core time per image"] = _seconds(statistics.cost.mean)
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in tiles.items()
    )


def _figure(picture: Picture) -> str:
    uri = escape(picture.uri)
    width, height = picture.width, picture.height
    return (
        f'<figure><div class="frame"><img src="data:image/jpeg;base64,{picture.jpeg}" width="{width}" '
        f'height="{height}" alt="{uri}"><svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
        f'aria-hidden="true"></svg></div><figcaption><bdi title="{uri}">{uri}</bdi>'
        f"<span>{picture.total:,} boxes</span></figcaption></figure>"
    )


def _sample_note(statistics: Statistics) -> str:
    if statistics.sampled_images == statistics.images:
        which = f"all {statistics.images:,} images"
    else:
        which = f"an even sample of {statistics.sampled_images:,} of {statistics.images:,} images"
    return f"Over {which}. The last bar also holds what lies beyond; point at a bar for its count."


def _chart(name: str, histogram: Histogram) -> str:
    title, unit = _CHARTS[name]
    picture = bars(histogram, unit, fractions=name == "aspect")
    return f'<div class="card"><h3>{title} <small>{unit}</small></h3>{picture}</div>'


def _recall(quality: Quality) -> str:
    ks = ["all" if k == ALL else str(k) for k in KS]
    by_k = curves(
        ks,
        [
            ("recall at IoU 0.5", quality.recall[0].tolist()),
            ("recall at IoU 0.75", quality.recall[IOUS.index(0.75)].tolist()),
            ("AR (0.50 to 0.95)", list(quality.average_recall.values())),
        ],
        "Recall by number of boxes",
        "k",
    )
    by_iou = curves(
        [f"{iou:.2f}"[1:] for iou in IOUS],
        [
            (f"best {name}", quality.recall[:, KS.index(k)].tolist())
            for name, k in (("all", ALL), ("300", 300), ("100", 100))
        ],
        "Recall by overlap",
        "IoU",
    )
    note = (
        f"{quality.truths:,} annotated objects in {quality.images:,} images that the ground truth also has. "
        f"MABO {quality.mabo:.1%} over {len(quality.abo)} classes. In percent of objects found."
    )
    return (
        f'<section><h2>Recall</h2><p class="note">{escape(note)}</p><div class="grid">'
        f'<div class="card"><h3>By boxes per image <small>best k</small></h3>{by_k}</div>'
        f'<div class="card"><h3>By overlap <small>IoU</small></h3>{by_iou}</div>'
        f"{_table('In percent', _quality_rows(quality))}</div></section>"
    )


def _quality_rows(quality: Quality) -> dict[str, str]:
    rows = {f"AR@{'all' if k == ALL else k}": value for k, value in quality.average_recall.items()}
    rows |= {f"AR@1000, {area} objects": value for area, value in quality.area_recall.items()}
    return {name: f"{100 * value:.1f}" for name, value in {**rows, "MABO": quality.mabo}.items()}


def _tables(statistics: Statistics) -> str:
    outcome = {f"status {name}": f"{n:,} images" for name, n in statistics.statuses.items()}
    outcome |= {f"rejected, {reason}": f"{n:,} images" for reason, n in statistics.rejected.items()}
    provenance = {
        "fingerprint": statistics.recipe_fingerprint[:16],
        "source": f"{statistics.source['kind']}, {statistics.source['images']:,} images",
        "shards": f"{statistics.shards:,}",
        "format": statistics.format_version,
    }
    recipe = {name: str(value) for name, value in statistics.recipe.items()}
    parts = [_table("Outcome", outcome or {"images": "none"}), _table("Recipe", recipe)]
    if statistics.cost is not None:
        parts.append(_table("Core time per image", _cost(statistics.cost)))
    parts += [_table("Provenance", provenance), _table("Versions", statistics.versions)]
    return "".join(parts)


def _cost(cost: Cost) -> dict[str, str]:
    shards = {f"{name} of shards": _seconds(value) for name, value in cost.percentiles.items()}
    stages = {f"stage {name}": _seconds(value) for name, value in cost.stages.items()}
    return {"mean": _seconds(cost.mean), **shards, **stages}


def _table(title: str, rows: Mapping[str, str]) -> str:
    body = _cells(rows.items())
    return f'<div class="card"><h3>{escape(title)}</h3><table>{body}</table></div>'


def _cells(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)


def _compact(count: int) -> str:
    for limit, unit in ((10**9, "G"), (10**6, "M")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:,}"


def _size(size: int) -> str:
    for limit, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size / 1000:.3g} kB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
