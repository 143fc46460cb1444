"""Interactive training: step in while a network trains. Does a watchful agent rescue a bad start, and does feedback matter?"""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass

import numpy as np
from torch import nn

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.training import _interactive_training_agents as agents
from claimlab.studies.training import _interactive_training_data as data
from claimlab.studies.training import _interactive_training_method as method
from claimlab.studies.training import _interactive_training_tasks as trained
from claimlab.study import Control, Paper, beside
from claimlab.training import Run, Stages, Tick

PAPER = Paper(
    title="Interactive Training: Feedback-Driven Neural Network Optimization", authors="Zhang, Lu, Deng", year=2025,
    url="https://arxiv.org/abs/2510.02297", theme="sensitivity", system="Interactive Training",
    question="Does stepping in while a network trains - a lower learning rate when the loss runs away, a step back, fresh data "
    "- beat letting a fixed recipe finish, and is an automatic agent as good as a person or a simple rule?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    lr: float = knob(0.1, "start value of the judged bad start; turn it while the run goes and see", low=1e-5, high=1.0,
                     live=True)  # fmt: skip
    look_every: int = knob(10, "how often the agent reads the log", low=1, high=100, unit="steps", live=True)
    cut: float = knob(0.3, "factor on the learning rate after a runaway", low=0.05, high=0.9, live=True)
    alarm: float = knob(1.2, "how far above its best the validation loss may rise, as a factor", low=1.05, high=5.0, live=True)
    stream_weight: float = knob(0.3, "share of each batch drawn from newly arrived data", low=0.0, high=1.0, live=True)
    clip: float = knob(0.0, "gradient norm clip, 0 is off", low=0.0, high=10.0, live=True)
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
    Claim("agent-saves-bad-start", "From a ten times too large learning rate, a run watched by the agent ends at lower "
          "validation loss than the untouched run.", kind="paired", metric="val_loss_bad_start", arm="agent", baseline="static",
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
    "The agent is a rule, not a language model, and the recorded expert is a script that was written with one development seed "
    "in view; the study tests whether feedback during training helps, not how clever a language model is. Extra validation looks "
    "are information that the static arm does not use; their cost is reported."
)
METHOD, AGENTS, TASKS = method, agents, trained  # what notebook, figures and tests look into


def recorded() -> list[dict]:
    """The interventions shipped with the study, or those of the file that CLAIMLAB_INTERVENTIONS names."""
    return method.script(os.environ.get("CLAIMLAB_INTERVENTIONS") or data.RECORDED)


# ---- the arms on text: runs that are polled between steps


class Steered:
    """One run of all seeds for each initial rate; `run` is the judged bad start. Nobody steers here; subclasses do.

    After each step every session may be given commands, as `drive` decides; `due` says whether there has just been a look.
    """

    after: str | None = None
    writer: type[trained.Writer] = trained.Writer
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
        trained.beside(self._advance, list(zip(self.runs, self.sessions, strict=True)))

    @staticmethod
    def _advance(pair: tuple[Run, list[method.Session]]) -> None:
        run, row = pair
        for session in row:
            session.optimizer.clip = session.clip
        run.advance()
        for session in row:
            session.record()

    def measure(self) -> Tick:
        """A look at every member; the tick tells of the bad start."""
        trained.beside(method.Session.look, list(self.every_session()))
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
    losses = {rate: trained.judged(net) for rate, net in nets.items()}
    found = {"val_loss_bad_start": next(iter(losses.values()))} | {f"loss_from_{rate:g}": loss for rate, loss in losses.items()}
    spread = [losses[rate] for rate in grid]
    return found | ({"loss_spread_over_lr": max(spread) - min(spread)} if spread else {})


class StaticCosine(Steered):
    writer = trained.CosineWriter


class PlateauClip(Steered):
    """torch's ReduceLROnPlateau (factor 0.5, patience 3 looks) and gradients cut to norm 1."""

    def __init__(self, p, seeds, before=None):
        super().__init__(p, seeds, before)
        for session in self.every_session():
            session.apply({"verb": "set", "name": "clip", "value": 1.0}, "rule")

    def drive(self, session, due):
        done = sum(note["ok"] for note in session.commands) - 1
        if due and agents.plateau_cuts(session.validations) > done:
            session.apply({"verb": "set", "name": "lr", "value": session.lr / 2, "reason": "plateau"}, "rule")


class Agent(Steered):
    """Whoever the knob `driver` names reads the text log at every look and answers with one command."""

    def scripts(self):
        return [recorded()]

    def drive(self, session, due):
        if self.p.driver == "replay":
            play(session, self.script[0], "replay")
        elif due and self.p.driver != "nobody":
            policy = agents.rules if self.p.driver == "agent" else agents.external
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
            session.obey(agents.rate_only(self.show(session)), "agent")


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


ARMS = {
    "static": Steered, "static_cosine": StaticCosine, "plateau_clip": PlateauClip, "agent": Agent, "agent_blind": Blind,
    "agent_no_rollback": NoRollback, "best_checkpoint": BestCheckpoint, "expert_replay": Expert,
    "live_data": trained.LiveData, "stale_data": trained.StaleData,
    "restart": Stages(deployed=trained.Deployed, restart=trained.Restart),
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "loss and commands": beside(__name__, "story"),
    "sampled text": beside(__name__, "sampled"),
    "new inputs": beside(__name__, "confusion"),
}
