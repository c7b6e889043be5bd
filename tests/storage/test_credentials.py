"""Credentials in URLs: refused where they are given, left out where an error shows them."""

import pytest

from trainkit.storage.credentials import has_secret
from trainkit.storage.objects import ObjectStorage


def test_a_secret_is_found_in_what_an_error_came_from():
    secret = ValueError("http://me:word@host")
    error, outer = OSError("broken"), OSError("again")
    error.__context__ = secret
    outer.__cause__ = error
    assert has_secret(outer)
    error.__context__ = outer  # which goes in a circle
    assert not has_secret(outer)


def test_an_error_of_a_store_is_raised_without_the_secret_and_its_cause():
    storage = ObjectStorage("memory://folder")

    class Failing:
        def cat_file(self, *arguments, **options):
            raise ConnectionError("cannot reach http://me:word@proxy:3128")

    storage._fs = Failing()
    with pytest.raises(OSError, match="cannot reach http://…@proxy:3128") as caught:
        storage.read("a")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
