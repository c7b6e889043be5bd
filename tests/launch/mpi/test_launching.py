"""The launcher pod's ``trainkit launch`` around an mpirun that the test has written."""

import os
import signal

import pytest

from trainkit.processes.table import own_children, process_table
from trainkit.waiting import Deadline, wait_until

MPIRUN = """#!/bin/sh
if [ "$1" = --version ]; then
    echo version >> {folder}/asked
    sleep {version}
    echo "mpirun (Open MPI) 5.0.11"
    exit 0
fi
echo started >> {folder}/started
{body}
"""

LOST = """
cat >&2 <<END
PRTE has lost communication with a remote daemon.

  HNP daemon   : [prterun-job-launcher-82@0,0] on node job-launcher
  Remote daemon: [prterun-job-launcher-82@0,2] on node job-worker-1

This is usually due to either a failure of the TCP network
END
exit {code}
"""
"""What Open MPI 5 says then, and the codes with which it was seen to end."""


@pytest.fixture
def mpirun(tmp_path, launch):
    """Launch with such an mpirun, whose hosts are this one, and an agent that reaches it."""

    def start(*flags, body, version=0, hostfile=True, **environ):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in (
            ("mpirun", MPIRUN.format(folder=tmp_path, body=body, version=version)),
            ("agent", f"#!/bin/sh\necho asked >> {tmp_path}/reached\n"),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        path = tmp_path / "hostfile"
        if hostfile:
            path.write_text("elsewhere slots=2\n")
        return launch(
            *flags,
            script="pass",
            PATH=f"{folder}:{os.environ['PATH']}",
            OMPI_MCA_orte_default_hostfile=str(path),
            OMPI_MCA_plm_rsh_agent=str(folder / "agent"),
            TMPDIR=str(tmp_path),
            **environ,
        )

    return start


def test_a_notice_that_ends_a_program_of_others_is_a_notice_and_no_failure(mpirun, tmp_path):
    """Told by SIGUSR1, which mpirun hands on, a program without trainkit dies of it."""
    one = mpirun(body="exec sleep 100")
    wait_until((tmp_path / "started").exists, what="mpirun", deadline=Deadline(60))
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143, one.err
    assert "failed" not in one.err
    assert not list(tmp_path.glob("trainkit-mpi-*"))


def test_a_notice_before_the_plan_is_made(mpirun, tmp_path):
    one = mpirun(body="exit 0", version=3)
    wait_until((tmp_path / "asked").exists, what="the look at mpirun", deadline=Deadline(60))
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() == 143, one.err
    assert not (tmp_path / "started").exists()
    # The look at mpirun was nobody's child any more, and has come over to this process.
    table = process_table()
    for pid in own_children():
        if pid in table and table[pid].zombie:
            os.waitpid(pid, 0)


def test_hosts_are_waited_for_before_each_start(mpirun, tmp_path):
    one = mpirun("--max-restarts", 2, body="exit 138")
    assert one.wait() == 138, one.err
    for name in ("started", "reached"):
        assert (tmp_path / name).read_text().count("\n") == 3
    assert "Open MPI 5 does not read" not in one.err  # since launch gives it the hostfile


def test_a_hostfile_that_comes_late_is_waited_for(mpirun, tmp_path):
    one = mpirun(body="exit 0", hostfile=False, TRAINKIT_TIMEOUT="60")
    (tmp_path / "hostfile").write_text("elsewhere slots=2\n")
    assert one.wait() == 0, one.err


def test_a_hostfile_that_does_not_come_is_told(mpirun):
    one = mpirun(body="exit 0", hostfile=False, TRAINKIT_TIMEOUT="0.2")
    assert one.wait() == 78, one.err
    assert "names a hostfile" in one.err


@pytest.mark.parametrize("code", [0, 255])
def test_a_lost_host_is_a_failure_that_may_pass_whatever_mpirun_ends_with(mpirun, tmp_path, code):
    one = mpirun("--max-restarts", 1, body=LOST.format(code=code))
    assert one.wait() == 138, one.err
    assert "failed first: mpirun has lost job-worker-1: its pod, its node or" in one.err
    assert (tmp_path / "started").read_text().count("\n") == 2


def test_a_host_that_only_ssh_tells_of(mpirun):
    """mpirun's own words come on standard output where its ssh ended first."""
    words = "Connection to job-worker-1.job.ns.svc closed by remote host."
    one = mpirun(body=f"echo {words} >&2; exit 255")
    assert one.wait() == 138, one.err
    assert "failed first: mpirun has lost job-worker-1.job.ns.svc: its pod" in one.err


def test_a_ranks_own_255_is_its_own(mpirun):
    one = mpirun(body="echo '   Exit code:    255' >&2; exit 255")
    assert one.wait() == 255, one.err


@pytest.mark.parametrize("code", [70, 137])
def test_a_code_that_tells_the_cause_stays_where_a_host_is_lost_too(mpirun, code):
    one = mpirun(body=LOST.format(code=code))
    assert one.wait() == code, one.err
