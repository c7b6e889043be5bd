"""Marks that skip say what is missing."""

import pytest

from trainkit.testing import requirements, requires_cuda, requires_module, requires_root


def skipped(mark):
    return bool(mark.args[0]), mark.kwargs["reason"]


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("0", 1),
        ("0,1", 2),
        ("0,-1,1", 1),
        ("-1", 0),
        ("NoDevFiles", 1),
        ("GPU-1,GPU-2,GPU-3,GPU-4,GPU-5", 4),
    ],
)
def test_cuda_counts_what_is_visible(monkeypatch, visible, count):
    monkeypatch.setattr("os.listdir", lambda folder: ["a", "b", "c", "d"])
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert requirements._cuda_devices() == count
    skip, reason = skipped(requires_cuda(count + 1))
    assert skip
    assert reason == f"needs {count + 1} CUDA device(s), this process sees {count}"
    assert not skipped(requires_cuda(count))[0]


def test_module_is_named_and_not_imported():
    assert skipped(requires_module("os", "no_such_a", "no_such_b")) == (
        True,
        "needs no_such_a, no_such_b, which is not installed",
    )
    assert not skipped(requires_module("os"))[0]


def test_root_is_asked_for_by_user_id(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert skipped(requires_root()) == (True, "needs root, runs as user 1000")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert not skipped(requires_root())[0]
