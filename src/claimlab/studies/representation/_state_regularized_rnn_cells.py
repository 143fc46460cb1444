"""Recurrent cells, the map to a few learned states, and automata read off a network by counting transitions.

H units, k states (centroids), A symbols, B words, T steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from claimlab.studies.representation._state_regularized_rnn_words import Dfa


def gru_step(drive: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One step of a GRU (Cho et al. 2014, in the form of torch). drive [B, 3 H] is W_i x + b_i, gates in the order r, z, n:

    n = tanh(W_n x + r (U_n h + c_n)), h' = (1 - z) n + z h. h [B, H], weight U [3 H, H], bias c [3 H].
    """
    split = [2 * h.shape[-1], h.shape[-1]]
    (gate_x, new_x), (gate_h, new_h) = (part.split(split, -1) for part in (drive, linear(h, weight, bias)))
    r, z = torch.sigmoid(gate_x + gate_h).chunk(2, -1)
    n = torch.tanh(new_x + r * new_h)
    return n + z * (h - n)


def lstm_step(drive: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor,
              peep: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of an LSTM, gates in torch's order i, f, g, o: c' = f c + i g and h' = o tanh(c'). drive [B, 4 H], c [B, H].

    With peepholes `peep` [3, H] (Gers and Schmidhuber 2000) the gates i and f also see c, and o sees c', unit by unit.
    """
    i, f, g, o = (drive + linear(h, weight, bias)).chunk(4, -1)
    if peep is not None:
        i, f = i + peep[0] * c, f + peep[1] * c
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    if peep is not None:
        o = o + peep[2] * c
    return torch.sigmoid(o) * torch.tanh(c), c


def snap(u: Tensor, centroids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """alpha_i = softmax_i(u . s_i / tau) and h = sum_i alpha_i s_i. u [B, H], centroids s [k, H] -> alpha [B, k], h [B, H]."""
    alpha = (linear(u, centroids) / temperature).softmax(-1)
    return alpha, linear(alpha, centroids.mT)


class Recurrent(nn.Module):
    """A GRU or LSTM over words of `symbols` (or over rows of `symbols` numbers), with a logistic readout of the last state.

    With `states` it also holds centroids [k, H]: every new state is pulled to their mixture. `peepholes` is for the LSTM.
    """

    def __init__(self, kind: str, symbols: int, hidden: int, *, embedding: int = 8, states: int = 0, peepholes: bool = False,
                 classes: int = 2):  # fmt: skip
        super().__init__()
        self.kind, self.symbols, self.hidden = kind, symbols, hidden
        rows, side = {"gru": 3, "lstm": 4}[kind] * hidden, hidden**-0.5
        self.embed = nn.Parameter(torch.randn(symbols, embedding)) if embedding else None
        self.weight_ih = nn.Parameter(torch.empty(rows, embedding or symbols).uniform_(-side, side))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden).uniform_(-side, side))
        self.bias_ih = nn.Parameter(torch.empty(rows).uniform_(-side, side))
        self.bias_hh = nn.Parameter(torch.empty(rows).uniform_(-side, side))
        self.readout = nn.Linear(hidden, classes)
        # what the method adds comes last: arms of one seed share all other initial weights
        self.peep = nn.Parameter(torch.zeros(3, hidden)) if peepholes else None
        self.centroids = nn.Parameter(torch.randn(states, hidden) * side) if states else None

    def drive(self, x: Tensor) -> Tensor:
        """What the inputs give to the gates: symbols [T, B] or rows [T, B, symbols] -> [T, B, gates]."""
        if self.embed is None:
            return linear(x, self.weight_ih, self.bias_ih)
        return linear(self.embed, self.weight_ih, self.bias_ih)[x]  # each symbol once, then looked up

    def path(self, x: Tensor, pull: float = 1.0, temperature: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
        """States h_0, h_1, ... h_T [B, H] and, with centroids, alpha_1 ... alpha_T [B, k].

        h_t = pull sum_i alpha_ti s_i + (1 - pull) u_t, where u_t is what the cell gives; h_0 = pull s_1. 0 is the plain cell.
        """
        drives = self.drive(x.transpose(0, 1)).unbind(0)  # not a slice a step: its gradient would be as large as them all
        h = c = torch.zeros_like(drives[0][:, : self.hidden])
        if self.centroids is not None:
            h = h + pull * self.centroids[0]
        states, alphas = [h], []
        for drive in drives:
            if self.kind == "gru":
                u = gru_step(drive, h, self.weight_hh, self.bias_hh)
            else:
                u, c = lstm_step(drive, h, c, self.weight_hh, self.bias_hh, self.peep)
            h = u
            if self.centroids is not None:
                alpha, mixed = snap(u, self.centroids, temperature)
                h = mixed if pull == 1 else pull * mixed + (1 - pull) * u
                alphas.append(alpha)
            states.append(h)
        return states, alphas

    def forward(self, x: Tensor, last: Tensor, pull: float = 1.0, temperature: float = 1.0) -> Tensor:
        """Logits [B, classes] of the state after the symbol at place `last` [B]; what is padded behind it has no part in it."""
        states = torch.stack(self.path(x, pull, temperature)[0][1:])
        return self.readout(states.gather(0, last[None, :, None].expand(1, -1, self.hidden))[0])


# ---- an automaton from a network


def counted(path: np.ndarray, words: np.ndarray, lengths: np.ndarray, votes: np.ndarray, symbols: int) -> Dfa:
    """The automaton of the most frequent transitions along `path` [N, T + 1], states 0..k-1, of words [N, T].

    Its start is the first word's first state, and `votes` [k] says which states accept. A pair of state and symbol that never
    occurs leads to the sink k, which rejects.
    """
    k, inside = len(votes), np.arange(words.shape[1]) < lengths[:, None]
    seen = np.zeros((k, symbols, k), int)
    np.add.at(seen, (path[:, :-1][inside], words[inside], path[:, 1:][inside]), 1)
    step = np.where(seen.any(2), seen.argmax(2), k)
    return Dfa(np.vstack([step, np.full((1, symbols), k)]), np.r_[votes, False], int(path[0, 0]))


@torch.no_grad()
def traced(net: Recurrent, words: np.ndarray, pull: float = 1.0,
           temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """States [N, T + 1, H] and transition probabilities alpha [N, T, k] (None without centroids) along words [N, T]."""
    states, alphas = net.path(torch.from_numpy(words).to(net.weight_hh.device), pull, temperature)
    return torch.stack(states, 1).cpu().numpy(), torch.stack(alphas, 1).cpu().numpy() if alphas else None


@torch.no_grad()
def votes_on(net: Recurrent, points: np.ndarray) -> np.ndarray:
    """Whether the classifier accepts at each of these hidden states [k, H]; [k] bool."""
    return net.readout(torch.from_numpy(points).float().to(net.weight_hh.device)).argmax(1).cpu().numpy() == 1


def read_off(net: Recurrent, words: np.ndarray, lengths: np.ndarray, pull: float = 1.0, temperature: float = 1.0) -> Dfa:
    """The automaton of a state-regularised network: state t is argmax_i alpha_ti, state 0 the start s_1, and the classifier's
    vote on a centroid says whether its state accepts."""
    alpha = traced(net, words, pull, temperature)[1]
    path = np.c_[np.zeros(len(words), int), alpha.argmax(2)]
    return counted(path, words, lengths, votes_on(net, net.centroids.detach().cpu().numpy()), net.symbols)


def kmeans(points: np.ndarray, k: int, rng: np.random.Generator, tries: int = 3,
           rounds: int = 50) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Lloyd's algorithm from k-means++ starts, the best of `tries`: centres [k or fewer, D] and the label [N] of each point."""
    distinct, count = np.unique(points, axis=0, return_counts=True)
    best = (np.inf, None)
    for _ in range(tries):
        odds, near, chosen = count.astype(float), np.full(len(distinct), np.inf), []
        while len(chosen) < k and odds.sum() > 0:
            chosen.append(rng.choice(len(distinct), p=odds / odds.sum()))
            near = np.minimum(near, ((distinct - distinct[chosen[-1]]) ** 2).sum(1))
            odds = count * near
        centres = distinct[chosen]
        for _ in range(rounds):
            label = _far(distinct, centres).argmin(1)
            weight = np.bincount(label, count, len(centres))
            moved = np.stack([np.bincount(label, count * column, len(centres)) for column in distinct.T], 1)
            moved = np.where(weight[:, None] > 0, moved / weight.clip(1)[:, None], centres).astype(points.dtype)
            if np.abs(moved - centres).max() < 1e-6:
                break
            centres = moved
        if (loss := (_far(distinct, centres).min(1) * count).sum()) < best[0]:
            best = loss, centres
    return best[1], _far(points, best[1]).argmin(1)


def _far(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [N, k]."""
    return ((points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)).clip(0)


def clustered(net: Recurrent, words: np.ndarray, lengths: np.ndarray, states: int, seed: int = 0, tries: int = 3,
              **setting: float) -> Dfa:  # fmt: skip
    """The automaton of any recurrent network: its hidden states are put into `states` clusters by k-means, transitions are
    counted as in `read_off`, and a cluster accepts if most of the words that end in it are accepted by the network. `setting` may
    hold pull and temperature."""
    h = traced(net, words, **setting)[0]
    inside = np.arange(h.shape[1]) <= lengths[:, None]
    centres, labels = kmeans(h[inside], states, np.random.default_rng(seed), tries)
    path = np.zeros(inside.shape, int)
    path[inside] = labels
    last = np.arange(len(words)), lengths
    ends, answer = path[last], votes_on(net, h[last])
    votes = votes_on(net, centres)
    for q in np.unique(ends):
        votes[q] = answer[ends == q].mean() > 0.5
    return counted(path, words, lengths, votes, net.symbols)
