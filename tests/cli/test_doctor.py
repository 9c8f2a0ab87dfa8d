"""`aligndet doctor` tells broken from missing, names the repair, and survives what it looks at."""

import json

import pytest

# What takes long to import.
HEAVY = ("ray", "torch", "torchvision", "mmdet", "sklearn")


def _checks(done, half):
    return {check["name"]: check for check in json.loads(done.stdout)["halves"][half]}


def test_a_working_installation_is_healthy(aligndet):
    done = aligndet("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout)
    assert content["healthy"]
    assert set(content["halves"]) == {"proposals", "pipeline", "aligndet_train"}
    assert "contrib build" in _checks(done, "proposals")["cv2"]["found"]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            "raise ImportError('libcudart.so.13: cannot open')", id="missing library", marks=pytest.mark.slow
        ),
        pytest.param("import os; os.kill(os.getpid(), 11)", id="segmentation fault"),
        pytest.param("import sys; sys.exit(0)", id="exits", marks=pytest.mark.slow),
        pytest.param("print('{}')\nraise RuntimeError", id="prints", marks=pytest.mark.slow),
    ],
)
def test_a_broken_torch_costs_the_trainers_checks_only(aligndet, source):
    done = aligndet("doctor", "--json", shadows={"torch": source})
    assert done.returncode == 4
    broken = [c for c in _checks(done, "aligndet_train").values() if c["status"] == "broken"]
    assert broken
    assert all(check["repair"] for check in broken)
    assert all(check["status"] != "broken" for check in _checks(done, "proposals").values())
    assert all(check["status"] != "broken" for check in _checks(done, "pipeline").values())


def test_the_plain_opencv_in_place_of_contrib_costs_one_engine_and_has_its_repair(aligndet):
    plain = "__version__ = '4.99'\ndef getBuildInformation(): return ''\ndef checkHardwareSupport(code): return False\n"
    done = aligndet("doctor", shadows={"cv2": plain}, absent=HEAVY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning cv2" in " ".join(done.stdout.split())
    assert "without ximgproc: `--engine opencv` alone cannot run" in done.stdout
    assert done.stdout.endswith("healthy\n")
    assert "pip uninstall -y opencv-python " in done.stdout
    assert "pip install --force-reinstall --no-deps opencv-contrib-python" in done.stdout


def test_a_half_that_is_not_installed_is_missing_and_healthy(aligndet):
    done = aligndet("doctor", "--json", absent=HEAVY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _checks(done, "pipeline")["ray"]["status"] == "missing"
    assert _checks(done, "aligndet_train")["trainer"]["repair"] == "pip install 'aligndet[train]'"
    assert _checks(done, "proposals")["extra cluster"]["repair"] == "pip install 'aligndet[cluster]'"


def test_kernels_that_are_not_compiled_come_with_the_command_that_compiles_them(
    aligndet, monkeypatch, tmp_path
):
    monkeypatch.setenv("ALIGNDET_CACHE_DIR", str(tmp_path / "cold"))
    done = aligndet("doctor", "--json", absent=HEAVY)
    assert done.returncode == 0
    kernels = _checks(done, "proposals")["kernels"]
    assert (kernels["status"], kernels["repair"]) == ("warning", "aligndet warmup")


def test_a_library_older_than_promised_is_broken(aligndet, tmp_path):
    old = tmp_path / "shadows" / "rich-1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 1.0\n")
    done = aligndet("doctor", "--json", absent=HEAVY)
    assert done.returncode == 4
    broken = [c for c in json.loads(done.stdout)["halves"]["proposals"] if c["status"] == "broken"]
    assert [check["name"] for check in broken] == ["rich"]
    assert "pip install 'rich>=" in broken[0]["repair"]
