"""Each job YAML against the official Python model of its kind, and controls that are refused."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow.training import ApiClient
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))

Document = dict[str, Any]


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a document, as ``spec.template.…``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}"
            yield from paths(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, f"{prefix}{index}.")


def native(document: Document) -> Document:
    # `strict` refuses unknown keys, so there is nothing left to compare.
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    return document


def training_operator(document: Document) -> Document:
    client = ApiClient()
    response = SimpleNamespace(data=json.dumps(document))
    model = client.deserialize(response, f"KubeflowOrgV1{document['kind']}")
    kept: Document = client.sanitize_for_serialization(model)
    return kept


def trainjob(document: Document) -> Document:
    model = TrainerV1alpha1TrainJob.from_dict(document)
    assert model is not None
    return json.loads(model.to_json())


MPIJOB = {
    "spec": {
        *("launcherCreationPolicy", "mpiImplementation", "mpiReplicaSpecs", "runLauncherAsWorker"),
        *("runPolicy", "slotsPerWorker", "sshAuthMountPath"),
    },
    "runPolicy": {
        *("activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy"),
        *("schedulingPolicy", "suspend", "ttlSecondsAfterFinished"),
    },
    "replica": {"replicas", "restartPolicy", "template"},
}
"""What an MPIJob (v2beta1) may hold, by hand: there is no model of it on PyPI."""


def mpijob(document: Document) -> Document:
    assert document["apiVersion"] == "kubeflow.org/v2beta1"
    spec = document["spec"]
    assert {"Launcher", "Worker"} >= set(spec["mpiReplicaSpecs"]) >= {"Launcher"}
    parts = [("spec", spec), ("runPolicy", spec.get("runPolicy", {}))]
    for replica in spec["mpiReplicaSpecs"].values():
        parts.append(("replica", replica))
        pod = {**replica["template"], "apiVersion": "v1", "kind": "Pod"}
        pod["metadata"] = {**pod.get("metadata", {}), "name": "pod"}
        native(pod)
    for name, part in parts:
        if unknown := set(part) - MPIJOB[name]:
            raise ValueError(f"unknown to {name} of MPIJob: {sorted(unknown)}")
    return document


MODELS: dict[str, Callable[[Document], Document]] = {
    "Job": native,
    "MPIJob": mpijob,
    "PersistentVolumeClaim": native,
    "PyTorchJob": training_operator,
    "TFJob": training_operator,
    "TrainJob": trainjob,
    "XGBoostJob": training_operator,
}


def check(document: Document) -> None:
    """Raise where the official model refuses the document, or drops one of its keys unsaid."""
    kept = MODELS[document["kind"]](copy.deepcopy(document))
    lost = set(paths(document)) - set(paths(kept))
    if lost:
        raise ValueError(f"unknown to the model of {document['kind']}: {sorted(lost)}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_official_model_knows_every_key(file: Path):
    documents = [document for document in yaml.safe_load_all(file.read_text()) if document]
    assert documents
    for document in documents:
        check(document)


def misspelt_grace(document: Document) -> None:
    template = document["spec"]["template"]["spec"]
    template["terminationGracePeriod"] = template.pop("terminationGracePeriodSeconds")


def unknown_volume_field(document: Document) -> None:
    replica = document["spec"]["pytorchReplicaSpecs"]["Worker"]
    replica["template"]["spec"]["volumes"][1]["emptyDir"]["sizeLimits"] = "1Gi"


def role_of_another_kind(document: Document) -> None:
    document["spec"]["tfReplicaSpec"] = document["spec"].pop("tfReplicaSpecs")


def replicas_of_another_kind(document: Document) -> None:
    document["spec"]["pytorchReplicaSpecs"] = document["spec"].pop("xgbReplicaSpecs")


def policy_of_a_job(document: Document) -> None:
    document["spec"]["podFailurePolicy"] = {"rules": []}


def words_for_a_count(document: Document) -> None:
    document["spec"]["trainer"]["numProcPerNode"] = "auto"


def grace_in_the_wrong_place(document: Document) -> None:
    document["spec"]["trainer"]["terminationGracePeriodSeconds"] = 120


def restart_policy_in_a_patch(document: Document) -> None:
    job = document["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    job["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartPolicy"] = "Never"


def slots_in_the_wrong_place(document: Document) -> None:
    spec = document["spec"]
    spec["mpiReplicaSpecs"]["Worker"]["slots"] = spec.pop("slotsPerWorker")


def clean_pod_policy_of_v1(document: Document) -> None:
    document["spec"]["cleanPodPolicy"] = document["spec"]["runPolicy"].pop("cleanPodPolicy")


def misspelt_mount(document: Document) -> None:
    pod = document["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]
    pod["containers"][0]["volumeMount"] = pod["containers"][0].pop("volumeMounts")


def number_for_a_quantity(document: Document) -> None:
    document["spec"]["resources"]["requests"]["storage"] = ["10Gi"]


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("checkpoints", number_for_a_quantity),
        ("mnist/job", misspelt_grace),
        ("mnist/mpijob", slots_in_the_wrong_place),
        ("mnist/mpijob", clean_pod_policy_of_v1),
        ("mnist/mpijob", misspelt_mount),
        ("mnist/pytorchjob", unknown_volume_field),
        ("mnist/pytorchjob", policy_of_a_job),
        ("mnist/tfjob-torch", role_of_another_kind),
        ("mnist-tensorflow/tfjob", role_of_another_kind),
        ("mnist-tensorflow/tfjob-ps", policy_of_a_job),
        ("tabular/xgboostjob", replicas_of_another_kind),
        ("tabular/trainjob", words_for_a_count),
        ("mnist/trainjob", words_for_a_count),
        ("mnist/trainjob", grace_in_the_wrong_place),
        ("mnist/trainjob", restart_policy_in_a_patch),
    ],
)
def test_a_broken_document_is_refused(name: str, break_it: Callable[[Document], None]):
    document = yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text())
    break_it(document)
    with pytest.raises((ValueError, kubernetes_validate.ValidationError)):
        check(document)
