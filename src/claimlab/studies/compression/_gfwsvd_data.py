"""Text and models of the study gfwsvd: Python's help topics and a model trained here, or a text and a model of your own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from claimlab.data import text as texts

CONTEXT = 64  # characters of a sequence
LEAST = 50_000  # bytes of a text of one's own
PASSAGE = 200  # characters that calibration and held-out text must not share
CONFIG = {"letters": str, "width": int, "layers": int, "heads": int}


@dataclass(frozen=True)
class Corpus:
    """A text as numbers of its V characters, split 90/5/5 in order: training, calibration and held-out part."""

    letters: str
    train: Tensor
    calibration: Tensor
    held: Tensor


@lru_cache(maxsize=2)
def corpus(path: str = "") -> Corpus:
    """The help topics, or the text of your own: the file `path`, or text.txt in the folder `path` beside a model."""
    text = texts.own_text(_text_file(path), LEAST) if path else texts.topics()
    letters = config(path)["letters"] if Path(path or "-").is_dir() else "".join(sorted(set(text)))
    if strange := sorted(set(text) - set(letters)):
        raise ValueError(f"{_text_file(path).name} holds characters that the model does not know, such as {strange[:5]}; config.json "
                         "must list them in `letters`")  # fmt: skip
    first, second = round(0.9 * len(text)), round(0.95 * len(text))
    if path and (twice := texts.repeated(text[first:second], text[second:], PASSAGE)):
        raise ValueError(f"{_text_file(path).name}: {twice:,} passages of {PASSAGE} characters stand both in the calibration part "
                         "(90 to 95 %) and in the held-out part (the last 5 %); remove what occurs twice")  # fmt: skip
    _, whole = texts.numbered(text, letters)
    return Corpus(letters, whole[:first], whole[first:second], whole[second:])


def _text_file(path: str) -> Path:
    return Path(path) / "text.txt" if Path(path).is_dir() else Path(path)


# ---- a model of your own: config.json and model.safetensors beside text.txt


@lru_cache(maxsize=2)
def config(folder: str) -> dict:
    """{"letters": ..., "width": ..., "layers": ..., "heads": ...} of a model; ValueError names what is missing or wrong."""
    file = Path(folder) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} cannot be read as JSON ({type(error).__name__}); it holds {', '.join(CONFIG)}") from None
    for name, kind in CONFIG.items():
        if not isinstance(found, dict) or type(found.get(name)) is not kind:
            raise ValueError(f"{file.name}: {name} is missing or is no {kind.__name__}")
    if not (found["heads"] > 0 and 8 <= found["width"] <= 1024 and found["width"] % found["heads"] == 0 and 1 <= found["layers"] <= 24):
        raise ValueError(f"{file.name}: width is in [8, 1024] and a multiple of heads, layers in [1, 24]")
    if len(set(found["letters"])) != len(found["letters"]) or len(found["letters"]) < 2:
        raise ValueError(f"{file.name}: letters lists every character once, in the order of the model's table")
    return found


def safetensors(file: Path) -> dict[str, Tensor]:
    """The float32 tensors of a .safetensors file: 8 bytes with the header's length, the header as JSON, the numbers."""
    try:
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__", None)
        kinds = {facts["dtype"] for facts in header.values()}
        found = {name: _tensor(raw[start:], facts) for name, facts in header.items()} if kinds <= {"F32"} else {}
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file.name} is no readable .safetensors file ({type(error).__name__})") from None
    if kinds - {"F32"}:
        raise ValueError(f"{file.name} holds {', '.join(sorted(map(str, kinds)))}; only F32 is read")
    return found


def _tensor(numbers: bytes, facts: dict) -> Tensor:
    first, last = facts["data_offsets"]
    return torch.from_numpy(np.frombuffer(numbers[first:last], "<f4").reshape(facts["shape"]).copy())


def fill(net: nn.Module, folder: str) -> None:
    """Put the tensors of model.safetensors into a network; ValueError names one that is missing, strange or not finite."""
    given, wanted = safetensors(Path(folder) / "model.safetensors"), net.state_dict()
    if strange := sorted(set(given) ^ set(wanted)):
        raise ValueError(f"model.safetensors {'lacks' if strange[0] in wanted else 'holds an unknown'} {strange[0]}")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"model.safetensors: {name} is {list(tensor.shape)}; config.json makes it {list(wanted[name].shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"model.safetensors: {name} holds values that are not finite")
    net.load_state_dict(given)
