"""What may happen to a request to an object store: each takes an `Exchange`."""

import time

from tests.faults.storeproxy import Answer, error_answer


def error(status):
    """Refused by the server with an error; nothing is done."""
    return lambda exchange: exchange.answer(error_answer(status))


def error_though_done(status):
    """Done, and yet answered by an error: the first answer was lost, and this is a second one's."""

    def act(exchange):
        exchange.pass_on()
        exchange.answer(error_answer(status))

    return act


def ok_with_error(exchange):
    """Status 200, which goes out before the server knows how it ends, and then an error."""
    exchange.answer(error_answer(200, code=500))


def ok_with_error_though_done(exchange):
    """The same, of a request that was done."""
    exchange.pass_on()
    exchange.answer(error_answer(200, code=500))


def reset(exchange):
    """The connection breaks in the middle of the body."""
    exchange.reset(after_half=True)


def lost(exchange):
    """It is done, and the connection breaks before the answer."""
    exchange.pass_on()
    exchange.reset()


def hang(exchange):
    """Nothing is done, and nothing is said."""
    exchange.hang()


def hang_though_done(exchange):
    """It is done, and nothing is said."""
    exchange.pass_on()
    exchange.hang()


def cut_off(exchange):
    """The answer's body ends half-way through, and its length says so."""
    answer = exchange.pass_on()
    length = len(answer.body)
    exchange.answer(Answer(answer.status, answer.headers, answer.body[: length // 2], length))


def short(exchange):
    """The answer's body is half of what it was, and its length fits that, as nothing was lost."""
    answer = exchange.pass_on()
    exchange.answer(Answer(answer.status, answer.headers, answer.body[: len(answer.body) // 2]))


def flipped(exchange):
    """One bit of the answer's body is wrong."""
    answer = exchange.pass_on()
    body = bytearray(answer.body)
    body[len(body) // 2] ^= 4
    exchange.answer(Answer(answer.status, answer.headers, bytes(body)))


def late(seconds):
    """Listings may be as old as that."""

    def act(exchange):
        known = exchange.script.listings.get(exchange.path)
        if known is None or known[0] < time.monotonic():
            known = time.monotonic() + seconds, exchange.pass_on()
            exchange.script.listings[exchange.path] = known
        exchange.answer(known[1])

    return act
