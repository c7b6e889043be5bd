from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.pins import pin, pinned, unpin
from trainkit.storage import LocalStorage

FOLDER = StepFolder(5, 1, 0)


def test_pins_are_set_and_taken_away_any_number_of_times(tmp_path):
    storage = LocalStorage(tmp_path)
    assert pinned(storage) == frozenset()
    unpin(storage, FOLDER)
    for _ in range(2):
        pin(storage, FOLDER)
        assert pinned(storage) == {FOLDER.name}
    for _ in range(2):
        unpin(storage, FOLDER)
        assert pinned(storage) == frozenset()
