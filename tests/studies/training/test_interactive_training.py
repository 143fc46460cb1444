"""interactive-training: sessions and agents against torch, closed forms and bit-for-bit replays; own files; the control."""

import io
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.params import KnobError
from claimlab.training import Run, Task

STUDY = study.find("interactive-training")
M = STUDY.module
METHOD, AGENTS, TASKS, DATA = M.METHOD, M.AGENTS, M.TASKS, M.data
SMALL = dict(layers=1, width=16, steps=24, rates=2, look_every=4)
WILD = dict(lr=1.0, alarm=1.05)  # runs away at once


def finished(arm, seeds=(1000, 1001), **values):
    lab = Experiment(STUDY, STUDY.make({**SMALL, **values}), seeds=list(seeds), arms=[arm]).run()
    return lab.arms[arm]


def same(ones, others):
    pairs = (pair for m, n in zip(ones, others, strict=True) for pair in zip(m.parameters(), n.parameters(), strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


def mark(session):
    """Everything that training depends on, as bytes."""
    state = {k: v for k, v in session.run.state().items() if k not in ("seconds", "events")}
    held = {k: v for k, v in session.state().items() if k != "commands"}
    torch.save((state, repr(sorted(held["shelf"])), repr(held["branches"])), written := io.BytesIO())
    return written.getvalue()


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- a loss whose stability limit is known


class Bowl(Task):
    """1/2 h w^2 under gradient descent: w shrinks by |1 - lr h| a step, so it diverges exactly for lr > 2 / h."""

    steps, every, joint_optimizer, h = 150, 10, False, 40.0

    def init(self):
        net = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(net.weight)
        return net

    def batch(self, net, rng, step):
        return (torch.zeros(1),)

    def loss(self, net, _):
        return 0.5 * self.h * net.weight.square().sum()

    def optimizer(self, groups):
        return type("Descent", (METHOD.Measured, torch.optim.SGD), {})(groups)


def watched(lr, policy, steps=150):
    run = Run(Bowl(STUDY.make()), [0, 1], steps)
    run.set(lr=lr)
    sessions = [METHOD.Session(run, i, lambda net: Bowl.h / 2 * net.weight.item() ** 2) for i in (0, 1)]
    for s in sessions:
        s.look()
    while run.step < steps:
        run.advance()
        for s in sessions:
            s.record()
            if run.step % 10 == 0:
                s.look()
                s.obey(policy(s.text(steps, 30, 0.3, 1.2)) if policy else "no-op")
    return sessions[0]


def test_descent_diverges_exactly_above_the_limit():
    limit = 2 / Bowl.h
    below, above = (watched(factor * limit, None, 40).looked for factor in (0.999, 1.001))
    assert below[-1][1] < below[0][1] and above[-1][1] > above[0][1]
    assert above[-1][1] == pytest.approx(Bowl.h / 2 * 1.002 ** (2 * 40), rel=1e-9)


@pytest.mark.parametrize("multiple", [1.5, 4.0, 15.0, 40.0])
def test_agent_brings_the_rate_below_the_limit_in_a_computable_number_of_looks(multiple):
    limit = 2 / Bowl.h
    needed = math.ceil(math.log(multiple) / math.log(1 / 0.3))
    session = watched(multiple * limit, AGENTS.rules, 20 * needed + 9)  # before it may dare to go faster again
    back = [n for n in session.commands if n["ok"] and n["command"]["verb"] == "rollback"]
    assert [n["step"] for n in back] == [10 + 20 * k for k in range(needed)]  # every second look: half a window of 30 to wait
    assert back[-1]["command"]["change"]["value"] == pytest.approx(multiple * limit * 0.3**needed) and session.lr < limit
    assert session.looked[-1][1] < session.looked[0][1] and session.lost == 10 + 20 * (needed - 1)


def test_cutting_alone_stops_the_growth_but_does_not_go_back():
    limit = 2 / Bowl.h
    cut, back = watched(4 * limit, AGENTS.rate_only), watched(4 * limit, AGENTS.rules)
    assert len(cut.branches) == 1 and cut.lost == 0 and cut.lr < limit
    assert cut.looked[-1][1] > back.looked[-1][1]


# ---- sessions on the text


def test_nobody_at_the_wheel_is_the_plain_run_bit_for_bit():
    polled = finished("agent", driver="nobody")
    plain = Run(TASKS.Writer(STUDY.make(SMALL)), [1000, 1001])
    for _ in plain:
        pass
    assert same(polled.members, plain.members) and not polled.sessions[0][0].commands


def test_replay_of_a_runs_own_commands_gives_the_same_numbers(tmp_path, monkeypatch):
    driven = finished("agent", (1000,), **WILD)
    notes = driven.sessions[0][0].commands
    assert any(n["command"]["verb"] == "rollback" for n in notes if n["ok"])
    (tmp_path / "mine.json").write_text(json.dumps(METHOD.recording(notes)))
    monkeypatch.setenv("CLAIMLAB_INTERVENTIONS", str(tmp_path / "mine.json"))
    replayed = finished("expert_replay", (1000,), **WILD)
    assert same(driven.members, replayed.members)
    assert driven.sessions[0][0].validations == replayed.sessions[0][0].validations
    assert not same(driven.members, finished("static", (1000,), **WILD).members)
    assert same(driven.members, finished("agent", (1000,), **WILD, driver="replay").members)


def test_rollback_without_a_change_repeats_the_steps():
    arm = M.Steered(STUDY.make(SMALL), [1000, 1001])
    arm.measure()
    session, other = arm.sessions[0]
    for _ in range(5):
        arm.advance()
    after = [p.clone() for p in arm.members[0].parameters()]
    assert session.apply({"verb": "rollback", "step": 3}, "person")["effect"] == "back to step 0"
    for _ in range(5):
        arm.advance()
    first, second = ([r[1:4] for r in branch.records] for branch in session.branches)
    assert first == second and all(torch.equal(a, b) for a, b in zip(after, arm.members[0].parameters(), strict=True))
    assert len(other.branches) == 1 and arm.step == 10  # its companion was left alone; the clock went on


def test_a_member_does_not_notice_the_rollbacks_of_its_company():
    together, alone = finished("agent", **WILD), finished("agent", (1001,), **WILD)
    assert together.sessions[0][0].lost and same(together.members[1:], alone.members)
    assert together.sessions[0][1].validations == alone.sessions[0][0].validations


def test_saved_and_loaded_in_mid_run_goes_on_bit_for_bit():
    params = STUDY.make({**SMALL, **WILD})
    whole = Experiment(STUDY, params, seeds=[1000, 1001], arms=["agent", "agent_blind"]).run()
    half = Experiment(STUDY, params, seeds=[1000, 1001], arms=["agent", "agent_blind"])
    for name, tick in half.ticks():
        if (name, tick.step) == ("agent", 12):
            break
    torch.save(half.state(), saved := io.BytesIO())
    saved.seek(0)
    again = Experiment(STUDY, params, seeds=[1000, 1001], arms=["agent", "agent_blind"])
    again.load(torch.load(saved, weights_only=True))
    again.run()
    assert again.table.equals(whole.table) and same(again.arms["agent_blind"].members, whole.arms["agent_blind"].members)


REFUSED = [
    ("{", "not JSON"),
    ("[1]", "one JSON object"),
    ('{"verb": 3}', "one JSON object"),
    ('{"verb": "sing"}', "not known"),
    ('{"verb": "stop"}', "whoever watches"),
    ('{"verb": "pause"}', "whoever watches"),
    ('{"verb": "set", "name": "lr", "value": 9}', r"\[1e-05, 1\]"),
    ('{"verb": "set", "name": "lr", "value": NaN}', "not allowed"),
    ('{"verb": "set", "name": ["lr"], "value": 0.1}', "not the name"),
    ('{"verb": "set", "name": "momentum", "value": 0.5}', "no setting of this optimiser"),
    ('{"verb": "set", "name": "width", "value": 64}', "cannot be changed"),
    ('{"verb": "set", "name": "cut", "value": 0.5}', "members of this run share it"),
    ('{"verb": "rollback", "step": -1}', "step = -1"),
    ('{"verb": "rollback", "step": 2, "change": {"verb": "set", "name": "lr", "value": 99}}', "not allowed"),
    ('{"verb": "rollback", "step": 2, "change": {"verb": "reset", "layer": "head"}}', "followed by a change"),
    ('{"verb": "freeze", "layer": "head"}', "all seeds"),
    ('{"verb": "no-op", "x": "' + "a" * 11_000 + '"}', "no command"),
]


def test_a_refused_command_changes_nothing_and_says_why():
    arm = M.Steered(STUDY.make(SMALL), [1000, 1001])
    arm.measure()
    for _ in range(3):
        arm.advance()
    session = arm.sessions[0][0]
    before = mark(session)
    for answer, reason in REFUSED:
        note = session.obey(answer)
        assert not note["ok"] and re.search(reason, note["refusal"]), (answer, note)
        assert mark(session) == before, answer
    assert session.obey("no-op") is None and session.obey("{}") is None and mark(session) == before
    assert session.apply({"verb": "set", "name": "lr", "value": 0.01}, "person")["ok"] and mark(session) != before


def test_commands_on_a_single_run_reach_layers_and_data():
    """One seed alone: update_model and update_dataset of the paper as reset, freeze and a set of the stream's weight."""
    run = Run(TASKS.LiveData(STUDY.make({**SMALL, "stream_weight": 0.0})), [1000])
    session = METHOD.Session(run, 0, lambda net: 0.0)
    run.advance()
    held, moved = run.members[0][0].weight.clone(), run.members[0][2].weight.clone()
    assert session.apply({"verb": "freeze", "layer": "0"}, "person")["ok"]
    assert session.apply({"verb": "set", "name": "stream_weight", "value": 1.0}, "person")["effect"] == "stream_weight 0 -> 1"
    for _ in range(3):
        run.advance()
    assert torch.equal(run.members[0][0].weight, held) and not torch.equal(run.members[0][2].weight, moved)
    assert run.task.p.stream_weight == 1.0
    assert session.apply({"verb": "reset", "layer": "2"}, "person")["ok"]
    assert not session.apply({"verb": "reset", "layer": "nine"}, "person")["ok"]


def test_measured_optimiser_is_torchs_with_torchs_clipping():
    params = [[nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3)), nn.Parameter(torch.ones(3))] for _ in range(2)]
    ours, theirs = METHOD.MeasuredAdamW(params[0], lr=0.1), torch.optim.AdamW(params[1], lr=0.1)
    ours.clip = 0.5

    def loss(w, b):
        return (w.exp() + b).square().sum()

    for _ in range(4):
        ours.step(lambda: (ours.zero_grad(), loss(*params[0]).backward()))
        theirs.zero_grad()
        loss(*params[1]).backward()
        norm = nn.utils.clip_grad_norm_(params[1], 0.5)
        theirs.step()
        assert ours.norm == pytest.approx(float(norm)) and all(map(torch.equal, *params))


# ---- agents


def log(losses, looks, *, step=30, lr=0.01, best=(2.0, 0), norms=None, commands=()):
    """A log of len(losses) records that ends at `step`; looks maps a step to its validation loss."""
    first = step - len(losses) + 1
    norms = norms if norms is not None else np.ones(len(losses))
    rows = [f"{first + k} {lr} {loss:.6g} {norms[k]:.6g} {looks.get(first + k, math.nan):.6g}" for k, loss in enumerate(losses)]
    said = [f"command at {at}: {what}" for at, what in commands]
    return "\n".join([f"at {step} of 150 window 30 cut 0.3 alarm 1.2", f"best {best[0]} at {best[1]}", *said, METHOD.HEAD, *rows])


FLAT, FALL = np.full(30, 2.0), 3 * np.exp(-0.01 * np.arange(30))
RESTLESS = np.r_[np.ones(15), np.tile([1.0, 3.0], 8)[:15]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (log(FLAT[:10], {10: 2.41}, step=10), ("rollback", 0.003)),
        (log(FLAT[:10], {10: 2.39}, step=10), None),
        (log(FLAT[:10], {10: math.nan}, step=10), ("rollback", 0.003)),
        (log(np.r_[FLAT[:9], math.nan], {10: 2.0}, step=10), ("rollback", 0.003)),
        (log(FLAT, {10: 2.1, 20: 2.1, 30: 9.0}, commands=[(16, "lr 0.02 -> 0.01 ()")]), None),  # it waits
        (log(FLAT, {10: 2.1, 20: 2.1, 30: 9.0}, commands=[(15, "lr 0.02 -> 0.01 ()")]), ("rollback", 0.003)),
        (log(FLAT, {10: 2.1, 20: 2.1, 30: 2.1}), ("set", 0.005)),
        (log(FLAT, {10: 2.1, 20: 2.1, 30: 2.2}), None),  # flat, but validation rises
        (log(FLAT, {10: 2.1, 20: 2.1, 30: 2.1}, commands=[(10, "lr 0.02 -> 0.01 (plateau: x)")]), None),  # once in a window
        (log(FLAT[:29], {10: 2.1, 20: 2.1, 30: 2.1}), None),  # less than a window
        (log(FALL, {10: 2.6, 20: 2.5, 30: 1.9}, best=(1.9, 30)), ("set", 0.015)),
        (log(FALL, {10: 2.6, 20: 2.5, 30: 2.3}), None),  # falls, but the best look lies before it
        (log(FALL, {70: 2.6, 80: 2.5, 90: 1.9}, step=90, best=(1.9, 90)), ("set", 0.015)),
        (log(FALL, {80: 2.6, 90: 2.5, 100: 1.9}, step=100, best=(1.9, 100)), None),  # only in the first three windows
        (log(FALL, {10: 2.1, 20: 2.2, 30: 2.3}, norms=RESTLESS), ("set", 0.005)),
        (log(FALL, {10: 2.1, 20: 2.2, 30: 2.3}, norms=RESTLESS[::-1]), None),
    ],
)
def test_rules_answer_as_the_protocol_says(text, expected):
    command = METHOD.parse(AGENTS.rules(text))
    if expected is None:
        assert command is None
        return
    verb, value = expected
    assert command["verb"] == verb and (command.get("change") or command)["value"] == pytest.approx(value)
    if verb == "rollback":
        only = METHOD.parse(AGENTS.rate_only(text))
        assert command["step"] == 0 and (only["verb"], only["value"]) == ("set", command["change"]["value"])


def test_the_text_log_says_what_the_session_knows():
    arm = finished("agent", **WILD)
    session = arm.sessions[0][0]
    seen = AGENTS.read(arm.show(session))
    records = np.array(session.branches[-1].records[-4:])  # a window is a fifth of 24 steps, and no less than 4
    assert (seen.step, seen.total, seen.window, seen.best_step) == (24, 24, 4, session.best[1])
    assert np.allclose(seen.records, records, rtol=1e-5, equal_nan=True) and seen.best == pytest.approx(session.best[0], rel=1e-5)
    assert [at for at, _ in seen.commands] == [n["step"] for n in session.commands]


def test_plateau_rule_is_torchs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        losses = np.where(rng.random(40) < 0.1, math.nan, 1 + rng.random(40).cumsum() * rng.choice([-0.01, 0.0, 0.01])).tolist()
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
        for k, loss in enumerate(losses, 1):
            scheduler.step(loss)
            assert 0.5 ** AGENTS.plateau_cuts(losses[:k]) == optimizer.param_groups[0]["lr"]


def test_blind_arm_gives_the_agents_commands_at_other_times():
    lab = Experiment(STUDY, STUDY.make({**SMALL, **WILD}), seeds=[1000, 1001], arms=["agent_blind"]).run()
    for seeing, blind in zip(lab.arms["agent"].sessions[0], lab.arms["agent_blind"].sessions[0], strict=True):
        told = [[n["command"] for n in s.commands if n["ok"]] for s in (seeing, blind)]
        assert told[0] == told[1] and told[0]
        steps = [n["step"] for n in blind.commands]
        assert steps == sorted(set(steps)) and steps != [n["step"] for n in seeing.commands if n["ok"]]
    draws = [one["step"] for seed in range(400) for one in M.scattered(seeing.commands[:1], 24, seed)]
    assert set(draws) == set(range(1, 24))  # any step between the first and the last


def test_an_external_agent_may_be_any_program(tmp_path, monkeypatch):
    program = tmp_path / "agent.py"
    program.write_text("import sys\ntext = sys.stdin.read()\nprint('{\"verb\": \"set\", \"name\": \"lr\", \"value\": 0.0123}' "
                       "if text.startswith('at 4 of 24') else 'what?')")  # fmt: skip
    monkeypatch.setenv("CLAIMLAB_AGENT", f"{sys.executable} {program}")
    notes = finished("agent", (1000,), driver="external").sessions[0][0].commands
    assert notes[0]["ok"] and notes[0]["effect"] == "lr 0.1 -> 0.0123" and len(notes) == 5
    assert all(not n["ok"] and "not JSON" in n["refusal"] for n in notes[1:])
    monkeypatch.delenv("CLAIMLAB_AGENT")
    idle = finished("agent", (1000,), driver="external")
    assert "CLAIMLAB_AGENT is not set" in idle.sessions[0][0].commands[0]["refusal"]
    assert same(idle.members, finished("static", (1000,)).members)


# ---- model, schedule, metrics


def test_transformer_is_torchs_pre_norm_encoder_with_a_causal_mask():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TASKS.Transformer(20, 16, 1)
        block, layer = net.blocks[0], nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        x = torch.randint(20, (3, 32))
    pairs = [("self_attn.in_proj_", block.qkv), ("self_attn.out_proj.", block.out), ("linear1.", block.up),
             ("linear2.", block.down), ("norm1.", block.before), ("norm2.", block.between)]  # fmt: skip
    layer.load_state_dict({f"{name}{part}": getattr(own, part).detach() for name, own in pairs for part in ("weight", "bias")})
    h = net.letter(x) + net.place
    expected = net.head(net.norm(layer(h, src_mask=nn.Transformer.generate_square_subsequent_mask(32), is_causal=True)))
    assert torch.allclose(net(x), expected, atol=1e-5)
    later = x.clone()
    later[:, 20:] = 0
    assert torch.equal(net(later)[:, :20], net(x)[:, :20])


def test_judged_loss_is_capped_at_the_uniform_predictor():
    net = TASKS.half_trained(1000, 1, 16, "")
    assert TASKS.judged(net) == TASKS.loss_on(net, TASKS.text().windows["judged"]) < math.log(len(TASKS.text().letters))
    for value in (0.0, math.nan, 50.0):
        broken = TASKS.Transformer(len(TASKS.text().letters), 16, 1)
        broken.head.weight.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(value)
        assert TASKS.judged(broken) == pytest.approx(math.log(len(TASKS.text().letters)), abs=1e-5)


def test_cosine_arm_follows_torchs_schedule_after_its_warm_up():
    task, steps = TASKS.CosineWriter(STUDY.make()), 150
    factors = [task.schedule(step, steps) for step in range(steps)]
    assert factors[:15] == pytest.approx([(k + 1) / 15 for k in range(15)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 15)
    for factor in factors[15:]:
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        cosine.step()


def test_best_checkpoint_is_the_static_run_stopped_where_it_validated_best(smoke):
    static, best = smoke.arms["static"], smoke.arms["best_checkpoint"]
    for i, session in enumerate(static.sessions[0]):
        step = min(session.looked, key=lambda pair: pair[1])[0]
        run = Run(TASKS.Writer(smoke.params), [smoke.seeds[i]])
        while run.step < step:
            run.advance()
        assert same(run.members, [best.members[i]]) and session.best == min((v, s) for s, v in session.looked)


def test_spread_and_bad_start_come_from_the_losses_by_rate(smoke):
    wide = smoke.table[smoke.table.step == 12].pivot_table(index=["arm", "seed"], columns="metric", values="value")
    for arm in ("static", "static_cosine", "plateau_clip", "agent", "best_checkpoint"):
        rows = wide.loc[arm]
        assert np.allclose(rows.loss_spread_over_lr, (rows["loss_from_0.1"] - rows["loss_from_0.0001"]).abs())
        assert np.allclose(rows.val_loss_bad_start, rows["loss_from_0.1"])
    budget = smoke.budgets.set_index("arm")
    texts = [a for a in budget.index if a in ("static", "agent", "plateau_clip", "agent_blind", "expert_replay")]
    assert budget.loc[texts, "steps"].nunique() == 1 and budget.loc[texts, "samples"].nunique() == 1


# ---- data


def test_parts_of_the_text_follow_each_other_and_share_no_character():
    corpus = TASKS.text()
    whole = torch.cat([corpus.parts[name] for name in ("first", "second", "seen", "judged")])
    text = "".join(corpus.letters[k] for k in whole.tolist())
    from pydoc_data.topics import topics

    assert text == "\n".join(topics[name] for name in sorted(topics))
    shares = [len(part) / len(whole) for part in corpus.parts.values()]
    assert shares == pytest.approx([0.425, 0.425, 0.05, 0.10], abs=1e-4)
    for name, count in (("seen", 128), ("judged", 256)):
        own = "".join(corpus.letters[k] for k in corpus.parts[name].tolist())
        assert len(corpus.windows[name]) == count
        assert all("".join(corpus.letters[k] for k in row) in own for row in corpus.windows[name].tolist())


def test_shift_turns_and_inverts():
    images, _ = DATA.data.digits()
    assert np.array_equal(DATA.shifted(images, 0.0), images)
    full = DATA.shifted(images, 1.0)
    assert np.allclose(full, 1 - np.rot90(images, axes=(1, 2)))
    near = DATA.shifted(images, 0.98)  # the part of a turn goes the same way round
    assert abs(near - full).mean() < 0.3 * abs(near - (1 - np.rot90(images, -1, axes=(1, 2)))).mean()


def test_stream_arrives_in_time_in_its_share_and_in_its_order():
    task = TASKS.LiveData(STUDY.make({"stream_weight": 0.3})).bind(1000)
    (source, _), (stream, labels) = task.data.source, task.data.stream
    assert not {row.tobytes() for row in stream.numpy()} & {row.tobytes() for row in source.numpy()}
    assert task.arrived(torch.tensor([0, 199, 200, 224, 225, 499])).tolist() == [0, 0, 20, 20, 40, 240]
    rng = torch.Generator().manual_seed(0)
    early = task.block(None, rng, 180, 20)[0]
    inside = lambda x, rows: (torch.cdist(x.flatten(0, 1), rows) < 1e-6).any(1)  # noqa: E731
    assert inside(early, source).all()
    x, y = task.block(None, rng, 230, 500)
    x, y = x[:20], y[:20]  # steps 230 to 249: forty have come
    fresh = inside(x, stream[:40])
    assert (fresh | inside(x, source)).all() and abs(float(fresh.float().mean()) - 0.3) < 5 * math.sqrt(0.21 / 640)
    place = torch.cdist(x.flatten(0, 1)[fresh], stream[:40]).argmin(1)
    assert torch.equal(y.flatten()[fresh], labels[:40][place])


def test_without_weight_live_data_is_stale_data():
    chosen = (("live_data", 0.0), ("stale_data", 0.3), ("live_data", 0.3))
    weightless, stale, weighed = (finished(arm, stream_weight=weight) for arm, weight in chosen)
    assert same(weightless.members, stale.members) and not same(weighed.members, stale.members)


def test_restart_begins_anew_with_the_steps_that_remain():
    lab = Experiment(STUDY, STUDY.make(SMALL), seeds=[1000, 1001], arms=["restart"])
    for _, tick in lab.ticks():
        if tick.stage == "restart":
            break
    chain = lab.arms["restart"]
    assert same(chain.members, Run(TASKS.StaleData(lab.params), [1000, 1001]).members)  # weights as at the first step
    lab.run()
    assert chain.budget["steps"] == TASKS.StaleData(lab.params).steps and chain.tasks[0].offset == 48


# ---- files of one's own


def test_own_text_is_trained_on(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("the cat sat on the mat\n" * 10_000, encoding="utf-8")
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path / "mine.txt"))
    arm = finished("static", (1000,), lr=0.003)
    assert TASKS.text().letters == "\n acehmnost" and arm.members[0].head.out_features == 11
    assert TASKS.judged(arm.members[0]) < 0.8 * math.log(11)
    assert len(M.VIEWS["sampled text"](arm.members[0], STUDY.make(SMALL)).data[0].cells["values"][1]) == 3


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"short", "more than 200,000"),
        (b"ab" * 110_000 + b"\xff", "not UTF-8: byte 220,000"),
        (b"a\0" * 110_000, "zero bytes"),
        (b"a" * 210_000, "1 distinct"),
        (None, "not a file"),
    ],
)
def test_own_text_that_does_not_fit_is_refused(tmp_path, raw, words):
    if raw is not None:
        (tmp_path / "mine.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=f"mine.txt.*{words}"):
        DATA.own_text(tmp_path / "mine.txt")


GOOD = {"step": 3, "command": "set", "args": {"name": "lr", "value": 0.01}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "no list"),
        ({"recorded_by": "me"}, "no list"),
        ([{"step": 1}], "entry 0 is not of the form"),
        ([GOOD, {**GOOD, "step": 2}], "entry 1 is at step 2"),
        ([{**GOOD, "step": 0}], "at step 0"),
        ([{**GOOD, "step": 1.5}], "at step 1.5"),
        ([GOOD, {**GOOD, "command": "sing"}], "entry 1 .step 3.*'sing' is not known"),
        ([{**GOOD, "command": "stop", "args": {}}], "whoever watches"),
        ([{**GOOD, "args": {"name": "lr", "value": 5.0}}], "lr = 5.0 is not allowed"),
        ([{**GOOD, "args": {"name": "clip", "value": 11}}], "clip = 11 is not allowed"),
        ("{", "no JSON"),
    ],
)
def test_interventions_that_do_not_fit_are_refused(tmp_path, entries, words):
    file = tmp_path / "mine.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with pytest.raises(ValueError, match=f"mine.json.*{words}"):
        METHOD.script(file)


def test_shipped_interventions_are_read_and_say_who_recorded_them():
    assert DATA.recorder() == "script"
    assert [one["step"] for one in M.recorded()] == [10, 110, 135] and M.recorded()[0]["command"]["verb"] == "rollback"


# ---- figures, views, knobs, control


def test_figures_and_views_hold_data(smoke):
    figures = smoke.figures()
    assert set(figures) == {"steered and untouched", "final loss by initial rate", "rates driven", "old and new inputs",
                            "log, decision, effect"}  # fmt: skip
    for name, figure in figures.items():
        assert figure.layout.title.text
        curves = [trace for trace in figure.data if trace.type == "scatter"]
        drawn = [len(t.x) and np.isfinite(np.asarray(t.y, float)).any() for t in curves]
        assert name == "log, decision, effect" or (drawn and all(drawn))
    agent, digits = smoke.arms["agent"].members[0], smoke.arms["live_data"].members[0]
    assert len(M.VIEWS["loss and commands"](agent, smoke.params).data) >= 2
    heat = M.VIEWS["new inputs"](digits, smoke.params).data[0].z
    answers = digits(DATA.domains(0, 1.0).new[0]).argmax(1)
    assert np.sum(heat) == 300 and np.trace(np.asarray(heat)) == int((answers == DATA.domains(0, 1.0).new[1]).sum())
    assert "has no" in M.VIEWS["new inputs"](agent, smoke.params).layout.title.text
    assert "has no" in M.VIEWS["sampled text"](digits, smoke.params).layout.title.text


def test_a_rollback_is_drawn_as_a_branch_and_flagged():
    arm = finished("agent", **WILD)
    session = arm.sessions[0][0]
    figure = M.VIEWS["loss and commands"](arm.members[0], STUDY.make({**SMALL, **WILD}))
    dotted = [t for t in figure.data if t.line.dash == "dot"]
    obeyed = [n for n in session.commands if n["ok"]]
    assert len(dotted) == len(session.branches) - 1 > 0
    assert list(dotted[0].x) == [session.branches[1].origin, session.branches[1].began]
    assert len(figure.layout.shapes) == len(obeyed)


def test_knobs_that_contradict_each_other_are_named():
    with pytest.raises(KnobError, match="look_every = 50.*steps = 20"):
        STUDY.make({"look_every": 50, "steps": 20})
    with pytest.raises(KnobError, match="width = 30"):
        STUDY.make({"width": 30})


def test_live_control_reaches_the_bad_start_and_its_agent():
    lab = Experiment(STUDY, STUDY.make(SMALL), seeds=[1000, 1001], arms=["agent"])
    for _, tick in lab.ticks():
        if tick.step == 8:
            break
    assert lab.set("driver", "nobody")["agent"] == ("agent", "nobody") and lab.arms["agent"].p.driver == "nobody"
    lab.set("lr", 0.002, arm="agent", member=1)
    assert [s.lr for s in lab.arms["agent"].sessions[0]][1] == 0.002
    assert len(lab.evaluate("agent")) <= 1
    lab.run()
    assert lab.table[(lab.table.metric == "lr") & (lab.table.step == 24)].set_index("seed").value[1001] == 0.002


def test_control_brings_no_other_domain():
    params = STUDY.make({**SMALL, **STUDY.control.set})
    domains = DATA.domains(1000, params.domain_shift)
    assert torch.equal(domains.old[0], domains.new[0]) and torch.equal(domains.old[1], domains.new[1])
    lab = Experiment(STUDY, params, seeds=[1000, 1001], arms=["live_data", "stale_data"]).run()
    rows = lab.table[lab.table.metric.str.endswith("accuracy")]
    wide = rows.pivot_table(index=["arm", "seed", "step"], columns="metric", values="value")
    assert np.array_equal(wide.new_domain_accuracy, wide.old_domain_accuracy)
