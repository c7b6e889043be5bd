"""URLs become storages, or errors that say what works."""

import pytest

from trainkit.errors import DependencyError, EnvironmentFaultError, UsageError
from trainkit.storage import open_storage


def test_local_paths_and_file_urls(tmp_path):
    folder = tmp_path / "with space"
    for url in (folder, str(folder), f"file://{folder}".replace(" ", "%20"), f"{folder}/"):
        assert open_storage(url).url == str(folder)


def test_a_relative_path_is_pinned_to_where_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("run")
    monkeypatch.chdir("/")
    storage.write("a", [b"x"])
    assert (tmp_path / "run" / "a").exists()


def test_opening_writes_nothing(tmp_path):
    open_storage(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "no bucket; expected s3://bucket/folder"),
        ("nothing://bucket/run", "nothing:// is no scheme"),
        ("file://host/run", "three slashes"),
        ("", "empty"),
        ("  ", "empty"),
    ],
)
def test_what_cannot_be_opened_is_named(url, words):
    with pytest.raises(UsageError, match=words):
        open_storage(url)


def test_credentials_in_a_url_are_refused_and_not_shown():
    with pytest.raises(UsageError, match="with credentials in it") as refused:
        open_storage("s3://access:planted-secret@bucket/run")
    assert "planted" not in str(refused.value)


def test_a_missing_library_is_named_by_its_extra(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(DependencyError, match=r'pip install "trainkit\[gcs\]"'):
        open_storage("gs://bucket/run")
    with pytest.raises(DependencyError, match="Please install gcsfs"):
        open_storage("other://bucket/run")


def test_a_store_that_cannot_refuse_to_write_over_an_object_is_refused():
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Careless(MemoryFileSystem):
        protocol = "careless"

        def pipe_file(self, path, value, **kwargs):
            super().pipe_file(path, value)

    fsspec.register_implementation("careless", Careless, clobber=True)
    with pytest.raises(EnvironmentFaultError, match="careless:// cannot hold checkpoints"):
        open_storage("careless://bucket/run")
