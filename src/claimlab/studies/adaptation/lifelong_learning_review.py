"""Continual lifelong learning, a review: five families of remedies against forgetting, side by side on three streams of tasks.
Which of them holds where?"""

from __future__ import annotations

from dataclasses import dataclass

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.studies.adaptation import _lifelong_learning_review_tasks as tasks
from claimlab.studies.adaptation._lifelong_learning_review_arms import Arm, Averages, Course, Sweep
from claimlab.studies.adaptation._lifelong_learning_review_data import own_table, permutations, stream
from claimlab.studies.adaptation._lifelong_learning_review_memory import grow, reservoir
from claimlab.studies.adaptation._lifelong_learning_review_method import (
    anchored,
    distillation,
    fisher,
    omegas,
    penalty,
    transfers,
)
from claimlab.study import Control, Paper, beside

PAPER = Paper(
    title="Continual Lifelong Learning with Neural Networks: A Review", authors="Parisi, Kemker, Part, Kanan, Wermter", year=2018,
    url="https://arxiv.org/abs/1802.07569", theme="representations", system="five families of continual learners side by side",
    question="Why does a network forget the old task when it learns a new one, and which of the known remedies holds in which "
    "setting?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    lam: float = knob(100.0, "EWC strength: 0 forgets, too high cannot learn (stability against plasticity); each stream multiplies "
                      "it by a factor of its own", low=0.0, high=10000.0, live=True)  # fmt: skip
    memory: int = knob(100, "rehearsal memory over all tasks", low=0, high=1000, unit="examples")
    stream: str = knob("new_classes", "the stream that the staircase, the distances and the views show (all three are always trained); "
                       "the ranking of methods depends on it", choices=("permuted", "new_classes", "new_tasks"))  # fmt: skip
    tasks: int = knob(5, "number of tasks; more than 5 leave single digits to some tasks of the split streams", low=2, high=10)
    width: int = knob(128, "hidden units: room for several tasks", low=16, high=512)
    similarity: float = knob(0.0, "share of pixels left in place in stream 1: interference against transfer", low=0.0, high=1.0,
                             unit="fraction")  # fmt: skip
    steps: int = knob(100, "optimiser steps on the new data of each task", low=5, high=2000, unit="steps a task")
    images: str = knob("digits", "1,797 digits of 8 x 8 pixels, or 3,000 of 28 x 28", choices=("digits", "mnist"))
    seeds: int = knob(5, "independent repetitions: split, class order, permutations, weights", low=2, high=64)
    SMOKE = dict(tasks=2, steps=10, width=16, seeds=2)
    FULL = dict(images="mnist", tasks=10)
    CONTROL = Control(
        set=dict(similarity=1.0), vanishes=("catastrophic-forgetting", "regularisation-helps-permutation"),
        why="If every task is the same task there is nothing to forget.",
    )  # fmt: skip


CLAIMS = (
    Claim("catastrophic-forgetting", "Plain sequential training loses at least 20 points of accuracy on earlier tasks of the "
          "permuted stream, where the output layer need not forget (backward transfer below -0.2).", kind="bound",
          metric="backward_transfer", arm="finetune", better="lower", margin=-0.2,
          source="introduction; section on catastrophic forgetting"),
    Claim("regularisation-helps-permutation", "On permuted inputs elastic weight consolidation keeps more than plain training.",
          kind="paired", metric="omega_all_permuted", arm="ewc", baseline="finetune", better="higher", margin=0.05,
          source="comparison of methods (data permutation)"),
    Claim("rehearsal-wins-new-classes", "When classes arrive one pair after another with one shared output, a small rehearsal "
          "memory beats weight regularisation.", kind="paired", metric="omega_all_classes", arm="replay", baseline="ewc",
          better="higher", margin=0.1, source="comparison of methods (incremental class learning)"),
    Claim("growth-forgets-nothing", "A progressive network keeps the outputs of finished tasks exactly (largest change 0).",
          kind="equality", metric="max_output_change_old_tasks", arm="progressive", better="lower", margin=0.000001,
          source="section on dynamic architectures"),
    Claim("nobody-reaches-joint", "No method with bounded memory reaches joint training on incremental classes (best method minus "
          "joint below -0.02).", kind="bound", metric="best_minus_joint_classes", arm="replay", better="lower", margin=-0.02,
          source="discussion, no method solves all scenarios"),
)  # fmt: skip
HONESTY = (
    "8x8 digits and five tasks show the order of methods, not their absolute level; the review's biological half (sleep replay, "
    "developmental curricula, intrinsic motivation, crossmodal learning) is represented only by the growing dual memory. Robot "
    "streams without task borders are not tested."
)

# ---- the arms. Every one needs what joint training reached, and `replay` all methods of bounded memory: hence the order

ARMS = {
    "joint": Arm("joint", tasks.Joint),
    "finetune": Arm("finetune", tasks.Finetune, after="joint"),
    "ewc": Arm("ewc", tasks.Ewc, after="joint"),
    "lwf": Arm("lwf", tasks.Lwf, after="ewc"),
    "generative_replay": Arm("generative_replay", tasks.Generative, after="lwf"),
    "gdm": Arm("gdm", tasks.Gdm, after="generative_replay"),
    "replay": Arm("replay", tasks.Replay, after="gdm"),
    "progressive": Arm("progressive", tasks.Progressive, after="joint", streams=("new_classes", "new_tasks")),
    "nearest_mean": Averages,
    "lambda_sweep": Sweep(tasks.EwcSwept, "strength", (1, 10, 100, 1000, 10000)),
    "memory_sweep": Sweep(tasks.Replay, "memory", (10, 30, 100, 300, 1000), {"strength": 0.5}),
}
figures = beside(__name__, "figures")
VIEWS = {
    "accuracy on every task": beside(__name__, "staircase_now"),
    "features of old and new classes": beside(__name__, "features_now"),
}
__all__ = [
    "ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Course", "Params", "anchored", "distillation", "figures", "fisher", "grow",
    "omegas", "own_table", "penalty", "permutations", "reservoir", "stream", "transfers",
]  # fmt: skip
