from trainkit.state import PerRank, Progress, Stateful


def test_progress_comes_back():
    progress = Progress(epoch=2, step=17)
    again = Progress()
    again.load_state_dict(progress.state_dict())
    assert again == progress
    assert isinstance(progress, Stateful)


def test_a_value_per_rank_is_marked_and_kept():
    assert PerRank([1]).value == [1]
    assert not isinstance(PerRank(1), Stateful)
