import pytest

from tests.checkpoint.admin.checkpoints import Root


@pytest.fixture
def root(tmp_path):
    """An empty root on disk."""
    return Root(tmp_path / "root")


@pytest.fixture
def disk(tmp_path):
    """The folder of ``root``."""
    return tmp_path / "root"
