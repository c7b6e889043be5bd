import pytest


@pytest.fixture(autouse=True)
def _compile_cache(monkeypatch, tmp_path_factory):
    """torch sets this for good when it first imports its compiler, which an optimizer does."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp()))
