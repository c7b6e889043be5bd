import shutil

import pytest

from tests.distributed.pods import EXAMPLE, MINE, Cluster


@pytest.fixture
def cluster(tmp_path):
    """A folder with examples/train.py as it is, and a ``mine`` that keeps records."""
    shutil.copy(EXAMPLE, tmp_path / "train.py")
    (tmp_path / "mine.py").write_text(MINE)
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()
