"""A simulator of limit order books, event by event: a zero-intelligence core, order signs with long memory, thin queues that flee.

Prices are whole ticks. Each side is a list of queues in its own order, best price first: asks at index `price`, bids at
index `SPAN - price`, so that the queue at distance i from the opposite best lies at the same place for both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul

import numpy as np

A, B, MU, THETA = 1.9, 0.52, 0.94, 0.71  # limit orders a i^-b, market orders mu, cancellations theta / (1 + 0.2 i) a unit
REACH = 10  # ticks from the opposite best within which orders come and go
DEEP = 40  # ticks of which a snapshot is made; beyond REACH the queues rest
SPAN = 1 << 16  # ticks of the price axis
LAGS, TAIL = 200, 1.5  # the lag whose sign is copied: P(l) ~ l^-1.5, l <= 200
BURN = 1000  # events before the first snapshot
TICKS = (0.005, 0.01, 0.02, 0.05)  # price of a tick, in the currency of the price


@dataclass(frozen=True)
class Instrument:
    """What makes one book differ from another: tick size, and factors on the three rates."""

    tick: float
    limit: float = 1.0
    market: float = 1.0
    cancel: float = 1.0


def instruments(count: int, rng: np.random.Generator) -> list[Instrument]:
    """`count` instruments with factors uniform in 0.7 ... 1.4 and a tick size out of four."""
    return [Instrument(float(rng.choice(TICKS)), *map(float, rng.uniform(0.7, 1.4, 3))) for _ in range(count)]


def signs(n: int, memory: float, rng: np.random.Generator) -> list[int]:
    """n order signs +1 (buy) or -1: with probability `memory` the sign `lag` orders ago (a DAR process), else a fair coin."""
    shares = np.arange(1, LAGS + 1) ** -TAIL
    lags = rng.choice(np.arange(1, LAGS + 1), n, p=shares / shares.sum())
    copied = rng.random(n) < memory
    found = np.where(rng.random(n) < 0.5, 1, -1).tolist()
    for k in np.flatnonzero(copied & (lags <= np.arange(n))).tolist():
        found[k] = found[k - lags[k]]
    return found


def simulate(one: Instrument, events: int, memory: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The book after each of `events` events.

    Best ask and best bid [events] in ticks, queues [events, DEEP] from the best price of each side outwards, and the signs of
    the orders in the order in which they came. Rates are per unit of time; events are the jumps of the process.
    """
    flow = _Flow(one, events + BURN, memory, rng)
    asks, bids = ((1 + rng.poisson(1.0, SPAN)).tolist() for _ in range(2))
    ask, bid = SPAN // 2 + 1, SPAN // 2  # `bid` is the mirrored index of the bid, SPAN - price, one tick below the ask
    best, deep_a, deep_b = [], [], []  # flat lists: many small ones would keep the garbage collector busy
    rate, weights, coming = flow.rate, flow.weights, iter(flow.orders)
    for k, (share, size) in enumerate(zip(flow.shares, flow.sizes, strict=True)):
        front_a, front_b = SPAN - bid + 1, SPAN - ask + 1  # distance 1 from the opposite best
        leave_a = sum(map(mul, weights, asks[front_a : front_a + REACH]))
        leave_b = sum(map(mul, weights, bids[front_b : front_b + REACH]))
        thin = bids[bid] - asks[ask]  # a side cancels twice as fast while its best queue is the thinner one
        twice_a, twice_b = 1 + (thin > 0), 1 + (thin < 0)
        u = share * (rate + twice_a * leave_a + twice_b * leave_b) - rate
        if u < 0:
            sign, near = next(coming)
            if near == 0:
                _take(*((asks, ask) if sign > 0 else (bids, bid)), size)
            elif sign > 0:
                bids[front_b + near - 1] += size
                bid = min(bid, front_b + near - 1)
            else:
                asks[front_a + near - 1] += size
                ask = min(ask, front_a + near - 1)
        elif u < twice_a * leave_a:
            _leave(asks, front_a, weights, u / twice_a, size)
        else:
            _leave(bids, front_b, weights, (u - twice_a * leave_a) / twice_b, size)
        while not asks[ask]:
            ask += 1
        while not bids[bid]:
            bid += 1
        if k >= BURN:
            best += ask, SPAN - bid
            deep_a += asks[ask : ask + DEEP]
            deep_b += bids[bid : bid + DEEP]
    came = len(flow.orders) - len(list(coming))
    best_ask, best_bid = np.array(best).reshape(-1, 2).T
    deep_a, deep_b = (np.array(deep).reshape(-1, DEEP) for deep in (deep_a, deep_b))
    return best_ask, best_bid, deep_a, deep_b, np.array([sign for sign, _ in flow.orders[:came]])


class _Flow:
    """Everything about the coming orders that does not depend on the book, drawn at once."""

    def __init__(self, one: Instrument, n: int, memory: float, rng: np.random.Generator):
        i = np.arange(1, REACH + 1)
        limit = one.limit * A * i**-B
        each = np.r_[one.market * MU, limit]
        self.rate = float(2 * each.sum())  # of orders, both sides
        self.weights = (one.cancel * THETA / (1 + 0.2 * i)).tolist()
        self.shares, self.sizes = rng.random(n).tolist(), (1 + rng.poisson(1.0, n)).tolist()
        near = rng.choice(REACH + 1, n, p=each / each.sum()).tolist()  # 0: a market order, else the distance of a limit order
        self.orders = list(zip(signs(n, memory, rng), near, strict=True))


def _take(queues: list[int], best: int, size: int) -> None:
    """A market order eats from the best queue outwards."""
    while size:
        eaten = min(size, queues[best])
        queues[best] -= eaten
        size -= eaten
        best += 1


def _leave(queues: list[int], front: int, weights: list[float], left: float, size: int) -> None:
    """One cancellation of up to `size` units, from the queue in which `left`, counted in weight times length, is used up."""
    last = front
    for place, weight in enumerate(weights, front):
        if queues[place]:
            last = place
            left -= weight * queues[place]
            if left < 0:
                break
    queues[last] -= min(size, queues[last])  # rounding may leave a rest: then it is the last queue that holds something


def levels(best_ask: np.ndarray, best_bid: np.ndarray, deep_a: np.ndarray, deep_b: np.ndarray, count: int, tick: float) -> np.ndarray:
    """The `count` best occupied prices of each side as rows [events, 4 count]: ask price, ask volume, bid price, bid volume, ..."""
    book = np.empty((len(best_ask), count, 4))
    for column, (best, deep, away) in enumerate(((best_ask, deep_a, 1), (best_bid, deep_b, -1))):
        held = deep > 0
        if (held.sum(1) < count).any():
            raise RuntimeError(f"a book has fewer than {count} occupied prices within {deep.shape[1]} ticks of its best")
        place = np.argsort(~held, axis=1, kind="stable")[:, :count]
        book[:, :, 2 * column] = (best[:, None] + away * place) * tick
        book[:, :, 2 * column + 1] = np.take_along_axis(deep, place, 1)
    return book.reshape(len(book), -1)
