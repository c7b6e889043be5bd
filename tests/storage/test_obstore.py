"""S3 by obstore: when it is taken, and that fsspec stands in wherever it fails."""

import multiprocessing
import subprocess
import sys
import threading

import pytest

from trainkit.config import environ
from trainkit.errors import NoPermissionError, UsageError
from trainkit.storage import ObjectStorage, open_storage
from trainkit.storage.obstore import ObstoreStorage

obstore = pytest.importorskip("obstore")


@pytest.fixture
def storage(s3):
    return ObstoreStorage(f"{s3}/run", environ())


def failing(*arguments, **options):
    raise obstore.exceptions.GenericError("a redirect to planted-region")


def test_it_is_taken_where_the_environment_says_all(s3, monkeypatch, tmp_path):
    assert isinstance(open_storage(s3), ObstoreStorage)
    monkeypatch.setenv("TRAINKIT_OBJECT_STORE", "fsspec")
    assert isinstance(open_storage(s3), ObjectStorage)
    monkeypatch.setenv("TRAINKIT_OBJECT_STORE", "boto")
    with pytest.raises(UsageError, match="expected one of auto, fsspec"):
        open_storage(s3)
    monkeypatch.delenv("TRAINKIT_OBJECT_STORE")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = us-east-1\n")
    assert isinstance(open_storage(s3), ObjectStorage)


def test_credentials_of_a_profile_work_without_it(s3, s3_server, monkeypatch, tmp_path):
    """obstore would say that there are none."""
    import s3fs

    variables = s3_server.variables
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(
        f"[profile mine]\nendpoint_url = {variables['AWS_ENDPOINT_URL']}\nregion = us-east-1\n"
        f"aws_access_key_id = {variables['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {variables['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in variables:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    s3fs.S3FileSystem.clear_instance_cache()
    storage = open_storage(s3)
    storage.create("a", b"1")
    assert storage.read("a") == b"1"
    s3fs.S3FileSystem.clear_instance_cache()


def test_neither_fsspec_nor_boto_is_imported_for_what_is_small(s3):
    program = (
        "import sys\n"
        "from trainkit.storage import open_storage\n"
        "storage = open_storage(sys.argv[1])\n"
        "storage.write_all({'a': b'1', 'b': b'2'})\n"
        "assert storage.read('a') == b'1' and storage.names() == ['a', 'b']\n"
        "assert storage.size('c') is None and storage.read_into('a', memoryview(b''), 0) == 0\n"
        "storage.delete('a')\n"
        "print(sorted({'fsspec', 's3fs', 'botocore', 'aiohttp'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, s3], capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == "[]", ran.stderr


def test_an_answer_that_was_lost_is_a_success(storage, monkeypatch):
    done = obstore.put

    def twice(*arguments, **options):  # as the library does, and finds its own object
        done(*arguments, **options)
        return done(*arguments, **options)

    monkeypatch.setattr(obstore, "put", twice)
    storage.create("a", b"mine")
    assert storage.read("a") == b"mine"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_it_sends_what_it_gets_without_a_copy(storage, kind, monkeypatch):
    done, sent = obstore.put, []
    monkeypatch.setattr(
        obstore,
        "put",
        lambda store, path, file, **options: (
            sent.append(file) or done(store, path, file, **options)
        ),
    )
    data = kind(bytes(range(256)) * 1000)
    storage.create("a", data)
    assert sent[0].obj is (data.obj if kind is memoryview else data)
    assert storage.read("a") == bytes(data)


@pytest.mark.parametrize(
    "name", ["put", "get", "get_range", "list", "list_with_delimiter", "head", "delete"]
)
def test_fsspec_does_what_it_cannot(storage, monkeypatch, name):
    monkeypatch.setattr(obstore, name, failing)
    storage.write_all({"a/b": b"123", "a/c": b"4"})
    buffer = bytearray(2)
    assert storage.read("a/b") == b"123"
    assert storage.read_into("a/b", memoryview(buffer), 1) == 2
    assert buffer == b"23"
    assert storage.names("a") == ["b", "c"]
    assert {path: info.size for path, info in storage.tree().items()} == {"a/b": 3, "a/c": 1}
    assert storage.size("a/b") == 3
    with pytest.raises(FileExistsError):
        storage.create("a/b", b"x")
    storage.delete("a")
    assert storage.tree() == {}


def test_after_three_failures_in_a_row_it_is_asked_no_more(storage, monkeypatch):
    asked = []

    def count(*arguments, **options):
        asked.append(1)
        failing()

    storage.create("a", b"1")
    monkeypatch.setattr(obstore, "get", count)
    for _ in range(5):
        assert storage.read("a") == b"1"
    assert len(asked) == 3
    monkeypatch.undo()


def test_of_an_error_users_see_what_fsspec_says(s3, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-planted-secret")
    s3fs.S3FileSystem.clear_instance_cache()
    storage = ObstoreStorage(f"{s3}/run", environ())
    for request in (lambda: storage.create("a", b"1"), storage.names, lambda: storage.read("a")):
        with pytest.raises(NoPermissionError) as refused:
            request()
        assert "planted-secret" not in str(refused.value)
        assert "\n" not in str(refused.value)
        assert "Debug source" not in str(refused.value)
    s3fs.S3FileSystem.clear_instance_cache()


def _in_a_fork(storage, url, answers):
    other = open_storage(url)  # of its own, while the library's threads are the parent's
    answers.put((storage.read("a"), other.read("a"), other.names()))


def test_it_works_in_a_process_that_was_forked(storage):
    storage.create("a", b"1")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_in_a_fork, args=(storage, storage.url, answers))
    process.start()
    process.join(20)
    hangs = process.is_alive()
    process.kill()
    process.join()
    assert not hangs
    assert answers.get() == (b"1", b"1", ["a"])


def test_many_threads_share_one(storage):
    def work(number):
        storage.create(f"a/{number}", b"%d" % number)
        assert storage.read(f"a/{number}") == b"%d" % number

    threads = [threading.Thread(target=work, args=(n,)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(storage.names("a")) == 32


def test_keys_with_two_spellings_are_left_to_fsspec(storage):
    storage.create("with space/50%~", b"1")
    assert storage.names() == ["with space"]
    assert ObjectStorage(storage.url).read("with space/50%~") == b"1"
    assert storage.read("with space/50%~") == b"1"
    storage.delete("with space")
    assert storage.tree() == {}
