"""Secrets in variables, arguments, addresses and errors, and none in what the launcher says."""

import json
import os
import subprocess
import sys

import pytest

VARIABLES = {
    "AWS_SECRET_ACCESS_KEY": "planted-1/aws+x=",
    "HF_TOKEN": "hf_planted-2",
    "WANDB_API_KEY": "planted-3",
    "DATABASE_URL": "postgres://me:planted-4@db/train",
    "PET_RDZV_CONF": "password=planted-5,timeout=30",
    "PET_RDZV_ENDPOINT": "http://me:planted-6@127.0.0.1:1",
    "PET_RDZV_BACKEND": "c10d",
    "PET_NNODES": "1:2",
}
ARGUMENTS = [
    *("--url", "https://me:planted-7@host/x?sig=planted-8"),
    *("--password=planted-9", "--api-key", "planted-10", "--hub-token", "planted-11"),
]

RAISES = """
import os, sys, torch
def login(*words):
    raise ValueError(f"cannot log in: {words}, {sys.argv[1:]}, {os.environ['PLACES']}")
login(os.environ["HF_TOKEN"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["WANDB_API_KEY"])
"""


def test_the_report_the_termination_message_and_what_ranks_say(launch, tmp_path):
    log = tmp_path / "message"
    own = {name: value for name, value in VARIABLES.items() if not name.startswith("PET_")}
    places = " ".join(VARIABLES[name] for name in ("DATABASE_URL", "PET_RDZV_CONF"))
    one = launch(
        *("--nproc-per-node", 2, "--max-restarts", 1),
        script=RAISES,
        arguments=ARGUMENTS,
        TRAINKIT_TERMINATION_LOG=str(log),
        PLACES=places,
        **own,
    )
    assert one.wait() == 70, one.err
    assert "starting again in place" in one.err
    for text in (one.err, log.read_text()):
        assert "ValueError: cannot log in: ('…', '…', '…')" in text
        assert "planted" not in text
    assert "planted" not in json.loads(log.read_text().splitlines()[1])["message"]


def run(*command, **environ):
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("TRAINKIT_", "PET_"))}
    return subprocess.run(
        [sys.executable, "-m", "trainkit", *command],
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("flags", [(), ("--json",), ("--explain",), ("--json", "--explain")])
def test_trainkit_env(flags):
    one = run("env", *flags, **VARIABLES)
    assert one.returncode == 0, one.stderr
    assert "http://…@127.0.0.1" in (one.stdout.encode().decode("unicode_escape") + one.stdout)
    assert "planted" not in one.stdout + one.stderr


@pytest.mark.parametrize("first", [["train.py"], ["--no-python", "curl"]])
def test_a_dry_run(tmp_path, first):
    (tmp_path / "train.py").write_text("import torch")
    first = [*first[:-1], str(tmp_path / first[-1])]
    one = run("launch", "--dry-run", "--nproc-per-node", "2", *first, *ARGUMENTS, **VARIABLES)
    assert one.returncode == 0, one.stderr
    assert "--password=…" in one.stdout
    assert "planted" not in one.stdout + one.stderr


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ({}, 2, "the nodes cannot meet at 'http://…@127.0.0.1:1:29400' by 'c10d'"),
        ({"PET_RDZV_BACKEND": "none"}, 2, "by 'none'"),
        ({"PET_RDZV_ENDPOINT": "127.0.0.1:1"}, 138, "did not meet at 127.0.0.1:1"),
    ],
)
def test_a_rendezvous_that_cannot_be(launch, wrong, code, said):
    """One message, and no traceback, in which the endpoint would be shown."""
    variables = VARIABLES | {"PET_NNODES": "2:3", "TRAINKIT_TIMEOUT": "3"}
    one = launch(**variables | wrong)
    assert one.wait() == code, one.err
    assert said in one.err
    assert "Traceback" not in one.err
    assert "planted" not in one.out + one.err
