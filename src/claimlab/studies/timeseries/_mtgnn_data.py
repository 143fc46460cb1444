"""Series for the study `mtgnn`: a simulated network whose links are known, or your own text file; windows, split, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from claimlab.parts.chronology import in_time

WINDOW, PERIOD, NOISE, PARENTS, RADIUS = 24, 24, 0.3, 3, 0.9
SLOPE, KEPT = 1.5, 0.5  # of a link at rest; share of its own last value that a series keeps
SHARES = (0.6, 0.2, 0.2)


def network(nodes: int, lags: int, rng: np.random.Generator) -> np.ndarray:
    """Link strengths [lags, N, N]: entry [tau - 1, i, j] is how j drives i after tau steps. Three parents a node, one lag a link,
    no self loops, |w| in [0.4, 0.9] with random sign; then all scaled so that the map linearised at 0 has spectral radius 0.9."""
    links = np.zeros((lags, nodes, nodes))
    for i in range(nodes):
        parents = rng.choice(np.delete(np.arange(nodes), i), size=min(PARENTS, nodes - 1), replace=False)
        delays = rng.integers(lags, size=len(parents))
        links[delays, i, parents] = rng.uniform(0.4, 0.9, len(parents)) * rng.choice([-1, 1], len(parents))
    low, high = 0.0, 1.0
    while radius(high * links) < RADIUS and high < 64:  # without a cycle of links no scale reaches 0.9
        high *= 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if radius(middle * links) < RADIUS else (low, middle)
    return low * links


def radius(links: np.ndarray) -> float:
    """Largest |eigenvalue| of x(t) = 0.5 x(t-1) + sum_tau 1.5 W_tau x(t-tau), as one map of the last `lags` states."""
    lags, nodes, _ = links.shape
    companion = np.eye(lags * nodes, k=-nodes)
    companion[:nodes] = SLOPE * links.transpose(1, 0, 2).reshape(nodes, -1)
    companion[:nodes, :nodes] += KEPT * np.eye(nodes)
    return float(np.abs(np.linalg.eigvals(companion)).max())


def simulate(links: np.ndarray, points: int, rng: np.random.Generator, *, linear: bool = False, season: float = 1.0,
             ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """x_i(t) = 0.5 x_i(t-1) + sum_j w_ij tanh(1.5 x_j(t - tau_ij)) + s_i(t) + noise: x and its seasonal term s, [points, N].

    s_i(t) = a_i sin(2 pi t / 24 + phase_i) with a_i uniform in [0.1, 0.3], times `season`; noise has deviation 0.3. `linear`
    puts 1.5 x in place of tanh(1.5 x).
    """
    lags, nodes, _ = links.shape
    flat, burn = np.ascontiguousarray(links.transpose(1, 0, 2).reshape(nodes, -1)), 200 + lags
    size, phase = season * rng.uniform(0.1, 0.3, nodes), rng.uniform(0, 2 * np.pi, nodes)
    tide = size * np.sin(2 * np.pi * np.arange(burn + points)[:, None] / PERIOD + phase)
    drive = tide + NOISE * rng.standard_normal(tide.shape)
    x, seen = np.zeros_like(drive), np.zeros_like(drive)  # `seen` runs backwards in time, so that the last lags lie in order
    for t in range(lags, burn + points):
        place = len(x) - 1 - t
        x[t] = KEPT * x[t - 1] + flat @ seen[place + 1 : place + 1 + lags].ravel() + drive[t]
        seen[place] = SLOPE * x[t] if linear else np.tanh(SLOPE * x[t])
    return x[burn:], tide[burn:]


@dataclass(frozen=True)
class Series:
    """One seed's series: x [T, N] standardised by its training part, its scale and centre [N], horizons, windows by part, true graph.

    `graph` [N, N] holds 1 where column j drives row i; None where nobody knows it.
    """

    x: Tensor
    scale: Tensor
    centre: Tensor
    graph: np.ndarray | None
    horizons: tuple[int, ...]
    train: range
    valid: range
    test: range

    def windows(self, starts: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The past [B, N, 24] from each start on, and the future [B, N, Q] at the horizons."""
        starts = torch.as_tensor(starts)[:, None]
        past = self.x[starts + torch.arange(WINDOW)].transpose(1, 2)
        ahead = torch.tensor(self.horizons) + WINDOW - 1
        return past, self.x[starts + ahead].transpose(1, 2)


def prepare(x: np.ndarray, graph: np.ndarray | None, horizons: tuple[int, ...]) -> Series:
    """Split in time with a gap of window and horizon, standardise by the training part. ValueError where it is too short."""
    reach = WINDOW + max(horizons)
    train, valid, test = in_time(len(x) - reach + 1, SHARES, gap=reach)
    known = x[: train.stop + reach - 1]
    if not (scale := known.std(0)).all():
        raise ValueError(f"series {int((scale == 0).argmax()) + 1} is constant in the training part")
    return Series(torch.from_numpy((x - known.mean(0)) / scale).float(), *(torch.from_numpy(v).float() for v in (scale, known.mean(0))),
                  graph, horizons, train, valid, test)  # fmt: skip


@lru_cache(maxsize=32)
def series(seed: int, nodes: int, points: int, lags: int, linear: bool, coupling: float, horizons: tuple[int, ...], path: str = "",
           ) -> Series:  # fmt: skip
    """The data of one seed; an own file is the same for all seeds."""
    if path:
        return prepare(*own_series(path), horizons)
    links, x, _ = world(seed, nodes, points, lags, linear, coupling)
    return prepare(x, (links != 0).any(0).astype(int), horizons)


@lru_cache(maxsize=32)
def world(seed: int, nodes: int, points: int, lags: int, linear: bool, coupling: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Links before they are multiplied by `coupling`, series and seasonal term of one seed."""
    rng = np.random.default_rng(seed)
    links = network(nodes, lags, rng)
    return links, *simulate(coupling * links, points, rng, linear=linear)


def foretold(one: Series, links: np.ndarray, tide: np.ndarray, linear: bool) -> Tensor:
    """What the simulator itself says of the test windows [B, N, Q]: its own law goes on from the last moments, without noise."""
    now = torch.as_tensor(one.test) + WINDOW - 1
    seen = one.x[now[:, None] - torch.arange(len(links))].double() * one.scale + one.centre  # [B, lags, N], latest first
    flat, steps = torch.from_numpy(links.transpose(1, 0, 2).reshape(links.shape[1], -1)), []
    for ahead in range(1, max(one.horizons) + 1):
        heard = SLOPE * seen if linear else (SLOPE * seen).tanh()
        steps.append(KEPT * seen[:, 0] + heard.flatten(1) @ flat.T + torch.from_numpy(tide[now + ahead]))
        seen = torch.cat([steps[-1][:, None], seen[:, :-1]], 1)
    return ((torch.stack([steps[h - 1] for h in one.horizons], -1) - one.centre[:, None]) / one.scale[:, None]).float()


# ---- scores, for arrays or tensors of the shape [B, N, Q]


def rse(truth: Tensor, guess: Tensor) -> Tensor:
    """Root relative squared error sqrt(sum (y - y^)^2 / sum (y - mean y)^2), pooled over windows and nodes [B, N]."""
    return ((truth - guess).square().sum() / (truth - truth.mean()).square().sum()).sqrt()


def scores(one: Series, truth: Tensor, guess: Tensor, horizon: int) -> dict[str, float]:
    """RSE and mean absolute error (in the series' own units) at each horizon; RSE and mean correlation at the judged one."""
    found = {}
    for k, ahead in enumerate(one.horizons):
        y, g = truth[..., k], guess[..., k]
        found |= {f"rse_{ahead}": float(rse(y, g)), f"mae_{ahead}": float(((y - g).abs() * one.scale).mean())}
        if ahead == horizon:
            a, b = y - y.mean(0), g - g.mean(0)
            both = (a * b).sum(0) / ((a * a).sum(0) * (b * b).sum(0)).sqrt().clamp_min(1e-12)
            found |= {"rse": float(rse(y, g)), "correlation": float(both.mean())}
    return found


# ---- the linear baseline


def ridge(one: Series, lags: Sequence[int] = (1, 3, 6, 12, 24), penalties: Sequence[float] = (1, 10, 100, 1000, 10_000),
          ) -> tuple[Tensor, Tensor, list[tuple[int, float]]]:  # fmt: skip
    """Truth and forecast [B, N, Q] on the test windows of a ridge vector autoregression, and (lags, penalty) of each horizon.

    y(t + h) = sum_l Phi_l x(t - l) for each horizon h by itself, fitted on the training windows; the choice is by RSE on the
    validation windows. No intercept: the series have mean 0.
    """
    (past, y), (past_v, y_v), (past_t, y_t) = (tuple(p.double() for p in one.windows(part)) for part in (one.train, one.valid, one.test))
    found = [(torch.inf, y_t[..., 0], (0, 0.0))] * len(one.horizons)
    for count in lags:
        x, x_v, x_t = (part[..., -count:].flatten(1) for part in (past, past_v, past_t))
        values, turn = torch.linalg.eigh(x.mT @ x)
        for penalty in penalties:
            phi = turn @ ((turn.mT @ (x.mT @ y.flatten(1))) / (values[:, None] + penalty))
            valid, test = ((part @ phi).view(-1, *y.shape[1:]) for part in (x_v, x_t))
            for k in range(len(found)):
                error = float(rse(y_v[..., k], valid[..., k]))
                if error < found[k][0]:
                    found[k] = (error, test[..., k], (count, penalty))
    return y_t.float(), torch.stack([guess for _, guess, _ in found], -1).float(), [chosen for *_, chosen in found]


# ---- own data: a text file as the public sets are kept, one row a moment, comma separated, no header


def own_series(path: str | Path, most_missing: float = 0.05) -> tuple[np.ndarray, np.ndarray | None]:
    """x [T, N] from a UTF-8 text and, where `<name>.graph.csv` lies beside it, the graph [N, N].

    The first column may hold ISO dates; they have to increase. Few missing values (empty or nan) repeat the last known one.
    ValueError names the file, what is wrong and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file; a text with one row a moment, comma separated, without header, is needed")
    rows = _rows(file)
    if not _number(rows[0][0]):
        _increasing(file, [row[0] for row in rows])
        rows = [row[1:] for row in rows]
    for i, row in enumerate(rows, 1):
        if wrong := [cell for cell in row if not _number(cell)]:
            raise ValueError(f"{file.name}: row {i} holds {wrong[0]!r}, which is no number; a header is not allowed")
    x = np.array([[float(cell or "nan") for cell in row] for row in rows]).reshape(len(rows), -1)
    if x.shape[1] < 2:
        raise ValueError(f"{file.name} has {x.shape[1]} series; a network has two or more")
    x = _filled(file, x, most_missing)
    if (x == x[0]).all(0).any():
        raise ValueError(f"{file.name}: series {int((x == x[0]).all(0).argmax()) + 1} is constant; leave it out")
    beside = file.with_suffix(".graph.csv")
    return x, _graph(beside, x.shape[1]) if beside.exists() else None


def _rows(file: Path) -> list[list[str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8: byte {error.start:,} does not fit") from None
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{file.name} has no rows")
    if odd := [i for i, row in enumerate(rows, 1) if len(row) != len(rows[0])]:
        raise ValueError(f"{file.name}: row {odd[0]} has {len(rows[odd[0] - 1])} values, row 1 has {len(rows[0])}; all rows are equal")
    return rows


def _number(cell: str) -> bool:
    try:
        return not cell or np.isfinite(float(cell)) or cell.lower() == "nan"
    except ValueError:
        return False


def _increasing(file: Path, cells: list[str]) -> None:
    try:
        times = [datetime.fromisoformat(cell) for cell in cells]
        late = [i for i in range(1, len(times)) if times[i] <= times[i - 1]]
    except (ValueError, TypeError):  # TypeError: some with a time zone, some without
        raise ValueError(f"{file.name}: the first column holds neither numbers nor ISO dates alone; a header is not allowed") from None
    if late:
        raise ValueError(f"{file.name}: row {late[0] + 1} is not later than the row before; moments have to be in their order")


def _filled(file: Path, x: np.ndarray, most: float) -> np.ndarray:
    if (share := np.isnan(x).mean()) > most:
        raise ValueError(f"{file.name}: {share:.1%} of the values are missing; at most {most:.0%} are allowed")
    if np.isnan(x[0]).any():
        raise ValueError(f"{file.name}: row 1 misses a value, and there is no earlier one to repeat")
    last = np.maximum.accumulate(np.where(np.isnan(x), 0, np.arange(len(x))[:, None]))
    return np.take_along_axis(x, last, 0)


def _graph(file: Path, nodes: int) -> np.ndarray:
    rows = _rows(file)
    if (len(rows), len(rows[0])) != (nodes, nodes) or {cell for row in rows for cell in row} - {"0", "1"}:
        raise ValueError(f"{file.name} must hold {nodes} x {nodes} zeros and ones (column drives row); it has {len(rows)} rows")
    graph = np.array(rows, dtype=int)
    if len(np.unique(graph[~np.eye(nodes, dtype=bool)])) < 2:
        raise ValueError(f"{file.name} links all pairs or none; there is nothing to find")
    return graph * (1 - np.eye(nodes, dtype=int))
