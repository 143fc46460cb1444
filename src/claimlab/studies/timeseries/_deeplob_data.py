"""Markets of the study `deeplob`: simulated books or your own files, scaled by their past, labelled, and split in time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.parts.chronology import in_time
from claimlab.studies.timeseries import _deeplob_book as book
from claimlab.studies.timeseries import _deeplob_method as method

PAST, REFRESH = 2000, 500  # events whose mean and deviation scale a row, and events between two looks at them
SHARES = (0.6, 0.1, 0.3)  # training, validation, test
LOOKBACKS = (10, 20, 50)
JUMP = 0.02  # a larger move of the mid price between two rows is taken for a gap in time
KNOWN = (10, 20, 30, 50, 100)  # horizons of the five label rows of FI-2010


@dataclass(frozen=True)
class Stock:
    """One instrument. rows [N, 4 L], z the same scaled, mid [N], move and label [N], hand [N, F] the handmade features."""

    name: str
    rows: np.ndarray
    z: Tensor
    mid: np.ndarray
    move: np.ndarray
    alpha: float
    label: Tensor
    hand: np.ndarray


@dataclass(frozen=True)
class Market:
    """Training instruments first, then those kept unseen; `train`, `validation` and `test` are moments (rows) of each."""

    stocks: tuple[Stock, ...]
    seen: int
    window: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def windows(self, which: int, moments: np.ndarray) -> tuple[Tensor, Tensor]:
        """The windows [n, T, 4 L] that end at these moments of one instrument, and their labels [n]."""
        at = torch.from_numpy(np.asarray(moments))
        stock = self.stocks[which]
        return stock.z[at[:, None] + torch.arange(1 - self.window, 1)], stock.label[at]


@lru_cache(maxsize=16)
def market(seed: int, window: int, horizon: int, levels: int, memory: float, events: int, path: str = "") -> Market:
    """The market of `seed`: three training and two unseen instruments, or the files of the folder `path`.

    The gap between two parts is window plus horizon, or twice the horizon where the window is shorter, so that no mid price
    enters labels of two parts. ValueError where the events are too few.
    """
    books = own(path, levels) if path else simulated(seed, levels, memory, events)
    length = min(len(rows) for _, rows in books)
    first, last = PAST + window - 1, length - horizon
    parts = in_time(max(last - first, 0), SHARES, max(window, horizon) + horizon)
    train, validation, test = (first + np.asarray(part) for part in parts)
    stocks = tuple(_stock(name, rows[:length], window, horizon, train) for name, rows in books)
    return Market(stocks, len(stocks) - max(1, 2 * len(stocks) // 5), window, train, validation, test)


def _stock(name: str, rows: np.ndarray, window: int, horizon: int, train: np.ndarray) -> Stock:
    mid = rows[:, [0, 2]].mean(1)
    move = method.smoothed_move(mid, horizon)
    alpha = float(np.quantile(np.abs(move[train]), 1 / 3))  # a third of the training moments is still
    z = torch.from_numpy(method.zscored(rows, PAST, REFRESH))
    hand = method.handmade(rows, [min(h, window) for h in LOOKBACKS])
    return Stock(name, rows.astype(np.float32), z, mid, move, alpha, torch.from_numpy(method.labels(move, alpha)), hand)


def simulated(seed: int, levels: int, memory: float, events: int, count: int = 5) -> list[tuple[str, np.ndarray]]:
    """`count` instruments of `seed`, each a name and its rows [events, 4 levels]."""
    rng = np.random.default_rng([seed, 7])
    found = []
    for k, one in enumerate(book.instruments(count, rng)):
        *state, _ = book.simulate(one, events, memory, rng)
        found.append((f"instrument {k + 1}", book.levels(*state, levels, one.tick)))
    return found


# ---- one's own books


def own(path: str, levels: int) -> list[tuple[str, np.ndarray]]:
    """Every .csv (LOBSTER order book) and .txt (FI-2010, prices not normalised) of a folder as (name, rows [N, 4 levels]).

    In order of name, the last two fifths (at least one) are kept unseen. LOBSTER message files beside them are read for times
    alone. ValueError names the file, the row, what is wrong and what is allowed.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"CLAIMLAB_DATA names {path}, which is not a folder; allowed is a folder of order books")
    files = sorted(f for f in folder.iterdir() if f.suffix in (".csv", ".txt") and "message" not in f.name)
    if len(files) < 2:
        raise ValueError(f"{folder.name} holds {len(files)} order books (.csv or .txt); at least 2 are needed, one of them unseen")
    return [(file.stem, checked(file, _fi2010(file) if file.suffix == ".txt" else _lobster(file), levels)) for file in files]


def _numbers(file: Path, **options) -> np.ndarray:
    try:
        return np.loadtxt(file, ndmin=2, encoding="utf-8", **options)
    except ValueError as error:
        raise ValueError(f"{file.name} is not a table of numbers: {error}") from None


def _fi2010(file: Path) -> np.ndarray:
    """A matrix of 149 rows, a column an event: the first 40 rows are ten levels of the book, the last five labels 1, 2 or 3."""
    table = _numbers(file)
    if len(table) != 149:
        raise ValueError(f"{file.name} has {len(table)} rows; FI-2010 has 149, of which the first 40 are the book")
    if not np.isin(table[-5:], (1, 2, 3)).all():
        raise ValueError(f"{file.name}: the last five rows (horizons {KNOWN}) hold other labels than 1, 2 and 3")
    return table[:40].T


def _lobster(file: Path) -> np.ndarray:
    """Rows of ask price, ask size, bid price, bid size a level; prices in units of 1/10,000. Times stand in the message file."""
    table = _numbers(file, delimiter=",")
    if table.shape[1] % 4:
        raise ValueError(f"{file.name} has {table.shape[1]} columns; a LOBSTER order book has four a level")
    beside = file.with_name(file.name.replace("orderbook", "message"))
    if beside != file and beside.exists():
        times = _numbers(beside, delimiter=",", usecols=0)[:, 0]
        if len(times) != len(table) or (np.diff(times) < 0).any():
            raise ValueError(f"{beside.name}: {len(times)} times, in order one for each of the {len(table)} rows are needed")
        if (np.diff(times) > 600).any():
            raise ValueError(f"{beside.name}: more than 600 s lie between row {int(np.diff(times).argmax()) + 1} and the next")
    table[:, ::2] /= 10_000
    return table


def checked(file: Path, rows: np.ndarray, levels: int) -> np.ndarray:
    """The first `levels` levels of rows [N, 4 L]; ValueError where they are not the states of one book, in the order of time."""
    if rows.shape[1] < 4 * levels:
        raise ValueError(f"{file.name} has {rows.shape[1] // 4} levels; {levels} are asked for")
    if len(rows) < PAST + 500:
        raise ValueError(f"{file.name} has {len(rows)} events; at least {PAST + 500} are needed, since {PAST} scale what follows")
    rows = rows[:, : 4 * levels]
    ask, bid = rows[:, ::4], rows[:, 2::4]
    mid = (ask[:, 0] + bid[:, 0]) / 2
    for wrong, what in (
        (~np.isfinite(rows).all(1), "holds a number that is missing or not finite"),
        ((rows[:, 1::2] <= 0).any(1), "holds a volume that is not above 0"),
        ((rows[:, ::2] <= 0).any(1), "holds a price that is not above 0; normalised prices cannot be read"),
        (ask[:, 0] <= bid[:, 0], "has its best ask at or below its best bid"),
        ((np.diff(ask) <= 0).any(1) | (np.diff(bid) >= 0).any(1), "has levels out of order"),
        (np.r_[False, np.abs(np.diff(mid)) > JUMP * np.abs(mid[1:])], f"lies more than {JUMP:.0%} from the one before: a gap in time"),
    ):
        if wrong.any():
            raise ValueError(f"{file.name}: row {int(wrong.argmax()) + 1} {what} ({int(wrong.sum())} such rows)")
    return rows
