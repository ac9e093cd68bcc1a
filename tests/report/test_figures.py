"""The figures' numbers, and the pen that draws them."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import spearmanr

from report.figures import forest, style
from report.figures.agreement import LEAST, agreement, matrix, pair, spearman
from report.figures.build import figures
from report.figures.cards import NO_RANKS, cards
from report.figures.curves import beside
from report.figures.frames import curve, layers, load, place, plain, points, shown
from report.figures.svg import MARKERS, Drawing, Scale, drawable, fitted, scale_of, text_width
from report.records import Bits, MethodFacts, ModelFacts, Result
from report.tables.comparison import stem
from report.tables.tables import TableData
from tests.report.handmade import put


def cell(name: str, probe: dict, **changes) -> Result:
    result = Result(
        cell=name, model=ModelFacts("toy", "r", "float32"), method=MethodFacts(name), dataset="d", avg_bits=2.0, seed=0,
        run_type="demo", settings={}, machine="cpu", versions={}, status="ok", error=None, probe=probe)
    return replace(result, **changes)


# --- agreement

def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(spearman(np.array([1, np.nan, 2]), np.arange(3.0)))


def test_masks_overlap_as_counted_by_hand():
    """Twelve positions of linear a kept by one, eight of them by the other; of linear b the other kept none, so its
    result has no mask there."""
    scores = list(range(64))
    one = cell("one", {"a": {"scores": scores, "positions": scores, "kept": [1] * 12 + [0] * 52},
                       "b": {"scores": scores[::-1], "positions": scores, "kept": [0] * 60 + [1] * 4}})
    two = cell("two", {"a": {"scores": scores, "positions": scores, "kept": [0] * 4 + [1] * 8 + [0] * 52},
                       "b": {"scores": scores}})
    row = pair(one, two)
    assert row["masks"] == 8 / 16 and row["n_union"] == 16 and row["n_weights"] == 128
    hit = (16 / 128) * (8 / 128)
    assert row["by_chance"] == pytest.approx(hit / (24 / 128 - hit))
    assert row["weights"] == pytest.approx((1 - 1) / 2)  # the same order in a, the reverse in b
    few = cell("few", {"a": {"scores": scores, "positions": scores, "kept": [1] * (LEAST - 1) + [0] * 55}})
    assert np.isnan(pair(few, few)["masks"]), "nine kept positions are too few for a number"


def test_scores_of_blocks_and_of_weights_meet_at_the_linears_only():
    rng = np.random.default_rng(1)
    weights = {f"l{i}": {"scores": rng.random(64).tolist(), "positions": list(range(64)), "kept": [1] * 64}
               for i in range(6)}
    blocks = {f"l{i}": {"scores": [float(np.mean(weights[f'l{i}']["scores"]))]} for i in range(6)}
    row = pair(cell("w", weights), cell("b", blocks))
    assert row["linears"] == pytest.approx(1) and np.isnan(row["weights"]) and np.isnan(row["masks"])
    assert row["n_weights"] == 0
    moved = {f: p | {"positions": [q + 1 for q in p["positions"]]} for f, p in weights.items()}
    assert np.isnan(pair(cell("w", weights), cell("m", moved))["weights"]), "other positions must not be paired"


def test_ranks_made_once_give_every_pairs_own_correlation():
    """Linears of several sizes, ties, a constant one, scores that are not finite, a linear that only one cell has."""
    rng = np.random.default_rng(2)

    def probe(seed: int) -> dict:
        scores = {f"l{i}": np.random.default_rng(seed + i).integers(0, 9, 16 + 8 * i).astype(float) for i in range(5)}
        scores["l0"][:] = 1.0 if seed else scores["l0"]
        scores["l1"][3 + seed // 10] = np.inf
        return {fqn: {"scores": s.tolist(), "positions": list(range(len(s))),
                      "kept": rng.integers(0, 2, len(s)).tolist()} for fqn, s in scores.items()
                } | {f"own{seed}": {"scores": [1.0] * 16, "kept": [0] * 16}}

    one, two = cell("one", probe(0)), cell("two", probe(50))
    inside = [spearman(*(np.array(of.probe[f"l{i}"]["scores"]) for of in (one, two))) for i in range(5)]
    assert np.isnan(inside[0]) and np.isfinite(inside[1:]).all()
    row = pair(one, two)
    assert row["weights"] == pytest.approx(np.mean(inside[1:])) and row["n_linears"] == 5
    assert row["n_weights"] == sum(16 + 8 * i for i in range(5))


def test_agreement_leaves_out_what_says_nothing():
    probe = {f"l{i}": {"scores": [float(i)]} for i in range(4)}
    cells = [cell("a", probe), cell("b", probe), cell("same", {f: {"scores": [1.0]} for f in probe}), cell("none", {}),
             cell("a", {}, seed=1)]
    pairs = agreement(cells, 2.0, "d", ["none", "same", "b", "a"])
    assert pairs[["a", "b"]].to_numpy().tolist() == [["b", "a"]]
    assert matrix(pairs, "linears").to_numpy().tolist() == [[1, 1], [1, 1]] and not len(matrix(pairs, "masks"))
    assert not len(agreement(cells[2:], 2.0, "d", ["none", "same"]))


# --- frames

def part_of(rows: list[tuple[str, float, float]], tolerance: float, metric: str = "accuracy") -> SimpleNamespace:
    """A part with one table; ``rows`` are method, bits and value."""
    name = stem(metric)
    table = TableData(
        title="", cells=(), said=(), missing=(), about={"avg_bits": 2.25}, facts={"d": {"metrics": {metric: "X"}}},
        rows=tuple({"dataset": "d", "method": m, "seed": 0, "bits": b, "n": 9, "budgeted": True, "loglik": -v,
                    "loglik_low": -v, "loglik_high": -v, name: v, f"{name}_low": v - 0.6, f"{name}_high": v + 0.6,
                    "d_loglik": None, "best_loglik": ""} for m, b, v in rows))
    return SimpleNamespace(tables=[table], tolerance=tolerance)


def test_the_front_is_what_nothing_beats_at_equal_or_fewer_bits():
    rows = [("fp16", 16.0, 9.0), ("low", 2.0, 1.0), ("tied", 2.24, 2.5), ("best", 2.245, 3.0), ("worse", 3.0, 2.0),
            ("high", 3.0, 4.0)]
    frame = curve(part_of(rows, tolerance=0.01)).set_index("method")
    assert frame["main_front"].to_dict() == {"fp16": "", "low": "front", "tied": "reaches it", "best": "front",
                                                 "worse": "", "high": "front"}
    assert (frame["d_loglik_front"] == "").all()
    strict = curve(part_of(rows, tolerance=0.001)).set_index("method")
    assert strict["main_front"]["tied"] == "front", "the grid's tolerance says which bits are equal"


def test_rows_at_the_budget_are_told_from_those_with_bits_of_their_own():
    frame = curve(part_of([("near", 2.245, 1.0), ("far", 2.1, 1.0)], tolerance=0.01)).set_index("method")
    assert frame["equal_bits"].to_dict() == {"near": True, "far": False}


def test_a_tasks_own_metric_is_drawn_and_named():
    frame = points(part_of([("fp16", 16.0, 0.9), ("TAQ", 2.25, 0.4)], tolerance=0.01, metric="rouge").tables[0], 0.01)
    assert frame["main"].tolist() == [0.9, 0.4] and shown(frame)["metric"].tolist() == ["rouge", "rouge"]
    assert forest.metric_name(frame) == "X" and forest.full_precision(frame, "main") == 0.9
    frame = points(part_of([("fp16", 16.0, 0.9)], tolerance=0.01).tables[0], 0.01)
    assert "accuracy_low" in shown(frame) and "metric" not in shown(frame)
    assert forest.metric_name(frame) == "accuracy (%)" and forest.full_precision(frame, "main") == 90


def test_rows_of_equal_bits_stand_side_by_side_around_them():
    at, start = beside(np.array([2.0, 3.0, 3.001, 3.002]), 0.01)
    assert at[0] == start[0] == 2.0 and len(set(at)) == 4 and (start[1:] == at[1]).all()
    assert at[1:].mean() == pytest.approx(3.001, abs=1e-9)
    apart, _ = beside(np.array([2.0, 3.0, 3.001, 3.002]), 0.0001)
    assert (apart == [2.0, 3.0, 3.001, 3.002]).all()


def test_many_rows_at_two_budgets_stay_apart():
    bits = np.repeat([2.25, 3.25], 40)
    at, _ = beside(bits, 0.01)
    assert at[:40].max() < at[40:].min()


def test_a_linears_place_and_its_bits():
    assert place("model.layers.11.mlp.down_proj") == (11, "mlp.down_proj")
    assert place("transformer.h.0.mlp.experts.3.w1") == (0, "mlp.experts.w1") and place("lm_head") == (0, "lm_head")
    assert place(f"h.{'9' * 5000}.up")[0] == 0, "a number that no model has is part of a name"
    levels = {"h.0.experts.0.up": 2, "h.0.experts.1.up": 4, "h.1.experts.0.up": 8}
    one = cell("a", {"h.1.experts.0.up": {"kept": [1, 0, 0, 1], "scores": []}}, bits=Bits(3.0, 4.0, per_linear=levels))
    expected = {"block": [0, 1], "kind": ["experts.up"] * 2, "bits": [3, 8], "kept": [0, 0.5]}
    assert layers(one).to_dict("list") == expected


def test_names_that_no_font_holds():
    assert plain("a\nb\x00c") == "a?b?c" and len(plain("x" * 500)) == 32 and plain("$x_1$") == "$x_1$"
    names = [f"{'TaCQ' * 9}[corrupt={q}]" for q in ("rtn", "gptq")]
    assert plain(names[0]) != plain(names[1]), "long names that differ at their ends must not look alike"


# --- the pen

@pytest.mark.parametrize("low, high, texts", [
    (0, 1, ["0.0", "0.5", "1.0"]), (-2.4, 0.1, ["−2", "−1", "0"]), (24, 66, ["40", "60"]),
    (0.001, 0.0032, ["0.001", "0.002", "0.003"]), (-1e6, 1e6, ["−1000000", "0", "1000000"])])
def test_ticks_are_round_numbers(low, high, texts):
    assert [text for _, text in Scale(low, high, 0, 100).ticks()] == texts


def test_ticks_lie_inside_and_are_few_at_any_scale():
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, size, room = rng.normal(0, 100), 10 ** rng.uniform(-6, 6), rng.uniform(60, 400)
        ticks = Scale(low, low + size, 0, room).ticks(40)
        values = np.array([value for value, _ in ticks])
        assert 1 <= len(ticks) <= max(2, room / 40 + 1) and (values >= low - 1e-6 * size).all()
        assert (values <= low + size * (1 + 1e-6)).all() and len({text for _, text in ticks}) == len(ticks)


def test_scales_hold_what_can_be_drawn():
    scale = scale_of([None, float("nan"), float("inf"), 1e300, 2.0, 4.0], 0, 100, 0.0)
    assert (scale.low, scale.high) == (2.0, 4.0) and scale(3.0) == 50 and not drawable(1e300) and not drawable(None)
    assert scale_of([5.0], 0, 100)(5.0) == 50 and scale_of([], 10, 20)(0.5) == 15


def test_words_fit_their_room_and_keep_both_ends():
    name = "TaCQ[calib=c4,corrupt=gptq]"
    assert fitted(name, 999) == name
    short = fitted(name, 90)
    assert text_width(short) <= 90 and short.startswith("TaCQ") and short.endswith("q]") and "…" in short


def test_words_are_quoted():
    drawing = Drawing(100, "</svg>\"'<script>")
    drawing.text(0, 0, "<b>&\"'", room=5)
    drawing.marker((1, 2), "circle", "#fff", note="</path><script>")
    tree = ElementTree.fromstring(drawing.svg())
    assert "".join(tree.itertext()).count("<b>&\"'") == 1 and tree.attrib["aria-label"] == "</svg>\"'<script>"


def test_a_map_of_squares_covers_every_square_once():
    levels = np.random.default_rng(0).integers(-1, 3, (5, 9))
    drawing = Drawing(100, "")
    drawing.squares(levels, ["a='0'", "a='1'", "a='2'"], (0, 0), (1, 1))
    covered = np.full(levels.shape, -1)
    for path in ElementTree.fromstring(drawing.inside()):
        for column, row, length in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path.attrib["d"]):
            squares = covered[int(row), int(column):int(column) + int(length)]
            assert (squares == -1).all()
            squares[:] = int(path.attrib["a"])
    assert (covered == levels).all()


def test_methods_differ_by_more_than_colour():
    look = style.looks(["fp16", "uniform", "random", *(f"m{i}" for i in range(40))])
    assert len({(one.color, one.marker) for one in look.values()}) == 43
    assert all(one.marker in MARKERS for one in look.values())
    for a, b in combinations([f"m{i}" for i in range(7)], 2):
        assert look[a].marker != look[b].marker and look[a].hatch != look[b].hatch
    assert look["m0"] == style.looks(["m0", "m1"])["m0"], "a method's look must not hang on the controls beside it"


def test_the_scale_of_bits_gets_lighter_all_the_way():
    parts = ((0.21, 1), (0.72, 3), (0.07, 5))
    light = [sum(by * int(style.blend(i / 20)[at:at + 2], 16) for by, at in parts) for i in range(21)]
    assert light == sorted(set(light))


# --- what is drawn

def texts(svg: str) -> list[str]:
    return [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def test_the_forest_stands_sorted_by_value_rivals_first(folder):
    drawn = next(f for f in figures(load(folder)[0]) if f.key == "rows-0")
    rows = drawn.numbers[0][1]
    for svg in re.findall("<svg .*?</svg>", drawn.svg, flags=re.S):
        names = [text.removesuffix(" ~") for text in texts(svg)]
        mine = rows[(rows["dataset"] == names[0]) & ~rows["method"].isin(["fp16", "TAQ-native"])]
        order = mine.sort_values("d_loglik", ascending=False)["method"].tolist()
        assert [name for name in names if name in order] == order
        assert names.index("fp16") < names.index(order[0]) and names.index("TAQ-native 5.10") > names.index(order[-1])


def test_several_seeds_show_their_mean_and_the_span_of_their_intervals(tmp_path):
    for seed, shift in ((1, -0.2), (2, -0.6)):
        put(tmp_path, "TAQ", 4.249, shift, seed=seed)
    for method, bits, budget in (("fp16", 16.0, None), ("uniform", 4.249, 4.25)):
        put(tmp_path, method, bits, 0.0 if budget is None else -1.0, budget=budget)
    part = load(tmp_path)[0]
    drawn = {f.key: f for f in figures(part)}
    frame = part.tables[0].frame
    own = frame[frame["method"] == "TAQ"]
    for key in ("rows-0", "bits"):
        row = drawn[key].numbers[0][1].set_index("method").loc["TAQ"]
        assert row["seeds"] == 2 and row["d_loglik"] == pytest.approx(own["d_loglik"].mean())
        assert row["d_loglik_low"] == own["d_loglik_low"].min() and row["d_loglik_high"] == own["d_loglik_high"].max()
    card = cards(part.tables[0], style.looks(part.methods))[0]
    assert card.winner == "TAQ" and "mean of 2 seeds" in card.lines[-1]


def card_of(folder: Path, rows: dict[str, float], bits: float = 4.249):
    """The card of a table with full precision and these rows."""
    folder.mkdir()
    put(folder, "fp16", 16.0, 0.0, budget=None)
    for method, shift in rows.items():
        put(folder, method, bits, shift)
    part = load(folder)[0]
    return cards(part.tables[0], style.looks(part.methods))[0]


def test_cards_say_who_wins_by_how_much_and_who_ties(tmp_path):
    card = card_of(tmp_path / "clear", {"uniform": -1.0, "TAQ": -0.3, "TAQO": -2.0})
    assert (card.winner, card.control) == ("TAQ", False) and "<svg" in card.marker
    assert re.search(r"\+0\.\d+ \[\+0\.\d+, \+0\.\d+\] nats a token ahead of uniform", card.lines[1])
    assert "Every other row at equal bits is told apart" in card.lines[2]
    card = card_of(tmp_path / "control", {"uniform": -0.3, "TAQ": -0.302, "TAQO": -2.0})
    assert card.control and "No method keeps more than uniform bits." in card.lines
    assert "Not told apart from it: TAQ." in card.lines
    card = card_of(tmp_path / "none", {"uniform": -0.3, "TAQ": -0.302, "TAQO": -0.305})
    assert card.winner == "No difference shown" and not card.control and "told apart from the first" in card.lines[0]
    card = card_of(tmp_path / "alone", {"TAQ": -0.3})
    assert not card.winner and card.lines == (NO_RANKS,)
