"""Digests: golden values pin the rule, content alone counts, writes are whole or absent."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from core.digest import array_digest, atomic_write, canonical_json, digest, write_json
from core.types import Budget, ModelRef


def test_golden_digests():
    """A change of these is a change of every identity: raise DIGEST_VERSION and say so."""
    assert digest({"b": 1, "a": [1, 2.5, None, True, "x"]}) == GOLDEN["plain"]
    assert digest(ModelRef("m", "r", "bfloat16")) == GOLDEN["model"]
    budget = asdict(Budget(4.25))  # keys leave out what it gained later, where that is at its default
    assert digest({name: budget[name] for name in FIRST}) == GOLDEN["budget"]
    assert array_digest(np.arange(6, dtype=np.int64).reshape(2, 3))[:16] == GOLDEN["array"]
    assert array_digest(torch.arange(4).bfloat16())[:16] == GOLDEN["bf16"]


FIRST = ("avg_bits", "levels", "group_size", "scale_bits", "tolerance")
GOLDEN = {"plain": "7f747cec4efe57b4", "model": "fed926da1673f349", "budget": "80c22e8db67425d0",
          "array": "347a02ce25ad9d26", "bf16": "e8e395027e94ea7a"}


def test_order_of_keys_does_not_count_and_values_do():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest(x) for x in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, [1], (1, 2))}) == 6


def test_array_dtype_shape_and_bytes_count():
    base = np.arange(6, dtype=np.int64)
    assert len({array_digest(a) for a in (base, base.astype(np.int32), base.reshape(2, 3), base + 1)}) == 4
    assert array_digest(base) == array_digest(torch.tensor(base))


def test_nan_and_unknown_types_are_errors():
    with pytest.raises(ValueError):
        digest(float("nan"))
    with pytest.raises(TypeError, match="cannot digest a set"):
        canonical_json({1, 2})


def test_atomic_write_leaves_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.json"
    write_json(path, {"v": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "{}")
    assert json.loads(path.read_text()) == {"v": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
