"""SR-RNN: cells against torch, automata against aalpy, languages against regular expressions, the limits of tau and snap."""

import itertools
import re

import numpy as np
import pytest
import torch
from aalpy.automata import Dfa as Machine
from aalpy.automata import DfaState
from aalpy.utils import bisimilar
from scipy.sparse.csgraph import breadth_first_order
from sklearn.cluster import KMeans

from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.training import Run

STUDY = find("state-regularized-rnn")
M = STUDY.module
W, C = M.words, M.cells
SMALL = dict(steps=20, seeds=2, hidden=8, train_length=8, train_depth=2)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


@pytest.fixture(scope="module")
def learned():
    """A state-regularised GRU that has learned 1* from words of up to eight symbols."""
    run = Run(M.SrGru(STUDY.make(dict(language="tomita1", train_length=8, hidden=16, steps=200))), [1000])
    return run, list(run)[-1].metrics[0]


def machine(dfa):
    """The same automaton in aalpy."""
    states = [DfaState(str(q), bool(dfa.accept[q])) for q in range(len(dfa.step))]
    for q, row in enumerate(dfa.step):
        states[q].transitions = {a: states[int(r)] for a, r in enumerate(row)}
    edges = np.zeros((len(states), len(states)))
    edges[np.arange(len(states))[:, None], dfa.step] = 1
    reached = breadth_first_order(edges, dfa.start, return_predecessors=False)  # aalpy's minimisation keeps the others
    return Machine(states[dfa.start], [states[q] for q in reached])


def every_word(symbols, longest):
    """All words of 1..longest symbols, padded with 0, and their lengths."""
    found = [w for n in range(1, longest + 1) for w in itertools.product(range(symbols), repeat=n)]
    words = np.zeros((len(found), longest), int)
    for row, word in enumerate(found):
        words[row, : len(word)] = word
    return words, np.array([len(w) for w in found]), ["".join(map(str, w)) for w in found]


PREDICATES = {
    "tomita1": lambda w: re.fullmatch("1*", w) is not None,
    "tomita2": lambda w: re.fullmatch("(10)*", w) is not None,
    "tomita3": lambda w: all(len(a) % 2 == 0 or len(b) % 2 == 0 for a, b in re.findall("(1+)(0+)", w)),
    "tomita4": lambda w: "000" not in w,
    "tomita5": lambda w: w.count("0") % 2 == 0 and w.count("1") % 2 == 0,
    "tomita6": lambda w: (w.count("0") - w.count("1")) % 3 == 0,
    "tomita7": lambda w: re.fullmatch("0*1*0*1*", w) is not None,
}


def balanced(word):
    """Remove innermost pairs until nothing changes; how many rounds that takes, or None if something is left."""
    word, rounds = re.sub("[2-5]", "", word), 0
    while (shorter := re.sub("01", "", word)) != word:
        word, rounds = shorter, rounds + 1
    return not word


# ---- languages


@pytest.mark.parametrize("language", list(PREDICATES))
def test_true_automata_decide_all_words_up_to_length_12_as_their_definitions_do(language):
    words, lengths, texts = every_word(2, 12)
    said = W.TOMITA[language].accepts(words, lengths)
    assert said.tolist() == [PREDICATES[language](text) for text in texts]


@pytest.mark.parametrize("language", list(PREDICATES))
def test_words_are_labelled_rightly_balanced_and_of_the_lengths_asked_for(language):
    found = W.regular(language, 3, 20, 400, np.random.default_rng(0))
    for word, length, label in zip(found.words, found.lengths, found.labels, strict=True):
        assert PREDICATES[language]("".join(map(str, word[:length]))) == bool(label)
        assert 3 <= length <= 20 and not word[length:].any()
    assert found.labels.mean() == 0.5
    assert sorted(found.lengths[found.labels == 1]) == sorted(found.lengths[found.labels == 0])  # length tells nothing


def test_words_are_drawn_uniformly():
    drawn = W.draw(W.TOMITA["tomita4"], np.full(6600, 5), True, np.random.default_rng(0))
    found, count = np.unique(drawn, axis=0, return_counts=True)
    known = {"".join(w) for w in itertools.product("01", repeat=5) if "000" not in "".join(w)}
    assert {"".join(map(str, w)) for w in found} == known
    from scipy.stats import chisquare

    assert chisquare(count).pvalue > 1e-3


def test_brackets_are_balanced_or_not_as_labelled_and_as_deep_as_asked_for():
    found = W.brackets(2, 4, 24, 300, np.random.default_rng(1))
    for word, length, label, depth in zip(found.words, found.lengths, found.labels, found.depth, strict=True):
        assert balanced("".join(map(str, word[:length]))) == bool(label)
        assert length <= 24 and 2 <= depth <= 4
        if label:  # the deepest place has that many brackets open
            assert np.cumsum(np.select([word[:length] == 0, word[:length] == 1], [1, -1], 0)).max() == depth
    assert 0.4 < found.labels.mean() < 0.6 and set(found.depth) == {2, 3, 4}


def test_palindromes_read_the_same_backwards_exactly_if_labelled_so():
    found = W.palindromes(1, 6, 200, np.random.default_rng(2))
    for word, length, label in zip(found.words, found.lengths, found.labels, strict=True):
        assert (list(word[:length]) == list(word[:length][::-1])) == bool(label) and word[length // 2] == 2


# ---- automata


@pytest.mark.parametrize("seed", range(8))
def test_minimisation_keeps_the_language_and_finds_aalpys_size(seed):
    rng = np.random.default_rng(seed)
    dfa = W.Dfa(rng.integers(9, size=(9, 2)), rng.random(9) < 0.4, int(rng.integers(9)))
    small, theirs = W.minimal(dfa), machine(dfa)
    words, lengths, _ = every_word(2, 9)
    assert (small.accepts(words, lengths) == dfa.accepts(words, lengths)).all()
    theirs.minimize()
    assert len(small.step) == theirs.size
    assert W.same_language(dfa, small) and bisimilar(machine(small), theirs)


@pytest.mark.parametrize("pair", list(itertools.combinations(PREDICATES, 2)), ids="-".join)
def test_two_automata_are_the_same_exactly_if_aalpy_finds_no_counter_example(pair):
    one, other = (W.TOMITA[name] for name in pair)
    word = bisimilar(machine(one), machine(other), return_cex=True)
    assert W.same_language(one, other) == (word is None)
    if word is not None:  # aalpy's word is judged differently by the two
        padded = np.array([list(word) or [0]])
        assert one.accepts(padded, np.array([len(word)])) != other.accepts(padded, np.array([len(word)]))


@pytest.mark.parametrize("language", list(PREDICATES))
def test_counting_transitions_of_an_automaton_gives_it_back(language):
    true = W.TOMITA[language]
    seen = W.regular(language, 1, 12, 400, np.random.default_rng(0))
    read = C.counted(true.path(seen.words), seen.words, seen.lengths, true.accept, 2)
    assert bisimilar(machine(W.minimal(read)), machine(true))


def test_what_was_never_seen_leads_to_a_sink_that_rejects():
    words = np.array([[1, 1]])
    read = C.counted(np.array([[0, 1, 1]]), words, np.array([2]), np.array([True, True]), 2)
    assert read.step.tolist() == [[2, 1], [2, 1], [2, 2]] and read.accept.tolist() == [True, True, False]


def test_kmeans_is_as_tight_as_scikit_learns():
    rng = np.random.default_rng(0)
    points = (3 * rng.normal(size=(6, 1, 4)) + rng.normal(size=(6, 60, 4))).reshape(-1, 4)
    centres, label = C.kmeans(points, 6, np.random.default_rng(1), tries=10)
    own, theirs = ((points - centres[label]) ** 2).sum(), KMeans(6, n_init=10, random_state=0).fit(points).inertia_
    assert own == pytest.approx(theirs, rel=0.01)


# ---- cells


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_cells_without_the_map_are_torchs(kind):
    torch_cell = (torch.nn.GRU if kind == "gru" else torch.nn.LSTM)(8, 12, batch_first=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = C.Recurrent(kind, 5, 12)
    torch_cell.load_state_dict({f"{name}_l0": getattr(net, name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")})
    x = torch.randint(5, (7, 11), generator=torch.Generator().manual_seed(1))
    expected = torch_cell(net.embed[x])[0]
    states = torch.stack(net.path(x)[0][1:], 1)
    assert torch.allclose(states, expected, atol=1e-6)
    last = torch.arange(7)
    assert torch.allclose(net(x, last), net.readout(expected[torch.arange(7), last]), atol=1e-6)  # what is padded has no part


def test_peepholes_let_the_gates_see_the_memory():
    """Against the equations of Gers and Schmidhuber written out unit by unit in float64."""
    rng = np.random.default_rng(0)
    drive, h, c, weight, bias, peep = (rng.normal(size=s) for s in ((2, 12), (2, 3), (2, 3), (12, 3), (12,), (3, 3)))
    u, new = C.lstm_step(*map(torch.from_numpy, (drive, h, c, weight, bias, peep)))
    sigma = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    for b in range(2):
        for k in range(3):
            a = [drive[b, g * 3 + k] + weight[g * 3 + k] @ h[b] + bias[g * 3 + k] for g in range(4)]
            cell = sigma(a[1] + peep[1, k] * c[b, k]) * c[b, k] + sigma(a[0] + peep[0, k] * c[b, k]) * np.tanh(a[2])
            assert new[b, k].item() == pytest.approx(cell)
            assert u[b, k].item() == pytest.approx(sigma(a[3] + peep[2, k] * cell) * np.tanh(cell))


def test_snapping_is_a_softmax_of_dot_products_and_one_hot_in_the_limit():
    from scipy.special import softmax

    rng = np.random.default_rng(0)
    u, s = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    alpha, h = C.snap(torch.from_numpy(u), torch.from_numpy(s), 0.7)
    expected = softmax(u @ s.T / 0.7, axis=1)
    assert np.allclose(alpha, expected) and np.allclose(h, expected @ s)
    sharp, point = C.snap(torch.from_numpy(u), torch.from_numpy(s), 1e-4)
    assert np.allclose(sharp.max(1).values, 1) and np.allclose(point, s[(u @ s.T).argmax(1)])


@pytest.mark.parametrize("seed", range(4))
def test_at_tau_zero_a_network_is_the_automaton_read_off_it(seed):
    """Even without training: on every test word whose transitions occur in the training words."""
    task = M.SrGru(STUDY.make(dict(language="tomita6", train_length=12, hidden=16, states=6))).bind(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = task.init()
        net.centroids.data *= 3  # several states in use
    train, test = task.train, task.test
    dfa = C.read_off(net, train.words, train.lengths, temperature=1e-4)
    with torch.no_grad():
        said = net(*task.long[:2], 1.0, 1e-4).argmax(1).numpy() == 1
    known = ~(dfa.path(test.words) == len(dfa.step) - 1).any(1)
    assert known.mean() > 0.9 and (dfa.accepts(test.words, test.lengths) == said)[known].all()


# ---- the study


@pytest.mark.parametrize("pair", [("gru", "sr_gru"), ("lstm", "sr_lstm")], ids="-".join)
def test_at_snap_zero_the_method_is_the_plain_cell(pair):
    runs = [Run(M.ARMS[arm](STUDY.make({**SMALL, "snap": 0.0})), [1000, 1001]) for arm in pair]
    for run in runs:
        list(run)
    for one, other in zip(*(run.members for run in runs), strict=True):
        shared = dict(other.named_parameters())
        assert all(torch.equal(p, shared[name]) for name, p in one.named_parameters())


def test_a_learned_language_is_read_off_and_judged(learned):
    run, found = learned
    dfa = run.tasks[0].read(run.members[0])
    assert found["exact"] == float(bisimilar(machine(W.minimal(dfa)), machine(W.TOMITA["tomita1"])))
    words = run.tasks[0].test
    assert found["dfa_accuracy"] == pytest.approx(np.mean(dfa.accepts(words.words, words.lengths) == words.labels))
    assert found["long_accuracy"] > 0.9


def test_drift_is_what_a_loop_over_words_and_places_finds(learned):
    run, found = learned
    task, net = run.tasks[0], run.members[0]
    states, early, late = [], {}, []
    with torch.no_grad():
        for word, length in zip(task.test.words, task.test.lengths, strict=True):
            path = torch.stack(net.path(torch.from_numpy(word[None, :length]))[0])[1:, 0].double().numpy()
            for place, h in enumerate(path, 1):
                true = "0" in "".join(map(str, word[:place]))  # the two states of 1*
                states.append(h)
                if place < 8:
                    early.setdefault(true, []).append(h)
                if place > 14:
                    late.append((true, h))
    centre = {true: np.mean(points, 0) for true, points in early.items()}
    spread = np.sqrt(np.var(states, 0).sum())
    expected = np.mean([np.linalg.norm(h - centre[true]) for true, h in late]) / spread
    assert found["drift"] == pytest.approx(expected, rel=1e-3)  # variances in float32


def test_every_figure_holds_finite_data_and_a_title_at_smoke(smoke):
    found = smoke.figures()
    assert {"automata", "hidden states", "length and depth", "transitions", "states used"} <= set(found)
    for name, figure in found.items():
        assert figure.layout.title.text and "nan" not in figure.layout.title.text, name
        assert all(len(t.x if t.x is not None else t.z) for t in figure.data), name
    shown = [v for t in found["states used"].data if t.fill is None for v in t.y]
    assert np.isfinite(shown).all() and max(shown) <= max(smoke.params.states, np.log(smoke.params.states))


def test_views_show_the_centroids_and_the_states_that_can_be_reached(smoke):
    net, p = smoke.arms["sr_gru"].members[0], smoke.params
    (held,) = (t for t in M.VIEWS["hidden states and centroids"](net, p).data if t.name == "centroid")
    assert len(held.x) == p.states
    seen = M.words_of(0, p.language, p.train_length)[0]
    dfa = C.read_off(net, seen.words[:150], seen.lengths[:150])
    shown = {t for one in M.VIEWS["automaton at this step"](net, p).data if one.mode == "markers+text" for t in one.text}
    assert shown == {str(int(state.state_id) + 1) for state in machine(dfa).states}
    digits = C.Recurrent("gru", 8, 4, embedding=0, classes=10)
    assert not M.VIEWS["automaton at this step"](digits, p).data  # rows of numbers have no symbols


def test_the_extras_learn_the_other_languages_palindromes_and_digits():
    p = STUDY.make({**SMALL, "extras": True})
    lab = Experiment(STUDY, p, arms=["digits_gru", "digits_sr_gru", "others"]).run()
    last = lab.table.groupby(["arm", "metric"]).value.last()
    for name in set(PREDICATES) - {p.language}:
        assert 0 <= last["others", f"{name}: dfa_accuracy"] <= 1
    assert 0.3 < last["others", "palindromes, sr_lstm_p: deep_accuracy"] < 0.7  # guessing, after 24 steps
    assert last["digits_gru", "digit_accuracy"] > 0.15
    assert len(lab.figures()["a digit, row by row"].data) == 2


def test_arms_of_a_seed_read_the_same_words(smoke):
    words = [smoke.arms[arm].tasks[1].train.words for arm in ("gru", "sr_gru", "sr_gru_hot")]
    assert all((one == words[0]).all() for one in words)
    assert (words[0] != smoke.arms["gru"].tasks[0].train.words).any()


# ---- a file of one's own


def lines(count=60):
    return "".join(f"{'good' if k % 2 else 'bad'}\t{'fine' if k % 2 else 'poor'} film number {k}\n" for k in range(count))


@pytest.mark.parametrize(("content", "said"), [
    (b"good\tfilm \xff\n" * 50, "not UTF-8"), (b"", "0 lines"), (lines(12).encode(), "12 lines"),
    (b"good film without a tab\n" * 50, "line 1"), (b"good\tfine\n" * 50, "exactly two"),
    ((lines(60) + "third\tlabel\n" * 12).encode(), "exactly two"), ((lines(60) + "good\t" + "long " * 2001).encode(), "2,001 words"),
], ids=["encoding", "empty", "few", "no tab", "one label", "three labels", "long"])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path, content, said):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as refusal:
        W.own_lines(str(path))
    assert "mine.txt" in str(refusal.value)
    with pytest.raises(ValueError, match="not a file"):
        W.own_lines(str(tmp_path / "absent.txt"))


def test_a_file_of_ones_own_is_learned_with_the_vocabulary_of_its_training_part(tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text(lines(80), encoding="utf-8")
    train, test, symbols = W.own_split(str(path), np.random.default_rng(0))
    assert symbols == len(np.unique(train.words[np.arange(train.words.shape[1]) < train.lengths[:, None]])) + 1  # 0 is for unknown words
    assert (test.words[:, 3] == 0).all()  # numbers of lines occur once: unknown in the test part
    monkeypatch.setenv("CLAIMLAB_DATA", str(path))
    lab = Experiment(STUDY, STUDY.make({**SMALL, "steps": 60}), arms=["text_gru", "text_sr_gru"]).run()
    last = lab.table[lab.table.metric == "text_accuracy"]
    assert set(last.arm) == {"text_gru", "text_sr_gru"}
    assert last[last.arm == "text_gru"].value.min() > 0.9
