import pickle
from fractions import Fraction

import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, UsageError
from trainkit.state import PerRank, Pickled, Progress, Stateful


def test_progress_comes_back():
    progress = Progress(epoch=2, step=17)
    again = Progress()
    again.load_state_dict(progress.state_dict())
    assert again == progress
    assert isinstance(progress, Stateful)


def test_a_value_per_rank_is_marked_and_kept():
    assert PerRank([1]).value == [1]
    assert not isinstance(PerRank(1), Stateful)


def test_any_object_by_pickle():
    it = Pickled(Fraction(1, 3))
    assert isinstance(it, Stateful)
    other = Pickled(None)
    other.load_state_dict(it.state_dict())
    assert other.value == Fraction(1, 3)


def test_what_cannot_be_pickled_is_one_message():
    with pytest.raises(UsageError, match="a Pickled function cannot be pickled"):
        Pickled(lambda: None).state_dict()


@pytest.mark.parametrize("saved", [{}, {"pickle": "text"}, {"step": 1}])
def test_a_state_of_another_kind_is_not_unpickled(saved):
    with pytest.raises(EnvironmentFaultError, match="expects a Pickled object"):
        Pickled(None).load_state_dict(saved)


def test_a_class_that_is_not_here_is_one_message():
    data = pickle.dumps(Fraction(1)).replace(b"fractions", b"fractiona")
    with pytest.raises(EnvironmentFaultError, match="cannot be made"):
        Pickled(None).load_state_dict({"pickle": data})


class Trap:
    """Unpickling it would be noticed."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_a_checkpoint_cannot_ask_for_it(tmp_path):
    quick = CheckpointOptions(background=False)
    manager = CheckpointManager(tmp_path, {"trap": Pickled(Trap())}, options=quick)
    manager.save(1)
    manager.close()
    for entry in ({}, Progress()):
        reader = CheckpointManager(tmp_path, {"trap": entry}, options=quick)
        try:
            reader.restore_latest()
        except (EnvironmentFaultError, CheckpointDamagedError, KeyError):
            assert isinstance(entry, Progress)
        reader.close()
    assert not Trap.sprung
    asked = CheckpointManager(tmp_path, {"trap": Pickled(None)}, options=quick)
    asked.restore_latest()
    asked.close()
    assert Trap.sprung
