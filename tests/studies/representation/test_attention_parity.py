"""The attention-parity study against brute force, scipy's Hadamard matrix, scikit-learn, symmetries and equal limits."""

import importlib
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from sklearn.linear_model import LogisticRegression

from claimlab.claims import judge
from claimlab.experiment import Experiment
from claimlab.parts import boolean
from claimlab.study import find
from claimlab.training import Run, Task

STUDY = find("attention-parity")
study = STUDY.module
method, data, search, drawing = (
    importlib.import_module(f"claimlab.studies.representation._attention_parity_{part}")
    for part in ("method", "data", "search", "figures")
)
EASY = dict(n=8, k=2, heads=2, final_sharpness=16.0)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def trained(arm, seeds=(1000, 1001), task=None, **values):
    run = Run((task or study.ARMS[arm])(STUDY.make(values)), list(seeds))
    *_, last = run
    return run, last.metrics


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def easy():
    """learned_attention on two of twelve bits, long enough to have found them."""
    return trained("learned_attention", n=12, k=2, heads=2, final_sharpness=36.0, steps=300)


# ---- Boolean Fourier analysis


def test_walsh_is_the_product_with_scipys_hadamard_matrix():
    f = torch.randn(64, generator=generator(0), dtype=torch.float64)
    assert np.abs(boolean.walsh(f).numpy() - hadamard(64) @ f.numpy() / 64).max() < 1e-12


def test_every_input_occurs_once_and_a_parity_has_one_coefficient():
    x = boolean.every_input(5)
    assert set(map(tuple, x.tolist())) == set(itertools.product((-1.0, 1.0), repeat=5))
    for secret in ([2], [0, 3], [1, 2, 4]):
        c = boolean.walsh(method.parity(x, torch.tensor(secret)))
        assert c[sum(2**i for i in secret)] == 1 and c.abs().sum() == 1


def test_the_coefficient_of_a_learned_function_is_its_correlation_with_y(easy):
    """By the transform, and by plain enumeration over all 2^12 inputs."""
    run, _ = easy
    x = boolean.every_input(12)
    for net in run.members:
        y = np.array([math.prod(row[i] for i in net.secret.tolist()) for row in x.tolist()])
        with torch.no_grad():
            f = net(x.float(), 36.0).double()
        at = sum(2**i for i in net.secret.tolist())
        assert float(boolean.walsh(f)[at]) == pytest.approx(float(np.mean(f.numpy() * y)), abs=1e-12)
        assert float(boolean.walsh(f.sign())[at]) == pytest.approx(1.0, abs=0.02)  # and it has learned the parity


def test_sensitivity_is_that_of_a_known_function():
    """Majority of three: bit i decides where the other two differ, in half of all inputs; bit 4 never does."""
    x = boolean.every_input(4)
    share = boolean.sensitivity(lambda rows: rows[:, :3].sum(1), x)
    assert share.tolist() == [0.5, 0.5, 0.5, 0.0]


# ---- the construction


@pytest.mark.parametrize("h", [1, 2, 3, 4, 7])
def test_zigzag_is_the_parity_of_the_heads_and_straight_in_between(h):
    net = method.zigzag(h)
    bits = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=h)))
    assert torch.allclose(net(bits.sum(1, keepdim=True)), bits.prod(1), atol=1e-5)
    sums = np.arange(-h, h + 1, 2)
    s = np.linspace(-h - 3, h + 3, 401)
    straight = np.interp(s, sums, (-1.0) ** ((h - sums) // 2))  # numpy's interpolation is flat outside, too
    assert np.abs(net(torch.tensor(s, dtype=torch.float32)[:, None]).detach().numpy() - straight).max() < 1e-5
    assert net.weight.numel() == 2 * h + 2


@pytest.mark.parametrize("k", [1, 3, 5])
def test_hand_set_heads_compute_parity_on_all_inputs(k):
    """Brute force in plain Python against the network, all 2^12 inputs, float64."""
    for seed in range(3):
        secret = data.hidden(seed, 12, k)
        rows = list(itertools.product((-1.0, 1.0), repeat=12))
        told = [math.prod(row[i] for i in secret.tolist()) for row in rows]
        with torch.no_grad():
            f = study.construct(secret, 12)(torch.tensor(rows, dtype=torch.float64), 144.0)
        assert np.abs(f.numpy() - np.array(told)).max() < 1e-6


def test_at_a_quarter_of_the_sharpness_the_leak_alone_breaks_the_tolerance():
    secret, x = data.hidden(0, 12, 3), boolean.every_input(12)
    with torch.no_grad():
        worst = (study.construct(secret, 12)(x, 36.0) - method.parity(x, secret)).abs().max()
    assert worst > 0.001


def test_the_leak_to_a_neighbour_is_that_of_the_circle():
    """Scores of neighbours differ by tau (1 - cos(2 pi / n)), about 2 pi^2 tau / n^2."""
    codes = method.positions(32)
    row = method.Attention(codes[[5]], codes).weights(256.0)[0].detach()
    assert float(row[6] / row[5]) == pytest.approx(math.exp(-256 * (1 - math.cos(2 * math.pi / 32))))
    assert float(row[4]) == pytest.approx(0.007, abs=5e-4) and float(row.sum()) == pytest.approx(1.0)


def test_sizes_are_counted():
    p = STUDY.make()
    for arm, expected in (("learned_attention", 31), ("free_scores", 3 * 32 + 25), ("ffnn_wide", 256 * 34 + 1), ("ffnn_matched", 35)):
        net = study.ARMS[arm](p).bind(0).init()
        assert sum(q.numel() for q in net.parameters() if q.requires_grad) == expected, arm
    fixed = study.FixedAttention(p).bind(0).init()
    assert 310 <= sum(q.numel() for q in fixed.parameters() if q.requires_grad) < 310 + 5
    assert study.learned_size(3) == 31 and study.FfnnMatched(STUDY.make(dict(n=8))).width == 3


def test_pruning_counts_what_is_left_and_keeps_constants():
    net = method.Hidden(4, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.01, 0.0], [0.0, -0.02, 0.5], [0.0, 0.0, 0.0], [-0.3, 0.0, 0.04]]))
        net.bias.copy_(torch.tensor([0.1, 0.7, -0.2]))
    small, left = method.pruned(net, 0.1)
    assert left == 3 + 2 * 2 + 1  # three weights in two neurons
    x = boolean.every_input(4).float()
    by_hand = sum(
        torch.relu(w + b) * o
        for w, b, o in ((x[:, 0] - 0.3 * x[:, 3], 0.1, net.out[0]), (0.0 * x[:, 0], 0.7, net.out[1]), (0.5 * x[:, 1], -0.2, net.out[2]))
    )
    assert torch.allclose(small(x), by_hand + net.offset, atol=1e-6)


# ---- training


def test_one_bit_is_solved_by_logistic_regression_and_by_every_arm():
    values = dict(n=8, k=1, heads=1, final_sharpness=16.0, steps=300)
    lesson = data.lesson(1000, 8, 1)
    x = np.random.default_rng(0).choice([-1.0, 1.0], size=(400, 8))
    theirs = LogisticRegression().fit(x, x[:, lesson.secret.numpy()].prod(1))
    assert theirs.score(*(part.numpy() for part in lesson.test)) == 1.0
    for arm in ("learned_attention", "free_scores", "ffnn_matched", "ffnn_wide", "ffnn_pruned", "fixed_many"):
        _, last = trained(arm, seeds=[1000], **values)
        assert last[0]["test_accuracy"] > 0.99, arm


def test_a_fixed_head_solves_one_bit_where_it_happens_to_see_it():
    values = dict(n=8, k=1, heads=1, final_sharpness=16.0, steps=150)
    nets = Run(study.FixedAttention(STUDY.make(values)), range(1000, 1040)).members
    seen = [1000 + i for i, net in enumerate(nets) if method.found(net, 16.0) == 1]
    blind = [1000 + i for i, net in enumerate(nets) if net.attention.weights(16.0)[0, net.secret] < 1e-3]
    _, last = trained("fixed_attention", seeds=[seen[0], blind[0]], **values)
    assert last[0]["test_accuracy"] > 0.99 and last[1]["test_accuracy"] < 0.6


def test_two_learned_heads_end_on_the_two_bits(easy):
    run, last = easy
    for net, told in zip(run.members, last, strict=True):
        assert sorted(net.attention.weights(36.0).argmax(1).tolist()) == net.secret.tolist()
        assert told["bits_found"] == 1 and told["test_accuracy"] > 0.95


def test_frozen_heads_are_exactly_those_of_fixed_attention():
    learned, fixed = (trained(arm, **EASY, steps=20, attention_lr=0.0)[0] for arm in ("learned_attention", "fixed_attention"))
    for one, other in zip(learned.members, fixed.members, strict=True):
        assert torch.equal(one.attention.weights(16.0), other.attention.weights(16.0))
    moved, _ = trained("learned_attention", **EASY, steps=20)
    assert not torch.equal(moved.members[0].attention.query, learned.members[0].attention.query)


def test_free_scores_begin_as_the_learned_heads():
    task = study.LearnedAttention(STUDY.make(EASY)).bind(7)
    x, *_ = task.batch(None, generator(0), 0)
    ones = [Run(study.ARMS[arm](STUDY.make(EASY)), [7]).members[0] for arm in ("learned_attention", "free_scores")]
    assert torch.allclose(ones[0](x, 3.0), ones[1](x, 3.0), atol=1e-6)


def test_a_frozen_read_out_stays_the_zigzag():
    run, _ = trained("learned_attention", **EASY, steps=20, train_ffn=False)
    fresh = method.zigzag(2)
    assert all(torch.equal(p, q) for p, q in zip(run.members[0].readout.parameters(), fresh.parameters(), strict=True))
    assert not torch.equal(run.members[0].attention.query, run.fresh(0).attention.query)


def test_arms_share_their_bits_and_noise_flips_labels_alone():
    plain, noisy = STUDY.make(EASY), STUDY.make(dict(EASY, flip_noise=0.25))
    blocks = [study.ARMS[arm](p).bind(5).block(None, generator(3), 0, 20)
              for arm, p in (("learned_attention", plain), ("ffnn_wide", plain), ("fixed_many", noisy))]  # fmt: skip
    assert all(torch.equal(blocks[0][0], block[0]) for block in blocks)
    assert torch.equal(blocks[0][1], blocks[1][1])
    secret = data.lesson(5, 8, 2).secret
    assert torch.equal(blocks[0][1], blocks[0][0][..., secret].prod(-1))
    wrong = (blocks[2][1] != blocks[0][1]).double().mean()
    assert abs(wrong - 0.25) < 5 * math.sqrt(0.25 * 0.75 / blocks[0][1].numel())


def test_sharpness_grows_geometrically_for_heads_that_learn():
    task = study.LearnedAttention(STUDY.make(dict(EASY, steps=40)))
    tau = task.bind(0).block(None, generator(0), 0, 40)[2].numpy()
    assert np.allclose(tau, np.geomspace(1, 16, 41)[:-1], rtol=1e-5)
    assert set(study.FixedAttention(task.p).bind(0).block(None, generator(0), 0, 3)[2].tolist()) == {16.0}


class Permuted:
    """The same training with the places of the bits, of the secret and of their codes (or weights) permuted."""

    order = torch.tensor([3, 0, 7, 5, 1, 2, 6, 4])

    def bind(self, seed):
        bound = super().bind(seed)
        x, y = bound.test
        bound.test, bound.lesson = (x[:, self.order], y), replace(bound.lesson, secret=self.order.argsort()[bound.lesson.secret])
        bound.plain = data.lesson(seed, 8, 2)
        return bound

    def draw(self, rng, n):
        x = torch.randint(2, (n, self.batch_size, 8), generator=rng).float().mul_(2).sub_(1)
        return x[..., self.order], method.parity(x, self.plain.secret)

    def init(self):
        net = super().init()
        with torch.no_grad():
            along = net.readout.weight if net.attention is None else net.attention.codes
            along.copy_(along[self.order])
        return net


@pytest.mark.parametrize("arm", ["learned_attention", "ffnn_wide"])
def test_permuting_positions_and_secret_together_changes_nothing(arm):
    moved = type("Moved", (Permuted, study.ARMS[arm]), {})
    values = dict(EASY, steps=40)
    one, other = (trained(arm, task=task, **values) for task in (None, moved))
    for a, b in zip(one[1], other[1], strict=True):
        assert a["test_accuracy"] == pytest.approx(b["test_accuracy"], abs=0.002)  # sums are rounded in another order
    x = one[0].tasks[0].test[0]
    with torch.no_grad():
        first, second = one[0].members[0](x, 16.0), other[0].members[0](x[:, Permuted.order], 16.0)
    assert torch.allclose(first, second, atol=1e-3)


# ---- the search


class Ladder(Task):
    """Learns nothing: a size is good enough for seed s from size 4 + s on."""

    steps, every = 2, 2

    def __init__(self, size, seed=0):
        super().__init__(None)
        self.size, self.seed = size, seed

    def bind(self, seed):
        return Ladder(self.size, seed)

    def init(self):
        return torch.nn.Linear(1, 1)

    def batch(self, net, rng, step):
        return (torch.rand(3, 1, generator=rng),)

    def loss(self, net, x):
        return net(x).square().mean()

    def metrics(self, net):
        return {"good": float(self.size >= 4 + self.seed)}


def ladder():
    sums_up = lambda smallest, seed: {"sum": sum(sizes[seed] or math.nan for sizes in smallest.values())}  # noqa: E731
    return search.Search(lambda case, size: Ladder(size * case), [1, 2], [2, 4, 8], [0, 3, 9], metric="good", good=1.0, sums_up=sums_up)


def test_search_finds_the_first_good_size_of_each_seed():
    one = ladder()
    *_, last = one.ticks()
    assert one.smallest == {1: {0: 4, 3: 8, 9: None}, 2: {0: 2, 3: 4, 9: 8}}
    assert [(case, size, sorted(told)) for case, size, told in one.trials] == [
        (1, 2, [0, 3, 9]), (1, 4, [0, 3, 9]), (1, 8, [3, 9]), (2, 2, [0, 3, 9]), (2, 4, [3, 9]), (2, 8, [9])]  # fmt: skip
    assert last.metrics[0]["sum"] == 6 and math.isnan(last.metrics[2]["sum"]) and one.step == one.total


def test_search_goes_on_after_an_interruption():
    whole, first, second = ladder(), ladder(), ladder()
    *_, last = whole.ticks()
    steps = first.stepwise()
    for _ in range(9):  # somewhere inside the third trial
        next(steps)
    second.load(first.state())
    *_, again = second.ticks()
    assert second.trials == whole.trials and second.trials[: len(first.trials)] == first.trials
    assert again.metrics[1] == last.metrics[1] and again.step == last.step


def test_slope_of_a_power_law_and_of_a_missing_size():
    assert search.slope([8, 16, 32, 64], [3 * n**1.5 for n in (8, 16, 32, 64)]) == pytest.approx(1.5)
    assert math.isnan(search.slope([8, 16], [10, None])) and math.isnan(search.slope([8], [10]))


def test_the_search_reports_parameters_of_the_width_it_found(smoke):
    for i, seed in enumerate(smoke.seeds):
        rows = smoke.table[(smoke.table.arm == "ffnn_smallest") & (smoke.table.seed == seed)].set_index("metric")["value"]
        widths = {n: sizes[seed] for n, sizes in smoke.arms["ffnn_smallest"].smallest.items()}
        assert list(widths) == [8, 16]
        expected = [w and w * n + w + w + 1 for n, w in widths.items()]
        assert [rows[f"parameters_at_{n}"] for n in widths] == pytest.approx([e or math.nan for e in expected], nan_ok=True), i
        if all(expected):
            assert rows["slope_params_vs_n"] == pytest.approx(math.log2(expected[1] / expected[0]))


def test_a_width_that_is_never_found_leaves_the_claim_undecided(smoke):
    table = smoke.table.copy()
    table.loc[(table.metric == "slope_params_vs_n") & (table.seed == 1001), "value"] = math.nan
    claim = next(c for c in STUDY.claims if c.id == "ffnn-grows-with-n")
    assert judge(claim, table).verdict == "undecided"


# ---- control, figures, views


def test_with_one_bit_the_transformer_is_no_better_than_the_small_network():
    """The control's knob at n = 8: no gap is left, so the claim on equal size cannot be supported."""
    values = EASY | STUDY.control.set | dict(heads=1, steps=300, seeds=5)
    lab = Experiment(STUDY, STUDY.make(values), seeds=range(1000, 1005), arms=["learned_attention", "ffnn_matched"]).run()
    verdicts = {v.claim: v for v in lab.verdicts()}
    assert STUDY.control.vanishes == ("cheaper-than-ffnn",) and verdicts["cheaper-than-ffnn"].verdict == "refuted"


def test_figures_show_what_the_table_and_the_members_hold(smoke):
    drawn = smoke.figures()
    assert set(drawn) == {"accuracy", "attention", "parameters", "sensitivity"}
    heat = [trace for trace in drawn["attention"].data if trace.type == "heatmap"]
    net = smoke.arms["learned_attention"].members[0]
    for head, row in zip(heat, net.attention.weights(16.0), strict=True):
        assert np.allclose(head.z[-1], row.detach().numpy(), atol=1e-6) and len(head.z) == len(head.y) > 20
    ends = smoke.table[(smoke.table.arm == "ffnn_matched") & (smoke.table.metric == "test_accuracy")].groupby("seed")["value"].last()
    assert f"ffnn_matched {ends.mean():.2f}" in drawn["accuracy"].layout.title.text.replace("<br>", " ")
    share = drawn["sensitivity"].data[0].z
    wide, x = smoke.arms["ffnn_wide"].members[0], smoke.arms["ffnn_wide"].tasks[0].test[0][:1024]
    other = x.clone()
    other[:, 3] *= -1
    with torch.no_grad():
        expected = ((wide(x, 1.0) > 0) != (wide(other, 1.0) > 0)).float().mean()
    assert share[drawing.TRAINED.index("ffnn_wide")][3] == pytest.approx(float(expected))
    needed = smoke.arms["ffnn_smallest"].smallest
    assert sorted(v for v in drawn["parameters"].data[0].y if v == v) == sorted(
        w * (n + 2) + 1 for n, sizes in needed.items() for w in sizes.values() if w
    )


def test_views_ring_the_bits_that_decide(smoke):
    for arm in ("learned_attention", "ffnn_wide", "hand_set"):
        net = smoke.arms[arm].members[0]
        for name, view in study.VIEWS.items():
            rings = [trace for trace in view(net, smoke.params).data if trace.name == "bit that decides"]
            if net.attention is not None or name == "sensitivity by position":
                assert list(rings[0].x) == net.secret.tolist()
    exact = study.VIEWS["sensitivity by position"](smoke.arms["hand_set"].members[0], smoke.params).data[0].y
    assert [j for j, share in enumerate(exact) if share == 1] == smoke.arms["hand_set"].members[0].secret.tolist() and sum(exact) == 2


# ---- a file of one's own


def rows_of(n=8, count=200, seed=0):
    x = np.random.default_rng(seed).integers(2, size=(count, n))
    return x, x[:, [1, 4]].sum(1) % 2


def write(path, x, y, names=None):
    names = names or [f"bit{j}" for j in range(x.shape[1])] + ["label"]
    path.write_text("\n".join([",".join(names), *(",".join(map(str, [*row, end])) for row, end in zip(x, y, strict=True))]) + "\n")
    return str(path)


def test_own_bits_are_read_and_learned(tmp_path, monkeypatch):
    x, y = rows_of(count=600)
    path = write(tmp_path / "own.csv", x, y)
    bits, labels = data.load_bits(path, 8)
    assert np.array_equal(bits, (-1.0) ** x) and np.array_equal(labels, (-1.0) ** y)
    monkeypatch.setenv("CLAIMLAB_DATA", path)
    run, last = trained("learned_attention", seeds=[1000], **EASY, steps=150)
    assert last[0]["test_accuracy"] > 0.95 and "bits_found" not in last[0]
    assert sorted(run.members[0].attention.weights(16.0).argmax(1).tolist()) == [1, 4]
    parts = run.tasks[0].lesson.rows, run.tasks[0].test
    train, test = ({tuple(row) for row in part[0].tolist()} for part in parts)
    assert not train & test and len(train | test) == len(np.unique(x, axis=0)) and sum(len(part[0]) for part in parts) == 600
    assert len(test) == len(train | test) // 4


WRONG = {
    "columns are named label": lambda x, y: (x, y, [f"bit{j}" for j in range(9)]),
    "set n = 7": lambda x, y: (x[:, :7], y, None),
    "the entry '2'": lambda x, y: (np.where(np.arange(8) == 3, 2, x), y, None),
    "the entry ''": lambda x, y: (np.where(np.arange(8) == 3, "", x.astype(str)), y, None),
    "the entry 'nan'": lambda x, y: (x, np.where(np.arange(len(y)) == 5, "nan", y.astype(str)), None),
    "the entry '0.5'": lambda x, y: (x, np.where(np.arange(len(y)) == 5, "0.5", y.astype(str)), None),
    "0 rows": lambda x, y: (x[:0], y[:0], None),
    "at least 100": lambda x, y: (x[:99], y[:99], None),
    "15 different inputs": lambda x, y: (np.arange(200)[:, None] % 15 >> np.arange(8) & 1, y, None),
    "1 in every row": lambda x, y: (x, np.ones_like(y), None),
    "5% of the labels are 1": lambda x, y: (x, (np.arange(len(y)) % 20 == 0).astype(int), None),
}


@pytest.mark.parametrize("reason", WRONG)
def test_own_bits_that_do_not_fit_are_refused_with_the_reason(tmp_path, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        data.load_bits(write(tmp_path / "own.csv", *WRONG[reason](*rows_of())), 8)
    assert "own.csv" in str(refusal.value)


def test_ragged_rows_and_a_missing_file_are_refused(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("a,b,c,d,e,f,g,h,label\n0,1,0,1\n")
    with pytest.raises(ValueError, match="line 2: 4 entries"):
        data.load_bits(str(path), 8)
    with pytest.raises(ValueError, match="not a file"):
        data.load_bits(str(tmp_path / "none.csv"), 8)
