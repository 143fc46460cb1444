"""Data of the study `complex-aec`: speech-like sources, loudspeaker and room, whole clips, and a reader of one's own recordings.

Everything follows from a numpy generator that is passed in. Signals are arrays [clips, samples] at 8 kHz.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path

import numpy as np
import torch
from scipy import fft
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

RATE = 8000  # samples a second
SECOND = RATE
FRAME = 80  # samples (10 ms) for which the synthetic vocal tract stands still
RESPONSE = 512  # samples (64 ms) of a room response
LEVEL = 0.04  # root mean square of speech and echo at the microphone at 0 dB
LOOPBACK = 0.25  # peak of the loopback signal, so that it is about as loud as the echo
FAR, DOUBLE, NEAR = 0, 1, 2  # scenarios: far-end talk alone, double talk, near-end talk alone
ROLES = ("nearend_mic", "farend_speech", "nearend_speech")


# ---- sources


def speech(rng: np.random.Generator, speakers: np.ndarray, samples: int = SECOND) -> np.ndarray:
    """Speech-like signals [R, samples] of unit root mean square; `speakers` [R, 2] holds mean pitch in Hz and tract factor.

    Pulses (pitch: random walk within 90-240 Hz) or white noise pass three resonators (AR(6)) that change every 80-200 ms;
    a syllabic envelope of 3-6 Hz with pauses multiplies the result.
    """
    rows, frames = len(speakers), -(-samples // FRAME)
    segment, formants, voiced = _segments(rng, rows, frames)
    walk = np.cumsum(0.03 * rng.standard_normal((rows, frames)), 1)
    pitch = np.clip(speakers[:, :1] * np.exp(walk), 90, 240).repeat(FRAME, 1)
    turns = np.floor(np.cumsum(pitch / RATE, 1) + rng.random((rows, 1)))
    pulses = np.diff(turns, axis=1, prepend=turns[:, :1]) * np.sqrt(RATE / pitch)  # power 1, as the noise has
    sounding = np.take_along_axis(voiced, segment, 1).repeat(FRAME, 1)
    source = np.where(sounding, pulses, 0.5 * rng.standard_normal(pulses.shape))
    heard = _tract(source, segment, formants * speakers[:, 1, None, None]) * _syllables(rng, rows, frames * FRAME)
    heard = heard[:, :samples]
    return heard / np.sqrt((heard**2).mean(1, keepdims=True) + 1e-12)


def _segments(rng, rows: int, frames: int):
    """The phone of each 10 ms [rows, frames], three formants in Hz of each phone [rows, phones, 3], and whether it is voiced."""
    most = frames // 8 + 2
    ends = np.cumsum(rng.integers(8, 21, (rows, most)), 1)
    index = (np.arange(frames)[None, :, None] >= ends[:, None, :]).sum(2)
    low, high = np.array([300, 900, 2200]), np.array([800, 2100, 3200])
    return index, low + (high - low) * rng.random((rows, most, 3)), rng.random((rows, most)) < 0.75


def _tract(source: np.ndarray, segment: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """All-pole filter 1 / prod_i (1 - 2 r_i cos(w_i) z^-1 + r_i^2 z^-2), one loop over samples for all rows together."""
    angle = 2 * np.pi * np.minimum(formants, 0.45 * RATE) / RATE
    radius = np.exp(-np.pi * np.array([80, 120, 200]) / RATE)
    poly = np.ones((*formants.shape[:2], 1))
    for i in range(3):
        turn = angle[..., i]
        section = np.stack([np.ones_like(turn), -2 * radius[i] * np.cos(turn), np.full_like(turn, radius[i] ** 2)], -1)
        longer = np.zeros((*poly.shape[:2], poly.shape[2] + 2))
        for k in range(3):
            longer[..., k : k + poly.shape[2]] += section[..., k : k + 1] * poly
        poly = longer
    gain = poly.sum(-1)  # one at 0 Hz: phones differ less in loudness
    rows, samples = source.shape
    out, drive = np.zeros((samples + 6, rows)), np.ascontiguousarray(source.T)
    here = np.arange(rows)
    for n in range(samples):
        if n % FRAME == 0:
            now = segment[:, n // FRAME]
            taps, loud = np.ascontiguousarray(poly[here, now, :0:-1].T), np.abs(gain[here, now])
        out[n + 6] = loud * drive[n] - (taps * out[n : n + 6]).sum(0)
    return out[6:].T


def _syllables(rng, rows: int, samples: int) -> np.ndarray:
    """Envelope in [0, 1]: raised cosines at 3-6 Hz, about a fifth of them left out."""
    rate, start = rng.uniform(3, 6, (rows, 1)), rng.random((rows, 1))
    turns = start + rate * np.arange(0, samples, 8) / RATE  # a millisecond apart: it moves slowly
    spoken = rng.random((rows, int(6 * samples / RATE) + 3)) < 0.8
    spoken[np.arange(rows), rng.integers(1, 3, rows)] = True  # nobody is silent for a whole clip
    return ((0.5 - 0.5 * np.cos(2 * np.pi * turns)) * np.take_along_axis(spoken, turns.astype(int), 1)).repeat(8, 1)


def voices(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` speakers [count, 2]: mean pitch in Hz, factor on all formants (length of the vocal tract)."""
    return np.stack([rng.uniform(100, 220, count), rng.uniform(0.85, 1.15, count)], 1)


# ---- loudspeaker, room, noise


def loudspeaker(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """g(x) = tanh(a x) / a, and g(x) = x where a = 0; x [R, T] with peak 1, a [R]."""
    a = np.asarray(a, float)[:, None]
    return np.where(a > 0, np.tanh(a * x) / np.where(a > 0, a, 1), x)


def rooms(rng: np.random.Generator, delay: np.ndarray) -> np.ndarray:
    """Impulse responses [R, delay + 64 ms] of unit energy: `delay` [R] samples, then white noise times exp(-t / (20-60 ms))."""
    rows = len(delay)
    decay = rng.uniform(0.020, 0.060, (rows, 1)) * RATE
    tail = np.exp(-np.arange(RESPONSE) / decay) * rng.standard_normal((rows, RESPONSE))
    tail /= np.sqrt((tail**2).sum(1, keepdims=True))
    h = np.zeros((rows, int(delay.max(initial=0)) + RESPONSE))
    np.put_along_axis(h, delay[:, None] + np.arange(RESPONSE), tail, 1)
    return h


def convolve(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Causal convolution of each row, cut to the length of x."""
    size = fft.next_fast_len(x.shape[1] + h.shape[1] - 1, real=True)
    return fft.irfft(fft.rfft(x, size) * fft.rfft(h, size), size)[:, : x.shape[1]]


def noise(rng: np.random.Generator, rows: int, samples: int) -> np.ndarray:
    """Noise [rows, samples] of unit root mean square whose amplitude falls as f^-c with c in U(0, 1)."""
    spectrum = fft.rfft(rng.standard_normal((rows, samples)))
    spectrum *= np.maximum(np.arange(spectrum.shape[1]), 20.0) ** -rng.random((rows, 1))
    found = fft.irfft(spectrum, samples)
    return found / np.sqrt((found**2).mean(1, keepdims=True))


# ---- clips


@dataclass(frozen=True)
class Clips:
    """Signals [C, T] of microphone, loopback and near-end speech, the scenario [C], and the sample at which the path changes
    [C] (-1: it does not, or nobody knows)."""

    mic: Tensor
    far: Tensor
    near: Tensor
    scenario: Tensor
    change: Tensor

    def of(self, scenario: int) -> Tensor:
        """Indices of the clips of one scenario."""
        return (self.scenario == scenario).nonzero().flatten()


@dataclass(frozen=True)
class World:
    """What clips are drawn from: largest delay in ms or one delay for each clip in samples, centre of the distortion a,
    mean speech-to-echo ratio in dB, sample of a path change (None: anywhere)."""

    delay_ms: float = 30.0
    nonlinearity: float = 1.5
    ser_db: float = 0.0
    change: int | None = None


def clips(rng: np.random.Generator, scenario: np.ndarray, speakers: np.ndarray, world: World, delay: np.ndarray | None = None) -> Clips:
    """y = s + h * g(x) + n for each entry of `scenario` [C]; in every second clip of a scenario the room h changes.

    SER in U(-10, 10) dB around `world.ser_db`, half of it by the speech and half by the echo; SNR in U(5, 25) dB.
    """
    count = len(scenario)
    pairs = np.array([rng.choice(len(speakers), 2, replace=False) for _ in range(count)])
    s, x = np.split(speech(rng, speakers[pairs.T.ravel()]), 2)
    x = x / np.abs(x).max(1, keepdims=True)  # the loudspeaker's full scale is 1
    a = world.nonlinearity * rng.uniform(1 / 3, 2, count)
    played = loudspeaker(x, a)
    top = int(world.delay_ms * RATE / 1000)
    first, second = (rng.integers(0, top + 1, count) if delay is None else delay for _ in range(2))
    at = rng.integers(SECOND // 10, SECOND * 9 // 10, count) if world.change is None else np.full(count, world.change)
    place = np.array([(scenario[:i] == scenario[i]).sum() for i in range(count)])
    at = np.where((place % 2 == 1) & (scenario != NEAR), at, SECOND)
    before = np.arange(SECOND) < at[:, None]
    echo = np.where(before, convolve(played, rooms(rng, first)), convolve(played, rooms(rng, second)))
    echo /= np.sqrt((echo**2).mean(1, keepdims=True) + 1e-12)
    ser = world.ser_db + rng.uniform(-10, 10, (count, 1))
    s, echo = LEVEL * 10 ** (ser / 40) * s, LEVEL * 10 ** (-ser / 40) * echo
    hiss = LEVEL * 10 ** ((ser / 2 - rng.uniform(5, 25, (count, 1))) / 20) * noise(rng, count, SECOND)
    silent, talking = (scenario == NEAR)[:, None], (scenario != FAR)[:, None]
    s, x, echo = s * talking, np.where(silent, 0, LOOPBACK * x), np.where(silent, 0, echo)
    tensors = (torch.from_numpy(part.astype(np.float32)) for part in (s + echo + hiss, x, s))
    return Clips(*tensors, torch.from_numpy(scenario), torch.from_numpy(np.where(at < SECOND, at, -1)))


@lru_cache(maxsize=12)
def made(seed: int, count: int, tests: int, delay_ms: float, nonlinearity: float, ser_db: float, path: str = "") -> tuple[Clips, Clips]:
    """Training and test clips of `seed`, a third of each scenario, by different speakers; or those of one's own folder."""
    if path:
        return _split(recordings(path), seed)
    rng = np.random.default_rng(seed)
    known, unknown = voices(rng, 40), voices(rng, 20)
    train = clips(rng, np.arange(count) % 3, known, World(delay_ms, nonlinearity))
    return train, clips(rng, np.arange(tests) % 3, unknown, World(delay_ms, nonlinearity, ser_db, SECOND // 2))


@lru_cache(maxsize=8)
def delayed(seed: int, delays: tuple[int, ...], each: int, nonlinearity: float, ser_db: float) -> Clips:
    """Double talk in rooms of exactly these delays in samples, `each` clips for every one, by speakers of their own."""
    rng = np.random.default_rng([seed, 1])
    world = World(0, nonlinearity, ser_db, SECOND // 2)
    return clips(rng, np.full(each * len(delays), DOUBLE), voices(rng, 20), world, np.repeat(delays, each))


# ---- a folder of one's own: nearend_mic*, farend_speech*, nearend_speech* with a shared id at the end of the name


@lru_cache(maxsize=2)
def recordings(path: str) -> Clips:
    """Clips of one second from the triples of WAV files in `path`; ValueError names the file, what is wrong and what is allowed."""
    parts = [torch.from_numpy(_triple(key, files)) for key, files in sorted(_triples(path).items())]
    mic, far, near = torch.cat(parts, 1)
    loud = [part.square().mean(1) > 1e-7 for part in (far, near)]
    scenario = torch.where(loud[0] & loud[1], DOUBLE, torch.where(loud[0], FAR, NEAR))
    found = Clips(mic, far, near, scenario, torch.full((len(mic),), -1))
    for code, name in ((DOUBLE, "double talk"), (NEAR, "near-end talk alone"), (FAR, "far-end talk alone")):
        if len(found.of(code)) < 4:
            raise ValueError(f"{path} holds {len(found.of(code))} seconds of {name}; at least 4 are needed")
    return found


def _triples(path: str) -> dict[str, dict[str, Path]]:
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"CLAIMLAB_DATA names {path}, which is not a folder of WAV files")
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.rglob("*.wav")):
        if match := re.fullmatch(rf"({'|'.join(ROLES)})(?:_signal)?_?(.+)\.wav", file.name):
            found.setdefault(match[2], {})[match[1]] = file
    if not found:
        raise ValueError(f"{folder.name} holds no files such as {ROLES[0]}_fileid_1.wav; needed are {', '.join(ROLES)}")
    for key, files in found.items():
        if missing := [role for role in ROLES if role not in files]:
            raise ValueError(f"{folder.name}: {key} has no {' and no '.join(missing)}; every id needs {', '.join(ROLES)}")
    return found


def _triple(key: str, files: dict[str, Path]) -> np.ndarray:
    """[3, clips, 8000] float32 of one id."""
    read = {role: _wave(files[role]) for role in ROLES}
    rates = {role: rate for role, (rate, _) in read.items()}
    if len(set(rates.values())) > 1:
        raise ValueError(f"{key}: sampling rates differ ({', '.join(f'{r} {v} Hz' for r, v in rates.items())}); they must be equal")
    lengths = [len(wave) for _, wave in read.values()]
    shortest = min(lengths)
    if max(lengths) > 1.05 * shortest:
        raise ValueError(f"{key}: lengths of {', '.join(map(str, lengths))} samples differ by more than 5 %")
    rate = next(iter(rates.values()))
    down = gcd(rate, RATE)
    waves = resample_poly(np.stack([wave[:shortest] for _, wave in read.values()]), RATE // down, rate // down, axis=1)
    if waves.shape[1] < SECOND:
        raise ValueError(f"{key} lasts {waves.shape[1] / RATE:.2f} s; at least one second is needed")
    whole = waves.shape[1] // SECOND
    return waves[:, : whole * SECOND].reshape(3, whole, SECOND).astype(np.float32)


def _wave(file: Path) -> tuple[int, np.ndarray]:
    try:
        rate, wave = wavfile.read(file)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file.name} is not a readable WAV file: {error}") from None
    if wave.ndim != 1:
        raise ValueError(f"{file.name} has {wave.shape[1]} channels; one is allowed")
    if not len(wave) or not 8000 <= rate <= 48000:
        raise ValueError(f"{file.name} has {len(wave)} samples at {rate} Hz; some are needed, at 8,000 to 48,000 Hz")
    if wave.dtype == np.uint8:
        wave = wave.astype(np.float64) - 128.0
        full = 128.0
    else:
        full = float(np.iinfo(wave.dtype).max) if wave.dtype.kind == "i" else 1.0
    wave = wave.astype(np.float64) / full
    if not np.isfinite(wave).all():
        raise ValueError(f"{file.name} holds samples that are no numbers")
    if (share := (np.abs(wave) >= 0.9999).mean()) > 1e-3:
        raise ValueError(f"{file.name} is clipped: {share:.1%} of its samples are at full scale; at most 0.1 % are allowed")
    return rate, wave


def _split(all_clips: Clips, seed: int) -> tuple[Clips, Clips]:
    """Three quarters of each scenario for training, one for testing."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for code in (FAR, DOUBLE, NEAR):
        order = torch.from_numpy(rng.permutation(all_clips.of(code).numpy()))
        cut = len(order) * 3 // 4
        train.append(order[:cut])
        test.append(order[cut:])
    names = ("mic", "far", "near", "scenario", "change")
    train_rows, test_rows = torch.cat(train), torch.cat(test)
    return tuple(Clips(*(getattr(all_clips, name)[rows] for name in names)) for rows in (train_rows, test_rows))
