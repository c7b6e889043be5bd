"""Marks that skip say what is missing."""

from trainkit.testing import requires_cuda, requires_module, requires_root


def skipped(mark):
    return bool(mark.args[0]), mark.kwargs["reason"]


def test_cuda_devices_are_counted_by_what_is_visible(monkeypatch):
    monkeypatch.setattr("trainkit.testing.requirements.visible_gpu_count", lambda: 2)
    assert skipped(requires_cuda(3)) == (True, "needs 3 CUDA device(s), this process sees 2")
    assert not skipped(requires_cuda(2))[0]
    assert not skipped(requires_cuda())[0]
    monkeypatch.undo()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert skipped(requires_cuda()) == (True, "needs 1 CUDA device(s), this process sees 0")


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
