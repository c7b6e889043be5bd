import sys

import pytest

from tests.strategies.mpi import running


@pytest.fixture
def mpirun(tmp_path):
    """Start a program file on ranks; all of them are gone when the test is over."""
    if reason := running.missing():
        pytest.skip(reason)
    jobs = []

    def start(program, *arguments, n=2, **environ):
        command = [sys.executable, "-W", "error::RuntimeWarning", str(program)]
        jobs.append(running.start(tmp_path, [*command, *map(str, arguments)], n, **environ))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
