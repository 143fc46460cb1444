"""Token-wise sensitivity: how often does the answer turn over when one token changes? Transformers against MLP, CNN, LSTM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from claimlab.claims import Claim
from claimlab.params import knob
from claimlab.parts.boolean import every_input
from claimlab.studies.robustness import _transformer_low_sensitivity_data as data
from claimlab.studies.robustness._transformer_low_sensitivity_method import (
    answers,
    at_match,
    by_degree,
    loss_rise,
    one_changed,
    penalty,
    share,
    share_right,
    token_sensitivity,
)  # fmt: skip
from claimlab.studies.robustness._transformer_low_sensitivity_nets import Form, build
from claimlab.study import Control, Paper, beside
from claimlab.training import Task

PAPER = Paper(
    title="Simplicity Bias of Transformers to Learn Low Sensitivity Functions", authors="Vasudeva, Fu, Zhou, Kau, Huang, Sharan",
    year=2024, url="https://arxiv.org/abs/2403.06925", theme="sensitivity", system="token-wise sensitivity",
    question="At equal training accuracy, is a transformer less disturbed by a random change of one token than an MLP, a CNN or an "
    "LSTM, and does lowering that sensitivity buy robustness?",
)  # fmt: skip


@dataclass(frozen=True)
class Params:
    sigma: float = knob(1.0, "size of the change of one patch when sensitivity is measured", low=0.05, high=5.0, unit="sd of a pixel")
    penalty: float = knob(1.0, "weight of the sensitivity penalty", low=0.0, high=10.0, live=True)
    sparse_strength: float = knob(1.0, "how reliably the sparse token predicts the label", low=0.5, high=1.0, unit="fraction")
    majority_margin: int = knob(1, "by how much the frequent tokens agree with the label", low=1, high=9, unit="tokens")
    match_accuracy: float = knob(0.95, "training accuracy at which architectures are compared", low=0.7, high=0.99, unit="fraction")
    layers: int = knob(2, "transformer depth", low=1, high=4)
    lr: float = knob(0.001, "step size, also of the rivals; training peaks at three times as much", low=0.0001, high=0.01, live=True)
    data: str = knob("digits", "pictures: 8 x 8 digits as 16 patches, or 28 x 28 MNIST as 49", choices=("digits", "mnist"))
    images: int = knob(1300, "training images", low=100, high=4000)
    strings: int = knob(2000, "training strings; half as many are asked in each test", low=100, high=20000)
    length: int = knob(32, "tokens of a string", low=8, high=64)
    steps: int = knob(300, "optimiser steps", low=10, high=10000)
    seeds: int = knob(5, "independent repetitions", low=2, high=64)
    SMOKE = dict(images=100, strings=200, length=8, steps=12, seeds=2)
    FULL = dict(data="mnist", images=4000, steps=1000, seeds=6)
    CONTROL = Control(
        set=dict(sigma=0.05, sparse_strength=0.5),
        vanishes=("lower-than-mlp", "lower-than-cnn", "intervention-robust", "prefers-frequent-tokens"),
        why="A disturbance of a twentieth of a pixel's spread turns over no prediction of any architecture and teaches a penalty "
        "next to nothing (sigma is also the noise of the penalty and of the augmentation); a sparse token that says nothing leaves "
        "the majority as the only cue, so that every network follows it.",
    )  # fmt: skip

    def __post_init__(self):
        most = 2 * round((9 * self.length / 32 - 1) / 2) + 1
        if self.majority_margin > most:
            raise ValueError(f"majority_margin = {self.majority_margin} and length = {self.length} do not go together: strings of "
                             f"that length have {most} frequent tokens")  # fmt: skip
        if self.data == "digits" and self.images > 1300:
            raise ValueError(f"images = {self.images} and data = digits do not go together: 1300 of the 1797 digits are for training")


CLAIMS = (
    Claim("lower-than-mlp", "At the first tick with training accuracy 0.95 the transformer's sensitivity is below the MLP's.",
          kind="paired", metric="sensitivity_at_match", arm="transformer", baseline="mlp", better="lower", margin=0.01,
          source="abstract; vision experiments"),
    Claim("lower-than-cnn", "At matched training accuracy the transformer's sensitivity is below the CNN's.", kind="paired",
          metric="sensitivity_at_match", arm="transformer", baseline="cnn", better="lower", margin=0.01,
          source="abstract; vision experiments"),
    Claim("intervention-robust", "A transformer trained with the sensitivity penalty is more accurate on corrupted inputs than the "
          "plain one.", kind="paired", metric="corrupted_accuracy", arm="transformer_reg", baseline="transformer", better="higher",
          margin=0.01, source="abstract (efficient intervention)"),
    Claim("penalty-beats-augmentation", "The penalty also buys more robustness than training on the same noisy copies.",
          kind="paired", metric="corrupted_accuracy", arm="transformer_reg", baseline="transformer_aug", better="higher",
          margin=0.01, source="intervention section, put to the simple rival"),
    Claim("prefers-frequent-tokens", "When a sparse and a frequent (majority) feature both predict the label, the transformer "
          "follows the frequent one more often than the MLP does, on test strings where they disagree.", kind="paired",
          metric="frequent_share", arm="transformer", baseline="mlp", better="higher", margin=0.05, source="synthetic experiment"),
)  # fmt: skip
HONESTY = (
    "Networks of 50k parameters on 8x8 digits cannot speak for ViT or RoBERTa; only the direction of the differences is tested. "
    "Sensitivity depends on scale, learning rate and initialisation of each architecture, which a full-size sweep varies and the "
    "default does not. Correlation of sensitivity with robustness is shown across runs but only the intervention is judged."
)


# ---- the arms


class Pupil(nn.Module):
    """What one seed of an arm trains: a classifier of pictures (or own texts), and perhaps one of strings.

    Buffers hold what was measured: `last` (accuracy, sensitivity) of the last tick that was measured, `match` the sensitivity at
    matched accuracy (NaN until then), `flips` [T] the latest flip rate of each position.
    """

    def __init__(self, nets: dict[str, nn.Module], tokens: int):
        super().__init__()
        for name, net in nets.items():
            self.add_module(name, net)
        self.register_buffer("last", torch.tensor([0.0, math.nan]))
        self.register_buffer("match", torch.tensor(math.nan))
        self.register_buffer("flips", torch.full((tokens,), math.nan))


class Classifier(Task):
    """One architecture on pictures and on strings, side by side as two players. All arms of a seed see the same minibatches.

    `pace` multiplies the learning rate: the better of 1 and 3 on development seeds, for every arm 3. `thorough` arms are
    measured with all probes near the match; the others, which no claim on sensitivity names, with a quarter of the inputs
    and one draw.
    """

    kind, pace, thorough = "transformer", 3.0, True
    settings: tuple[str, ...] = ("pictures", "strings")
    batch_size, ahead = {"pictures": 32, "strings": 20}, 20
    noisy = False  # does the batch hold disturbed copies?

    every = property(lambda self: max(5, self.steps // (20 if self.thorough else 10)))
    lr = property(lambda self: self.p.lr * self.pace)

    def schedule(self, step, steps):
        """Rises over the first tenth of the steps, then falls in a straight line."""
        return min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps), 1.0)

    def bind(self, seed):
        bound, p = type(self)(self.p), self.p
        lesson = data.lesson(seed, p.data, p.images, p.sigma, data.source())
        bound.form, bound.names = lesson.form, tuple(lesson.corrupted)
        bound.train, bound.test, bound.corrupted = (lesson.x, lesson.y), lesson.test, tuple(lesson.corrupted.values())
        bound.others = lesson.others
        bound.read, bound.against, bound.plain = data.reading(seed, p.strings, p.length, p.majority_margin, p.sparse_strength)
        return bound

    def init(self):
        forms = {"pictures": self.form, "strings": Form(self.p.length, 2, words=data.WORDS)}
        return Pupil({name: build(self.kind, forms[name], self.p.layers) for name in self.settings}, self.form.tokens)

    def block(self, net, rng, step, n):
        # a generator of its own for each purpose: arms that draw more still share every common draw
        seeds = torch.randint(2**62, (3,), generator=rng).tolist()
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        parts = []
        for (x, y), name, draw in zip((self.train, self.read), ("pictures", "strings"), own, strict=False):
            if name in self.settings:
                rows = torch.randint(len(x), (n, self.batch_size[name]), generator=draw).to(x.device)
                parts += [x[rows], y[rows]]
        extra = [data.disturbed(parts[0].cpu(), self.p.sigma, self.form.words, own[2])] if self.noisy else []
        return *parts, *extra

    def batch(self, net, rng, step):
        return tuple(part[0] for part in self.block(net, rng, step, 1))

    def players(self):
        losses = {"pictures": self.picture_loss, "strings": self.string_loss}
        return {name: losses[name] for name in self.settings}

    def picture_loss(self, net, x, y, *rest):
        return cross_entropy(net.pictures(x), y)

    def string_loss(self, net, x, y, read, majority):
        return cross_entropy(net.strings(read), majority)

    # ---- what is measured

    def sensitivity(self, net, inputs: int, draws: int) -> Tensor:
        """Flip rate on training inputs, mean over positions; the rates of the positions are kept in the net."""
        flips = token_sensitivity(net.pictures, self.train[0][:inputs], self.others[:draws, :inputs])
        net.flips.copy_(flips)
        return flips.mean()

    def learned(self, net) -> tuple[Tensor, Tensor]:
        """Accuracy and loss on a quarter of the training inputs; on all of them where a judged match may be near."""
        x, y = self.train
        quarter = -(-len(x) // 4)
        logits, match = answers(net.pictures, x[:quarter]), self.p.match_accuracy
        if self.thorough and net.match.isnan() and share_right(logits, y[:quarter]) >= match - 0.1:
            logits = torch.cat([logits, answers(net.pictures, x[quarter:])])
        return share_right(logits, y[: len(logits)]), cross_entropy(logits, y[: len(logits)])

    def metrics(self, net):
        accuracy, loss = self.learned(net)
        found = {"train_accuracy": accuracy, "train_loss": loss}
        before, match, most = net.match.isnan(), self.p.match_accuracy, self.others.shape[1]
        if before or accuracy >= net.last[0] + 0.01:
            near = self.thorough and bool(before) and accuracy >= match - 0.1  # farther off a tick hardly weighs
            now = torch.stack([accuracy, self.sensitivity(net, *((most, data.DRAWS) if near else (-(-most // 4), 1)))])
            if before and accuracy >= match:
                net.match.copy_(at_match(net.last, now, match))
            net.last.copy_(now)
            found["sensitivity"] = now[1]
        if "strings" in self.settings:
            found["frequent_share"] = share(net.strings, *(part[:250] for part in self.against))
        return found

    def final(self, net):
        x, y = self.test
        wrong = {name: share(net.pictures, bad, y) for name, bad in zip(self.names, self.corrupted, strict=True)}
        calm = [value for name, value in wrong.items() if "noise" not in name]
        found = {
            "sensitivity": self.sensitivity(net, self.others.shape[1], 1), "sensitivity_at_match": net.match,
            "test_accuracy": share(net.pictures, x, y), "corrupted_accuracy": sum(wrong.values()) / len(wrong),
            "calm_accuracy": sum(calm) / len(calm),
            "loss_rise": loss_rise(net.pictures, *(part[:200] for part in self.train), 0.05, torch.Generator().manual_seed(0)),
        }  # fmt: skip
        return found | wrong | (self.strings(net.strings) if "strings" in self.settings else {})

    def strings(self, net) -> dict[str, Tensor]:
        """Share of contradictory strings that follow the majority, NaN while training strings are not learned to 0.99."""
        learned = share(net, *self.read)
        followed = share(net, *self.against) if learned >= 0.99 else torch.tensor(math.nan)
        return {"frequent_share": followed, "string_accuracy": learned, "without_sparse": share(net, *self.plain)}


class Mlp(Classifier):
    kind = "mlp"


class Cnn(Classifier):
    kind = "cnn"


class Lstm(Classifier):
    kind, thorough, vectorize = "lstm", False, False  # torch.func has no rule for an LSTM


class NoPlaces(Classifier):
    kind, thorough, settings = "transformer_nopos", False, ("pictures",)


class Augmented(Classifier):
    """The second half of every minibatch is shown with noise on all patches."""

    thorough, settings, noisy = False, ("pictures",), True

    def picture_loss(self, net, x, y, noisy):
        half = len(x) // 2
        return super().picture_loss(net, torch.cat([x[:half], noisy[half:]]), y)


class Penalised(Augmented):
    """Cross-entropy + penalty * mean ||F(x) - F(x~)||^2."""

    def picture_loss(self, net, x, y, noisy):
        if self.p.penalty == 0:
            return Classifier.picture_loss(self, net, x, y)
        clean, moved = penalty(net.pictures, x, noisy)
        return cross_entropy(clean, y) + self.p.penalty * moved


class Bits(Task):
    """An untrained network of one kind that reads n bits as words 0 and 1; nothing is learned and no data are seen."""

    vectorize = False

    def __init__(self, params, kind, n=10):
        super().__init__(params)
        self.kind, self.n = kind, n

    def init(self):
        return build(self.kind, Form(self.n, 2, words=2), self.p.layers)

    def profile(self, net: nn.Module) -> tuple[Tensor, Tensor]:
        """`by_degree` of the difference of the two logits, cut at its median, so that both answers are equally frequent."""
        with torch.no_grad():
            margin = answers(net, (every_input(self.n) < 0).long()).diff(dim=-1)[:, 0].double()
        row = 2 ** torch.arange(self.n)
        return by_degree(lambda x: (margin - margin.quantile(0.5))[((x < 0) * row).sum(-1)], self.n)


ARMS = {
    "transformer": Classifier, "mlp": Mlp, "cnn": Cnn, "lstm": Lstm, "transformer_aug": Augmented, "transformer_reg": Penalised,
    "transformer_nopos": NoPlaces,
}  # fmt: skip
figures = beside(__name__, "figures")
VIEWS = {
    "flip-rate map": beside(__name__, "flip_map"),
    "attention of the decision": beside(__name__, "attention_view"),
    "a contradictory string": beside(__name__, "string_view"),
}
__all__ = ["ARMS", "CLAIMS", "HONESTY", "PAPER", "VIEWS", "Bits", "Params", "at_match", "by_degree", "data", "figures", "loss_rise",
           "one_changed", "penalty", "token_sensitivity"]  # fmt: skip
