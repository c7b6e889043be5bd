"""Who is in a round and when it is over, in every order of events that a network can make."""

from trainkit.strategies.torch.local_sgd.rounds import Rounds


def begun(*ranks, world_size=2, patience=60.0):
    rounds = Rounds(world_size, patience)
    rounds.seed(0, 0.0, expected=[], begun=False)
    for rank in ranks:
        rounds.ask(rank, 0.0, earliest=None)
    assert rounds.admit(0.0) == list(ranks)
    return rounds


def test_nobody_begins_without_the_others():
    rounds = Rounds(3, 60.0)
    rounds.seed(0, 0.0, expected=[], begun=False)
    for rank in (0, 2):
        rounds.ask(rank, 0.0, earliest=None)
    assert rounds.admit(1e6) == []
    assert rounds.absent() == [1]
    rounds.ask(1, 1e6, earliest=None)
    assert sorted(rounds.admit(1e6)) == [0, 1, 2]


def test_nobody_begins_without_parameters():
    rounds = Rounds(1, 60.0)
    rounds.ask(0, 0.0, earliest=None)
    assert rounds.admit(10.0) == []
    rounds.seed(5, 10.0, expected=[], begun=False)
    assert rounds.admit(10.0) == [0]
    assert rounds.members == {0: 5}


def test_a_round_is_over_when_all_have_pushed_and_gives_parts_by_rank():
    rounds = begun(0, 1)
    assert rounds.push(1, 0, "b", 1.0)
    assert rounds.missing(1.0) == [0]
    assert not rounds.is_over(1.0)
    assert rounds.push(0, 0, "a", 2.0)
    assert rounds.is_over(2.0)
    assert rounds.close(2.0) == {0: "a", 1: "b"}
    assert rounds.round == 1
    assert not rounds.is_over(2.0)


def test_who_is_lost_is_not_waited_for_and_what_it_pushed_counts():
    rounds = begun(0, 1)
    rounds.push(1, 0, "b", 1.0)
    rounds.leave(1)
    assert rounds.missing(1.0) == [0]
    rounds.push(0, 0, "a", 2.0)
    assert rounds.close(2.0) == {0: "a", 1: "b"}


def test_who_is_lost_before_it_pushed_ends_the_round_of_the_others():
    rounds = begun(0, 1)
    rounds.push(0, 0, "a", 1.0)
    assert not rounds.is_over(1.0)
    rounds.leave(1)
    assert rounds.is_over(1.0)


def test_who_comes_later_is_in_from_the_next_round_on():
    rounds = begun(0, 1)
    rounds.leave(1)
    rounds.ask(1, 3.0, earliest=None)
    assert rounds.admit(3.0) == []
    rounds.push(0, 0, "a", 4.0)
    assert rounds.is_over(4.0)
    rounds.close(4.0)
    assert rounds.admit(4.0) == [1]
    assert rounds.missing(4.0) == [0, 1]


def test_who_comes_when_all_others_are_gone_waits_a_while_for_them():
    rounds = begun(0, 1)
    rounds.leave(0)
    rounds.ask(1, 5.0, earliest=None)  # while 1 is thought to be there still, and then is not
    rounds.leave(1)
    rounds.ask(1, 5.0, earliest=None)
    assert rounds.admit(6.0) == []
    rounds.ask(0, 7.0, earliest=None)
    assert sorted(rounds.admit(7.0)) == [0, 1]


def test_who_comes_when_all_others_are_gone_for_good_goes_on_alone():
    rounds = begun(0, 1)
    rounds.leave(0)
    rounds.leave(1)
    rounds.ask(1, 5.0, earliest=None)
    assert rounds.admit(64.0) == []
    assert rounds.admit(65.1) == [1]


def test_who_waits_for_a_round_that_nobody_ends_any_more_is_let_in():
    rounds = begun(0, 1)
    rounds.leave(1)
    rounds.ask(1, 1.0, earliest=None)  # waits for round 1
    rounds.leave(0)
    rounds.ask(0, 2.0, earliest=None)
    assert sorted(rounds.admit(2.0)) == [0, 1]


def test_a_part_that_comes_twice_counts_once():
    rounds = begun(0, 1)
    rounds.push(0, 0, "a", 1.0)
    rounds.leave(0)
    rounds.ask(0, 1.0, earliest=0)
    assert rounds.admit(1.0) == [0]
    assert rounds.push(0, 0, "again", 2.0)
    rounds.push(1, 0, "b", 2.0)
    assert rounds.close(2.0) == {0: "a", 1: "b"}


def test_a_part_of_a_round_that_is_over_is_refused_and_its_worker_is_in_the_open_one():
    rounds = begun(0, 1)
    rounds.leave(1)
    rounds.push(0, 0, "a", 1.0)
    rounds.close(1.0)
    rounds.ask(1, 2.0, earliest=0)
    assert rounds.admit(2.0) == [1]
    assert not rounds.push(1, 0, "late", 3.0)
    assert rounds.missing(3.0) == [0, 1]


def test_a_part_of_the_next_round_waits_for_it():
    """After a server was given the parameters of a round that one worker has seen the end of."""
    rounds = begun(0, 1)
    rounds.push(1, 1, "next", 1.0)
    assert rounds.missing(1.0) == [0]
    rounds.push(0, 0, "a", 2.0)
    assert rounds.close(2.0) == {0: "a"}
    rounds.push(0, 1, "a next", 3.0)
    assert rounds.close(3.0) == {0: "a next", 1: "next"}


def test_who_is_expected_back_is_waited_for_but_not_for_ever():
    rounds = Rounds(2, 60.0)
    rounds.seed(7, 0.0, expected=[0, 1], begun=True)
    rounds.ask(0, 0.0, earliest=7)
    assert rounds.admit(0.0) == [0]
    rounds.push(0, 7, "a", 1.0)
    assert rounds.missing(1.0) == [1]
    assert rounds.missing(15.1) == []
    assert rounds.is_over(15.1)


def test_who_is_expected_and_comes_is_waited_for_as_a_member():
    rounds = Rounds(2, 60.0)
    rounds.seed(7, 0.0, expected=[0, 1], begun=True)
    for rank in (0, 1):
        rounds.ask(rank, 0.0, earliest=7)
    rounds.admit(0.0)
    rounds.push(0, 7, "a", 1.0)
    assert rounds.missing(100.0) == [1]


def test_who_is_parked_is_not_waited_for_until_it_pushes():
    rounds = begun(0, 1)
    rounds.park(1)
    rounds.push(0, 0, "a", 1.0)
    assert rounds.is_over(1.0)
    rounds.close(1.0)
    assert not rounds.push(1, 0, "late", 2.0)
    rounds.push(1, 1, "b", 2.0)
    assert rounds.missing(2.0) == [0]


def test_patience_is_at_least_what_the_first_took():
    rounds = begun(0, 1, patience=60.0)
    rounds.push(0, 0, "a", 10.0)
    assert rounds.overdue(69.0) == []
    assert rounds.overdue(70.0) == [1]
    slow = begun(0, 1, patience=60.0)
    slow.push(0, 0, "a", 500.0)
    assert slow.overdue(999.0) == []
    assert slow.overdue(1000.0) == [1]


def test_patience_begins_with_the_first_part():
    rounds = begun(0, 1, patience=1.0)
    assert rounds.overdue(1e6) == []


def test_who_was_parked_and_comes_too_late_is_waited_for_from_then_on():
    rounds = begun(0, 1)
    rounds.park(1)
    rounds.push(0, 0, "a", 1.0)
    rounds.close(1.0)
    assert not rounds.push(1, 0, "late", 2.0)
    rounds.push(0, 1, "a", 3.0)
    assert rounds.missing(3.0) == [1]


def test_a_round_that_nobody_can_end_any_more_is_passed_over():
    """The first server has ended it, and all who were in it are gone."""
    rounds = begun(0, 1)
    for rank in (0, 1):
        rounds.leave(rank)
        rounds.ask(rank, 1.0, earliest=1)
    assert rounds.admit(1.0) == [0, 1]
    assert rounds.round == 1
    for rank in (0, 1):
        assert rounds.push(rank, 1, rank, 2.0)
    assert rounds.close(2.0) == {0: 0, 1: 1}


def test_who_is_expected_back_may_take_as_long_as_a_round_did():
    rounds = Rounds(2, 600.0)
    rounds.seed(7, 0.0, expected=[1], begun=True, within=100.0)
    rounds.ask(0, 0.0, earliest=7)
    rounds.admit(0.0)
    rounds.push(0, 7, "a", 1.0)
    assert rounds.missing(99.0) == [1]
    assert rounds.missing(100.0) == []
