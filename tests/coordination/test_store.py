"""One contract, held by each store."""

import pickle
import threading

import pytest

from trainkit.coordination import MemoryStore, PrefixedStore, Store, client
from trainkit.errors import EnvironmentFaultError
from trainkit.waiting import Deadline


def torch_store():
    pytest.importorskip("torch")
    from trainkit.coordination.torch import serve_store

    return serve_store(0, Deadline(30))


STORES = {
    "memory": MemoryStore,
    "own": lambda: client.serve_store(0, Deadline(30)),
    "prefixed": lambda: PrefixedStore("part", MemoryStore()),
    "torch": torch_store,
}


@pytest.fixture(params=sorted(STORES))
def store(request):
    found = STORES[request.param]()
    yield found
    getattr(found, "close", lambda: None)()


def test_values_come_back_byte_for_byte(store):
    value = pickle.dumps({"a": b"\x00\xff", "text": "ü"})
    store.set("key", value)
    assert store.get("key") == value
    store.set("key", b"")
    assert store.get("key") == b""
    assert isinstance(store, Store)


def test_a_missing_key_is_none_and_does_not_wait(store):
    assert store.get("nothing") is None


def test_wait_ends_when_the_key_comes(store):
    setter = threading.Timer(0.05, store.set, ("late", b"1"))
    setter.start()
    # A connection may serve one call at a time, so short waits let the setter in.
    assert any(store.wait("late", 0.02) for _ in range(3000))
    setter.join()


def test_a_wait_in_vain_ends_and_writes_nothing(store, capfd):
    assert store.wait("never", 0.02) is False
    assert capfd.readouterr().err == ""


def test_counters_count(store):
    assert [store.add("n", 2), store.add("n", 0), store.add("n", -1)] == [2, 2, 1]


def test_deleted_keys_are_gone(store):
    store.set("key", b"1")
    store.delete("key")
    store.delete("key")
    assert store.get("key") is None


def test_a_part_of_a_store_does_not_see_another():
    whole = MemoryStore()
    a, b = PrefixedStore("a", whole), PrefixedStore("b", whole)
    a.set("key", b"1")
    assert b.get("key") is None
    assert whole.get("a/key") == b"1"


def test_a_taken_port_is_named():
    pytest.importorskip("torch")
    from trainkit.coordination.torch import serve_store

    first = serve_store(0, Deadline(30))
    with pytest.raises(EnvironmentFaultError, match=f"port {first.port}: it is in use by process"):
        serve_store(first.port, Deadline(30))
