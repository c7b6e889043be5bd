"""What the job YAML promises, beyond being valid: one image, one grace period, codes that match."""

import argparse
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainkit
from trainkit.errors import ExitCode
from trainkit.launch.flags import parse_flags
from trainkit.launch.options import read_options

ROOT = Path(__file__).parents[2]
IMAGES = {"lm": "torch", "mnist": "torch", "mnist-tensorflow": "tensorflow", "tabular": "xgboost"}
"""By recipe; each is built from the folder of that name in images/."""
REPLICAS = {
    "MPIJob": "mpiReplicaSpecs",
    "PyTorchJob": "pytorchReplicaSpecs",
    "TFJob": "tfReplicaSpecs",
    "XGBoostJob": "xgbReplicaSpecs",
}
"""Where the kinds of the training operator have their pods."""
RECIPES = [file for file in sorted((ROOT / "recipes").glob("*/*.yaml"))]


@dataclass(frozen=True)
class Pod:
    """What a trainer pod of any kind is made of."""

    image: str
    command: list[str]
    env: dict[str, str]
    resources: dict[str, Any]
    annotations: dict[str, str]
    spec: dict[str, Any]
    """Pod spec; of a TrainJob the part that is laid over the runtime's."""


def pods(document: dict[str, Any]) -> list[Pod]:
    spec = document["spec"]
    if document["kind"] == "TrainJob":
        (patch,) = spec["runtimePatches"]
        (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        template, trainer = job["template"]["spec"]["template"], spec["trainer"]
        return [_pod(template, trainer, trainer["resourcesPerNode"])]
    if document["kind"] in REPLICAS:
        replicas = spec[REPLICAS[document["kind"]]]
        templates = [replica["template"] for replica in replicas.values()]
    else:
        templates = [spec["template"]]
    containers = [template["spec"]["containers"][0] for template in templates]
    return [
        _pod(template, container, container["resources"])
        for template, container in zip(templates, containers, strict=True)
    ]


def _pod(template: dict[str, Any], container: dict[str, Any], resources: dict[str, Any]) -> Pod:
    return Pod(
        image=container["image"],
        command=container["command"],
        env={variable["name"]: variable["value"] for variable in container["env"]},
        resources=resources,
        annotations=template["metadata"]["annotations"],
        spec=template["spec"],
    )


def load(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(file.read_text())
    return document


def test_each_recipe_has_one_image_of_this_version():
    for file in RECIPES:
        image = f"ghcr.io/trainkit/{IMAGES[file.parent.name]}:{trainkit.__version__}"
        assert {pod.image for pod in pods(load(file))} == {image}
        assert (ROOT / "images" / IMAGES[file.parent.name] / "Dockerfile").is_file()


every_pod = pytest.mark.parametrize(
    "pod",
    [
        pytest.param(pod, id=f"{file.parent.name}/{file.stem}-{index}")
        for file in RECIPES
        for index, pod in enumerate(pods(load(file)))
    ],
)


def test_there_is_a_file_for_each_kind():
    kinds: dict[str, set[str]] = {}
    for file in RECIPES:
        kinds.setdefault(file.parent.name, set()).add(load(file)["kind"])
    assert kinds["mnist"] == {"Job", "MPIJob", "PyTorchJob", "TFJob", "TrainJob"}
    assert kinds["mnist-tensorflow"] == {"TFJob"}
    assert kinds["tabular"] == {"XGBoostJob", "TrainJob"}


@every_pod
def test_the_command_launches_a_recipe_and_restarts_it_in_place(pod: Pod):
    program, command, *flags = pod.command
    assert (program, command) == ("trainkit", "launch")
    options = read_options(parse_flags(flags, argparse.ArgumentParser()), {})
    assert options.max_restarts == 3
    assert options.entry.kind == "module"
    assert (ROOT / f"{options.entry.target.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
def test_the_language_model_is_sharded_and_takes_its_flags(kind: str):
    pytest.importorskip("torch")
    from trainkit.recipes._config import parse

    for pod in pods(load(ROOT / f"recipes/lm/{kind}.yaml")):
        place = pod.command.index("-m") + 1
        config = parse(import_module(pod.command[place]).Config, pod.command[place + 1 :], None)
        assert config.strategy == "fsdp"


@every_pod
def test_grace_is_said_twice_and_equal(pod: Pod):
    seconds = pod.spec["terminationGracePeriodSeconds"]
    assert pod.env["TRAINKIT_GRACE_PERIOD"] == str(seconds)


@every_pod
def test_checkpoints_outlive_the_pod(pod: Pod):
    claim = load(ROOT / "recipes/checkpoints.yaml")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    mounts = {
        mount["mountPath"]: volumes[mount["name"]]
        for mount in pod.spec["containers"][0]["volumeMounts"]
    }
    folder = Path(pod.env["TRAINKIT_CHECKPOINT_DIR"])
    assert mounts[str(folder.parent)]["persistentVolumeClaim"]["claimName"] == claim


def test_no_two_jobs_share_a_checkpoint_folder():
    folders = [{pod.env["TRAINKIT_CHECKPOINT_DIR"] for pod in pods(load(file))} for file in RECIPES]
    assert all(len(folder) == 1 for folder in folders)
    assert len(set.union(*folders)) == len(RECIPES)


@every_pod
def test_shared_memory_is_a_part_of_the_memory_limit(pod: Pod):
    (shm,) = [v["emptyDir"] for v in pod.spec["volumes"] if v["name"] == "shm"]
    assert shm["medium"] == "Memory"
    limit = pod.resources["limits"]["memory"]
    assert limit == pod.resources["requests"]["memory"]
    assert 0 < int(shm["sizeLimit"].removesuffix("Gi")) < int(limit.removesuffix("Gi"))
    mounts = {mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]}
    assert "/dev/shm" in mounts


@every_pod
def test_the_restricted_pod_security_standard_is_met(pod: Pod):
    assert pod.spec["securityContext"]["runAsNonRoot"] is True
    assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = pod.spec["containers"][0]["securityContext"]
    assert container == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@every_pod
def test_no_mesh_sidecar(pod: Pod):
    assert pod.annotations["sidecar.istio.io/inject"] == "false"


def test_a_job_gives_up_on_exactly_the_permanent_codes():
    spec = load(ROOT / "recipes/mnist/job.yaml")["spec"]
    (fail,) = [r["onExitCodes"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r]
    permanent = [int(code) for code in ExitCode if 0 < code < 128]
    assert (fail["operator"], fail["values"]) == ("In", permanent)
    assert fail["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "Kubernetes asks for it"


def test_a_disruption_is_looked_at_before_the_code():
    spec = load(ROOT / "recipes/mnist/job.yaml")["spec"]
    first = spec["podFailurePolicy"]["rules"][0]
    assert first["action"] == "Ignore"
    assert first["onPodConditions"][0]["type"] == "DisruptionTarget"


@pytest.mark.parametrize(
    ("name", "kind", "container"),
    [
        ("lm/pytorchjob", "PyTorchJob", "pytorch"),
        ("mnist/pytorchjob", "PyTorchJob", "pytorch"),
        ("tabular/xgboostjob", "XGBoostJob", "xgboost"),
    ],
)
def test_the_pods_of_a_job_are_alike_and_restart_by_exit_code(name: str, kind: str, container: str):
    replicas = load(ROOT / f"recipes/{name}.yaml")["spec"][REPLICAS[kind]]
    assert list(replicas) == ["Master", "Worker"]
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"ExitCode"}
    names = [c["name"] for c in replicas["Master"]["template"]["spec"]["containers"]]
    assert names == [container], "the operator looks for this name"


def test_a_tfjob_of_torch_has_a_server_and_restarts_by_exit_code():
    replicas = load(ROOT / "recipes/mnist/tfjob-torch.yaml")["spec"]["tfReplicaSpecs"]
    assert list(replicas) == ["Chief", "Worker", "PS"]
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"ExitCode"}
    containers = [r["template"]["spec"]["containers"][0] for r in replicas.values()]
    assert {container["name"] for container in containers} == {"tensorflow"}
    assert all("--strategy=parameter_server" in c["command"] for c in containers)
    assert all(container["env"] == containers[0]["env"] for container in containers)


def test_the_pods_of_an_mpijob_run_one_command_and_find_their_keys():
    spec = load(ROOT / "recipes/mnist/mpijob.yaml")["spec"]
    launcher, worker = pods({"kind": "MPIJob", "spec": spec})
    assert launcher.command == worker.command
    assert launcher.command[-1] == "--strategy=mpi"
    (home,) = re.findall(r"--home-dir (\S+)", (ROOT / "images/torch/Dockerfile").read_text())
    assert spec["sshAuthMountPath"] == f"{home}/.ssh"
    assert spec["runPolicy"]["cleanPodPolicy"] == "Running", "workers never end by themselves"


def test_the_image_has_what_an_mpijob_needs():
    """B118: an MPI launcher without mpi4py, or a worker without sshd, would fail in the pod."""
    text = (ROOT / "images/torch/Dockerfile").read_text()
    (extras,) = re.findall(r"'\.\[([a-z0-9,]+)\]'", text)
    assert {"torch", "mpi"} <= set(extras.split(","))
    (packages,) = re.findall(r"--no-install-recommends ([^\\]+)\\", text)
    assert {"openssh-client", "openssh-server", "tini"} <= set(packages.split())


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("tfjob", {"Chief": 1, "Worker": 1}),
        ("tfjob-ps", {"Chief": 1, "Worker": 2, "PS": 1, "Evaluator": 1}),
    ],
)
def test_the_pods_of_a_tfjob_run_one_command_and_restart_by_exit_code(
    name: str, roles: dict[str, int]
):
    spec = load(ROOT / f"recipes/mnist-tensorflow/{name}.yaml")["spec"]
    replicas = spec["tfReplicaSpecs"]
    assert {role: replica["replicas"] for role, replica in replicas.items()} == roles
    assert {replica["restartPolicy"] for replica in replicas.values()} == {"ExitCode"}
    containers = [r["template"]["spec"]["containers"][0] for r in replicas.values()]
    assert {container["name"] for container in containers} == {"tensorflow"}, "the operator's name"
    assert len({tuple(container["command"]) for container in containers}) == 1
    folders = {str(container["env"]) for container in containers}
    assert len(folders) == 1, "the evaluator reads where the chief saves"
    assert "enableDynamicWorker" not in spec, "rank and leader would not be known"
