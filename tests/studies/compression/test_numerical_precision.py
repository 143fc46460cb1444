"""numerical-precision: torch's own small formats, the paper's formula, properties, autograd, a bound that holds; exact limits."""

import copy
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.compression import _numerical_precision_data as data
from claimlab.studies.compression import _numerical_precision_figures as drawing
from claimlab.studies.compression import _numerical_precision_format as formats
from claimlab.studies.compression import _numerical_precision_net as nets
from claimlab.training import Run

STUDY = study.find("numerical-precision")
M = STUDY.module
SMALL = dict(width=24, steps=20, seeds=2)


def spread(n=20_000, seed=0):
    """Numbers of both signs over many powers of two."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=rng) * torch.exp(6 * torch.randn(n, generator=rng))


def run_of(arm, steps=None, seeds=(1000, 1001), stacked=None, **values):
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **values})), list(seeds), stacked=stacked)
    while run.step < (steps or run.total):
        run.advance()
    return run


def copies(net, k):
    return [w[k] for part in (net.weights, net.biases) for w in part]


def equal(ones, others):
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- the format


def test_small_formats_are_torchs_own():
    x = spread()
    assert torch.equal(formats.to_format(x, 7, 8, "nearest"), x.to(torch.bfloat16).float())
    normal = x.abs() >= 2.0**-14
    half = x.to(torch.float16).float()
    assert (half.isinf() & normal).any()
    assert torch.equal(formats.to_format(x, 10, 5, "nearest", infinity=True)[normal], half[normal])
    assert torch.equal(formats.to_format(x, 10, 5, "nearest")[normal], half[normal].clamp(-65504, 65504))
    ties = torch.tensor([1 + 1 / 256, 1 + 3 / 256, -(2 - 1 / 256)])
    assert torch.equal(formats.round_mantissa(ties, 7, "nearest"), ties.to(torch.bfloat16).float())


@pytest.mark.parametrize(("kind", "mantissa", "exponent"), [(torch.float16, 10, 5), (torch.bfloat16, 7, 8), (torch.float32, 23, 8)])
def test_limits_are_torchs(kind, mantissa, exponent):
    low, high = formats.limits(mantissa, exponent)
    assert (low, high) == (torch.finfo(kind).tiny, torch.finfo(kind).max)


def test_masking_is_the_papers_formula():
    x = spread()
    for m in range(1, 24):
        assert torch.equal(formats.round_mantissa(x, m), formats.truncate_by_frexp(x, m))
    exact = x.double()
    unit = 2.0 ** (exact.abs().log2().floor() - 4)  # in double precision, by the definition of the format
    assert torch.equal(formats.round_mantissa(x, 4).double(), torch.trunc(exact / unit) * unit)
    assert torch.equal(formats.unit_of(x, 4).double(), unit)


@pytest.mark.parametrize("rounding", formats.ROUNDINGS)
def test_all_bits_leave_every_normal_number_alone(rounding):
    x = torch.cat([spread(), torch.tensor([2.0**-126, -(2.0**-126), torch.finfo(torch.float32).max, 0.0])])
    noise = formats.uniform_bits(x.shape, torch.Generator().manual_seed(1))
    assert torch.equal(formats.to_format(x, 23, 8, rounding, noise=noise), x)


def test_zero_subnormals_infinity_and_nan():
    x = torch.tensor([0.0, -0.0, 2.0**-127, -(2.0**-149), torch.inf, -torch.inf, torch.nan, 2.0**-126])
    for m in (1, 5, 23):
        found = formats.to_format(x, m)
        assert torch.equal(found[:4], torch.zeros(4)) and found[6].isnan() and found[7] == 2.0**-126
        largest = float(torch.finfo(torch.float32).max) if m == 23 else (2 - 2.0**-m) * 2.0**127
        assert found[4] == largest and found[5] == -largest
        assert torch.equal(formats.to_format(x, m, infinity=True)[4:6], x[4:6])
    odd = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaN of other patterns
    most = torch.full((3,), 2**23 - 1, dtype=torch.int32)
    assert all(formats.to_format(odd, 1, 5, r, noise=most).isnan().all() for r in formats.ROUNDINGS)
    with pytest.raises(ValueError, match="rounding = 'up' is not allowed: one of truncate"):
        formats.round_mantissa(x, 5, "up")


floats = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 2.0**-100)


@settings(max_examples=150, deadline=None)
@given(st.lists(floats, min_size=2, max_size=30), st.integers(1, 23))
def test_properties_of_truncation(values, m):
    x = torch.tensor(values).sort().values
    cut = formats.to_format(x, m)
    assert torch.equal(formats.to_format(cut, m), cut)
    assert torch.equal(formats.to_format(-x, m), -cut)
    assert (cut.diff() >= 0).all()
    assert (cut.abs() <= x.abs()).all()
    assert ((cut.double() - x.double()).abs() <= 2.0**-m * x.double().abs()).all()
    assert (((cut - x).abs() < 2.0**-m * x.abs()) | (x == 0)).all()


def test_stochastic_rounding_is_unbiased_and_lands_on_neighbours():
    x = torch.tensor([1.3, -0.77, 3.0e-5, 123.456, 1.0, 1.9999])
    noise = formats.uniform_bits((10_000, len(x)), torch.Generator().manual_seed(2))
    draws = formats.to_format(x.expand(10_000, -1), 3, rounding="stochastic", noise=noise).double()
    error = draws.std(0) / 100
    assert ((draws.mean(0) - x.double()).abs() <= 4 * error).all()
    below, up = formats.round_mantissa(x, 3).double(), formats.unit_of(x, 3).double() * x.sign()
    assert ((draws == below) | (draws == below + up)).all()
    assert (error > 0).tolist() == [True, True, True, True, False, True]  # 1.0 is a number of the format


def test_formats_of_several_widths_at_once_and_under_vmap():
    x = spread(60).view(3, 20)
    m = torch.tensor([2, 7, 23], dtype=torch.int32)[:, None]
    together = formats.to_format(x, m, 6)
    assert equal(together, [formats.to_format(x[i], int(m[i]), 6) for i in range(3)])
    assert torch.equal(torch.func.vmap(lambda row: formats.round_mantissa(row, 5))(x), formats.round_mantissa(x, 5))


# ---- the theory


def network(activation="relu", hidden=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nets.Copies([6, *[9] * hidden, 4], (5, 23), activation).double()
    with torch.no_grad():
        for b in net.biases:
            b.copy_(torch.randn(b.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return net


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_gradient_by_hand_is_autograds(activation):
    net, rng = network(activation), torch.Generator().manual_seed(3)
    x, y = torch.randn(11, 6, generator=rng, dtype=torch.float64), torch.randint(4, (11,), generator=rng)
    wanted = torch.autograd.grad(cross_entropy(net(x)[1], y), [*net.weights, *net.biases])
    weights, biases = net.one(1)
    found = nets.backward(nets.states(weights, biases, x, activation), weights, x, y, activation)
    for i, layer in enumerate(found):
        assert torch.allclose(layer[0, :-1], wanted[i][1]) and torch.allclose(layer[0, -1:], wanted[len(found) + i][1])


def test_the_bound_of_the_theory_is_never_exceeded_and_tight_where_it_can_be():
    for seed in range(20):
        weights, biases = network(hidden=1 + seed % 4, seed=seed).float().one(1)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).double()
        for m in (2, 6, 12):
            cut = [[formats.to_format(w, m).double() for w in part] for part in (weights, biases)]
            exact = [[w.double() for w in part] for part in (weights, biases)]
            inner = nets.states(*exact, x)
            off = (nets.states(*cut, x)[-1] - inner[-1]).norm()
            assert 0 < off <= nets.forward_bound(*exact, inner, x, torch.tensor([2.0**-m]).double())[0]
    one, none = torch.full((1, 1, 1), 3.0), torch.zeros(1, 1, 1)  # a chain of numbers: (1 + u)^2 - 1 is what the bound gives
    x, u = torch.ones(1, 1), torch.tensor([0.25])
    found = nets.forward_bound([one, one], [none, none], nets.states([one, one], [none, none], x), x, u)
    assert torch.allclose(found, torch.tensor([9 * (1.25**2 - 1)]))


def test_rates_and_cliff_from_made_up_numbers():
    bits = torch.tensor(M.PROBED).double()
    assert M.rate(3 * 2.0 ** (-1.5 * bits)) == pytest.approx(-1.5)
    grid = dict.fromkeys(M.GRID[:-1], 0.0)
    assert M.cliff_width({**grid, 2: 0.8, 3: 0.3, 4: 0.1}) == 2
    assert M.cliff_width({**grid, 2: 0.8, 7: 0.06}) == 6  # a relapse at 7 bits moves the safe side to 8
    assert np.isnan(M.cliff_width(grid)) and np.isnan(M.cliff_width(dict.fromkeys(grid, 0.5)))


# ---- training


def test_23_bits_reproduce_float32_training_bit_for_bit():
    plain = run_of("float32", 8)
    for rounding in formats.ROUNDINGS:
        chosen = run_of("chosen", 8, mantissa=23, rounding=rounding)
        for a, b in zip(plain.members, chosen.members, strict=True):
            assert equal(copies(a, 0), copies(b, 0)) and equal(copies(a, 0), copies(b, 1))
    assert equal(copies(plain.members[0], 0), copies(run_of("truncate", 8).members[0], -1))


def test_plain_sgd_is_torchs():
    run = run_of("float32", 0)
    net = copy.deepcopy(run.members[0])
    optimizer = torch.optim.SGD([*net.weights, *net.biases], lr=0.1)
    rng = copy.deepcopy(run.rngs[0])
    for step in range(5):
        run.advance()
        x, y = run.tasks[0].batch(net, rng, step)
        optimizer.zero_grad()
        cross_entropy(net(x)[0], y).backward()
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(copies(run.members[0], 0), copies(net, 0), strict=True))


@pytest.mark.parametrize("arm", ["truncate", "nearest", "stochastic"])
def test_weights_hold_numbers_of_their_format_after_every_step(arm):
    run = run_of(arm, 3)
    for k, m in enumerate(M.GRID[:-1]):
        assert all(torch.equal(formats.truncate_by_frexp(w, m), w) for w in copies(run.members[1], k))
    assert any(not torch.equal(formats.truncate_by_frexp(w, 10), w) for w in copies(run.members[1], -1))


def test_update_only_keeps_float_weights_and_cuts_the_step():
    run = run_of("update_only", 4)
    before = [w.detach().clone() for w in run.members[0].weights]
    run.advance()
    for layer, (w, old) in enumerate(zip(run.members[0].weights, before, strict=True)):
        slope = run.ensembles[0].gradient(f"weights.{layer}", 0)
        assert torch.equal(w[0], old[0] - formats.truncate_by_frexp(0.1 * slope[0], 2))
        assert not torch.equal(formats.truncate_by_frexp(w[0], 10), w[0])


def test_every_and_live_knobs():
    run = run_of("truncate", 3, every=4)
    net = run.members[0]
    assert not torch.equal(formats.truncate_by_frexp(net.weights[0][0], 2), net.weights[0][0])
    run.advance()
    assert torch.equal(formats.truncate_by_frexp(net.weights[0][0], 2), net.weights[0][0])
    chosen = run_of("chosen", 3)
    chosen.set(mantissa=2, exponent=4, lr=0.2)
    chosen.advance()
    w = chosen.members[0].weights[0][0]
    assert torch.equal(formats.truncate_by_frexp(w, 2), w) and w[w != 0].abs().min() >= 2.0**-6
    assert chosen.members[0].lr == pytest.approx(0.2)


def test_stochastic_training_is_exact_in_company_alone_and_after_a_resume():
    together, loop, alone = run_of("stochastic", 6), run_of("stochastic", 6, stacked=False), run_of("stochastic", 6, seeds=(1001,))
    for a, b in ((together.members[1], loop.members[1]), (together.members[1], alone.members[0])):
        # rounding differences of float32 can turn a draw, hence not all weights
        off = torch.cat([(p != q).flatten() for p, q in zip(copies(a, 3), copies(b, 3), strict=True)])
        assert off.float().mean() < 0.02
    first, second = run_of("stochastic", 3), run_of("stochastic", 1)
    second.load(copy.deepcopy(first.state()))
    for _ in range(3):
        second.advance()
    assert equal(together.members[0].parameters(), second.members[0].parameters())


def test_unmoved_counts_what_the_next_step_leaves():
    task = run_of("nearest", 0).tasks[0]
    net = run_of("nearest", 5).members[0]
    x, y = task.x[:32], task.y[:32]
    slopes = torch.autograd.grad(sum(cross_entropy(logits, y) for logits in net(x)), list(net.weights))
    same = felt = 0
    for w, g in zip(net.weights, slopes, strict=True):
        stays = formats.to_format(w[5].detach() - 0.1 * g[5], 7, rounding="nearest") == w[5]
        same, felt = same + int((stays & (g[5] != 0)).sum()), felt + int((g[5] != 0).sum())
    assert float(M.unmoved(net, task)[5]) == pytest.approx(same / felt, abs=0.002) and same


def test_factors_change_one_thing_each():
    p = STUDY.make(dict(SMALL, factors="all"))
    found = {name: run_of(name, 1, factors="all") for name in ("narrow", "batch_8", "tanh", "exponent_3", "truncate_deep")}
    assert found["narrow"].members[0].weights[0].shape == (5, 64, 32) and found["batch_8"].samples == 8
    assert len(found["truncate_deep"].members[0].weights) == 9 and found["tanh"].members[0].activation == "tanh"
    w = found["exponent_3"].members[0].weights[0]
    low, high = formats.limits(23, 3)
    assert w[0][w[0] != 0].abs().min() >= low and w[0].abs().max() <= high
    assert (w[0] == 0).float().mean() > 0.8 and (w[-1] == 0).float().mean() < 0.1
    assert M.ARMS["narrow"].when(p) and not M.ARMS["narrow"].when(STUDY.make(SMALL))


# ---- the experiment


def test_smoke_measures_and_draws(smoke):
    for claim in STUDY.claims:
        for arm in filter(None, (claim.arm, claim.baseline)):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert set(rows.seed) == {1000, 1001}
    last = smoke.table[smoke.table.seed == 1001].sort_values("step", kind="stable").groupby(["arm", "metric"])["value"].last()
    assert last["truncate", "accuracy_drop_8bit"] == pytest.approx(
        last["float32", "accuracy_float32"] - last["truncate", "accuracy_8bit"])  # fmt: skip
    assert last["chosen", "accuracy_chosen"] == last["truncate", "accuracy_8bit"]
    for m in M.PROBED:
        assert last["probe", f"forward_{m}bit"] < last["probe", f"bound_{m}bit"]
    drawn = smoke.figures()
    assert set(drawn) == {"the cliff", "depth", "error against bits", "vanishing and shrinking", "error by layer"}
    for figure in drawn.values():
        assert all(np.isfinite(np.asarray(trace.y, float)).any() for trace in figure.data) and figure.layout.title.text


def test_views_show_the_numbers_of_the_format(smoke):
    net = smoke.arms["truncate"].members[0]
    grid = drawing.representable(2, float(net.weights[-1][0].detach().abs().max()))
    w = net.weights[-1][0].detach().abs().flatten()
    assert np.isin(w[w >= grid[0]].numpy(), grid).all() and (w >= grid[0]).sum() > 50
    bars = M.VIEWS["training loss by width"](net, smoke.params).data[0]
    x, y = data.split(0, "digits")[:2]
    assert bars.y[2] == pytest.approx(float(cross_entropy(net(x[:256])[2], y[:256]).detach()), rel=1e-5)
    assert list(bars.x)[-1] == "reference"


def test_the_figure_of_all_factors():
    arms = ["truncate", *drawing.FACTORS]
    lab = Experiment(STUDY, STUDY.make(dict(SMALL, factors="all", width=16)), seeds=[1000, 1001], arms=arms).run()
    figure = drawing.factors(lab)
    last = lab.table[(lab.table.arm == "tanh") & (lab.table.metric == "accuracy_drop_6bit") & (lab.table.step == 20)].value
    row = next(i for i, name in enumerate(figure.data[0].y) if name.startswith("tanh"))
    assert figure.data[0].z[row][1] == pytest.approx(last.mean()) and len(figure.data[0].y) == 1 + len(drawing.FACTORS)


# ---- data


def test_split_keeps_class_shares_and_has_no_image_twice():
    x, y, test_x, test_y = data.split(1000, "digits")
    assert (len(x), len(test_x)) == (1200, 597) and len(np.unique(np.concatenate([x, test_x]), axis=0)) == 1797
    assert np.abs(np.bincount(y) / 1200 - np.bincount(test_y) / 597).max() < 0.01
    assert not torch.equal(data.split(1001, "digits")[0], x)


def idx(folder, x, y, magic=2051):
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", magic, *x.shape) + x.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, len(y)) + y.tobytes())


def test_own_files_are_used_or_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(600, 28, 28), dtype=np.uint8), np.arange(600, dtype=np.uint8) % 10
    idx(tmp_path, x, y)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    run = run_of("chosen", 1)
    assert run.members[0].weights[0].shape == (2, 784, 24) and len(run.tasks[0].test_y) == 200
    np.savez(tmp_path / "mine.npz", x=x[..., None], y=y % 4)
    assert data.pictures("digits", str(tmp_path / "mine.npz"))[0].shape == (600, 784)
    np.savez(tmp_path / "bad.npz", x=x[..., None].astype(np.float32), y=y)
    np.savez(tmp_path / "half.npz", x=x[..., None])
    for name, words in (("bad.npz", "bad.npz: x is float32"), ("half.npz", "no array y"), ("none.npz", "is not a file")):
        with pytest.raises(ValueError, match=words):
            data.pictures("digits", str(tmp_path / name))
    for change, words in ((dict(magic=2049), "magic number is 2049"), (dict(y=y[:-1]), "600 images.*599 labels"),
                          (dict(y=y + 1), "label 10 is not allowed")):  # fmt: skip
        idx(tmp_path, **{"x": x, "y": y, **change})
        data.pictures.cache_clear()
        data.idx_folder.cache_clear()
        with pytest.raises(ValueError, match=words):
            data.pictures("digits", str(tmp_path))
