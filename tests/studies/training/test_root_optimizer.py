"""ROOT: Newton-Schulz against SVD and scipy, torch's Muon and AdamW, the proximal problem, Student's t, limits, company."""

import math
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from scipy import linalg, optimize, stats
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from claimlab import study
from claimlab.data.text import topics
from claimlab.experiment import Experiment
from claimlab.studies.training import _root_optimizer_data as data
from claimlab.studies.training import _root_optimizer_method as method
from claimlab.training import Run

STUDY = study.find("root-optimizer")
M = STUDY.module
DEV = [1000, 1001]
MUON5, CUBIC30 = (method.MUON,) * 5, (method.CUBIC,) * 30
SMALL = dict(STUDY.Params.SMOKE, width=16, fit_steps=5, steps=4)


def rng(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed))


def trained(arm, seeds=DEV, values=(), **options) -> Run:
    run = Run(M.ARMS[arm](STUDY.make({**SMALL, **dict(values)})), seeds, **options)
    for _ in range(run.total):
        run.advance()
    return run


def apart(one, other) -> float:
    """Largest difference between two networks."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=DEV).run()


# ---- orthogonalization


def test_the_classic_cubic_climbs_to_scipy_s_polar_factor():
    b = drawn(12, 20)
    exact = torch.tensor(linalg.polar(b.double().numpy())[0]).float()
    assert torch.allclose(method.polar(b), exact, atol=1e-5)
    errors = [float(method.polar_error(method.newton_schulz(b, (method.CUBIC,) * k), exact)) for k in range(1, 31)]
    assert all(later < sooner or later < 1e-5 for sooner, later in zip(errors, errors[1:], strict=False)) and errors[-1] < 1e-5
    s = torch.linspace(0.01, math.sqrt(3) - 0.01, 200, dtype=torch.float64)
    paths = torch.stack([method.polynomial(s, (method.CUBIC,) * k) for k in range(1, 25)])
    assert (paths.diff(dim=0) >= -1e-12).all() and torch.allclose(paths[-1], torch.ones_like(s), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_newton_schulz_acts_on_singular_values_alone(shape):
    b = drawn(*shape, seed=1).double()
    u, s, vt = np.linalg.svd(b.numpy(), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = np.polynomial.Polynomial([0, method.MUON[0], 0, method.MUON[1], 0, method.MUON[2]])(s)
    found = method.newton_schulz(b.float(), MUON5).double().numpy()
    assert np.allclose(found, u * s @ vt, atol=1e-4)
    assert s.min() > 0.5 and s.max() < 1.3  # near 1, not at 1


def test_error_is_the_spread_of_the_singular_values():
    b = drawn(3, 10, 30, seed=2)
    s = torch.from_numpy(np.linalg.svd(b.numpy(), compute_uv=False))
    s = method.polynomial(s / s.norm(dim=-1, keepdim=True), MUON5)
    error = method.polar_error(method.newton_schulz(b, MUON5), method.polar(b))
    assert torch.allclose(error, (s - 1).square().mean(-1).sqrt(), atol=1e-5)


def test_an_orthogonal_matrix_stays_put_up_to_its_length():
    q = torch.from_numpy(stats.ortho_group.rvs(9, random_state=0)).float()
    for length in (0.01, 1.0, 40.0):
        assert torch.allclose(method.newton_schulz(length * q, CUBIC30), q, atol=1e-5)
        found = method.newton_schulz(length * q, MUON5)
        factor = method.polynomial(torch.tensor(1 / 3), MUON5)
        assert torch.allclose(found, factor * q, atol=1e-5)


def test_batches_mix_no_matrices_and_keep_tall_ones_tall():
    matrices = [drawn(6, 6, seed=3), drawn(2, 12, 6, seed=4), drawn(2, 6, 12, seed=5), drawn(6, 6, seed=6)]
    together = method.batched(lambda b: method.newton_schulz(b, MUON5), matrices)
    for x, b in zip(together, matrices, strict=True):
        for one, alone in zip(x.reshape(-1, *x.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True):
            assert torch.allclose(one, method.newton_schulz(alone, MUON5), atol=1e-5)


def test_fitted_numbers_serve_matrices_that_they_were_not_fitted_to():
    samples = method.scaled_values(drawn(32, 16, 16, seed=7))
    fresh = method.scaled_values(drawn(64, 16, 16, seed=8)).double()

    def error(numbers):
        return float((method.polynomial(fresh, numbers) - 1).square().mean())

    shared, separate = (method.fit([samples], 5, 100, separate=own) for own in (False, True))
    assert error(shared) < 0.8 * error(MUON5) and error(separate) < error(shared)
    assert len(set(shared)) == 1 and len(set(separate)) == 5
    ends = method.polynomial(torch.tensor([0.9, 1.0, 1.05]), shared)
    assert (ends > 0.3).all() and (ends < 1.7).all()  # does not run away where the samples are few


# ---- shaving and outliers


def test_soft_threshold_solves_the_proximal_problem():
    m = drawn(2, 7, 9, seed=9)
    base, off = method.soft_threshold(m, 0.8)
    assert torch.allclose(base + off, m, atol=1e-6)
    for one, b, o in zip(m, base, off, strict=True):
        eps = float(np.quantile(one.abs().numpy(), 0.8, method="inverted_cdf"))
        assert torch.equal(b, one.clamp(-eps, eps)) and int((o != 0).sum()) == 63 - math.ceil(0.8 * 63)
        for value, cut in zip(one.flatten().tolist()[::5], o.flatten().tolist()[::5], strict=True):
            cost = optimize.minimize_scalar(lambda x, v=value, e=eps: 0.5 * (v - x) ** 2 + e * abs(x), bounds=(-4, 4),
                                            method="bounded", options={"xatol": 1e-8})  # fmt: skip
            assert cut == pytest.approx(cost.x, abs=1e-3)
    assert torch.equal(method.soft_threshold(m, 1.0)[0], m)


def test_hits_are_student_t_and_spread_evenly():
    places, t = method.hits(1000, 20_000, (17.0, 4.0))
    assert stats.kstest(t.double().numpy(), stats.t(2).cdf).pvalue > 1e-3
    assert stats.kstest(places.double().numpy() / 1000, stats.uniform.cdf).pvalue > 1e-3
    again, other = method.hits(1000, 50, (17.0, 4.0)), method.hits(1000, 50, (4.0, 17.0))
    assert not torch.equal(again[0], other[0]) and torch.equal(again[0], method.hits(1000, 50, (17.0, 4.0))[0])


def test_outliers_have_the_size_of_their_own_tensor_and_member():
    small, large = 1e-3 * drawn(2, 30, 40, seed=10), 100 * drawn(2, 800, seed=11)
    codes = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    hit = method.with_outliers([small, large], codes, 0.01, 50.0)
    for member in range(2):
        places, t = method.hits(2000, 20, codes[member].tolist())
        flat = np.concatenate([small[member].numpy().ravel(), large[member].numpy()]).astype(float)
        sd = np.where(np.arange(2000) < 1200, small[member].numpy().std(), large[member].numpy().std())
        np.add.at(flat, places.numpy(), 50 * sd[places.numpy()] * t.double().numpy())
        found = np.concatenate([hit[0][member].numpy().ravel(), hit[1][member].numpy()])
        assert np.allclose(found, flat, rtol=1e-4)
    alone = method.with_outliers([small[1:], large[1:]], codes[1:], 0.01, 50.0)
    assert torch.equal(alone[0][0], hit[0][1]) and torch.equal(alone[1][0], hit[1][1])


def test_clipping_is_torch_s_for_each_member():
    parts = [drawn(3, 4, 5, seed=12) * torch.tensor([0.01, 1.0, 30.0])[:, None, None], drawn(3, 7, seed=13)]
    found = method.norm_clipped(parts, 1.0)
    for member in range(3):
        weights = [nn.Parameter(torch.zeros_like(p[member])) for p in parts]
        for w, p in zip(weights, parts, strict=True):
            w.grad = p[member].clone()
        nn.utils.clip_grad_norm_(weights, 1.0)
        assert all(torch.allclose(f[member], w.grad, rtol=1e-4) for f, w in zip(found, weights, strict=True))


# ---- the optimiser


def test_hidden_matrices_move_as_torch_s_muon_moves_them():
    ours = [nn.Parameter(drawn(12, 12, seed=14)), nn.Parameter(drawn(32, 8, seed=15))]
    theirs = [nn.Parameter(w.detach().clone()) for w in ours]
    draw = nn.Parameter(torch.zeros(2))
    arm = SimpleNamespace(share=0.1, received=lambda name, g, codes: g, direction=lambda b: method.newton_schulz(b, MUON5))
    keys = {"weight_decay": 0.01, "lr": 0.02}
    groups = [{"params": ours, "key": "a.hidden", "momentum": 0.95, **keys}, {"params": [draw], "key": "a.draw", **keys}]
    mine = method.Orthogonalised(groups, arm)
    torch_s = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01, momentum=0.95, nesterov=True, ns_coefficients=method.MUON,
                               adjust_lr_fn="match_rms_adamw")  # fmt: skip
    start = [w.detach().clone() for w in ours]
    for step in range(4):
        draw.grad = torch.zeros(2)
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad, b.grad = (drawn(*a.shape, seed=100 + 10 * step + k) for _ in range(2))
        mine.step()
        torch_s.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert float((a - b).detach().norm() / (b - first).detach().norm()) < 0.02  # torch iterates in bfloat16


def test_the_adamw_arm_is_torch_s_adamw():
    run = trained("adamw", [1000])
    task, net = run.tasks[0], run.fresh(0)["clean"]
    adam = torch.optim.AdamW([w for n, w in net.named_parameters() if n != "draw"], lr=task.lr, weight_decay=0.01)
    x, y, _, _ = task.block(None, Run(task, [1000]).rngs[0], 0, task.ahead)
    for step in range(run.total):
        adam.param_groups[0]["lr"] = task.lr * task.schedule(step, run.total)
        adam.zero_grad()
        cross_entropy(net(x[step]).flatten(0, 1), y[step].flatten()).backward()
        adam.step()
    assert apart(net, run.members[0]["clean"]) < 1e-4 < apart(net, run.fresh(0)["clean"])


def test_without_shaving_and_with_muon_s_numbers_root_is_muon():
    limit = dict(quantile=1.0, coefficients="muon")
    root, muon = trained("root", values=limit), trained("muon", values=limit)
    assert all(apart(a, b) == 0 for a, b in zip(root.members, muon.members, strict=True))
    assert apart(trained("root").members[0], muon.members[0]) > 1e-4


@pytest.mark.parametrize("arm", ["root", "muon_clip"])
def test_a_member_does_not_notice_its_company(arm):
    company, loop, alone = trained(arm), trained(arm, stacked=False), trained(arm, DEV[1:])
    assert company.stacked and apart(company.members[1], company.members[0]) > 0.1
    assert apart(company.members[1], alone.members[0]) < 1e-4
    assert all(apart(a, b) < 1e-4 for a, b in zip(company.members, loop.members, strict=True))


def test_without_outliers_both_settings_are_one():
    for arm in ("root", "adamw"):
        net = trained(arm, values=dict(STUDY.control.set)).members[0]
        assert apart(net["clean"], net["outliers"]) == 0
        hit = trained(arm).members[0]
        assert apart(hit["clean"], net["clean"]) == 0 and apart(hit["clean"], hit["outliers"]) > 1e-4


def test_all_arms_are_hit_alike():
    seen = {}
    for arm in ("muon", "adamw"):
        task = M.ARMS[arm](STUDY.make(SMALL))
        code = task.block(None, rng(5), 0, 3)[2][1:2]
        seen[arm] = task.received("outliers", [torch.ones(1, 40, 50).cumsum(2)], code)[0]
        assert int((seen[arm] != torch.ones(1, 40, 50).cumsum(2)).sum()) == 2
    assert torch.equal(seen["muon"], seen["adamw"])


def test_knobs_act_from_the_next_step_on():
    run = Run(M.Root(STUDY.make(SMALL)), DEV)
    run.advance()
    before = [w.detach().clone() for w in run.members[0].parameters()]
    run.set(lr=0.0)
    run.advance()
    assert all(torch.equal(a, b) for a, b in zip(before, run.members[0].parameters(), strict=True))
    run.set(lr=0.05, momentum=0.0, quantile=0.6, iterations=2)
    run.advance()
    ((optimizer, _),) = run.ensembles[0].optimizers["clean"]
    w = run.ensembles[0].tensors("clean.hidden.0.q")[0]
    assert torch.equal(optimizer.last[list(run.members[0]["clean"].hidden[0]).index("q")], optimizer.state[w]["momentum"])


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    whole, first = trained("root"), Run(M.Root(STUDY.make(SMALL)), DEV)
    first.advance()
    first.save(tmp_path / "state.pt")
    second = Run.resume(tmp_path / "state.pt", M.Root(STUDY.make(SMALL)))
    while second.step < second.total:
        second.advance()
    assert all(apart(a, b) == 0 for a, b in zip(whole.members, second.members, strict=True))


# ---- text and model


def test_no_place_sees_what_comes_after_and_attention_is_torch_s():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = data.CharTransformer(40, 16, 2)
    x = torch.randint(40, (3, 32), generator=rng())
    other = x.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 40
    with torch.no_grad():
        assert torch.allclose(net(x)[:, :20], net(other)[:, :20], atol=1e-6)
        assert not torch.allclose(net(x)[:, 20:], net(other)[:, 20:], atol=1e-3)
        h, weights = drawn(3, 32, 16, seed=16), net.hidden[0]
        q, k, v = ((h @ weights[n].T).view(3, 32, 4, 4).transpose(1, 2) for n in "qkv")
        expected = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(3, 32, 16) @ weights["o"].T
        assert torch.allclose(net.attention(h, 0), expected, atol=1e-5)


def test_the_help_text_repeats_nothing_across_the_border():
    text = topics()
    cut = data.border(text)
    assert data.repeated(text) == 0 and len(text) > 200_000
    assert all(text[i : i + data.PASSAGE] not in text[:cut] for i in range(cut, len(text) - data.PASSAGE, 997))
    assert data.repeated("abc" * 1000 + text[cut:]) == 0 < data.repeated(text[:3000] + text[100:400])


def own(path, text) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lambda t: t[:1000], "1,000 bytes; .* more than 200,000"),
        (lambda t: t.encode() + b"\xff\xfe", "not UTF-8: byte"),
        (lambda t: t.encode("utf-16"), "not UTF-8"),
        (lambda t: "only a few " * 30_000, "distinct characters; between 30 and 2,000"),
        (lambda t: t + "\0", "zero bytes"),
        (lambda t: t[:150_000] + t[:60_000], "both in the first 90"),
        (lambda t: b"", "0 bytes"),
    ],
)
def test_a_file_that_does_not_serve_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=f"mine.txt.*{words}"):
        data.own_text(own(tmp_path / "mine.txt", text(topics())))


def test_an_own_text_is_what_the_arms_read(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="none.txt is not a file"):
        data.own_text(tmp_path / "none.txt")
    letters = [chr(0x3B1 + k) for k in range(25)] + list("abcdefgh \n")
    written = "".join(np.random.default_rng(0).choice(letters, size=150_000))
    monkeypatch.setenv("CLAIMLAB_DATA", own(tmp_path / "mine.txt", written))
    net = trained("muon", [1000]).members[0]["clean"]
    assert len(net.letter) == 35 and M.text().letters == "".join(sorted(set(written)))
    shares = M.TRY["next character"].answer({"clean": net}, STUDY.make(SMALL), "αβγ")
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="has no Z"):
        M.TRY["next character"].answer({"clean": net}, STUDY.make(SMALL), "Z")


# ---- the whole


def test_precision_is_measured_on_momenta_of_a_muon_run_with_the_judged_seed(smoke):
    found = smoke.table.query("metric == 'orthogonality_error'").set_index(["arm", "seed"])["value"]
    assert set(found.index) == {(arm, seed) for arm in ("muon", "root") for seed in DEV}
    met = M.recorded(1001, smoke.params)
    assert {aspect: tuple(m.shape[1:]) for aspect, m in met.items()} == {r: (32, 32 * r) for r in (1, 2, 4, 8)}
    errors = []
    for b in (*met[1], *met[4]):
        u, s, vt = np.linalg.svd(b.double().numpy(), full_matrices=False)
        x = method.newton_schulz(b, MUON5).double().numpy()
        errors.append(np.linalg.norm(x - u @ vt) / math.sqrt(32))
    assert found["muon", 1001] == pytest.approx(np.mean(errors), abs=1e-4)
    assert not torch.equal(met[1], M.recorded(1000, smoke.params)[1])


def test_figures_and_views_hold_data(smoke):
    for name, figure in smoke.figures().items():
        assert figure.data and figure.layout.title.text, name
        assert any(len(trace.x) > 1 and np.isfinite(np.asarray(trace.y, dtype=float)).any() for trace in figure.data), name
    spread = smoke.figures()["outlier rate"].data
    ends = smoke.table.query("metric == 'val_loss_heavy' and arm == 'root'")["value"]
    assert next(t for t in spread if t.name == "root").y[2] == pytest.approx(ends.mean())
    net = smoke.arms["root"].members[0]
    views = {name: view(net, smoke.params) for name, view in M.VIEWS.items()}
    assert all(isinstance(view, go.Figure) and view.data for view in views.values())
    raw, base, _ = (np.abs(trace.z) for trace in views["one momentum matrix"].data)
    assert raw.max() > 2 * base.max() and np.median(raw) == pytest.approx(np.median(base))


def test_digits_are_learned_beside_the_text():
    run = Run(M.Recorder(STUDY.make({**SMALL, "digits": True, "steps": 40})), [1000])
    for _ in range(run.total):
        run.advance()
    (x, y), net = data.digit_parts()[1], run.members[0]["digits"]
    assert float((net(x).argmax(1) == y).float().mean()) > 0.6  # chance is 0.1
    assert run.tick().metrics[0]["digit_accuracy"] == pytest.approx(float((net(x).argmax(1) == y).float().mean()))


def test_a_width_that_four_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="width.*4 heads"):
        STUDY.make(dict(width=18))
