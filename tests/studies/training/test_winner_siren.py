"""winner-siren: starts, spectra and kernel against scipy, scikit-image and finite differences; the limit; own files; figures."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special, stats
from scipy.io import wavfile
from skimage.metrics import peak_signal_noise_ratio

from claimlab import study
from claimlab.experiment import Experiment
from claimlab.studies.training import _winner_siren_data as data
from claimlab.studies.training import _winner_siren_method as method
from claimlab.training import Run

STUDY = study.find("winner-siren")
M = STUDY.module
SMALL = dict(steps=20, seeds=2, points=128, width=32)
NYQUIST = np.pi * 512  # rad per unit, of 1024 samples on [-1, 1]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def net_of(width=12, layers=3, omega=30.0, inputs=1, seed=0):
    return method.SineNet(inputs, width, layers, omega, rng(seed))


def trained(arm, **values):
    run = Run(arm(STUDY.make({**SMALL, **values})), [1000, 1001])
    for _ in run:
        pass
    return run


def weights(run):
    return [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in run.members]


@pytest.fixture(scope="module")
def smoke():
    return Experiment(STUDY, STUDY.make(profile="smoke"), seeds=[1000, 1001]).run()


# ---- the network and its start


def test_forward_is_the_equation():
    net, x = net_of(inputs=2, layers=2), torch.rand(5, 2, generator=rng(1)) * 2 - 1
    w, b = ([p.detach().numpy() for p in part] for part in (net.weights, net.biases))
    for k, point in enumerate(x.numpy()):
        h = np.sin(30 * (w[0].T @ point + b[0]))
        h = np.sin(30 * (w[1].T @ h + b[1]))
        assert net(x)[k].item() == pytest.approx((w[2].T @ h + b[2]).item(), abs=1e-4)


def test_standard_start_has_the_laws_of_the_paper():
    net, n = net_of(width=96, omega=20.0), 96
    spreads = [(net.weights[0], 1.0), (net.weights[1], np.sqrt(6 / n) / 20), (net.weights[2], np.sqrt(6 / n) / 20)]
    spreads += [(net.biases[0], 1.0), (net.biases[2], n**-0.5)]
    for part, spread in spreads:
        drawn = part.detach().flatten().double().numpy()
        assert np.abs(drawn).max() <= spread * (1 + 1e-6)
        assert stats.kstest(drawn, stats.uniform(-spread, 2 * spread).cdf).pvalue > 1e-3


def test_noise_moves_the_first_two_layers_by_its_scale_over_omega():
    plain, noisy = net_of(width=96), method.perturb(net_of(width=96), 64.0, 2.0, rng(5))
    for k, scale in ((0, 64.0), (1, 2.0)):
        moved = (noisy.weights[k] - plain.weights[k]).detach().flatten().double().numpy() * 30
        assert stats.kstest(moved, stats.norm(0, scale).cdf).pvalue > 1e-3
    for k in (2, 3):
        assert torch.equal(noisy.weights[k], plain.weights[k])
    assert all(torch.equal(a, b) for a, b in zip(noisy.biases, plain.biases, strict=True))


def test_first_layer_frequencies_are_a_share_of_nyquist():
    """Counted in the output: a unit of the first layer passes through zero w / pi times a unit of x."""
    s_0, s_1 = method.noise_scales(0.65, 0.08, 3.0, 1024, 7.0)
    assert s_0 == pytest.approx(0.08 * NYQUIST * (1 - np.exp(-4.55))) and s_1 == pytest.approx(1.95)
    net = method.perturb(net_of(width=400), s_0, s_1, rng(1))
    x = torch.linspace(-1, 1, 20001)[:, None]
    crossings = (torch.sin(net.phases(x)[0]).sign().diff(dim=0) != 0).sum(0) / 2  # on two units of x
    frequency = crossings.double() * np.pi
    # w0 W_0 of the standard start is uniform on +-30, so that its variance is 300
    assert frequency.square().mean().sqrt().item() == pytest.approx(np.sqrt(s_0**2 + 300), rel=0.12)


# ---- spectra


@pytest.mark.parametrize("n", [128, 129])
def test_power_obeys_parseval(n):
    y = np.random.default_rng(0).standard_normal((n, 3))
    assert np.allclose(method.power(y).sum(0), (y**2).mean(0))
    assert np.allclose(method.power(y.T, axis=1), method.power(y).T)


def test_centroid_of_a_pure_tone_is_its_frequency():
    x = data.grid(512)
    for k in (3, 64, 200):
        assert method.centroid(np.sin(np.pi * k * x + 0.4)) == pytest.approx(k / 256, abs=1e-9)
    rows, columns = np.meshgrid(data.grid(64), data.grid(64), indexing="ij")
    wave = np.cos(np.pi * (8 * rows + 6 * columns))
    assert method.centroid(wave) == pytest.approx(10 / 32, abs=1e-9)  # the radius of (8, 6)


@pytest.mark.parametrize("a", [0.5, 2.0, 6.0])
def test_side_bands_are_bessel_functions(a):
    """One sine layer after another: sin(a sin wx) has lines at odd multiples of w with amplitude 2 J_k(a)."""
    net = net_of(width=1, layers=2, omega=1.0).double()
    with torch.no_grad():
        for weight, value in zip(net.weights, (np.pi * 10, a, 1.0), strict=True):
            weight.fill_(value)
        for bias in net.biases:
            bias.zero_()
    with torch.no_grad():
        lines = method.power(net(torch.from_numpy(data.grid(1024))[:, None]).numpy())
    odd = np.arange(1, 50, 2)
    assert np.allclose(lines[10 * odd], (2 * special.jv(odd, a)) ** 2 / 2, atol=1e-12)
    assert lines.sum() == pytest.approx(lines[10 * odd].sum(), abs=1e-12)


def test_psnr_and_explained_variance_are_those_of_the_libraries():
    y, noise = torch.randn(200, generator=rng()), 0.1 * torch.randn(200, generator=rng(1))
    peak = float(y.abs().max())
    assert float(method.psnr(y, y + noise)) == pytest.approx(
        peak_signal_noise_ratio(y.numpy(), (y + noise).numpy(), data_range=peak), abs=1e-4
    )
    from sklearn.metrics import r2_score

    assert float(method.explained(y, y + noise)) == pytest.approx(r2_score(y.numpy(), (y + noise).numpy()), abs=1e-5)


# ---- the tangent kernel


def moved(net, change):
    """The answer of a copy whose weights are moved by `change`, one flat vector."""
    flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach() + change
    other = net_of(width=6, layers=2)
    other.double()
    torch.nn.utils.vector_to_parameters(flat, other.parameters())
    return other


def test_tangent_kernel_is_that_of_finite_differences():
    net, x = net_of(width=6, layers=2).double(), torch.linspace(-1, 1, 7).double()[:, None]
    size = sum(p.numel() for p in net.parameters())
    columns = []
    with torch.no_grad():
        for k in range(size):
            step = 1e-5 * torch.eye(size, dtype=torch.float64)[k]
            columns.append((moved(net, step)(x) - moved(net, -step)(x)) / 2e-5)
    slopes = torch.stack(columns, 1)
    assert torch.allclose(method.tangent_kernel(net, x), slopes @ slopes.T, rtol=1e-6, atol=1e-6)


def test_tangent_kernel_is_symmetric_positive_and_predicts_small_steps():
    """f_t = y + (1 - eta K)^t (f_0 - y) by eigen-decomposition, against gradient descent on |f - y|^2 / 2."""
    net, x = net_of(width=32, layers=2).double(), torch.linspace(-1, 1, 40).double()[:, None]
    y, kernel = torch.sin(9 * x[:, 0]), method.tangent_kernel(net, x).detach()
    assert torch.allclose(kernel, kernel.T, rtol=1e-12, atol=1e-12)
    values, vectors = torch.linalg.eigh(kernel)
    assert values[0] > -1e-9 * values[-1]
    eta, start = float(0.004 / values[-1]), net(x).detach()
    for t in range(1, 21):
        net.zero_grad()
        (0.5 * (net(x) - y).square().sum()).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= eta * p.grad
        predicted = y + vectors @ ((1 - eta * values) ** t * (vectors.T @ (start - y)))
        went = (net(x) - start).detach()
        assert (net(x).detach() - predicted).norm() < 0.05 * went.norm()


def test_energy_lies_where_the_target_does():
    basis = torch.linalg.qr(torch.randn(30, 30, generator=rng(), dtype=torch.float64))[0]
    basis = torch.linalg.qr(torch.cat([torch.ones(30, 1, dtype=torch.float64), basis[:, 1:]], 1))[0]  # the first is the mean
    kernel = basis @ torch.diag(torch.arange(30, 0, -1).double()) @ basis.T
    values, shares = method.energy_on(kernel, 5 + 3 * basis[:, 2] + 4 * basis[:, 20])
    assert torch.allclose(values, torch.arange(30, 0, -1).double())
    assert shares[2].item() == pytest.approx(0.36) and shares[20].item() == pytest.approx(0.64)
    assert method.leading(shares).item() == pytest.approx(0.36)  # the first three


# ---- targets


def test_targets_lie_in_their_bands_with_variance_one():
    bands = {"low": (0, 0.1, 20), "mixed": (0, 0.8, 410), "high": (0.5, 0.8, 30)}
    for name, (low, high, count) in bands.items():
        one = data.target(name, 3, 1024, 0.5)
        lines = method.power(one.y.double().numpy())
        filled = np.flatnonzero(lines > 1e-6) / 512
        assert len(filled) == count and filled.min() >= low and filled.max() <= high + 0.5 / 512
        assert one.y.double().var(correction=0).item() == pytest.approx(1, abs=1e-5)
        assert one.psi == pytest.approx(method.centroid(one.y.double().numpy()), abs=1e-4)
    pink = method.power(data.target("mixed", 3, 1024, 0.5).y.double().numpy())
    assert pink[10] / pink[100] == pytest.approx(10, rel=1e-3)
    assert not torch.equal(data.target("high", 3, 1024, 0.5).y, data.target("high", 4, 1024, 0.5).y)


def test_between_is_the_same_function_half_a_step_on():
    """By the sampling theorem: a phase of half a sample in the Fourier transform (all tones fit the interval)."""
    one = data.target("high", 0, 256, 0.5)
    turned = np.fft.irfft(np.fft.rfft(one.y.double().numpy()) * np.exp(1j * np.pi * np.arange(129) / 256), 256)
    assert np.allclose(one.between[1].numpy(), turned, atol=1e-4)
    assert torch.allclose(one.between[0] - one.x, torch.full_like(one.x, 1 / 256))


# ---- the arms


def test_without_noise_winner_is_siren_bit_for_bit():
    plain = trained(M.Standard)
    for arm in (M.Winner, M.FixedNoise):
        assert all(torch.equal(a, b) for a, b in zip(weights(trained(arm, s0_scale=0.0, b=0.0)), weights(plain), strict=True))
    assert not torch.equal(weights(trained(M.Winner))[0], weights(plain)[0])


def test_arms_share_the_standard_start_of_a_target():
    p = STUDY.make(SMALL)
    plain, noisy = Run(M.Standard(p), [7]).members[0].nets["high"], Run(M.Winner(p), [7]).members[0].nets["high"]
    alone = Run(M.FirstLayerOnly(p), [7]).members[0].nets["high"]
    for other in (noisy, alone):
        assert torch.equal(other.weights[2], plain.weights[2]) and not torch.equal(other.weights[0], plain.weights[0])
    assert torch.equal(alone.weights[1], plain.weights[1])


def test_winner_follows_the_centroid_and_fixed_noise_does_not():
    p = STUDY.make(SMALL)
    winner, fixed = M.Winner(p).bind(0), M.FixedNoise(p).bind(0)
    scales = {name: winner.scales(signal) for name, signal in winner.signals.items()}
    assert scales["low"][0] < scales["mixed"][0] < scales["high"][0] and scales["low"][1] < scales["high"][1]
    assert len({fixed.scales(signal) for signal in fixed.signals.values()}) == 1
    assert M.FirstLayerOnly(p).bind(0).scales(winner.signals["high"])[1] == 0.0


def test_a_rate_of_its_own_is_a_learning_rate_of_its_own():
    slow = trained(M.Slow)
    assert all(torch.equal(a, b) for a, b in zip(weights(slow), weights(high_only(0.25 * slow.task.p.lr)), strict=True))
    slow.set(lr=0.004)
    assert all(group["lr"] == 0.004 * slow.task.schedule(20, 20) for group in slow.ensembles[0].optimizers[""][0][0].param_groups)


def high_only(lr):
    class Plain(M.Standard):
        targets = ("high",)

    return trained(Plain, lr=lr)


def test_a_part_of_the_points_is_drawn_where_asked():
    task = M.Standard(STUDY.make({**SMALL, "batch": 32})).bind(1000)
    x, ys = task.batch(None, rng(), 0)
    place = [int((task.x == one).flatten().nonzero()[0]) for one in x]
    assert len(x) == 32 and torch.equal(ys, task.ys[:, place])
    with pytest.raises(ValueError, match="batch = 200 is more than points = 128"):
        STUDY.make({**SMALL, "batch": 200})


def test_images_are_fitted_and_denoised():
    p = STUDY.make({**SMALL, "images": True, "batch": 64, "steps": 20, "width": 16})
    run = Run(M.WinnerImages(p), [0], 1)
    task, net = run.tasks[0], run.members[0]
    s_0, s_1 = task.scales(task.signals["grass"])
    psi = task.signals["grass"].psi
    assert s_1 == pytest.approx(0.4 * psi) and s_0 == pytest.approx(0.04 * np.pi * 32 * (1 - np.exp(-5 * psi)))
    found = task.metrics(net)
    clean, noisy = task.signals["photograph"].y, task.signals["noisy"].y
    assert torch.equal(task.signals["noisy"].clean, clean) and (noisy - clean).std().item() == pytest.approx(0.2, rel=0.05)
    fit = net.nets["noisy"](task.x).detach()
    assert found["psnr_noisy_to_clean"].item() == pytest.approx(float(method.psnr(clean, fit)))
    assert task.signals["fine"].psi > task.signals["photograph"].psi


# ---- the experiment


def test_smoke_records_what_the_claims_read(smoke):
    last = smoke.table.sort_values("step").groupby(["arm", "metric", "seed"]).value.last()
    run = smoke.arms["winner"]
    for i, seed in enumerate(smoke.seeds):
        parts = [last["winner", f"psnr_{name}", seed] for name in M.SOUNDS]
        assert last["winner", "psnr_mean", seed] == pytest.approx(np.mean(parts))
        y, fit = run.tasks[i].signals["high"].y, run.members[i].nets["high"](run.tasks[i].x).detach()
        assert last["winner", "r2_high", seed] == pytest.approx(1 - float(((y - fit) ** 2).mean() / y.var(correction=0)), abs=1e-5)
        start = run.fresh(i)
        kernel = method.tangent_kernel(start.nets["high"], run.tasks[i].x).detach().numpy()
        vectors = np.linalg.eigh(kernel)[1][:, ::-1][:, :13]  # a tenth of 128
        centred = (y - y.mean()).double().numpy()
        share = ((vectors.T @ centred) ** 2).sum() / (centred**2).sum()
        assert last["winner", "ntk_energy_top10", seed] == pytest.approx(share, abs=1e-3)


def test_figures_and_views_hold_data(smoke):
    drawn = smoke.figures()
    assert len(drawn) == 7 and all(len(f.data) and f.layout.title.text for f in drawn.values())
    ends = smoke.table.sort_values("step").groupby(["arm", "metric", "seed"]).value.last()
    lines = {t.name: t for t in drawn["band"].data if t.mode == "lines+markers"}
    assert list(lines["WINNER"].x) == [0.0, 0.25, 0.5] and lines["WINNER"].y[2] == ends["winner", "psnr_high", 1000]
    sums = next(t for t in drawn["kernel"].data if t.name == "WINNER").y
    assert sums[12] == pytest.approx(ends["winner", "ntk_energy_top10"].mean()) and sums[-1] == pytest.approx(1, abs=1e-5)
    net = smoke.arms["siren"].members[0]
    target, _, fit, _ = M.VIEWS["signal and fit"](net, smoke.params).data
    assert np.allclose(target.y, net.ys[2][32:96]) and np.allclose(fit.y, net.nets["high"](net.x).detach()[32:96])
    values, energy = M.VIEWS["tangent kernel"](net, smoke.params).data
    assert energy.y[-1] == pytest.approx(1, abs=1e-6) and all(np.diff(values.y) <= 0)


def test_the_control_asks_for_low_tones():
    p = STUDY.make(dict(STUDY.Params.CONTROL.set))
    lines = method.power(data.target("high", 0, p.points, p.band_low).y.double().numpy())
    assert np.flatnonzero(lines > 1e-6).max() <= 0.3 * 512 and set(STUDY.Params.CONTROL.vanishes) <= {c.id for c in M.CLAIMS}


# ---- a file of one's own


def tone(n=2000):
    return np.sin(np.arange(n) * 2 * np.pi * 1000 / 8000)


def test_own_sound_is_what_one_trains_on(tmp_path, monkeypatch):
    path = tmp_path / "tone.wav"
    wavfile.write(path, 8000, (tone() * 32767).astype(np.int16))
    found, told = data.own(str(path))
    assert np.allclose(found.y, tone(), atol=1e-4) and found.psi == pytest.approx(0.25, abs=0.02)  # 1 of 4 kHz
    assert "2000 of 2000 samples at 8000 Hz" in told and "centroid at 0.2" in told
    monkeypatch.setenv("CLAIMLAB_DATA", str(path))
    p = STUDY.make(SMALL)
    lab = Experiment(STUDY, replace(p, steps=20), seeds=[1000], arms=["winner_own"]).run()
    assert torch.equal(lab.arms["winner_own"].tasks[0].ys[0], found.y) and "psnr_own" in set(lab.table.metric)


def test_own_sound_is_scaled_cut_and_its_clipping_is_told(tmp_path):
    path = tmp_path / "loud.wav"
    wavfile.write(path, 8000, np.clip(128 + 200 * tone(40000), 0, 255).astype(np.uint8))
    found, told = data.own(str(path))
    share = float((np.abs(found.y.numpy()) >= 1 - 1e-4).mean())
    assert len(found.y) == 32000 and found.y.min() >= -1 and found.y.max() <= 1 and f"{share:.2%} clipped" in told and share > 0.2


def test_own_image_is_its_middle(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    found, told = data.own(str(tmp_path / "mine.png"))
    grey = pixels[:, 5:45].astype(float) @ [0.2125, 0.7154, 0.0721]
    assert found.sides == (40, 40) and np.allclose(found.y.reshape(40, 40), grey / 127.5 - 1, atol=1e-5) and "40 x 50" in told


@pytest.mark.parametrize("name, rate, samples, said", [
    ("a.wav", 8000, np.zeros(2000, np.int16), "silent"), ("b.wav", 8000, tone(300).astype(np.float32), "300 samples"),
    ("c.wav", 4000, tone().astype(np.float32), "4000 samples a second"), ("d.wav", 8000, np.zeros((2000, 2), np.int16), "2 channels"),
    ("e.wav", 8000, np.full(2000, np.nan, np.float32), "2000 values that are not finite"),
])  # fmt: skip
def test_own_sound_is_refused_with_the_reason(tmp_path, name, rate, samples, said):
    wavfile.write(tmp_path / name, rate, samples)
    with pytest.raises(ValueError, match=said):
        data.own(str(tmp_path / name))


def test_what_is_no_signal_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        data.own(str(tmp_path / "none.wav"))
    for name, content, said in (("a.mp3", b"x", "another kind"), ("b.wav", b"RIFF" + struct.pack("<I", 4) + b"oops", "can be read"),
                                ("c.png", b"no image", "not a readable PNG")):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said):
            data.own(str(tmp_path / name))
