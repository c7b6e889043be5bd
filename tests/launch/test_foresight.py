import gc
import sys

import pytest

from trainkit.launch.foresight import import_meanwhile


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules that import one another, and one that raises."""
    (tmp_path / "foreseen_first.py").write_text("import foreseen_second\nDONE = True\n")
    (tmp_path / "foreseen_second.py").write_text("import gc\nCOLLECTS = gc.isenabled()\n")
    (tmp_path / "foreseen_broken.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("foreseen_")]:
        del sys.modules[name]


def test_others_are_attended_to_between_two_modules(modules):
    seen = []
    finders = list(sys.meta_path)
    import_meanwhile(["foreseen_first"], lambda: seen.append("foreseen_first" in sys.modules))
    assert seen == [False, True]  # before the first, and while it imports the second
    assert sys.modules["foreseen_first"].DONE
    assert not sys.modules["foreseen_second"].COLLECTS
    assert gc.isenabled()
    assert sys.meta_path == finders


def test_what_does_not_work_is_left_out(modules):
    import_meanwhile(["foreseen_broken", "foreseen_absent", "foreseen_first"], lambda: None)
    assert sys.modules["foreseen_first"].DONE
    assert "foreseen_broken" not in sys.modules


def test_the_end_comes_in_the_middle_of_an_import(modules):
    class Over(BaseException):
        pass

    def attend():
        if "foreseen_first" in sys.modules:
            raise Over

    finders = list(sys.meta_path)
    with pytest.raises(Over):
        import_meanwhile(["foreseen_first"], attend)
    assert not {"foreseen_first", "foreseen_second"} & set(sys.modules)
    assert gc.isenabled()
    assert sys.meta_path == finders
