"""Bits of activations, as they are asked for: settings that every row has, whatever its method.

They stand in a row's brackets (``uniform[act_bits=4]``); the flags of the same names give every row of a grid each of
several values.  What they do is in quantization/activations.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from core.settings import SETTINGS, Setting

BITS = (3, 4, 5, 6, 8, 16)
ACT_BITS = Setting("act_bits", int, 16, "bits of what the linears read; 16: as computed", choices=BITS, flag=False)
ACT_KEEP = Setting("act_keep", float, 0.0, "share of each linear's input channels that stays at 16 bits, those with "
                   "the largest mean |x|", low=0, high=1, flag=False)
KV_BITS = Setting("kv_bits", int, 16, "bits of keys and values; 16: as computed", choices=BITS, flag=False)
ACTIVATIONS = SETTINGS.declare((ACT_BITS, ACT_KEEP, KV_BITS), "core")
GROUP = 128  # channels of a token that share a range


@dataclass(frozen=True)
class Activations:
    """How activations are held while the model runs."""

    bits: int = 16
    keep: float = 0.0  # share of a linear's input channels at 16 bits
    kv_bits: int = 16
    group: int = GROUP

    @property
    def plain(self) -> bool:
        """Whether nothing is quantized."""
        return self.bits == 16 and self.kv_bits == 16

    @property
    def words(self) -> str:
        """As the column of bits says it: ``A4``, ``A4 10 % kept``, ``A8 KV4``; empty where nothing is quantized."""
        kept = f" {100 * self.keep:g} % kept" if self.bits < 16 and self.keep else ""
        parts = [f"A{self.bits}{kept}"] if self.bits < 16 else []
        return " ".join(parts + ([f"KV{self.kv_bits}"] if self.kv_bits < 16 else []))


def activations_of(settings: Mapping) -> Activations:
    """What a row's own settings say."""
    told = {name: settings.get(name, SETTINGS[name].default) for name in ACTIVATIONS}
    keep = told["act_keep"] if told["act_bits"] < 16 else 0.0
    return Activations(told["act_bits"], keep, told["kv_bits"])


def combinations(axes: Mapping[str, Sequence]) -> list[dict]:
    """The settings of each row that several values stand for, without those at their defaults; no two alike.

    ``act_keep`` says nothing where activations stay at 16 bits.
    """
    rows = []
    for values in product(*(axes[name] for name in ACTIVATIONS)):
        told = {name: value for name, value in zip(ACTIVATIONS, values) if value != SETTINGS[name].default}
        if "act_bits" not in told:
            told.pop("act_keep", None)
        if told not in rows:
            rows.append(told)
    return rows
