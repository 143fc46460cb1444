"""Floating-point formats in software, as pure functions of float32 tensors: e exponent bits, m stored mantissa bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

ROUNDINGS = ("truncate", "nearest", "stochastic")
STORED = 23  # mantissa bits that float32 stores


def limits(mantissa: int, exponent: int) -> tuple[float, float]:
    """Smallest normal and largest number of a format: 2^Emin and 2^Emax (2 - 2^-m), with Emax = 2^(e-1) - 1, Emin = 1 - Emax."""
    top = 2 ** (exponent - 1) - 1
    return 2.0 ** (1 - top), 2.0**top * (2 - 2.0**-mantissa)


def uniform_bits(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Random whole numbers in [0, 2^23), int32: what stochastic rounding compares the lost bits with."""
    return torch.randint(2**STORED, shape, generator=rng, dtype=torch.int32)


def round_mantissa(x: Tensor, mantissa: int | Tensor, rounding: str = "truncate", noise: Tensor | None = None) -> Tensor:
    """x [...] float32 with `mantissa` stored bits (1 to 23; a number, or int32 that broadcasts against x); any exponent.

    float32 is sign and magnitude, so that its bits read as an int32 order the magnitudes, for negative numbers too:
    masking the low 23 - m bits cuts towards zero, and a carry runs on into the exponent as it should. `nearest` takes the
    even neighbour at a tie. `stochastic` adds `noise` (`uniform_bits`, broadcast) below the cut: up with a probability
    that is the lost part in units of the last bit kept.
    """
    lost = STORED - torch.as_tensor(mantissa, dtype=torch.int32, device=x.device)
    unit = torch.ones_like(lost) << lost  # of the last bit kept
    x = torch.broadcast_tensors(x, lost)[0]
    # one NaN for all: others could lose the bits that make them a NaN
    bits = x.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=-torch.inf).view(torch.int32)
    if rounding == "nearest":  # half a unit, less the smallest step where the last bit kept is even already
        bits += (bits >> lost).bitwise_and_((unit - 1).clamp_max(1)).add_((unit - 1) >> 1)
    elif rounding == "stochastic":
        bits += noise >> (STORED - lost)
    elif rounding != "truncate":
        raise ValueError(f"rounding = {rounding!r} is not allowed: one of {', '.join(ROUNDINGS)}")
    return bits.bitwise_and_(-unit).view(torch.float32)


def to_format(x: Tensor, mantissa: int | Tensor, exponent: int = 8, rounding: str = "truncate", *,
              noise: Tensor | None = None, infinity: bool = False) -> Tensor:  # fmt: skip
    """x [...] float32 as the format holds it: sign, e exponent bits, m stored mantissa bits, no subnormal numbers.

    Below the smallest normal number: 0. Above the largest: the largest, or with `infinity` infinity. NaN stays NaN.
    `mantissa` is a whole number or an int32 tensor that broadcasts against x; `exponent` is 3 to 8.
    """
    low = limits(STORED, exponent)[0]
    mantissa = torch.as_tensor(mantissa, dtype=torch.int32, device=x.device)
    high = (2.0 ** (2 ** (exponent - 1) - 1) * (2 - 2.0 ** -mantissa.double())).float()
    y = hardshrink(round_mantissa(x, mantissa, rounding, noise), _just_below(low))
    return torch.where(y.abs() > high, torch.inf * y, y) if infinity else y.clamp_(-high, high)


def _just_below(low: float) -> float:
    # hardshrink takes the number at its bound as well
    return float(torch.nextafter(torch.tensor(low), torch.tensor(0.0)))


def truncate_by_frexp(x: Tensor, mantissa: int) -> Tensor:
    """The same truncation as the paper's formula: x = q 2^E with q in [0.5, 1), |q| -> floor(|q| 2^(m+1)) 2^-(m+1).

    q holds one bit more than the stored mantissa f of (1 + f), hence m + 1.
    """
    q, power = torch.frexp(x.abs())
    return x.sign() * torch.ldexp(torch.floor(q * 2.0 ** (mantissa + 1)) * 2.0 ** -(mantissa + 1), power)


def unit_of(x: Tensor, mantissa: int) -> Tensor:
    """The gap between neighbouring numbers of the format at x: 2^(E - m) for 2^E <= |x| < 2^(E + 1)."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x)[1] - 1 - mantissa)
