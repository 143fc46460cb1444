"""The method of the study `complex-aec`: spectra, complex masks, the multidilated network, and the adaptive filter it is held against.

C clips, T samples, K = 65 frequencies, M frames; complex spectra [C, K, M]. A complex feature map is a real tensor
[C, 2 c, K, M] in which channels 2 i and 2 i + 1 are real and imaginary part of the complex channel i.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear, max_pool1d, pad

WINDOW, HOP = 128, 64  # samples: 16 ms and 8 ms
SILENT = 1e-6  # mean square below which a target counts as silence


# ---- spectra and measures


def stft(wave: Tensor) -> Tensor:
    """Complex spectra [..., K, M] of waves [..., T], T a multiple of the hop; Hann window."""
    window = torch.hann_window(WINDOW, device=wave.device, dtype=wave.dtype)
    flat = torch.stft(wave.reshape(-1, wave.shape[-1]), WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    return flat.reshape(*wave.shape[:-1], *flat.shape[1:])


def istft(spectrum: Tensor) -> Tensor:
    """Waves [..., T] of spectra [..., K, M]: the inverse of `stft`."""
    window = torch.hann_window(WINDOW, device=spectrum.device, dtype=spectrum.real.dtype)
    flat = torch.istft(spectrum.reshape(-1, *spectrum.shape[-2:]), WINDOW, HOP, window=window)
    return flat.reshape(*spectrum.shape[:-2], -1)


def compress(spectrum: Tensor) -> Tensor:
    """|z|^0.5 exp(i arg z), differentiable at 0: quiet bins count for more."""
    power = spectrum.real.square() + spectrum.imag.square() + 1e-5
    return spectrum * power.sqrt().rsqrt()


def sisdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, [...] of waves [..., T]: with a = <e, s> / <s, s> it is
    10 log10(|a s|^2 / |e - a s|^2). Undefined for a silent target."""
    a = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + 1e-12)
    kept, rest = (a * target).square().sum(-1), (estimate - a * target).square().sum(-1)
    return 10 * torch.log10((kept + 1e-12) / (rest + 1e-12))


def erle(mic: Tensor, out: Tensor, cap: float = 40.0) -> Tensor:
    """Echo return loss enhancement in dB, [...] of waves [..., T]: 10 log10(|y|^2 / |out|^2), at most `cap`."""
    ratio = (mic.square().sum(-1) + 1e-12) / (out.square().sum(-1) + 1e-12)
    return (10 * torch.log10(ratio)).clamp_max(cap)


def level(estimate: Tensor, target: Tensor) -> Tensor:
    """How loud the target is in the estimate, over all clips [C, T]: sum <e, s> / sum <s, s>; a scalar."""
    return (estimate * target).sum() / (target.square().sum() + 1e-12)


# ---- pseudo-complex convolutions


def tied(real: Tensor, imag: Tensor) -> Tensor:
    """The real kernel [2 O, 2 I, ...] that does what W_r + i W_i [O, I, ...] does:
    (W_r + i W_i)(A + i B) = (W_r A - W_i B) + i (W_r B + W_i A)."""
    rows = torch.stack([torch.stack([real, -imag], 2), torch.stack([imag, real], 2)], 1)
    return rows.flatten(2, 3).flatten(0, 1)


class Convolution(nn.Module):
    """A convolution over frequency and time, causal in time; complex (channels are pairs, weights tied) or plain real.

    `width` and `out` count complex channels, or real ones in a real network. Stride 1, so that no resolution is lost.
    """

    def __init__(self, width: int, out: int, kernel: int, dilation: int = 1, is_complex: bool = True):
        super().__init__()
        parts = 2 if is_complex else 1
        scale = (2 / (parts * width * kernel**2)) ** 0.5  # Kaiming: a real channel sums parts * width * kernel^2 products
        self.weight = nn.Parameter(scale * torch.randn(parts, out, width, kernel, kernel))
        self.reach, self.dilation, self.is_complex = dilation * (kernel - 1), dilation, is_complex

    def forward(self, x: Tensor) -> Tensor:
        kernel = tied(*self.weight) if self.is_complex else self.weight[0]
        if not self.reach:  # 1x1: a matrix over channels
            return linear(x.permute(0, 2, 3, 1), kernel[..., 0, 0]).permute(0, 3, 1, 2)
        return conv2d(pad(x, (self.reach, 0, self.reach // 2, self.reach // 2)), kernel, dilation=self.dilation)


class D2(nn.Module):
    """Multidilated dense block: layer l sees the block's input and all earlier outputs, and the group that came from layer i
    is convolved with dilation 2^i (i = 0 is the block's input). Gives the outputs of all layers.

    A group feeds several layers with the same dilation, so its kernels for all of them are one convolution. With
    `multidilated` off (ablation), layer l uses dilation 2^l for every group.
    """

    def __init__(self, width: int, growth: int, layers: int, is_complex: bool, multidilated: bool = True):
        super().__init__()
        self.growth, self.multidilated = growth, multidilated
        parts = 2 if is_complex else 1
        if multidilated:
            widths = [width] + [growth] * (layers - 1)
            self.groups = nn.ModuleList(
                Convolution(w, (layers - i) * growth, 3, 2**i, is_complex) for i, w in enumerate(widths)
            )
        else:
            self.groups = nn.ModuleList(
                Convolution(width + layer * growth, growth, 3, 2**layer, is_complex) for layer in range(layers)
            )
        self.norms = nn.ModuleList(nn.BatchNorm2d(parts * growth) for _ in range(layers))  # each part on its own: "pseudo"

    def forward(self, x: Tensor) -> Tensor:
        if not self.multidilated:
            return self._single(x)
        waiting: list[Tensor] = []  # what each layer ahead has been sent so far
        outputs: list[Tensor] = []
        for group, norm in zip(self.groups, self.norms, strict=True):
            sent = group(x).split(norm.num_features, 1)
            waiting = [a + b for a, b in zip(waiting, sent, strict=True)] if waiting else list(sent)
            x = leaky_relu(norm(waiting.pop(0).contiguous(memory_format=torch.channels_last)), 0.1)
            outputs.append(x)
        return torch.cat(outputs, 1)

    def _single(self, x: Tensor) -> Tensor:
        found = [x]
        for group, norm in zip(self.groups, self.norms, strict=True):
            found.append(leaky_relu(norm(group(torch.cat(found, 1))), 0.1))
        return torch.cat(found[1:], 1)


class D3(nn.Module):
    """D2 blocks, densely connected and joined by 1x1 compression to 2 `growth` channels, then 1x1 to `masks` masks.

    Two spectra in, masks out (see `bounded`). At the start M_y is about 1 and M_x about 0: the microphone is passed on.
    """

    def __init__(self, growth: int, blocks: int, masks: int, is_complex: bool = True, multidilated: bool = True, layers: int = 3):
        super().__init__()
        self.is_complex, self.masks = is_complex, masks
        width = 2 if is_complex else 4
        self.blocks, self.joints = nn.ModuleList(), nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(D2(width, growth, layers, is_complex, multidilated))
            self.joints.append(Convolution(layers * growth, 2 * growth, 1, 1, is_complex))
            width += 2 * growth
        self.head = Convolution(width, masks, 1, 1, is_complex)
        with torch.no_grad():
            self.head.weight.mul_(0.1)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Masks [C, K, M] from two spectra [C, K, M]."""
        seen = torch.stack([compress(first), compress(second)], 1)
        x = torch.view_as_real(seen).permute(0, 1, 4, 2, 3).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        for block, joint in zip(self.blocks, self.joints, strict=True):
            x = torch.cat([x, joint(block(x))], 1)
        return bounded(self.head(x), self.masks, self.is_complex)


def bounded(raw: Tensor, masks: int, is_complex: bool) -> list[Tensor]:
    """Masks from the head's channels: complex with both parts in [-2, 2], or real with M_y in [0, 2] and M_x in [-2, 2].

    Where the head says 0, M_y is 1 and M_x is 0.
    """
    parts = raw.unflatten(1, (masks, -1)).unbind(1)
    if not is_complex:
        return [2 * torch.tanh(z[:, 0]) if i else 1 + torch.tanh(z[:, 0]) for i, z in enumerate(parts)]
    shift = math.atanh(0.5)  # 2 tanh(shift) = 1
    return [torch.complex(2 * torch.tanh(z[:, 0] + shift * (i == 0)), 2 * torch.tanh(z[:, 1])) for i, z in enumerate(parts)]


def combine(how: str, masks: list[Tensor], y: Tensor, x: Tensor) -> Tensor:
    """The estimate S [C, K, M]: sum M_y Y + M_x X, cascade M_y (Y - M_x X), single M_y Y (all element-wise)."""
    if how == "single":
        return masks[0] * y
    return masks[0] * y + masks[1] * x if how == "sum" else masks[0] * (y - masks[1] * x)


def delay_mask(delay: float) -> Tensor:
    """exp(-2 pi i k d / N) [K, 1]: a delay of d samples, well inside the window of N samples, as a complex mask."""
    return torch.exp(-2j * torch.pi * torch.arange(WINDOW // 2 + 1) * delay / WINDOW)[:, None]


# ---- the adaptive filter


def geigel(far: Tensor, mic: Tensor, taps: int, threshold: float = 2.0, hold: int = 240) -> Tensor:
    """Double-talk detector of Geigel: |y[n]| > threshold * max of |x| over the filter's length; kept for `hold` samples. [C, T]

    The classical threshold of 0.5 is meant for an echo much softer than the loopback signal; here both are about as loud.
    """
    loudest = max_pool1d(pad(far.abs(), (taps - 1, 0))[:, None], taps, 1)[:, 0]
    found = (mic.abs() > threshold * loudest).to(mic.dtype)
    return max_pool1d(pad(found, (hold - 1, 0))[:, None], hold, 1)[:, 0] > 0


def nlms(far: Tensor, mic: Tensor, taps: int, mu: float, frozen: Tensor | None = None, eps: float = 0.02) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised least mean squares, clips [C, T] side by side in a loop over samples: e = y - w.x, w += mu e x / (|x|^2 + eps).

    `frozen` [C, T] holds the weights still. Gives the error e and the echo estimate w.x [C, T] and the last weights [C, taps].
    """
    x = pad(far, (taps - 1, 0))
    total = pad(far.double().square().cumsum(1), (taps, 0))
    power = (total[:, taps:] - total[:, :-taps]).to(far.dtype)
    rate = mu / (power + eps)
    rate = (rate if frozen is None else rate * ~frozen).T.contiguous()[..., None]
    heard, found = mic.T.contiguous()[..., None], torch.empty(*mic.T.shape, 1, dtype=mic.dtype)
    w, product = torch.zeros(len(far), taps, dtype=far.dtype), torch.empty(len(far), taps, dtype=far.dtype)
    for n in range(mic.shape[1]):
        recent = x[:, n : n + taps]  # oldest first: w is kept in that order, too
        torch.sum(torch.mul(w, recent, out=product), 1, keepdim=True, out=found[n])
        w.addcmul_(recent, rate[n] * (heard[n] - found[n]))
    echo = found[..., 0].T
    return mic - echo, echo, w.flip(1)
