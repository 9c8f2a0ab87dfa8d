"""Every file of infra/ against its own schema or linter."""

import copy
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

kubernetes_validate = pytest.importorskip("kubernetes_validate")

INFRA = Path(__file__).parents[2] / "infra"
KUBERNETES = sorted((INFRA / "kubernetes").glob("*.yaml"))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PodTemplate(Strict):
    metadata: dict[str, Any]
    spec: dict[str, Any]


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: int  # noqa: N815


class AuthOptions(Strict):
    mode: str


class RayClusterSpec(Strict):
    """The fields that we use of ray.io/v1, as KubeRay's API reference spells them."""

    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: str  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int  # noqa: N815
    backoffLimit: int  # noqa: N815
    rayClusterSpec: RayClusterSpec  # noqa: N815


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def cluster_of(document: dict[str, Any]) -> RayClusterSpec | None:
    if document["kind"] == "RayCluster":
        return RayClusterSpec.model_validate(document["spec"])
    if document["kind"] == "RayJob":
        return RayJobSpec.model_validate(document["spec"]).rayClusterSpec
    return None


def check_kubernetes(document: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    cluster = cluster_of(document)
    if cluster is None:
        kubernetes_validate.validate(document, version, strict=True)
        return
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        pod = {"apiVersion": "v1", "kind": "Pod", **group.template.model_dump()}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_accepts_every_document(path):
    found = documents(path)
    assert found
    for document in found:
        check_kubernetes(document)


def test_a_misspelt_field_is_noticed():
    (cluster,) = documents(INFRA / "kubernetes" / "raycluster.yaml")
    wrong = copy.deepcopy(cluster)
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(wrong)
    wrong = copy.deepcopy(cluster) | {"spec": cluster["spec"] | {"workerGroupSpec": []}}
    with pytest.raises(ValidationError):
        check_kubernetes(wrong)


def test_the_job_and_the_standing_cluster_are_the_same_cluster():
    (cluster,) = documents(INFRA / "kubernetes" / "raycluster.yaml")
    (job,) = documents(INFRA / "kubernetes" / "rayjob.yaml")
    assert cluster_of(job) == cluster_of(cluster)


def test_ray_versions_are_the_pinned_one():
    constraints = (INFRA.parent / "constraints.txt").read_text().splitlines()
    (cluster,) = documents(INFRA / "kubernetes" / "raycluster.yaml")
    assert f"ray=={cluster_of(cluster).rayVersion}" in constraints


def test_no_container_of_ours_is_root():
    for path in KUBERNETES:
        for document in documents(path):
            cluster = cluster_of(document)
            pods = (
                [group.template.spec for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs)]
                if cluster
                else []
            )
            pods += [document["spec"]["template"]["spec"]] if document["kind"] == "Job" else []
            for pod in pods:
                assert pod["securityContext"]["runAsNonRoot"]
                assert not any(c["securityContext"]["allowPrivilegeEscalation"] for c in pod["containers"])


def test_ray_accepts_the_cluster_launcher_file():
    pytest.importorskip("ray", reason="the mine extra is not installed")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((INFRA / "ray" / "aws.yaml").read_text()))
    validate_config(config)
    with pytest.raises(Exception, match="availble"):
        validate_config(config | {"availble_node_types": {}})


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return found


def lint(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((INFRA / "docker").glob("*.Dockerfile")), ids=lambda path: path.name)
def test_hadolint_accepts_the_dockerfiles(path):
    lint(tool("hadolint"), str(path))


SCRIPTS = [INFRA / "docker" / "install.sh", *sorted((INFRA / "slurm").glob("*.sbatch"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_accepts_the_scripts(path):
    lint(tool("shellcheck"), "--shell=bash", str(path))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("half", ["mine", "train"])
def test_the_images_install_script_makes_a_working_environment(half, tmp_path):
    """What the Dockerfiles run, without Docker."""
    prefix = tmp_path / "aligndet"
    lint(str(INFRA / "docker" / "install.sh"), half, str(INFRA.parent), str(prefix), sys.executable)
    verb = {"mine": "mine", "train": "pretrain"}[half]
    lint(str(prefix / "bin" / "aligndet"), verb, "--help")
    (kernels,) = (prefix / "cache").iterdir()
    assert kernels.stat().st_mode & 0o005 == 0o005, "the container's user reads them"
    other = {"mine": "import torch", "train": "import ray"}[half]
    missing = subprocess.run([prefix / "bin" / "python", "-c", other], capture_output=True, check=False)
    assert missing.returncode != 0, f"the {half} image should not need: {other}"
