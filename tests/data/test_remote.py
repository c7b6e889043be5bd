import sys

import fsspec
import pytest

from trainkit.data.remote import RefusedError, open_url
from trainkit.errors import DependencyError, UsageError


def read(url):
    with open_url(url) as (size, chunks):
        return size, b"".join(chunks)


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    store.pipe("/remote/data", b"content")
    yield store
    store.rm("/remote", recursive=True)


def test_http_gives_size_and_content(mirror):
    mirror.answers["/data"] = [b"content"]
    assert read(mirror.url("/data")) == (7, b"content")


def test_http_without_a_size(mirror):
    def unsized(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"content")

    mirror.answers["/data"] = [unsized]
    assert read(mirror.url("/data")) == (None, b"content")


@pytest.mark.parametrize(("status", "may_pass"), [(403, False), (404, False), (503, True)])
def test_refusals_say_whether_asking_again_is_worth_it(mirror, status, may_pass):
    mirror.answers["/data"] = [status]
    with pytest.raises(RefusedError, match=f"HTTP {status}") as caught:
        read(mirror.url("/data"))
    assert caught.value.may_pass is may_pass


def test_a_server_that_hangs_up_or_says_nothing_may_come_back(mirror, monkeypatch):
    mirror.answers["/data"] = [lambda handler: handler.connection.close()]
    with pytest.raises(RefusedError) as caught:
        read(mirror.url("/data"))
    assert caught.value.may_pass


def test_other_stores_are_read_through_fsspec(memory, tmp_path):
    assert read("memory://remote/data") == (7, b"content")
    (tmp_path / "data").write_bytes(b"local")
    assert read(f"file://{tmp_path}/data") == (5, b"local")
    for missing in ("memory://remote/none", f"file://{tmp_path}/none"):
        with pytest.raises(RefusedError, match="not found"):
            read(missing)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    # fsspec keeps the class of a file system that any earlier test has opened.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DependencyError, match=r'pip install "trainkit\[gcs\]"'):
        read("gs://bucket/data")


@pytest.mark.parametrize("url", ["data/mnist", "unheard-of://host/data"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UsageError):
        read(url)
