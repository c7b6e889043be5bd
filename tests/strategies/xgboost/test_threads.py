"""Training in a thread that is not connected is an error while the guard is there."""

import threading

import numpy as np
import pytest

from trainkit.errors import StrategyError

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

from trainkit.strategies.xgboost.stuck import StuckWatch  # noqa: E402 - needs xgboost
from trainkit.strategies.xgboost.threads import ThreadGuard  # noqa: E402


@pytest.fixture
def guard():
    guard = ThreadGuard(StuckWatch())
    guard.install()
    yield guard
    guard.remove()


def data():
    return xgboost.DMatrix([[1.0], [2.0], [3.0]], [0.0, 1.0, 1.0])


TRAINED = xgboost.train({}, data(), 1).save_raw("ubj")


def boost():
    booster = xgboost.Booster(model_file=TRAINED)
    booster.boost(data(), 0, grad=np.ones(3), hess=np.ones(3))


class Once(xgboost.DataIter):
    given = False

    def next(self, input_data):
        if not self.given:
            input_data(data=[[1.0], [2.0]], label=[0.0, 1.0])
        self.given, was = True, self.given
        return not was

    def reset(self):
        self.given = False


WAYS = {
    "Booster.update": lambda: xgboost.train({}, data(), 1),
    "Booster.boost": boost,
    r"QuantileDMatrix\(\)": lambda: xgboost.QuantileDMatrix([[1.0], [2.0]], [0.0, 1.0]),
    r"ExtMemQuantileDMatrix\(\)": lambda: xgboost.ExtMemQuantileDMatrix(Once()),
}


@pytest.mark.parametrize("what", WAYS)
def test_every_way_that_needs_the_other_ranks_is_refused(guard, what):
    with pytest.raises(StrategyError, match=f"{what} in thread 'MainThread': .*ctx.native"):
        WAYS[what]()


def test_a_thread_whose_connection_has_ended_is_refused(guard, monkeypatch):
    """As by a script's own CommunicatorContext, whose end finalizes trainkit's."""
    monkeypatch.setattr(xgboost.collective, "is_distributed", lambda: True)
    guard.remove()
    guard.install()
    WAYS["Booster.update"]()
    monkeypatch.setattr(xgboost.collective, "is_distributed", lambda: False)
    with pytest.raises(StrategyError):
        WAYS["Booster.update"]()


@pytest.mark.parametrize("what", WAYS)
def test_alone_allows_it_in_its_own_thread_only(guard, what, tmp_path):
    failures = []

    def other():
        try:
            xgboost.train({}, data(), 1)
        except StrategyError as error:
            failures.append(error)

    with guard.alone():
        if "ExtMem" not in what:
            WAYS[what]()
        else:
            xgboost.ExtMemQuantileDMatrix(Once(cache_prefix=str(tmp_path / "rows")))
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(failures) == 1
    with pytest.raises(StrategyError):
        WAYS[what]()


def test_what_needs_nobody_is_left_alone(guard):
    with guard.alone():
        model = xgboost.train({}, data(), 2)
    assert model.predict(data()).shape == (3,)
    assert model.inplace_predict([[1.0]]).shape == (1,)


def test_xgboost_is_as_it_was_afterwards():
    before = xgboost.Booster.update, xgboost.QuantileDMatrix.__init__
    guard = ThreadGuard(StuckWatch())
    guard.install()
    assert xgboost.Booster.update is not before[0]
    guard.remove()
    guard.remove()
    assert (xgboost.Booster.update, xgboost.QuantileDMatrix.__init__) == before
    xgboost.train({}, data(), 1)
