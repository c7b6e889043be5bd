"""torch's collectives over MPI, on real ranks of mpirun."""

from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("collectives.py")


@pytest.mark.parametrize(
    ("way", "n"),
    [("shared", 3), ("alone", 2), ("hosts", 4), pytest.param("shared", 2, marks=pytest.mark.slow)],
)
def test_every_collective_comes_to_what_it_must(mpirun, way, n):
    """Within one host's memory, by MPI alone, and on hosts of two ranks each."""
    # No copies from process to process, so that messages pass as they do between hosts.
    job = mpirun(PROGRAM, way, n=n, OMPI_MCA_smsc="^cma,xpmem,knem")
    assert job.wait() == 0, job.output
    assert job.output.count(" ok") == 9
    assert "trainkit: " not in job.output.replace("trainkit: mpi worker", ""), job.output


@pytest.mark.slow
def test_hosts_of_unequal_size(mpirun):
    job = mpirun(PROGRAM, "hosts", n=5)
    assert job.wait() == 0, job.output
