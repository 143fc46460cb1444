"""Interactive training: step in while a network trains. Does a watchful agent rescue a bad start, and does feedback matter?"""

from __future__ import annotations

import copy
import math
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.models import mlp
from claimlab.params import knob
from claimlab.studies.training import _interactive_training_data as data
from claimlab.studies.training import _interactive_training_method as method
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Stages, Task, Tick

PAPER = Paper(
    title="Interactive Training: Feedback-Driven Neural Network Optimization", authors="Zhang, Lu, Deng", year=2025,
    url="https://arxiv.org/abs/2510.02297", theme="sensitivity", system="Interactive Training",
    question="Does stepping in while a network trains - a lower learning rate when the loss runs away, a step back, fresh data - "
    "beat letting a fixed recipe finish, and is an automatic agent as good as a person or a simple rule?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    lr: float = knob(0.1, "start value of the judged bad start; turn it while the run goes and see", low=1e-5, high=1.0, live=True)
    look_every: int = knob(10, "how often the agent reads the log", low=1, high=100, unit="steps", live=True)
    cut: float = knob(0.3, "factor on the learning rate after a runaway", low=0.05, high=0.9, live=True)
    alarm: float = knob(1.2, "how far above its best the validation loss may rise, as a factor", low=1.05, high=5.0, live=True)
    stream_weight: float = knob(0.3, "share of each batch drawn from newly arrived data", low=0.0, high=1.0, live=True)
    clip: float = knob(0.0, "gradient norm clip, 0 = off", low=0.0, high=10.0, live=True)
    driver: str = knob("agent", "who steers", choices=("nobody", "agent", "replay", "external"), live=True)
    domain_shift: float = knob(1.0, "how far the users' inputs differ from the source: share of the 90 degree turn and of the "
                               "contrast inversion; 0 is the same domain", low=0.0, high=1.0)
    rates: int = knob(4, "initial learning rates from 0.0001 to 0.1 for the spread", low=2, high=12)
    layers: int = knob(2, "layers of the transformer", low=1, high=6)
    width: int = knob(32, "width of the transformer, in four heads", low=16, high=128)
    steps: int = knob(150, "gradient steps of the judged stage; the digits take 10 for 3 of these", low=10, high=5000)
    seeds: int = knob(6, "independent repetitions", low=2, high=64)
    SMOKE = dict(layers=1, width=16, steps=12, rates=2, seeds=2, look_every=4)
    FULL = dict(steps=300, rates=8, seeds=10, layers=3, width=32)
    CONTROL = Control(
        set=dict(lr=0.01, domain_shift=0.0), vanishes=("agent-saves-bad-start", "live-data-adapts"),
        why="A start at the best static rate leaves nothing to save, and users whose inputs look like the old ones bring nothing "
        "to adapt to. A gain that remains is learning-rate decay or more data. Not listed: the comparison with the plateau rule "
        "and the replayed script, where a late cut of the rate may help from any start, and the spread, which uses rates of its "
        "own.",
    )  # fmt: skip

    def __post_init__(self):
        if self.width % 4:
            raise ValueError(f"width = {self.width} is not allowed: four heads share the width, so it must be divisible by 4")
        if self.look_every > self.steps:
            raise ValueError(f"look_every = {self.look_every} is more than steps = {self.steps}: nobody would ever look")


CLAIMS = (
    Claim("agent-saves-bad-start", "From a ten times too large learning rate, a run watched by the agent ends at lower validation "
          "loss than the untouched run.", kind="paired", metric="val_loss_bad_start", arm="agent", baseline="static",
          better="lower", margin=0.05, source="abstract; agent-in-the-loop case study"),
    Claim("less-sensitive", "Over initial learning rates spanning three decades the spread (worst minus best final loss) is "
          "smaller with the agent than with the constant rate.", kind="paired", metric="loss_spread_over_lr", arm="agent",
          baseline="static", better="lower", margin=0.2, source="abstract (reduced sensitivity to initial hyperparameters)"),
    Claim("beats-plateau-rule", "The agent beats the classical automatic rule: reduce on plateau plus gradient clipping.",
          kind="paired", metric="val_loss_bad_start", arm="agent", baseline="plateau_clip", better="lower", margin=0.01,
          source="lab addition: the honest non-interactive rival"),
    Claim("live-data-adapts", "Adding newly collected examples to the running training raises accuracy on the users' new inputs "
          "over continuing with the old data, at the same total steps.", kind="paired", metric="new_domain_accuracy",
          arm="live_data", baseline="stale_data", better="higher", margin=0.05,
          source="third case study (real-time data updates)"),
    Claim("expert-script", "Interventions recorded once on one seed, replayed on other seeds, still beat the untouched run: the "
          "gain was not hindsight on one seed.", kind="paired", metric="val_loss_bad_start", arm="expert_replay",
          baseline="static", better="lower", margin=0.02, source="human-in-the-loop case study, made repeatable"),
)  # fmt: skip
HONESTY = (
    "The agent is a rule, not a language model, and the recorded expert is a script that was written with one development seed in "
    "view; the study tests whether feedback during training helps, not how clever a language model is. Extra validation looks "
    "are information that the static arm does not use; their cost is reported."
)
FIRST, BATCH = 60, 16  # steps of the first stage; windows a batch
METHOD = method  # what the notebook shows of the session and its agents


# ---- the model: B windows, T characters, d numbers a character, h heads, V letters


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + perceptron(norm(x)); each place sees itself and what came before."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.before, self.between = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out, self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (d // self.heads) ** -0.5 + mask[:t, :t]).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.down(self.up(self.between(x)).relu())


class Transformer(nn.Module):
    """Characters [B, T] -> logits of the next one [B, T, V]; learned positions, first weights N(0, 0.02) as in GPT-2."""

    def __init__(self, letters: int, d: int, layers: int, heads: int = 4):
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, d), nn.Parameter(0.02 * torch.randn(data.CONTEXT, d))
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, letters)
        ahead = torch.full((data.CONTEXT, data.CONTEXT), -math.inf).triu(1)
        self.register_buffer("mask", ahead, persistent=False)
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear | nn.Embedding)):
            nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.letter(x) + self.place[: x.shape[1]]
        for block in self.blocks:
            h = block(h, self.mask)
        return self.head(self.norm(h))


def text() -> data.Corpus:
    """The lab's text, or the file that CLAIMLAB_DATA names."""
    return data.corpus(os.environ.get("CLAIMLAB_DATA", ""))


def recorded() -> list[dict]:
    """The interventions shipped with the study, or those of the file that CLAIMLAB_INTERVENTIONS names."""
    return method.script(os.environ.get("CLAIMLAB_INTERVENTIONS") or data.RECORDED)


@torch.no_grad()
def loss_on(net: Transformer, windows: Tensor) -> float:
    """Cross-entropy [nats a character] of the windows [n, T + 1]."""
    windows = windows.to(net.head.weight.device)
    logits = torch.cat([net(few[:, :-1]) for few in windows.split(32)])  # few at a time stay in the cache
    return float(cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def judged(net: Transformer) -> float:
    """The loss that counts: on text that nobody has looked at, ln V where it is larger or no number."""
    loss, most = loss_on(net, text().windows["judged"]), text().uniform
    return loss if loss < most else most


class Writer(Task):
    """The second stage: a half-trained model is trained on, with fresh optimiser state, at the rate that the arm chooses."""

    joint_optimizer = False  # every member has a rate, a clip and a way back of its own
    weight_decay = 0.01
    part = "second"
    lr = property(lambda self: self.p.lr)
    every = property(lambda self: self.p.look_every)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.seed = seed
        return bound

    def init(self):
        return copy.deepcopy(half_trained(self.seed, self.p.layers, self.p.width, os.environ.get("CLAIMLAB_DATA", "")))

    def batch(self, net, rng, step):
        whole = text().parts[self.part]
        start = torch.randint(len(whole) - data.CONTEXT, (BATCH, 1), generator=rng)
        rows = whole[start + torch.arange(data.CONTEXT + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(self, net, x, y):
        return cross_entropy(net(x).flatten(0, 1), y.flatten())

    def optimizer(self, groups):
        return method.MeasuredAdamW(groups, fused=True)

    def look(self, net) -> float:
        """Validation loss on the windows that agent and plateau rule may see."""
        return loss_on(net, text().windows["seen"])

    def metrics(self, net):
        return {"val_loss": self.look(net)}


class CosineWriter(Writer):
    def schedule(self, step, steps):
        warm = max(1, steps // 10)
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))


class FirstStage(Writer):
    lr, part = 3e-3, "first"

    def init(self):
        return Transformer(len(text().letters), self.p.width, self.p.layers)


@lru_cache(maxsize=64)
def half_trained(seed: int, layers: int, width: int, path: str) -> Transformer:
    """The model after the first stage; every arm of a seed starts from a copy."""
    run = Run(FirstStage(SimpleNamespace(layers=layers, width=width)), [seed], FIRST, FIRST)
    for _ in range(FIRST):
        run.advance()
    return run.members[0].cpu()


# ---- the arms on text: runs that are polled between steps


class Steered:
    """One run of all seeds for each initial rate; `run` is the judged bad start. Nobody steers here; subclasses do.

    After each step every session may be given commands, as `drive` decides; `due` says whether there has just been a look.
    """

    after: str | None = None
    writer: type[Writer] = Writer
    everywhere = True  # at all initial rates, or at the bad start alone

    def __init__(self, p: Params, seeds: list[int], before=None):
        self.seeds, self.before, self.total, self.seconds = list(seeds), before, p.steps, 0.0
        self.grid = [float(f"{rate:.3g}") for rate in np.geomspace(1e-4, 1e-1, p.rates)] if self.everywhere else []
        self.rates = [p.lr, *(rate for rate in self.grid if rate != p.lr)]
        self.runs = [Run(self.writer(p), seeds) for _ in self.rates]
        for run, rate in zip(self.runs, self.rates, strict=True):
            run.set(lr=rate)
        self.script = self.scripts()
        commands = [one["command"] for script in self.script for one in script]
        self.pins = {command["step"] for command in commands if command["verb"] == "rollback"}
        self.sessions = [[method.Session(run, i, task.look, self.pins) for i, task in enumerate(run.tasks)] for run in self.runs]

    run = property(lambda self: self.runs[0])
    p = property(lambda self: self.run.task.p)  # as live control has left it
    step = property(lambda self: self.run.step)
    members = property(lambda self: self.run.members)
    tasks = property(lambda self: self.run.tasks)

    def scripts(self) -> list[list[dict]]:
        """What is to be replayed, one list of commands a seed."""
        return []

    def drive(self, session: method.Session, due: bool) -> None:
        """Give the session a command, or let it be."""

    def ticks(self):
        return (tick for tick in self.stepwise() if tick is not None)

    def stepwise(self):
        if not self.sessions[0][0].looked:
            yield self.measure()
        while self.step < self.total:
            began = time.perf_counter()
            self.advance()
            due = self.step % self.p.look_every == 0 or self.step == self.total
            tick = self.measure() if due else None
            if self.step < self.total:
                for session in self.every_session():
                    self.drive(session, due)
            self.seconds += time.perf_counter() - began
            yield tick

    def every_session(self):
        return (session for row in self.sessions for session in row)

    def advance(self) -> None:
        """One gradient step of every member at every rate, and a line in its log."""
        for run, row in zip(self.runs, self.sessions, strict=True):
            for session in row:
                session.optimizer.clip = session.clip
            run.advance()
            for session in row:
                session.record()

    def measure(self) -> Tick:
        """A look at every member; the tick tells of the bad start."""
        for session in self.every_session():
            session.look()
        found = [{"val_loss": s.looked[-1][1], "lr": s.lr} for s in self.sessions[0]]
        if self.step == self.total:
            for i, metrics in enumerate(found):
                metrics |= finals(self.grid, {rate: run.members[i] for rate, run in zip(self.rates, self.runs, strict=True)})
                metrics |= {"looks": len(self.sessions[0][i].looked), "steps_lost": self.sessions[0][i].lost}
        return Tick(self.step, found, self.run.losses)

    def show(self, session: method.Session) -> str:
        """The text log that an agent reads."""
        return session.text(self.total, max(4, self.total // 5), self.p.cut, self.p.alarm)

    @property
    def budget(self) -> dict[str, float]:
        """Of one member at the bad start; a look reads 128 windows forward, and counts as one forward call."""
        looks = len(self.sessions[0][0].looked)
        return {"steps": self.step, "samples": self.run.samples, "forward_calls": self.step + looks, "seconds": self.seconds}

    def state(self) -> dict:
        return {"runs": [run.state() for run in self.runs], "seconds": self.seconds,
                "sessions": [[session.state() for session in row] for row in self.sessions]}  # fmt: skip

    def load(self, state: dict) -> None:
        self.seconds = state["seconds"]
        for run, row, saved, logs in zip(self.runs, self.sessions, state["runs"], state["sessions"], strict=True):
            run.load(saved)
            for session, log in zip(row, logs, strict=True):
                session.load(log)


def finals(grid: list[float], nets: dict[float, nn.Module]) -> dict[str, float]:
    """What is judged of one seed's nets by initial rate; the first is the bad start."""
    losses = {rate: judged(net) for rate, net in nets.items()}
    found = {"val_loss_bad_start": next(iter(losses.values()))} | {f"loss_from_{rate:g}": loss for rate, loss in losses.items()}
    spread = [losses[rate] for rate in grid]
    return found | ({"loss_spread_over_lr": max(spread) - min(spread)} if spread else {})


class StaticCosine(Steered):
    writer = CosineWriter


class PlateauClip(Steered):
    """torch's ReduceLROnPlateau (factor 0.5, patience 3 looks) and gradients cut to norm 1."""

    def __init__(self, p, seeds, before=None):
        super().__init__(p, seeds, before)
        for session in self.every_session():
            session.apply({"verb": "set", "name": "clip", "value": 1.0}, "rule")

    def drive(self, session, due):
        done = sum(note["ok"] for note in session.commands) - 1
        if due and method.plateau_cuts(session.validations) > done:
            session.apply({"verb": "set", "name": "lr", "value": session.lr / 2, "reason": "plateau"}, "rule")


class Agent(Steered):
    """Whoever the knob `driver` names reads the text log at every look and answers with one command."""

    def scripts(self):
        return [recorded()]

    def drive(self, session, due):
        if self.p.driver == "replay":
            play(session, self.script[0], "replay")
        elif due and self.p.driver != "nobody":
            policy = method.rules if self.p.driver == "agent" else method.external
            session.obey(policy(self.show(session)), self.p.driver)


def play(session: method.Session, script: list[dict], by: str) -> None:
    """The commands that the script has for this step."""
    for one in script:
        if one["step"] == session.run.step:
            session.apply(one["command"], by)


class NoRollback(Steered):
    """The rule agent that cuts the rate but never goes back."""

    everywhere = False

    def drive(self, session, due):
        if due:
            session.obey(method.rate_only(self.show(session)), "agent")


class Expert(Steered):
    """The recorded interventions at the recorded steps."""

    everywhere = False

    def scripts(self):
        return [recorded()]

    def drive(self, session, due):
        play(session, self.script[0], "replay")


class Blind(Steered):
    """The agent's own commands of the same seed, in their order, at random steps: the ablation of feedback."""

    everywhere, after = False, "agent"

    def scripts(self):
        return [scattered(session.commands, self.total, seed)
                for session, seed in zip(self.before.sessions[0], self.seeds, strict=True)]  # fmt: skip

    def drive(self, session, due):
        play(session, self.script[session.member], "blind")


def scattered(commands: list[dict], total: int, seed: int) -> list[dict]:
    """Commands that were obeyed, at steps drawn evenly from 1 to total - 1 without repetition."""
    kept = [note["command"] for note in commands if note["ok"]]
    steps = np.sort(np.random.default_rng([seed, 7]).permutation(np.arange(1, total))[: len(kept)])
    return [{"step": int(step), "command": command} for step, command in zip(steps, kept, strict=False)]


class BestCheckpoint:
    """Early stopping: of the static run the checkpoint that validated best, the start included. It costs no step."""

    after, total = "static", 1

    def __init__(self, p: Params, seeds: list[int], before: Steered):
        self.before, self.step = before, 0
        self.nets = [[_at_best(session) for session in row] for row in before.sessions]

    members = property(lambda self: self.nets[0])

    def ticks(self):
        self.step, found = 1, []
        for i in range(len(self.before.seeds)):
            nets = {rate: row[i] for rate, row in zip(self.before.rates, self.nets, strict=True)}
            found.append({"val_loss": self.before.sessions[0][i].best[0]} | finals(self.before.grid, nets))
        yield Tick(self.before.total, found)

    def state(self):
        return {"step": self.step}

    def load(self, state):
        self.step = state["step"]


def _at_best(session: method.Session) -> nn.Module:
    net = copy.deepcopy(session.run.members[session.member])
    net.load_state_dict(session.shelf[session.best[1]]["net"])
    return net


# ---- the arms on digits: users' inputs arrive while the network trains


class StaleData(Task):
    """A perceptron trained on upright digits alone. Batches of all arms share their draws; `weight` is what the stream gets."""

    lr, offset = 0.02, 0
    ahead = 20
    steps = property(lambda self: 10 * self.p.steps // 3)
    every = property(lambda self: max(1, self.steps // 25))
    weight = property(lambda self: 0.0)

    def bind(self, seed):
        bound = type(self)(self.p)
        bound.data = data.domains(seed, self.p.domain_shift)
        return bound

    def init(self):
        return mlp(64, 96, 10)

    def arrived(self, step: Tensor) -> Tensor:
        """Examples of the stream at hand before each step: 20 from two fifths of the run on, 20 more every twentieth."""
        total = 10 * self.p.steps // 3
        batches = (step - 2 * total // 5).div(max(1, total // 20), rounding_mode="floor") + 1
        return (20 * batches).clamp(0, len(self.data.stream[0]))

    def block(self, net, rng, step, n):
        rows = torch.randint(len(self.data.source[0]), (n, 32), generator=rng)
        chance, which = torch.rand(2, n, 32, generator=rng)
        have = self.arrived(torch.arange(step, step + n) + self.offset)[:, None]
        fresh, newest = (chance < self.weight) & (have > 0), (which * have).long().clamp(max=len(self.data.stream[0]) - 1)
        (old_x, old_y), (new_x, new_y) = self.data.source, self.data.stream
        return torch.where(fresh[..., None], new_x[newest], old_x[rows]), torch.where(fresh, new_y[newest], old_y[rows])

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def loss(self, net, x, y):
        return cross_entropy(net(x), y)

    def optimizer(self, groups):
        return torch.optim.SGD(groups, momentum=0.9)

    def metrics(self, net):
        device = next(net.parameters()).device
        tests = {name: [part.to(device) for part in getattr(self.data, name)] for name in ("old", "new")}
        return {f"{name}_domain_accuracy": (net(x).argmax(1) == y).float().mean() for name, (x, y) in tests.items()}


class LiveData(StaleData):
    weight = property(lambda self: self.p.stream_weight)


class Deployed(StaleData):
    """The first three fifths, until somebody decides to begin again."""

    steps = property(lambda self: 10 * self.p.steps // 3 * 3 // 5)


class Restart(LiveData):
    """From scratch, with everything that has come and still comes, for the steps that remain."""

    offset = property(lambda self: 10 * self.p.steps // 3 * 3 // 5)
    steps = property(lambda self: 10 * self.p.steps // 3 - self.offset)

    def begin(self, start):
        return self.init()


ARMS = {
    "static": Steered, "static_cosine": StaticCosine, "plateau_clip": PlateauClip, "agent": Agent, "agent_blind": Blind,
    "agent_no_rollback": NoRollback, "best_checkpoint": BestCheckpoint, "expert_replay": Expert,
    "live_data": LiveData, "stale_data": StaleData, "restart": Stages(deployed=Deployed, restart=Restart),
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "loss and commands": beside(__name__, "story"),
    "sampled text": beside(__name__, "sampled"),
    "new inputs": beside(__name__, "confusion"),
}
