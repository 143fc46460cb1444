"""The study `transformers-need-glasses` against closed forms, torch's own attention, GRU and Jacobians, and equal limits."""

import importlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import linregress
from torch.nn import functional as F

from claimlab import views
from claimlab.claims import judge
from claimlab.experiment import Experiment
from claimlab.study import find

STUDY = find("transformers-need-glasses")
study = STUDY.module
nets, rows, text = (importlib.import_module(f"claimlab.studies.representation._transformers_need_glasses_{part}")
                    for part in ("net", "rows", "text"))  # fmt: skip
SMALL = dict(layers=1, draw_layers=2, width=16, draws=2, longest=32, max_train=16, steps=15, seeds=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(count=2, width=16, layers=2, dtype=torch.float64, seed=0):
    return nets.cast(nets.draw(count, rows.WORDS, width, layers, generator(seed)), dtype)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- collapse


def uniform(d=8):
    """One layer whose attention is even, whose value map is the identity and whose feed-forward part is zero."""
    zero, one = torch.zeros(1, d, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)[None]
    block = SimpleNamespace(query=zero, key=zero, value=one, out=one, up=zero, down=zero, up_bias=zero[:, :1], down_bias=zero[:, :1])
    return SimpleNamespace(embed=torch.randn(1, 2, d, generator=generator(), dtype=torch.float64), blocks=[block])


def test_even_attention_moves_the_output_by_the_closed_form():
    """(n - 1) / (n (n + 1)) ||v_s - v_a||_1, since the last token's own residual is the same in both rows."""
    w, n = uniform(), torch.tensor([2, 3, 7, 64, 1000])
    v = F.layer_norm(w.embed[0], (8,))
    expected = (n - 1) / (n * (n + 1)).double() * (v[1] - v[0]).abs().sum()
    gap = nets.apart(nets.endings(w, n, same=1, last=0, heads=1, code="none"))[0]
    assert torch.allclose(gap, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("code", nets.CODES)
@pytest.mark.parametrize("sharp", [False, True])
def test_one_prefill_gives_what_every_row_by_itself_gives(code, sharp):
    w, n = draw(), torch.tensor([4, 9, 150])
    found = nets.endings(w, n, rows.ONE, rows.ZERO, code=code, gain=1.7, sharp=sharp)
    for d in range(2):
        net = nets.Transformer(rows.WORDS, 16, 2, code=code, sharp=sharp).double()
        net.load_state_dict({"embed": w.embed[d]} | {f"blocks.{i}.{k}": m[d] for i, b in enumerate(w.blocks) for k, m in vars(b).items()})
        for i, length in enumerate(n.tolist()):
            for k in (0, 1):
                alone = net(rows.ending(length, bool(k)), 1.7)[0, -1]
                assert torch.allclose(found[d, i, k], alone, atol=1e-9), (code, sharp, length, k)


def test_appending_a_repeated_logit_moves_the_weights_by_its_own_share():
    """Total variation p_a / (1 + p_a), p_a the last token's weight before; read off the attention that a network keeps."""
    net = nets.Transformer(rows.WORDS, 16, 1, code="none", rng=generator(1)).double()
    for n in (5, 40, 300):
        kept = []
        for again in (False, True):
            net(rows.ending(n, again), kept=kept)
        before, after = kept[0][0, :, -1], kept[1][0, :, -1]
        moved = 0.5 * (F.pad(before, (0, 1)) - after).abs().sum(-1)
        assert torch.allclose(moved, before[:, -1] / (1 + before[:, -1]), atol=1e-12)
        spread = (before.max(-1).values / before.min(-1).values).max()
        assert moved.max() <= spread / n  # bounded logits: every weight, and so the move, is O(1 / n)


def test_bfloat16_swallows_half_of_its_spacing_near_one():
    one = torch.ones((), dtype=torch.bfloat16)
    step = torch.nextafter(one, one * 2) - one
    assert float(step) == 2**-7 == torch.finfo(torch.bfloat16).eps
    near = torch.tensor([[1.0, 1.0], [1 + 0.49 * 2**-7, 1 + 0.51 * 2**-7]]).T[:, :, None]  # pairs of one-number states
    assert nets.apart(near.to(torch.bfloat16)).tolist() == [0.0, 2**-7]


def test_slope_is_scipys_and_collapse_is_the_first_length_within_noise():
    at = 2 ** torch.arange(2, 12)
    gap = torch.rand(3, 10, generator=generator(), dtype=torch.float64) / at
    for one, value in zip(gap, study.slope(gap, at), strict=True):
        assert float(value) == pytest.approx(linregress(np.log10(at[3:9].numpy()), np.log10(one[3:9].numpy())).slope)
    floor = torch.full((1, 10), 0.011, dtype=torch.float64)
    assert study.collapse(1.0 / at[None], floor, at).tolist() == [7.0]  # 1/128 is the first below
    assert study.collapse(1.0 / at[None], 0 * floor, at).tolist() == [11.0]


def test_precision_knob_at_bfloat16_makes_plain_the_bf16_arm():
    p = study.Params(**SMALL | dict(precision="bfloat16"))
    assert study.told(p, (3, 4), p.precision, "rotary") == study.bf16(p, [3, 4], None)
    exact = replace(p, precision="float64")
    assert study.told(exact, (3,), "float64", "rotary")[0]["never_collapsed"] == 1.0
    low, high = (study.noise(p, (3,), name, "rotary") for name in ("bfloat16", "float32"))
    assert (low > 1e3 * high).all() and (high > 0).all()


# ---- the layer and its position codes


def test_a_layer_is_torchs_attention_between_torchs_norms():
    w, x = draw(1).blocks[0], torch.randn(3, 10, 16, generator=generator(), dtype=torch.float64)
    one = SimpleNamespace(**{name: m[0] for name, m in vars(w).items()})
    distance = torch.arange(10)[:, None] - torch.arange(10)
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])
    bias = (-slopes[:, None, None] * distance).double().masked_fill(distance < 0, -math.inf)
    for code, mask in (("none", bias.masked_fill(distance >= 0, 0.0)), ("alibi", bias)):
        normed = F.layer_norm(x, (16,))
        q, k, v = (F.linear(normed, m.T).view(3, 10, 4, 4).transpose(1, 2) for m in (one.query, one.key, one.value))
        z = x + F.linear(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(3, 10, 16), one.out.T)
        expected = z + F.linear(F.relu(F.linear(F.layer_norm(z, (16,)), one.up.T)), one.down.T)
        assert torch.allclose(nets.layer(one, x, 4, code, 1.0, False), expected, atol=1e-12)


def test_rotary_is_a_complex_turn_and_logits_know_distances_alone():
    x, at = torch.randn(2, 6, 8, generator=generator(), dtype=torch.float64), torch.arange(6) * 7
    turned = nets.rotate(x, at)
    spin = torch.exp(1j * at[:, None] * 10000.0 ** (-torch.arange(4) / 4))
    expected = torch.complex(x[..., :4], x[..., 4:]) * spin
    assert torch.allclose(torch.complex(turned[..., :4], turned[..., 4:]), expected, atol=1e-6)
    q, k = torch.randn(2, 1, 8, generator=generator(1), dtype=torch.float64)
    told = [nets.rotate(q, torch.tensor([i])) @ nets.rotate(k, torch.tensor([i - 5])).T for i in (5, 90, 2000)]
    assert float(max(told) - min(told)) < 1e-9


def test_sinusoids_and_linear_bias_have_their_published_values():
    codes = nets.sinusoids(torch.arange(50), 8)
    assert float(codes[37, 1]) == pytest.approx(math.sin(37 / 10000**0.25)) and float(codes[37, 5]) == pytest.approx(math.cos(3.7))
    assert nets.alibi(8, torch.tensor(1.0)).flatten().tolist() == [-(0.5**k) for k in range(1, 9)]


def test_log_n_logits_are_a_power_of_the_row_length():
    """exp(log(n) l) = n^l: the weights of the last of n tokens are those of softmax over n^l."""
    q, k = torch.randn(2, 1, 1, 12, 4, generator=generator(), dtype=torch.float64)
    at = torch.arange(12)
    plain = nets.scores(nets.sharpened(q, at, 1.0, False), k, at, at, "none")[0, 0, -1]
    sharp = nets.scores(nets.sharpened(q, at, 1.0, True), k, at, at, "none")[0, 0, -1]
    power = 12.0**plain
    assert torch.allclose(sharp.softmax(0), power / power.sum(), atol=1e-12)


def test_recurrent_network_is_torchs_gru():
    net = nets.Recurrent(rows.WORDS, 6 * 10 * 10, 3)
    gru = torch.nn.GRU(10, 10, batch_first=True)
    with torch.no_grad():
        net.bias.normal_(generator=generator())
        for name, value in (("weight_ih_l0", net.inside.T), ("weight_hh_l0", net.across.T), ("bias_ih_l0", net.bias)):
            getattr(gru, name).copy_(value)
        gru.bias_hh_l0.zero_()
        tokens = torch.randint(rows.WORDS, (3, 11), generator=generator())
        assert torch.allclose(net(tokens), gru(net.embed[tokens])[0], atol=1e-6)


# ---- the path bound


def test_frozen_identity_network_has_the_product_of_attention_as_its_jacobian():
    n, d = 7, 5
    stored = [torch.rand(1, n, n, generator=generator(i), dtype=torch.float64).tril().softmax(-1) for i in range(3)]
    one, zero = torch.eye(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    block = SimpleNamespace(value=one, out=one, up=zero, down=zero, up_bias=zero[:1], down_bias=zero[:1])
    net, v = SimpleNamespace(blocks=[block] * 3), torch.randn(n, d, generator=generator(), dtype=torch.float64)
    expected = np.linalg.multi_dot([np.eye(n) + a[0].numpy() for a in reversed(stored)])[-1]
    slope = torch.func.jacrev(lambda x: nets.frozen(net, x, stored))(v)
    assert np.allclose(slope.numpy(), np.einsum("i,ab->aib", expected, np.eye(d)), atol=1e-12)
    assert np.allclose(nets.path_bound(net, stored), expected) and np.allclose(nets.sensitivity(net, v, stored), expected)


def test_sensitivity_is_the_spectral_norm_of_a_numerical_jacobian_and_the_bound_holds():
    w = draw(1, width=8, layers=2)
    net = SimpleNamespace(blocks=[SimpleNamespace(**{k: m[0] for k, m in vars(b).items()}) for b in w.blocks])
    row, stored = torch.randint(2, (6,), generator=generator()), []
    v = x = w.embed[0, row]
    for block in net.blocks:
        x = nets.layer(block, x, 4, "rotary", 1.0, False, stored)
    h, columns = 1e-6, []
    for i in range(6):
        for k in range(8):
            step = torch.zeros_like(v)
            step[i, k] = h
            columns.append((nets.frozen(net, v + step, stored) - nets.frozen(net, v - step, stored)) / (2 * h))
    norms = [np.linalg.norm(torch.stack(columns[8 * i : 8 * i + 8]).numpy(), 2) for i in range(6)]
    measured, bound = nets.paths(w, row)
    assert np.allclose(measured[0], norms, rtol=1e-6)
    assert (measured <= bound).all() and (bound[0, :-1] > 0).all()


# ---- rows, and what is measured on them


def test_separators_stand_where_pythons_join_puts_them():
    signs = {rows.ZERO: "0", rows.ONE: "1", rows.COMMA: ","}
    for n in range(1, 20):
        row = torch.randint(2, (2, n), generator=generator(n))
        for every in (0, 1, 3, 5):
            told = ["".join(signs[s] for s in one) for one in rows.punctuate(row, every).tolist()]
            plain = ["".join(map(str, one)) for one in row.tolist()]
            assert told == [",".join(one[i : i + (every or 99)] for i in range(0, n, every or 99)) for one in plain]


def test_practice_rows_answer_their_questions():
    lengths, formats = set(), set()
    for step in range(60):
        tokens, answer, ones = rows.practice(step, 48, 3, 16, generator(step))
        again = rows.practice(step, 48, 3, 16, generator(99))[0]
        assert again.shape == tokens.shape and not torch.equal(again, tokens)  # members share the form, not the signs
        for one, told, count in zip(tokens.tolist(), answer.tolist(), ones.tolist(), strict=True):
            signs = [s for s in one[:-1] if s != rows.COMMA]
            assert count == sum(signs) and told == signs[0 if one[-1] == rows.FIRST else -1]
        lengths.add(len(signs))
        formats.add(rows.COMMA in tokens)
    assert min(lengths) >= 8 and max(lengths) <= 48 and len(lengths) > 20 and formats == {False, True}
    share = torch.cat([rows.practice(s, 48, 0, 64, generator(s))[2] / rows.form(s, 48)[0] for s in range(100)])
    assert float(share.mean()) == pytest.approx(0.75, abs=0.01) and float((share > 0.95).double().mean()) > 0.1


def test_lengths_of_the_two_test_sets():
    assert rows.in_range(48) == list(range(33, 49)) and rows.beyond(48) == list(range(64, 193, 8))


class Speaker(torch.nn.Module):
    """Answers by a rule, so that the scores are known."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def answer(self, tokens, gain):
        told = torch.zeros(len(tokens), 3)
        for i, row in enumerate(tokens.tolist()):
            told[i, self.rule(row)] = 1.0
            told[i, 2] = (sum(s == rows.ONE for s in row) + 2) / rows.UNIT
        return told


def test_a_constant_answer_scores_one_half_and_a_right_one_scores_one():
    p = study.Params(**SMALL)
    right = Speaker(lambda row: row[0] if row[-1] == rows.FIRST else row[-2])
    for rule, expected in ((Speaker(lambda row: 0), 0.5), (Speaker(lambda row: 1), 0.5), (right, 1.0)):
        found = study.examine(rule, p, 3, [8, 20])
        assert found["copy"].tolist() == [[expected] * 2] * 2 and found["count"].tolist() == [2.0, 2.0]


# ---- the experiment


def test_without_separators_both_formats_are_one(smoke):
    p = replace(smoke.params, comma_every=0)
    network = smoke.arms["network"]
    plain, commas = study.plain(p, smoke.seeds, network), study.commas(p, smoke.seeds, network)
    assert all(a[name] == b[name] for a, b in zip(plain, commas, strict=True) for name in b)
    assert commas != study.commas(smoke.params, smoke.seeds, network)


def test_control_refutes_the_commas(smoke):
    table = smoke.table[smoke.table.metric == "log10_distance_256"]
    same = table[table.arm == "plain"]
    five = [same[same.seed == 1000].assign(seed=s, value=0.1 * s, arm=arm) for s in range(5) for arm in ("plain", "commas")]
    claim = next(c for c in STUDY.claims if c.id == "commas-help")
    assert judge(claim, pd.concat(five)).verdict == "refuted" and STUDY.control.set == dict(comma_every=0)


def test_smoke_records_every_claim_and_draws(smoke):
    have = set(zip(smoke.table.arm, smoke.table.metric, strict=True))
    assert {(c.arm, c.metric) for c in STUDY.claims} <= have
    bound = smoke.table[smoke.table.metric == "bound_violation"].value
    assert (bound < 0).all() and (bound > -1).all()
    pictures = smoke.figures()
    assert set(pictures) == {"collapse", "paths", "by_length", "attention", "commas"}
    for name, picture in pictures.items():
        assert all(np.isfinite(np.array(t.y, float)).any() for t in picture.data), name
        assert all(axis.title.text for axis in picture.select_xaxes()), name
    assert views.trouble(smoke) == []
    weights = study.beside(study.__name__, "asked")(smoke.arms["network"].members[0], 30, smoke.params)
    assert all(np.allclose(each.sum(1), 1) and each.shape == (4, 31) for each in weights)


# ---- text and models of one's own


def test_own_text_trains_letters_and_is_fed_the_rows(tmp_path, monkeypatch):
    file = tmp_path / "own.txt"
    file.write_text("1, 0 and 10,\n" * 2000)
    monkeypatch.setenv("CLAIMLAB_DATA", str(file))
    lab = Experiment(STUDY, study.Params(**SMALL | dict(steps=60)), seeds=[1000, 1001, 1002], arms=["text"]).run()
    table = lab.table.set_index(["metric", "step", "seed"]).value
    assert table["letter_loss", 60, 1000] < 0.5 * math.log(9)  # nine signs; half of an even guess
    assert {m for m in lab.table.metric.unique() if m.startswith("distance_64")} == {"distance_64", "distance_64_commas"}
    assert text.translate(torch.tensor([rows.ONE, rows.COMMA]), ["x", "0", ",", "1"]).tolist() == [3, 2]


@pytest.mark.parametrize("content,told", [
    ("a" * 30_000, "distinct characters"), ("1, 0", "bytes"), ("1 and 0 and more " * 2000, "no token for ','"),
    ("one, two, " * 3000, "'0' and '1'"),
])  # fmt: skip
def test_texts_that_do_not_fit_are_refused(tmp_path, content, told):
    file = tmp_path / "own.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match="own.txt.*" + told):
        text.letters(str(file))


class Causal(torch.nn.Module):
    def __init__(self, causal: bool):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(3, 4, generator=generator()))
        self.causal = causal

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table[tokens]
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None] if self.causal else x + x.mean(1, keepdim=True)


def save(folder, causal=True, **notes):
    torch.jit.script(Causal(causal)).save(str(folder / "own.pt"))
    (folder / "own.json").write_text(json.dumps(dict(tokens=["1", "0", ","], longest=300) | notes))
    return str(folder / "own.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_of_ones_own_is_fed_the_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", save(tmp_path))
    lab = Experiment(STUDY, study.Params(**SMALL), seeds=[0, 1], arms=["text"]).run()
    found = lab.table[lab.table.seed == 0].set_index("metric").value
    assert "distance_256" in found and "distance_256_commas" not in found  # 257 signs and 85 separators are too many
    model = text.Foreign(str(tmp_path / "own.pt"))
    states = [F.layer_norm(model.net(torch.tensor([[0] * 15 + [1] * k]))[0, -1], (4,)) for k in (1, 2)]
    assert found["distance_16"] == pytest.approx(float((states[0] - states[1]).abs().sum().detach()), rel=1e-5)
    with pytest.raises(ValueError, match="301 tokens is longer than the model's 300"):
        model.states(torch.zeros(1, 301, dtype=torch.long))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_do_not_fit_are_refused(tmp_path):
    for notes, told in ((dict(tokens=["1", "0"]), "no token for ','"), (dict(longest=8), "at least 16"), (dict(tokens=3), "must hold")):
        with pytest.raises(ValueError, match="own.json.*" + told):
            text.Foreign(save(tmp_path, **notes))
    with pytest.raises(ValueError, match="own.pt is not causal"):
        text.Foreign(save(tmp_path, causal=False))
    (tmp_path / "own.pt").write_bytes(b"no model")
    with pytest.raises(ValueError, match="own.pt does not run as TorchScript"):
        text.Foreign(str(tmp_path / "own.pt"))
    (tmp_path / "own.json").unlink()
    with pytest.raises(ValueError, match="own.json.*absent"):
        text.Foreign(str(tmp_path / "own.pt"))
