"""complex AEC: complex layers, spectra, filter and measures against torch, numpy, scipy and closed forms; equal arms at the
limit knob; own recordings."""

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import lfilter
from torch.nn.functional import conv2d, leaky_relu, pad

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.audio import _complex_aec_data as D
from claimlab.studies.audio import _complex_aec_method as T
from claimlab.training import Run

STUDY = study.find("complex-aec")
M = STUDY.module


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


def white(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- complex layers


def as_channels(z):
    return torch.view_as_real(z).permute(0, 1, 4, 2, 3).flatten(1, 2)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 4), (1, 1)])
def test_pseudo_complex_convolution_is_torch_convolution_of_complex_tensors(kernel, dilation):
    z = torch.complex(white(2, 3, 9, 14), white(2, 3, 9, 14, seed=1))
    layer = T.Convolution(3, 5, kernel, dilation)
    weight = torch.complex(*layer.weight)
    reach = dilation * (kernel - 1)
    wanted = conv2d(pad(z, (reach, 0, reach // 2, reach // 2)), weight, dilation=dilation)
    assert torch.allclose(layer(as_channels(z)), as_channels(wanted), atol=1e-5)


@pytest.mark.parametrize("is_complex", [True, False])
def test_with_all_dilations_one_the_block_is_an_ordinary_dense_block(is_complex):
    parts, growth = (2, 3) if is_complex else (1, 3)
    block = T.D2(2, growth, 3, is_complex).eval()
    for group in block.groups:
        group.dilation, group.reach = 1, 2
    kernels = [T.tied(*g.weight) if is_complex else g.weight[0] for g in block.groups]
    x = white(2, 2 * parts, 11, 13)
    seen = [x]
    for layer in range(3):
        mine = [k.split(parts * growth)[layer - i] for i, k in enumerate(kernels[: layer + 1])]  # group i feeds layers i, i + 1, ...
        joined = conv2d(pad(torch.cat(seen, 1), (2, 0, 1, 1)), torch.cat(mine, 1))
        seen.append(leaky_relu(joined / (1 + 1e-5) ** 0.5, 0.1))  # batch norm that has seen nothing yet
    assert torch.allclose(block(x), torch.cat(seen[1:], 1), atol=1e-5)


def test_each_group_has_its_own_dilation_and_the_ablation_one_a_layer():
    assert [g.dilation for g in T.D2(2, 4, 3, True).groups] == [1, 2, 4]
    single = T.D2(2, 4, 3, True, multidilated=False)
    assert [(g.dilation, g.weight.shape[2]) for g in single.groups] == [(1, 2), (2, 6), (4, 10)]
    assert M.size(single) == M.size(T.D2(2, 4, 3, True))
    assert single(white(1, 4, 9, 9)).shape == (1, 24, 9, 9)


@pytest.mark.parametrize("is_complex", [True, False])
def test_masks_look_back_at_least_eight_frames_and_never_ahead(is_complex):
    net = T.D3(4, 2, 2, is_complex).eval()
    y, x = T.stft(white(1, 3200)), T.stft(white(1, 3200, seed=1))
    before = net(y, x)
    late = x.clone()
    late[..., 30:] += 1
    for a, b in zip(before, net(y, late), strict=True):
        assert torch.equal(a[..., :30], b[..., :30]) and not torch.equal(a[..., 30:], b[..., 30:])
    early = x.clone()
    early[..., 20] += 1
    assert not torch.equal(before[0][..., 28], net(y, early)[0][..., 28])


def test_masks_keep_their_bounds_and_begin_with_the_microphone():
    for is_complex in (True, False):
        first, second = T.bounded(torch.zeros(1, 4 if is_complex else 2, 2, 2), 2, is_complex)
        assert torch.allclose(first, torch.ones_like(first), atol=1e-6) and not second.any()
    gate, scale = T.bounded(1e3 * white(2, 2, 9, 9), 2, False)
    assert gate.aminmax() == (0.0, 2.0) and scale.aminmax() == (-2.0, 2.0)
    for mask in T.bounded(1e3 * white(2, 4, 9, 9), 2, True):
        assert mask.real.aminmax() == (-2.0, 2.0) == mask.imag.aminmax()


def test_real_network_has_as_many_parameters():
    for growth, blocks in ((4, 2), (6, 3)):
        wanted = M.size(T.D3(growth, blocks, 2))
        found = M.size(T.D3(M.real_growth(growth, blocks), blocks, 2, is_complex=False))
        nearby = [M.size(T.D3(M.real_growth(growth, blocks) + d, blocks, 2, is_complex=False)) for d in (-1, 1)]
        assert abs(found / wanted - 1) < 0.2 and abs(found - wanted) <= min(abs(n - wanted) for n in nearby)


def test_cascade_is_a_sum_with_another_second_mask():
    y, x, a, b = (torch.complex(white(5, 4, seed=s), white(5, 4, seed=s + 9)) for s in range(4))
    assert torch.allclose(T.combine("cascade", [a, b], y, x), T.combine("sum", [a, -a * b], y, x), atol=1e-5)
    assert torch.equal(T.combine("single", [a], y, x), a * y)


# ---- spectra and measures


def test_spectra_are_those_of_numpy_and_return_to_the_wave():
    wave = white(3, 8000)
    spectrum = T.stft(wave)
    assert spectrum.shape == (3, 65, 126)
    assert (T.istft(spectrum) - wave).abs().max() < 1e-5
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(128) / 128)
    frame = wave[1, 64 * 49 : 64 * 49 + 128].numpy()
    assert np.allclose(spectrum[1, :, 50].numpy(), np.fft.rfft(frame * window), atol=1e-4)


@pytest.mark.parametrize("delay", [2, 4, 6])
def test_a_complex_mask_undoes_a_delay_and_a_magnitude_mask_cannot(delay):
    x = white(1, 8000)
    late = torch.cat([torch.zeros(1, delay), x[:, :-delay]], 1)
    spectrum = T.stft(x)
    rebuilt = T.istft(T.delay_mask(delay) * spectrum)
    assert T.erle(late, late - rebuilt) > 20
    wanted = T.stft(late)
    best = (wanted * spectrum.conj()).real / spectrum.abs().square()  # the least-squares real mask, free in every bin
    phase = torch.angle(wanted) - torch.angle(spectrum)
    bound = 10 * torch.log10(wanted.abs().square().sum() / (wanted.abs().square() * phase.sin().square()).sum())
    reached = 10 * torch.log10(wanted.abs().square().sum() / (wanted - best * spectrum).abs().square().sum())
    assert reached == pytest.approx(bound.item(), abs=0.05) and reached < 6
    ladder = 2 * torch.pi * torch.arange(65) * delay / 128
    flat = -10 * torch.log10(ladder.sin().square()[1:-1].mean())  # white x, phases as the closed form has them
    assert reached == pytest.approx(flat.item(), abs=1.0)


def test_si_sdr_knows_no_scale_and_equals_the_ratio_for_orthogonal_noise():
    s, n = torch.zeros(1000), torch.zeros(1000)
    s[:500], n[500:] = white(500), 0.3 * white(500, seed=1)
    wanted = 10 * torch.log10(s.square().sum() / n.square().sum())
    assert T.sisdr(s + n, s) == pytest.approx(wanted.item(), abs=1e-3)
    assert T.sisdr(7 * (s + n), s) == pytest.approx(wanted.item(), abs=1e-3)
    assert T.sisdr(s + n, 0.1 * s) == pytest.approx(wanted.item(), abs=1e-3)


def test_silent_targets_are_judged_by_what_is_left():
    mic = 0.1 * white(2, 3200)
    near = torch.stack([torch.zeros(3200), 0.05 * white(3200, seed=3)])
    loss = M.objective(T.stft(0.5 * mic), near, mic, 1.0)
    expected = (np.log10(0.25 + 1e-3) - T.sisdr(mic[1], near[1]).item() / 10) / 2
    assert loss == pytest.approx(expected, abs=1e-3)
    assert M.objective(T.stft(near), near, mic, 0.0) < 1e-3 < M.objective(T.stft(mic), near, mic, 0.0)
    estimate = T.stft(torch.zeros(2, 3200)).requires_grad_()
    M.objective(estimate, near, mic, 0.5).backward()
    assert estimate.grad.isfinite().all()


def test_levels_are_made_equal_before_echo_is_compared():
    _, test = D.made(1000, 12, 12, 30.0, 1.5, 0.0)
    out = test.near + 0.1 * test.mic
    loud, soft = M.measured(out, test), M.measured(0.01 * out, test)
    assert loud["erle_after_change_db"] == pytest.approx(soft["erle_after_change_db"].item(), abs=1e-3)
    assert loud["erle_after_change_db"] == pytest.approx(20 + 20 * np.log10(T.level(out[2::3], test.near[2::3]).item()), abs=0.01)
    assert T.erle(white(100), torch.zeros(100)) == 40
    same = M.measured(test.mic, test)
    assert same["sisdr_gain_db"] == 0 and abs(same["erle_far_db"]) < 1


# ---- the adaptive filter


def test_nlms_finds_the_room_and_equals_a_plain_loop():
    far, h = white(3, 6000), torch.from_numpy(D.rooms(np.random.default_rng(0), np.array([0, 9, 30]))[:, :64]).float()
    mic = torch.from_numpy(D.convolve(far.numpy(), h.numpy())).float()
    error, echo, w = T.nlms(far, mic, 64, 0.5)
    assert ((w - h).square().sum(1) / h.square().sum(1)).max() < 1e-2  # -20 dB
    assert torch.allclose(error + echo, mic, atol=1e-6)
    x, y, v = far[1].double().numpy(), mic[1].double().numpy(), np.zeros(64)
    kept = []
    for n in range(600):
        u = np.array([x[n - k] if n >= k else 0.0 for k in range(64)])
        kept.append(y[n] - v @ u)
        v = v + 0.5 * kept[-1] * u / (u @ u + 0.02)
    assert np.allclose(error[1, :600].numpy(), kept, atol=1e-4)


def test_geigel_holds_the_filter_still():
    far, mic = white(2, 900), white(2, 900, seed=1)
    found = T.geigel(far, mic, 50, 0.8, 20)
    one = [[abs(mic[r, n]) > 0.8 * far[r, max(0, n - 49) : n + 1].abs().max() for n in range(900)] for r in range(2)]
    held = [[any(row[max(0, n - 19) : n + 1]) for n in range(900)] for row in one]
    assert torch.equal(found, torch.tensor(held)) and 0 < found.float().mean() < 1
    error, echo, w = T.nlms(far, mic, 50, 0.5, torch.ones_like(found))
    assert torch.equal(error, mic) and not w.any()


def test_a_linear_loudspeaker_is_easier_for_the_filter():
    def removed(nonlinearity):
        rng = np.random.default_rng(3)
        clips = D.clips(rng, np.zeros(6, int), D.voices(rng, 6), D.World(30, nonlinearity, change=D.SECOND // 2))
        error, _ = M.cancelled(clips, 768, 0.5)
        return T.erle(clips.mic[:, 4000:], error[:, 4000:])[::2].mean()  # clips whose room stays

    assert removed(0.0) > removed(5.0) + 0.5


# ---- the data


def test_the_vocal_tract_is_the_all_pole_filter_of_scipy():
    rng = np.random.default_rng(0)
    formants, drive = rng.uniform(400, 3000, (2, 1, 3)), rng.standard_normal((2, 400))
    found = D._tract(drive, np.zeros((2, 5), int), formants)
    for r in range(2):
        poly = np.ones(1)
        for centre, width in zip(formants[r, 0], (80, 120, 200), strict=True):
            pole = np.exp((-np.pi * width + 2j * np.pi * centre) / D.RATE)
            poly = np.convolve(poly, np.poly([pole, pole.conj()]).real)
        assert np.allclose(found[r], lfilter([abs(poly.sum())], poly, drive[r]))


def test_microphone_is_speech_and_echo_and_noise_at_the_stated_ratio():
    rng = np.random.default_rng(5)
    kinds, people = np.repeat([D.FAR, D.DOUBLE, D.NEAR], 40), D.voices(rng, 20)
    clips = D.clips(rng, kinds, people, D.World(30, 1.5, 6.0, 4000))
    both = clips.of(D.DOUBLE)
    rest = clips.mic[both] - clips.near[both]
    ser = 10 * torch.log10(clips.near[both].square().mean(1) / rest.square().mean(1))
    assert ser.min() > -5.5 and ser.max() < 16 and abs(ser.mean() - 5) < 2.5  # 6 dB on average, less some noise
    assert not clips.near[clips.of(D.FAR)].any() and not clips.far[clips.of(D.NEAR)].any()
    assert (clips.change[clips.of(D.FAR)] == 4000).sum() == 20 == (clips.change[both] == 4000).sum()
    assert (clips.change[clips.of(D.NEAR)] == -1).all()
    assert torch.allclose(clips.far[both].abs().amax(1), torch.full((40,), D.LOOPBACK))


def test_loudspeaker_and_room():
    x = np.linspace(-1, 1, 21)[None]
    assert np.allclose(D.loudspeaker(x, [0.0]), x) and np.allclose(D.loudspeaker(x, [1e-3]), x, atol=1e-6)
    assert np.allclose(D.loudspeaker(x, [2.0]), np.tanh(2 * x) / 2)
    h = D.rooms(np.random.default_rng(0), np.array([3, 240]))
    assert np.allclose((h**2).sum(1), 1) and not h[0, :3].any() and not h[1, :240].any() and h[1, 240] != 0
    signal = np.random.default_rng(1).standard_normal((2, 900))
    assert np.allclose(D.convolve(signal, h)[1], np.convolve(signal[1], h[1])[:900])


# ---- the experiment


def test_with_one_mask_the_method_is_the_ablation():
    values = dict(steps=3, batch=2, crop_ms=200, clips=12, tests=12, combine="single")
    runs = [Run(M.ARMS[arm](STUDY.make(values)), [1000], 3) for arm in ("complex_dual", "complex_single")]
    for run in runs:
        for _ in run:
            pass
    pairs = zip(*(run.members[0].parameters() for run in runs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_two_stages_get_what_the_filter_left_and_arms_share_excerpts():
    p = STUDY.make(profile="smoke")
    end, two = (M.ARMS[a](p).bind(1000) for a in ("complex_dual", "nlms_plus_mask"))
    ours, theirs = (task.batch(None, torch.Generator().manual_seed(4), 0) for task in (end, two))
    assert torch.equal(ours[2], theirs[2]) and torch.equal(ours[3], theirs[3]) and torch.equal(ours[0], ours[3])
    assert torch.allclose(theirs[0] + theirs[1], ours[0], atol=1e-6) and not torch.equal(theirs[0], ours[0])
    taken = end.block(None, torch.Generator().manual_seed(4), 0, 10)
    assert torch.equal(taken[0].abs().sum(-1) > 0, torch.ones(10, 2, dtype=torch.bool))
    silent = taken[1].abs().sum(-1) == 0
    assert silent[1::2, 1].all() and not silent[::2].any()  # double talk, far end, double talk, near end, and again


def test_smoke_records_every_claim_and_every_figure_holds_data(smoke):
    for claim in STUDY.claims:
        for arm in (claim.arm, claim.baseline):
            rows = smoke.table[(smoke.table.arm == arm) & (smoke.table.metric == claim.metric)]
            assert set(rows.seed) == {1000, 1001} and np.isfinite(rows.value).all()
    assert "single_dilation" not in smoke.arms and "single_dilation" in Experiment(STUDY, STUDY.make(profile="full")).specs
    found = smoke.figures()
    assert set(found) == {"spectrograms", "echo over time", "gain against delay", "mask of a pure delay", "gain by scenario"}
    for figure in found.values():
        for trace in figure.data:
            values = trace.z if trace.type == "heatmap" else trace.y
            assert np.size(values) and np.isfinite(np.asarray(values, float)).all()
    assert len(found["spectrograms"].data) == 6
    heard = M.sounds(smoke)
    assert len(heard) == 6 and 0.85 < max(np.abs(w).max() for w in heard.values()) <= 0.91


def test_a_mask_learned_for_a_delay_has_the_slope_of_theory(smoke):
    from claimlab.studies.audio import _complex_aec_figures as F

    phase = np.unwrap(np.angle(F.fitted_mask(12).numpy()))
    assert np.polyfit(np.arange(61), phase[2:63], 1)[0] == pytest.approx(-2 * np.pi * 12 / 128, rel=0.02)


def test_views_follow_from_the_knobs_and_change_with_the_network(smoke):
    for view in M.VIEWS.values():
        drawn = {arm: view(smoke.arms[arm].members[0].eval(), smoke.params) for arm in ("complex_dual", "nlms_plus_mask")}
        again = view(smoke.arms["complex_dual"].members[0].eval(), smoke.params)
        assert drawn["complex_dual"].to_json() == again.to_json() != drawn["nlms_plus_mask"].to_json()


# ---- recordings of one's own


def write(folder, key, rate=8000, seconds=3.0, far=True, near=True, **changes):
    rng = np.random.default_rng(len(key))
    count = int(rate * seconds)
    waves = {"farend_speech": far * rng.standard_normal(count), "nearend_speech": near * rng.standard_normal(count)}
    waves["nearend_mic"] = waves["nearend_speech"] + 0.5 * waves["farend_speech"]
    for role, wave in waves.items():
        pcm = (2000 * wave).astype(np.int16)
        wavfile.write(folder / f"{role}_{key}.wav", rate, changes.get(role, pcm))


def folder_of(path):
    for k, (far, near) in enumerate([(True, True), (True, False), (False, True)]):
        write(path, f"fileid_{k}", far=far, near=near, seconds=6.2)
    return path


def test_own_recordings_run(tmp_path, monkeypatch):
    clips = D.recordings(str(folder_of(tmp_path)))
    assert [len(clips.of(code)) for code in (D.FAR, D.DOUBLE, D.NEAR)] == [6, 6, 6]
    wave = wavfile.read(tmp_path / "nearend_mic_fileid_0.wav")[1]
    assert torch.allclose(clips.mic[1], torch.from_numpy(wave[8000:16000] / 32767).float(), atol=1e-6)
    monkeypatch.setenv("CLAIMLAB_DATA", str(tmp_path))
    lab = Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[0, 1], arms=["nlms", "complex_dual", "nlms_plus_mask"]).run()
    assert "echo over time" not in lab.figures()  # nobody knows when a recorded room changed
    assert all(v.claim != "no-convergence-time" or v.verdict == "undecided" for v in lab.verdicts())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "farend_speech_fileid_1.wav").unlink(), "fileid_1 has no farend_speech"),
        (lambda f: write(f, "fileid_1", nearend_speech=np.zeros(20000, np.int16)), "more than 5 %"),
        (lambda f: wavfile.write(f / "nearend_mic_fileid_0.wav", 16000, np.zeros(99999, np.int16)), "sampling rates differ"),
        (lambda f: wavfile.write(f / "nearend_mic_fileid_0.wav", 8000, np.zeros((99, 2), np.int16)), "2 channels"),
        (lambda f: wavfile.write(f / "nearend_mic_fileid_0.wav", 8000, np.full(49600, 32767, np.int16)), "clipped"),
        (lambda f: wavfile.write(f / "nearend_mic_fileid_0.wav", 8000, np.full(49600, np.nan, np.float32)), "no numbers"),
        (lambda f: (f / "nearend_mic_fileid_0.wav").write_bytes(b"RIFFnothing"), "not a readable WAV"),
        (lambda f: write(f, "fileid_1", seconds=0.5), "at least one second"),
        (lambda f: write(f, "fileid_2", far=True, near=True), "near-end talk alone; at least 4"),
    ],
    ids=["role", "length", "rate", "stereo", "clipped", "nan", "broken", "short", "scenario"],
)
def test_recordings_that_do_not_fit_are_refused(tmp_path, spoil, words):
    spoil(folder_of(tmp_path))
    with pytest.raises(ValueError, match=words):
        D.recordings(str(tmp_path))


def test_absent_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        D.recordings(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no files such as nearend_mic"):
        D.recordings(str(tmp_path))
