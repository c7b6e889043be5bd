"""URLs become storages, or errors that say what works."""

import pytest

from trainkit.errors import UsageError
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
        ("s3://bucket/run", "s3:// is not supported yet.*file:///path"),
        ("gs://bucket/run", "gs://"),
        ("file://host/run", "three slashes"),
        ("", "empty"),
        ("  ", "empty"),
    ],
)
def test_what_cannot_be_opened_is_named(url, words):
    with pytest.raises(UsageError, match=words):
        open_storage(url)
