"""Exit codes are API: people read them in the docs and operators act on them."""

import re
from pathlib import Path

import pytest

from trainkit import errors
from trainkit.errors import ExitCode, TrainkitError
from trainkit.launch.report import RankEnd, failure_report

ROOT = Path(__file__).parents[2]
ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, TrainkitError) and value is not TrainkitError
]


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_the_docs_have_a_row_for_every_code(code: ExitCode):
    page = (ROOT / "docs/exit-codes.md").read_text()
    rows = [line for line in page.splitlines() if re.match(rf"\| *`?{int(code)}`? *\|", line)]
    assert len(rows) == 1, f"docs/exit-codes.md needs one row for {int(code)} ({code.name})"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_tree_in_the_docstring_says_the_code(error: type[TrainkitError]):
    assert errors.__doc__ is not None
    (line,) = [line for line in errors.__doc__.splitlines() if f"─ {error.__name__} " in line]
    assert int(error.exit_code) in map(int, re.findall(r"\b\d+\b", line))


def test_codes_fit_the_rule_of_the_operators():
    retryable = {ExitCode.INTERRUPTED, ExitCode.RETRYABLE, ExitCode.PREEMPTED}
    assert {code for code in ExitCode if code >= 128} == retryable


def documents() -> list[dict]:
    yaml = pytest.importorskip("yaml")
    page = (ROOT / "docs/exit-codes.md").read_text()
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]


def test_the_policy_in_the_docs_gives_up_on_just_the_codes_below_128():
    (job,) = [one for one in documents() if one["kind"] == "Job"]
    ignore, give_up = job["spec"]["podFailurePolicy"]["rules"]
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert give_up["action"] == "FailJob"
    assert give_up["onExitCodes"]["values"] == sorted(int(c) for c in ExitCode if 0 < c < 128)
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_job_of_the_docs_is_one_for_kubernetes():
    validator = pytest.importorskip("kubernetes_validate")
    (job,) = [one for one in documents() if one["kind"] == "Job"]
    validator.validate(job, "1.31", strict=True)


def test_a_job_of_the_training_operator_goes_by_the_code_in_all_roles():
    (job,) = [one for one in documents() if one["kind"] == "PyTorchJob"]
    roles = job["spec"]["pytorchReplicaSpecs"]
    assert set(roles) == {"Master", "Worker"}
    assert {role["restartPolicy"] for role in roles.values()} == {"ExitCode"}


@pytest.mark.parametrize("code", [code for code in ExitCode if code], ids=lambda code: code.name)
def test_ranks_are_started_again_but_on_codes_that_the_docs_name(code: ExitCode):
    end = RankEnd(
        rank=0, local_rank=0, label="r0", pid=1, exitcode=int(code), time=0.0, error_file=None
    )
    report = failure_report([end], host="h")
    page = (ROOT / "docs/exit-codes.md").read_text()
    line = re.search(r"started again in place on any failure but (.*)\.", page)
    assert line is not None
    assert report.retryable_in_place == (str(int(code)) not in re.findall(r"\d+", line[1]))
