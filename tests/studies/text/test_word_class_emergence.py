"""The word-class-emergence study against closed forms, scikit-learn, scipy, double loops and the grammar's own matrix."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import pdist, squareform
from scipy.stats import chisquare
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import ClassicalMDS
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestCentroid

from claimlab.experiment import Experiment
from claimlab.study import find
from claimlab.training import Run

STUDY = find("word-class-emergence")
study = STUDY.module
data, method = study.data, study.method
grammar = data.grammar
TINY = dict(words=100, tokens=4000, points=20, steps=6, seeds=2)


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke")).run()


def points(seed, n=20, d=3, classes=4):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, d))), torch.from_numpy(np.arange(n) % classes)


# ---- the score


@pytest.mark.parametrize("first, second", [(50, 50), (10, 30), (3, 97)])
def test_gdv_of_two_point_masses_follows_the_closed_form(first, second):
    """Within: 0. Between: the gap in half standard deviations, 0.5 / sqrt(q (1 - q)) for a share q in the first place."""
    x = torch.tensor([-1e3] * first + [1e3] * second)[:, None]
    q = first / (first + second)
    assert float(method.gdv(x, (x[:, 0] > 0).long())) == pytest.approx(-0.5 / math.sqrt(q * (1 - q)), abs=1e-6)


def test_gdv_of_permuted_labels_is_zero():
    x, labels = points(0, n=60, d=5)
    rng = torch.Generator().manual_seed(0)
    found = np.array([float(method.gdv(x, labels[torch.randperm(60, generator=rng)])) for _ in range(300)])
    assert abs(found.mean()) < 3 * found.std(ddof=1) / math.sqrt(len(found))
    assert found.std() > 0


def test_gdv_is_the_double_loop():
    x, labels = points(1)
    z = 0.5 * (x - x.mean(0)) / x.std(0, correction=0)
    far, kinds = squareform(pdist(z.numpy())), labels.numpy()

    def mean(a, b):
        return np.mean([far[i, j] for i in range(20) for j in range(20) if kinds[i] == a and kinds[j] == b and i != j])

    within = np.mean([mean(a, a) for a in range(4)])
    between = np.mean([mean(a, b) for a, b in itertools.combinations(range(4), 2)])
    assert float(method.gdv(x, labels)) == pytest.approx((within - between) / math.sqrt(3), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    arrays.arrays(float, 4, elements=st.floats(-50, 50)),
    arrays.arrays(float, 4, elements=st.floats(0.01, 100)),
    st.permutations(range(4)),
    st.integers(2, 4),
)
def test_gdv_does_not_notice_shift_scale_order_or_copies_of_dimensions(shift, scale, order, copies):
    x, labels = points(2, d=4)
    moved = (x * torch.from_numpy(scale) + torch.from_numpy(shift))[:, list(order)].repeat(1, copies)
    assert float(method.gdv(moved, labels)) == pytest.approx(float(method.gdv(x, labels)), abs=1e-6)


def test_dead_units_do_not_count():
    x, labels = points(3)
    dead = torch.cat([x, torch.zeros(20, 2), torch.full((20, 1), 7.0)], 1)
    assert float(method.gdv(dead, labels)) == pytest.approx(float(method.gdv(x, labels)), abs=1e-12)
    assert float(method.gdv(torch.ones(20, 3), labels)) == 0


def test_scaling_is_sklearns_and_keeps_the_distances_of_a_plane():
    x = np.random.default_rng(4).normal(size=(40, 6)) * [5, 3, 1, 1, 0.5, 0.1]
    mine = method.scaling(x)
    for other in (ClassicalMDS(n_components=2).fit_transform(x), PCA(2).fit_transform(x)):
        assert np.allclose(abs(mine), abs(other), atol=1e-6)
    assert np.allclose(pdist(method.scaling(x[:, :2])), pdist(x[:, :2]), atol=1e-6)


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(5)
    means, labels = 1.2 * rng.normal(size=(4, 10)), rng.integers(4, size=900)
    return (means[labels] + rng.normal(size=(900, 10))) * rng.uniform(0.1, 9, 10), labels


def test_the_probe_has_found_the_optimum(clouds):
    x, labels = clouds
    fit, judge = method.standard(x[:600], x[600:])
    best = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-9).fit(fit, labels[:600]).predict(judge)
    mine = method.probe(x[:600], labels[:600], x[600:])
    assert (mine == best).mean() > 0.99
    assert 0.5 < (mine == labels[600:]).mean() < 1


def test_centroids_are_sklearns(clouds):
    x, labels = clouds
    fit, judge = method.standard(x[:600], x[600:])
    assert (method.centroids(x[:600], labels[:600], x[600:]) == NearestCentroid().fit(fit, labels[:600]).predict(judge)).all()


def test_agreement_is_one_for_separate_clusters_and_nothing_for_shuffled_labels():
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(4), 50)
    x = 50 * np.eye(4)[labels] + rng.normal(size=(200, 4))
    assert method.agreement(x, labels, 0) == pytest.approx(1.0)
    mixed = rng.permutation(labels)
    assert method.agreement(x, mixed, 0) == pytest.approx(adjusted_rand_score(labels, mixed), abs=1e-12)


def test_slope_is_that_of_a_line():
    assert method.slope([0.3, 0.1, -0.1, -0.3]) == pytest.approx(-0.2)


# ---- counts of words


def test_trigrams_are_the_formula_and_sum_to_one():
    """Interpolated Kneser-Ney, written out with dictionaries; the last context was never seen."""
    words = np.random.default_rng(7).integers(2, 7, size=120)
    size, d, w = 8, 0.75, words.tolist()
    threes = Counter(zip(w, w[1:], w[2:], strict=False))
    twos = {(b, c) for _, b, c in threes}
    left = Counter((b, c) for _, b, c in threes)

    def unigram(c):
        return 0.999 * len({b for b, x in twos if x == c}) / len(twos) + 0.001 / size

    def bigram(b, c):
        total = sum(n for (x, _), n in left.items() if x == b)
        kinds = sum(x == b for x, _ in left)
        return (max(left[b, c] - d, 0) / total + d * kinds / total * unigram(c)) if total else unigram(c)

    def trigram(a, b, c):
        total = sum(n for (x, y, _), n in threes.items() if (x, y) == (a, b))
        kinds = sum((x, y) == (a, b) for x, y, _ in threes)
        return (max(threes[a, b, c] - d, 0) / total + d * kinds / total * bigram(b, c)) if total else bigram(b, c)

    asked = np.array([[w[0], w[1]], [w[50], w[51]], [0, w[3]], [1, 0]])
    mine = method.KneserNey(words, size)(asked)
    assert np.allclose(mine, [[trigram(a, b, c) for c in range(size)] for a, b in asked.tolist()])
    assert np.allclose(mine.sum(1), 1)


def test_ppmi_is_counted_right():
    words, size = np.random.default_rng(8).integers(6, size=200), 6
    near = np.zeros((size, size))
    for i in range(200):
        for j in range(max(0, i - 2), min(200, i + 3)):
            near[words[i], words[j]] += i != j
    p = near / near.sum()
    assert np.allclose(method.ppmi(words, size).toarray(), np.maximum(np.log(p / np.outer(p.sum(0), p.sum(0))), 0))
    vectors = method.ppmi_vectors(words, size, 4)
    assert np.allclose(vectors.std(0), 1)


# ---- the grammar


@pytest.fixture(scope="module")
def long_text():
    lex = grammar.lexicon(400, 0.0, np.random.default_rng(0))
    return lex, grammar.text(lex, 60_000, 0.0, np.random.default_rng(1))


def test_the_chain_follows_its_matrix():
    step = grammar.transitions()
    assert np.allclose(step.sum(1), 1)
    states = grammar.chain(40_000, np.random.default_rng(2))
    for name in (".", "verb_sg", "noun_obl", "prep"):
        a = grammar.STATES.index(name)
        seen = np.bincount(states[1:][states[:-1] == a], minlength=len(step))
        assert not seen[step[a] == 0].any()
        assert chisquare(seen[step[a] > 0], seen.sum() * step[a][step[a] > 0]).pvalue > 1e-3


def test_verbs_agree_with_their_subjects(long_text):
    lex, (words, _, _) = long_text
    named = [lex.words[w].rstrip("0123456789") for w in words]
    after = Counter((a, b.rpartition("_")[2]) for a, b in zip(named, named[1:], strict=False) if a in ("noun_sg", "noun_pl"))
    assert set(after) == {("noun_sg", "sg"), ("noun_pl", "pl")}


def test_words_of_a_slot_follow_zipf(long_text):
    lex, (words, _, _) = long_text
    held = lex.lists["adj"]
    seen = np.array([(words == w).sum() for w in held])
    chance = 1 / np.arange(1, len(held) + 1)
    assert chisquare(seen, seen.sum() * chance / chance.sum()).pvalue > 1e-3


def test_the_known_optimum_is_reached_by_counting(long_text):
    """With words of one class the best reader tells, for each last word, the most frequent next class."""
    _, (words, roles, _) = long_text
    tally = np.zeros((400, 8))
    half, rated = 30_000, np.flatnonzero(roles[1:] >= 0) + 1
    first, second = rated[rated < half], rated[rated >= half]
    np.add.at(tally, (words[first - 1], roles[first]), 1)
    right = (tally.argmax(1)[words[second - 1]] == roles[second]).mean()
    best = grammar.best_accuracy()
    assert abs(right - best) < 4 * math.sqrt(best * (1 - best) / len(second))


def test_as_many_words_are_ambiguous_as_asked_and_topics_stick():
    lex = grammar.lexicon(400, 0.15, np.random.default_rng(3))
    classes = {}
    for name, held in lex.lists.items():
        for w in held.tolist():
            classes.setdefault(w, set()).add(grammar.SLOTS[name][0])
    assert sum(len(kinds) == 2 for kinds in classes.values()) == 60
    words, _, topics = grammar.text(lex, 20_000, 1.0, np.random.default_rng(4))
    nouns = np.isin(words, [w for w in lex.lists["noun_sg"] if classes[w] == {"noun"}])
    assert (lex.topic[words] == topics)[nouns].mean() > 0.95


# ---- texts and questions


def params(**values):
    return STUDY.make(TINY | values)


def test_shuffling_keeps_sentences_and_their_ends():
    words, ends = np.array([2, 3, 4, 9, 5, 6, 7, 8, 9, 2, 3]), frozenset({9})
    mixed = data.shuffled(words, ends, np.random.default_rng(0))
    assert (mixed == words).sum() < len(words)
    assert ((mixed == 9) == (words == 9)).all()
    for part in (slice(0, 4), slice(4, 9), slice(9, 11)):
        assert sorted(mixed[part]) == sorted(words[part])


def test_test_contexts_never_occur_in_training():
    text = data.corpus(0, params())
    train, test = text.train[0].tolist(), text.test[0].tolist()
    known = {tuple(train[k - 9 : k]) for k in range(9, len(train))}
    fresh = [k for k in range(data.LONGEST, len(test)) if tuple(test[k - 9 : k]) not in known]
    assert data.new_contexts(text).tolist() == fresh
    twin = dataclasses.replace(text, test=text.train)
    assert not len(data.new_contexts(twin))


def test_questions_are_balanced_and_labelled_by_the_word_that_follows():
    p = params()
    text, q = study.prepared(0, p)
    sizes = [torch.bincount(q.roles[rows]) for rows in q.draws]
    assert all((s == s[0]).all() and len(s) == 8 for s in sizes)
    words, roles, _ = text.test
    context = q.contexts[q.draws[0][0]].tolist()
    spots = [k for k in range(p.context, len(words)) if words[k - p.context : k].tolist() == context]
    assert int(q.roles[q.draws[0][0]]) in {int(roles[k]) for k in spots}


# ---- networks and arms


def weights(run):
    return torch.cat([w.detach().flatten() for net in run.members for w in net.parameters()])


def trained(arm="trained", steps=3, **values):
    run = Run(study.ARMS[arm](params(**values)), [0, 1], steps, 10**9, device="cpu")
    for _ in range(steps):
        run.advance()
    return run


def test_no_class_enters_training(monkeypatch):
    plain = weights(trained())
    whole = data.corpus

    def relabelled(seed, p):
        text = whole(seed, p)
        return dataclasses.replace(text, train=(text.train[0], (text.train[1] + 1) % 8, text.train[2]))

    study._prepared.cache_clear()
    monkeypatch.setattr(data, "corpus", relabelled)
    assert torch.equal(weights(trained()), plain)
    study._prepared.cache_clear()


def test_with_one_word_of_context_both_arms_are_the_same():
    assert torch.equal(weights(trained(context=1)), weights(trained("one_word_context", context=1)))
    assert not torch.equal(weights(trained()), weights(trained("one_word_context")))


@pytest.mark.parametrize("body", ["mlp", "lstm"])
def test_hidden_words_are_not_seen(body):
    net = method.Reader(50, 9, 3, body, visible=1)
    x = torch.randint(2, 50, (5, 9), generator=torch.Generator().manual_seed(0))
    other = torch.cat([x[:, :-1].flip(1), x[:, -1:]], 1)
    assert torch.equal(net(x), net(other))
    net.visible = 9
    assert not torch.allclose(net(x), net(other))
    assert len(net.layers(x)) == 4


def test_a_recurrent_body_learns_in_the_plain_loop():
    run = trained(body="lstm", steps=8)
    assert not run.stacked
    with torch.no_grad():
        before = [net(q.ahead[0]).softmax(-1)[torch.arange(len(q.ahead[1])), q.ahead[1]].log().mean()
                  for net, q in ((run.fresh(0), run.tasks[0].probes), (run.members[0], run.tasks[0].probes))]  # fmt: skip
    assert before[1] > before[0]


def test_fixed_vectors_stay_and_the_untrained_network_is_the_start():
    run = trained("pretrained_vectors")
    assert torch.equal(run.members[0].embedding, run.tasks[0].vectors().float())
    assert "embedding" not in dict(run.members[0].named_parameters())
    start, other = (Run(study.ARMS[a](params()), [0, 1], device="cpu").members for a in ("untrained", "trained"))
    assert all(torch.equal(a, b) for one, two in zip(start, other, strict=True)
               for a, b in zip(one.parameters(), two.parameters(), strict=True))  # fmt: skip


def test_in_a_first_order_text_the_last_word_says_it_all():
    """No ambiguity, no topics: trained and one_word_context come out alike, near the optimum of the grammar's matrix."""
    p = STUDY.make(dict(words=60, tokens=20000, points=20, steps=160, lr=0.01, ambiguity=0.0, topic_strength=0.0, seeds=2))
    lab = Experiment(STUDY, p, arms=["trained", "one_word_context", "trigram"]).run()
    rows = lab.table[lab.table["metric"] == "next_class_probe_accuracy"].groupby("arm")["value"].mean()
    noise = 3 * math.sqrt(0.25 / 6000)  # two seeds, 3,000 contexts each
    assert abs(rows["trained"] - rows["one_word_context"]) < 0.03  # nine words cost a little: there is more to fit
    assert rows["one_word_context"] == pytest.approx(grammar.best_accuracy(), abs=noise)
    assert rows["trigram"] == pytest.approx(grammar.best_accuracy(), abs=noise)


def test_smoke_has_all_metrics_figures_and_views(smoke):
    have = set(zip(smoke.table["arm"], smoke.table["metric"], strict=True))
    assert all((arm, c.metric) in have for c in STUDY.claims for arm in (c.arm, c.baseline) if arm)
    drawn = smoke.figures()
    assert set(drawn) == {"scaling", "over_time", "layers", "class_or_topic", "accuracy", "confusion"}
    assert all(any(t.z is not None if t.type == "heatmap" else len(t.y) for t in f.data) for f in drawn.values())
    shares = np.array(drawn["confusion"].data[0].z)
    assert np.allclose(shares.sum(1), 1)
    net = smoke.arms["trained"].members[0]
    shown = study.VIEWS["GDV of every layer"](net, smoke.params).data[0].y
    x = net.layers(net.contexts[::2])[-1].detach()
    assert shown[-1] == pytest.approx(float(method.gdv(x, net.roles[::2])))
    clouds = study.VIEWS["contexts on two principal components of each layer"](net, smoke.params).data
    assert {t.name for t in clouds} == set(grammar.CLASSES)


def test_a_finished_run_is_restored_from_its_state(smoke):
    other = Experiment(STUDY, smoke.params)
    other.load(smoke.state())
    for arm in ("trained", "untrained"):
        found, told = (torch.cat([w.flatten() for w in lab.arms[arm].members[1].parameters()]) for lab in (smoke, other))
        assert torch.equal(found, told)
    assert other.table.equals(smoke.table)


def test_the_control_takes_ambiguity_and_topics_away():
    assert STUDY.control.vanishes == ("more-than-last-word",)
    p = STUDY.make(TINY | STUDY.control.set)
    text = data.corpus(0, p)
    words, roles, _ = text.train
    assert all(len(set(roles[words == w].tolist())) == 1 for w in np.unique(words))


# ---- text of one's own


SENTENCE = "the quick government often gives a careful statement to them . "


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    parts = SENTENCE.split()
    for k in range(2):
        (tmp_path / f"{k}.txt").write_text(" ".join(rng.choice(parts, 26_000)))
    return tmp_path


def test_own_text_is_read_tagged_and_split(folder, monkeypatch):
    monkeypatch.setenv("CLAIMLAB_DATA", str(folder))
    text = data.corpus(1, params(vocabulary=100))
    assert text.classes == ("adjective", "adverb", "determiner", "noun", "preposition", "pronoun", "verb")
    assert len(text.train[0]) + len(text.test[0]) == 52_000
    assert len(text.train[0]) == pytest.approx(4 * len(text.test[0]), rel=0.1)
    assert set(text.test[2].tolist()) == {0, 1} and text.size == 102
    assert [text.words[w] for w in text.test[0][:3]] == data.own(str(folder))[0][0][1][1000:1003]
    rows = [(w, "A" if w in ("the", "a") else "B") for _, one in data.own(str(folder))[0] for w in one]
    (folder / "tags.tsv").write_text("\n".join("\t".join(row) for row in rows))
    data._prose.cache_clear()
    assert data.corpus(1, params(vocabulary=100)).classes == ("A", "B")


@pytest.mark.parametrize("spoil, said", [
    (lambda f: (f / "0.txt").write_bytes("caf\xe9 ".encode("latin-1") * 60_000), "not UTF-8"),
    (lambda f: [(f / f"{k}.txt").write_text(SENTENCE * 10) for k in range(2)], "at least 50,000"),
    (lambda f: [(f / f"{k}.txt").unlink() for k in range(2)], "no .txt file"),
    (lambda f: (f / "tags.tsv").write_text("the\tA\n"), "one for each token"),
    (lambda f: (f / "tags.tsv").write_text("the A\n"), "1 columns"),
    (lambda f: (f / "tags.tsv").write_text("zzz\tA\n" * 52_000), "tags 'zzz'"),
    (lambda f: [(f / f"{k}.txt").write_text("zq zw zx " * 9_000) for k in range(2)], "0 classes"),
])  # fmt: skip
def test_own_text_that_does_not_fit_is_refused(folder, spoil, said):
    spoil(folder)
    with pytest.raises(ValueError, match=said):
        data._prose(str(folder), 100, 0)


def test_a_class_with_too_few_contexts_is_refused(folder):
    flat = data.own(str(folder))[0]
    rows = [(w, "rare" if k < 60 else "common") for k, w in enumerate(w for _, one in flat for w in one)]
    (folder / "tags.tsv").write_text("\n".join("\t".join(row) for row in rows))
    with pytest.raises(ValueError, match="'rare' has .* test contexts"):
        data._prose(str(folder), 100, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.txt is not a file"):
        data.own(str(tmp_path / "gone.txt"))


@pytest.mark.parametrize("word, kind", [("the", "determiner"), ("quickly", "adverb"), ("statement", "noun"), ("running", "verb"),
                                        ("careful", "adjective"), ("them", "pronoun"), ("cat", ""), ("ring", "")])  # fmt: skip
def test_tags_of_known_words(word, kind):
    assert data.tag(word) == kind
