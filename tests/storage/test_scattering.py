"""What fills many buffers, also from a storage that cannot by itself."""

import pytest

from trainkit.errors import InputMissingError
from trainkit.storage import LocalStorage, open_storage, scatter_from


@pytest.fixture(params=["local", "memory", "wrapped"])
def storage(request, tmp_path):
    if request.param == "memory":
        pytest.importorskip("fsspec", reason="fsspec is not installed")
        return open_storage(f"memory://{tmp_path.name}")
    local = LocalStorage(tmp_path)
    if request.param == "local":
        return local

    class Wrapped:
        """A storage with one way to read."""

        read_into = staticmethod(local.read_into)
        write = staticmethod(local.write)

    return Wrapped()


def test_it_fills_all_buffers_from_a_place_on(storage):
    storage.write("a", [b"0123456789"])
    places = [memoryview(bytearray(size)) for size in (2, 0, 5)]
    with scatter_from(storage, "a") as scatter:
        assert list(scatter(places, 3))[-1] == 3
        assert [bytes(place) for place in places] == [b"34", b"", b"56789"]
        assert sum(scatter(places, 4)) == 0  # the object ends before


def test_what_is_not_there_raises(storage):
    place = memoryview(bytearray(1))
    with pytest.raises(InputMissingError), scatter_from(storage, "a") as scatter:
        list(scatter([place], 0))
