import shutil

import pytest

from tests.distributed.pods import EXAMPLE, MINE, Cluster
from tests.distributed.tfjob import Job


@pytest.fixture
def cluster(tmp_path):
    """A folder with examples/train.py as it is, and a ``mine`` that keeps records."""
    shutil.copy(EXAMPLE, tmp_path / "train.py")
    (tmp_path / "mine.py").write_text(MINE)
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()


@pytest.fixture
def jobs(tmp_path):
    """Makes TFJobs, each in a folder of its own; all are ended when the test is."""
    made = []

    def make(name="job", **options):
        folder = tmp_path / name
        folder.mkdir()
        made.append(Job(folder, **options))
        return made[-1]

    yield make
    for job in made:
        job.cluster.stop()
