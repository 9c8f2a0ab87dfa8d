"""Prometheus metrics of a job on a real Ray node, scraped over HTTP."""

import json
import re
import socket
import time
import urllib.request

import pytest

from pipeline.planted_faults import VARIABLE


@pytest.fixture
def node(monkeypatch):
    """(address, port of /metrics) of a Ray node of one core that reports every second; its z_never.jpg hangs."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(VARIABLE, json.dumps({"z_never.jpg": "hang"}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    system = {"metrics_report_interval_ms": 1000}
    head = {**settings, "metrics_export_port": port, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address, port
    cluster.shutdown()


def _scraped(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def _value(text, name, label=""):
    found = re.findall(
        rf"^ray_{name}(?:_total)?\{{[^}}]*{label}[^}}]*\}} ([0-9.e+]+)", text, flags=re.MULTILINE
    )
    return sum(map(float, found))


def test_images_boxes_rejects_and_seconds_are_scraped_while_the_job_runs(photos, tmp_path, start, node):
    address, port = node
    images = tmp_path / "in"
    images.mkdir()
    for path in photos.glob("*.jpg"):
        (images / path.name).write_bytes(path.read_bytes())
    (images / "a_torn.jpg").write_bytes(b"no image")
    (images / "z_never.jpg").write_bytes(path.read_bytes())
    options = ("--address", address, "--images-per-shard", "1", "--max-side", "128")
    mining = start(images, tmp_path / "out", *options)
    mining.wait_for_shards(7)
    deadline, text = time.monotonic() + 120, ""
    while _value(text, "aligndet_images") < 6:
        assert time.monotonic() < deadline, text[-2000:]
        time.sleep(1)
        text = _scraped(port)
    assert _value(text, "aligndet_proposals") > 100
    assert _value(text, "aligndet_rejected", 'reason="not_an_image"') == 1
    assert _value(text, "aligndet_stage_seconds", 'stage="propose"') > 0
