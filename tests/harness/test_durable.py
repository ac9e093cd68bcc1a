"""Killed in a long stage and run again: the same bytes, and no finished piece is made twice."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import harness.stages.gradients
import harness.stages.plan
import harness.stages.samples
import harness.store.partial
import methods.taqos
import streams.gradients
from core.digest import array_digest, atomic_write
from core.locks import take
from core.registry import QUANTIZERS
from core.types import Plan
from harness.stages.base_quantized import base_quantized
from harness.stages.cell import run_cell
from harness.stages.gradients import GradientSnapshots, gradients, gradients_key
from harness.stages.plan import plan, plan_digest, read_plan
from harness.stages.samples import samples_key
from harness.stages.scores import scores, scores_key
from harness.stages.weights import hold_weights, true_plan, weights_key
from harness.store.partial import Partial
from harness.store.solved_blocks import SolvedBlocks
from harness.store.store import Store
from report.records import load_results
from tests.harness.bench import case_of

BLOCKS, LINEARS = 8, 7  # of the tiny model: blocks, and linears in each


class Bench:
    """One process's view of one cell; a second one on the same folder is the process after the kill."""

    def __init__(self, tiny: Path, root: Path, name: str, **changes):
        base = dict(models=(str(tiny),), methods=(name,), datasets=("mmlu_pro",), calib_size=12, calib_tokens=500,
                    eval_size=6, avg_bits=(4.75,),
                    quantizer="gptq", device="cpu", threads=1, batch_tokens=400, cache_dir=str(root / "cache"),
                    results_dir=str(root / "results"))
        self.case, self.root = case_of(name, **(base | changes)), root
        self.model, self.store = self.case.model, self.case.store

    def put(self) -> str:
        """Solve the cell's weights; returns their digest."""
        planned = plan(self.case)
        hold_weights(self.case, planned)
        return weights_key(self.case, planned.id)[0]

    def held(self) -> dict[str, str]:
        return {fqn: array_digest(lin.weight) for fqn, lin in self.model.linears.items()}

    def partial(self, key: str) -> Partial:
        return self.store.partial(key)

    def leftovers(self) -> list[Path]:
        return [p for p in (self.root / "cache" / ".partial").rglob("*") if p.is_file()]


def stop_after(monkeypatch, where, name: str, count: int, first: bool = True) -> None:
    """Let ``where.name`` be called ``count`` times; the next call (or, with first=False, the end of the last) is the
    kill.
    """
    real, calls = getattr(where, name), []

    def killed(*args, **kwargs):
        calls.append(1)
        if first and len(calls) > count:
            raise KeyboardInterrupt
        found = real(*args, **kwargs)
        if not first and len(calls) == count:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(where, name, killed)


def counted(monkeypatch, where, name: str) -> list:
    """The calls of ``where.name`` from here on."""
    real, calls = getattr(where, name), []
    monkeypatch.setattr(where, name, lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    return calls


def count_solves(monkeypatch, name: str) -> list[str]:
    """Names of the linears that quantizer ``name`` is asked to solve from here on."""
    spec, calls = QUANTIZERS.get(name), []

    def solve(weight, layer, aid):
        calls.append(aid.fqn)
        return spec.fn(weight, layer, aid)

    monkeypatch.setitem(QUANTIZERS._items, name, replace(spec, fn=solve))
    return calls


def entry(bench: Bench, key: str) -> dict[str, bytes]:
    """The files of a stored stage, but for the times in meta.json."""
    return {p.name: p.read_bytes() for p in sorted(bench.store.path(key).iterdir()) if p.name != "meta.json"}


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))


SOLVED = [("magnitude", "fp32"), ("magnitude", "bf16"), ("SPQR-native", "bf16"), ("SliM-LLM-native", "bf16"),
          ("SqueezeLLM-native", "fp32")]


@pytest.mark.parametrize(("name", "dtype"), SOLVED)
def test_a_solve_goes_on_at_the_block_where_it_was_killed(tiny_folder, tmp_path, monkeypatch, name, dtype):
    """Kept masks, group bits, permutations and the blocks' own inputs all come back; a damaged piece is solved again.
    """
    make = partial(Bench, tiny_folder, name=name, dtype=dtype)
    whole = make(tmp_path / "whole")
    key = whole.put()
    with monkeypatch.context() as kill:
        stop_after(kill, SolvedBlocks, "save", 5, first=False)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "cut").put()
    again = make(tmp_path / "cut")
    assert again.store.get(key) is None
    damage(again.partial(key).folder / "block-00001")
    solves = count_solves(monkeypatch, again.case.method.quantizer)
    assert again.put() == key
    assert {again.model.block_of[fqn] for fqn in solves} == {1, 5, 6, 7} and len(solves) == 4 * LINEARS
    assert again.held() == whole.held() and entry(again, key) == entry(whole, key)
    assert set(entry(again, key)) >= {"plan.json", "linears.json"}


def test_a_cell_killed_in_its_solve_and_in_its_evaluation_ends_in_the_same_bytes(tiny_folder, tmp_path, monkeypatch):
    """The pieces outlive the solve, so the second kill costs one batch; they go when the samples are stored."""
    make = partial(Bench, tiny_folder, name="magnitude")

    def run(bench):
        return run_cell(bench.case, bench.root / "results")

    for folder in ("whole", "cut"):
        (tmp_path / folder / "results").mkdir(parents=True)
    whole = make(tmp_path / "whole")
    done = run(whole)
    for where, name, count in ((SolvedBlocks, "save", 3), (harness.stages.samples, "run_batch", 2)):
        with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
            stop_after(kill, where, name, count)
            run(make(tmp_path / "cut"))
    solves, batches = count_solves(monkeypatch, "gptq"), counted(monkeypatch, harness.stages.samples, "run_batch")
    again = make(tmp_path / "cut")
    assert again.leftovers()
    found = run(again)
    assert not solves and len(batches) == len(again.case.data.batches) - 2 > 0 and not again.leftovers()
    assert found.stages == done.stages and found.bits == done.bits
    for stage in ("weights", "samples"):
        assert entry(again, done.stages[stage]) == entry(whole, done.stages[stage])
    lines = {root: {p.name: p.read_bytes() for p in (root / "results").glob("*.jsonl")}
             for root in (again.root, whole.root)}
    assert lines[again.root] == lines[whole.root] and lines[again.root]
    assert load_results(again.root / "results")[0].ok


@pytest.mark.parametrize("when", ("in the last batch", "before the batches are put together"))
def test_a_cell_that_another_process_has_finished_meanwhile_is_taken_from_the_store(tiny_folder, tmp_path, monkeypatch,
                                                                                    when):
    """The first process stood still and lost its lease; the second one stored the samples and removed the batches under
    its hands.
    """
    first, second = (Bench(tiny_folder, tmp_path, "uniform") for _ in range(2))
    planned = plan(first.case)
    key, theirs = samples_key(first.case, planned.id)[0], []

    def meanwhile():
        (tmp_path / "cache" / ".leases" / key).unlink()
        theirs.append(harness.stages.samples.samples(second.case, planned))
        theirs.append((second.store.path(key) / "meta.json").read_bytes())

    name, at = ("run_batch", len(first.case.data.batches)) if when == "in the last batch" else ("_collect", 1)
    real, calls = getattr(harness.stages.samples, name), []

    def interleaved(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            meanwhile()
        return real(*args, **kwargs)

    monkeypatch.setattr(harness.stages.samples, name, interleaved)
    ours = harness.stages.samples.samples(first.case, planned)
    assert len(first.case.data.batches) > 2 and ours == theirs[0] and ours[0] == key and ours[1]
    assert (first.store.path(key) / "meta.json").read_bytes() == theirs[1] and not first.leftovers()
    assert not list((tmp_path / "cache").glob(".damaged-*"))


@pytest.mark.parametrize("before", (True, False))
def test_a_kill_around_the_storing_of_the_samples_leaves_no_pieces(tiny_folder, tmp_path, monkeypatch, before):
    """The moments between the last batch and the end of the tidying: neither batches nor solved blocks outlive the next
    run.
    """
    make, real = partial(Bench, tiny_folder, tmp_path, "uniform"), Store.put

    def killed(self, key, identity, *rest):
        if identity["stage"] != "samples":
            return real(self, key, identity, *rest)
        if not before:
            real(self, key, identity, *rest)
        raise KeyboardInterrupt

    cut = make()
    planned = plan(cut.case)
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        kill.setattr(Store, "put", killed)
        harness.stages.samples.samples(cut.case, planned)
    assert cut.leftovers()
    again, batches, solves = make(), counted(monkeypatch, harness.stages.samples,
                                             "run_batch"), count_solves(monkeypatch, "gptq")
    assert harness.stages.samples.samples(again.case, planned)[1]
    assert not batches and not solves and not again.leftovers()


def test_a_batch_that_is_damaged_in_use_fails_the_cell_and_no_more(tiny_folder, tmp_path, monkeypatch):
    """Nobody has stored the entry, so there is nothing to take; the same command makes that batch again."""
    bench, real = Bench(tiny_folder, tmp_path, "uniform"), harness.stages.samples._collect
    planned = plan(bench.case)
    key = samples_key(bench.case, planned.id)[0]
    said = f"a file of the unfinished samples {key} was damaged while it was in use"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=said):
        patch.setattr(harness.stages.samples, "_collect",
                      lambda *args: damage(bench.partial(key).folder / "00001.jsonl") or real(*args))
        harness.stages.samples.samples(bench.case, planned)
    batches = counted(monkeypatch, harness.stages.samples, "run_batch")
    assert harness.stages.samples.samples(bench.case, planned)[0] == key
    assert len(batches) == 1 and not bench.leftovers()


def test_two_processes_do_not_solve_the_same_weights_twice(tiny_folder, tmp_path, monkeypatch):
    """The key is locked while it is solved; the second one loads what the first one kept."""
    first, second = (Bench(tiny_folder, tmp_path, "uniform") for _ in range(2))
    taken, key, real = [], weights_key(first.case, plan(first.case).id)[0], SolvedBlocks.save
    path = tmp_path / "cache" / ".leases" / key
    monkeypatch.setattr(SolvedBlocks, "save", lambda *args: taken.append(take(path)) or real(*args))
    assert first.put() == key and taken == [None] * BLOCKS
    lock = take(path)
    assert lock is not None
    lock.release()
    solves = count_solves(monkeypatch, "gptq")
    second.put()
    assert not solves and second.held() == first.held()


def test_the_next_cell_with_the_same_weights_is_as_durable(tiny_folder, tmp_path, monkeypatch):
    """The first cell's samples are stored and its pieces gone; the weights are still in the model, and are kept once
    more.
    """
    bench = Bench(tiny_folder, tmp_path, "magnitude")
    key = bench.put()
    bench.partial(key).clear()
    bench.put()
    solves, later = count_solves(monkeypatch, "gptq"), Bench(tiny_folder, tmp_path, "magnitude")
    later.put()
    assert not solves and later.held() == bench.held()
    stored = bench.store.path(key)
    layers, notes = read_plan(stored).layers, json.loads((stored / "linears.json").read_text())
    again = SolvedBlocks(later.partial(key)).load(3)
    assert len(again) == LINEARS and any(found.layer.keep is not None for found in again.values())
    for fqn, found in again.items():
        assert torch.equal(found.values, bench.model.linears[fqn].weight) and found.notes == notes[fqn]
        assert plan_digest(Plan({fqn: found.layer}, 0, 0.0, 0.0)) == plan_digest(Plan({fqn: layers[fqn]}, 0, 0.0, 0.0))


def test_weights_made_again_for_a_stored_cell_leave_no_pieces(tiny_folder, tmp_path):
    bench = Bench(tiny_folder, tmp_path, "uniform")
    planned = plan(bench.case)
    true, summary = true_plan(bench.case, planned)
    assert bench.store.get(weights_key(bench.case,
                                       planned.id)[0]) and len(true.layers) == BLOCKS * LINEARS == summary["linears"]
    assert not bench.leftovers()


def test_the_model_to_compare_with_is_durable_too(tiny_folder, tmp_path, monkeypatch):
    make = partial(Bench, tiny_folder, name="TaCQ", dtype="bf16")
    whole = make(tmp_path / "whole")
    want = base_quantized(whole.case)
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        stop_after(kill, SolvedBlocks, "save", 6, first=False)
        cut = make(tmp_path / "cut")
        base_quantized(cut.case)
    again, solves = make(tmp_path / "cut"), count_solves(monkeypatch, "gptq")
    found = base_quantized(again.case)
    assert len(solves) == 2 * LINEARS and not again.leftovers()
    assert set(found) == set(want) and all(torch.equal(found[fqn], want[fqn]) and found[fqn].dtype
                                           == torch.bfloat16 for fqn in want)


# ---- gradients ----

def grads(tiny: Path, root: Path) -> Bench:
    return Bench(tiny, root, "TaCQ", methods=("TaCQ", "SqueezeLLM"), dtype="bf16", calib_size=40, calib_tokens=1200)


def summed(bench: Bench, kind: str = "abs") -> tuple[dict[str, bytes], list[float], int]:
    """The stored file of a kind, and its losses and count of skipped documents."""
    gradients(bench.case, kind)
    key = gradients_key(bench.case, kind)[0]
    facts = bench.store.meta(key)["provenance"]
    return entry(bench, key), facts["losses"], facts["skipped"]


@pytest.fixture(scope="module")
def undisturbed(tiny_folder, tmp_path_factory):
    """Both kinds of a pass that nothing disturbed, and that wrote no snapshot, for it was short."""
    with pytest.MonkeyPatch.context() as patch:
        written = counted(patch, Partial, "save")
        bench = grads(tiny_folder, tmp_path_factory.mktemp("grads"))
        found = {kind: summed(bench, kind) for kind in ("abs", "square")}
    assert not written and len(found["abs"][1]) > 4
    return found


def killed_pass(tiny: Path, root: Path, monkeypatch, documents: int) -> None:
    """A pass with a snapshot after every document, killed in the one after ``documents``."""
    monkeypatch.setattr(harness.stages.gradients, "SNAPSHOT_S", 0.0)
    monkeypatch.setattr(harness.stages.gradients, "COST", float("inf"))
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        stop_after(kill, streams.gradients, "_backward", documents)
        summed(grads(tiny, root))


def test_gradients_go_on_at_the_document_where_they_were_killed(tiny_folder, tmp_path, monkeypatch, undisturbed):
    killed_pass(tiny_folder, tmp_path, monkeypatch, 3)
    again, passes = grads(tiny_folder, tmp_path), counted(monkeypatch, streams.gradients, "_backward")
    common = again.partial(gradients_key(again.case, "abs")[0] + "-pass")
    assert [p.name for p in sorted(common.folder.iterdir())] == ["000003", "head"]  # older ones are gone
    assert {kind: summed(again, kind) for kind in ("abs", "square")} == undisturbed
    assert len(passes) == len(undisturbed["abs"][1]) - 3 and not again.leftovers()


def test_a_kill_between_two_kinds_costs_no_pass(tiny_folder, tmp_path, monkeypatch, undisturbed):
    """The first kind is stored, the second one not: the snapshot has more kinds than are wanted now, and serves."""
    monkeypatch.setattr(harness.stages.gradients, "SNAPSHOT_S", 0.0)
    monkeypatch.setattr(harness.stages.gradients, "COST", float("inf"))
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        stop_after(kill, harness.stages.gradients, "save_file", 1)
        summed(grads(tiny_folder, tmp_path))
    again, passes = grads(tiny_folder, tmp_path), counted(monkeypatch, streams.gradients, "_backward")
    assert {kind: summed(again, kind) for kind in ("abs", "square")} == undisturbed
    assert not passes and not again.leftovers()


@pytest.mark.parametrize("harm", ("damaged", "absent", "other kinds"))
def test_a_snapshot_that_cannot_serve_is_not_used(tiny_folder, tmp_path, monkeypatch, undisturbed, harm):
    killed_pass(tiny_folder, tmp_path, monkeypatch, 3)
    again, passes = grads(tiny_folder, tmp_path), counted(monkeypatch, streams.gradients, "_backward")
    kept = again.partial(gradients_key(again.case, "abs")[0] + "-pass")
    # not the first: the sums before it are filled and must be emptied
    file = sorted((kept.folder / "000003").iterdir())[40]
    if harm == "damaged":
        damage(file)
    elif harm == "absent":
        file.unlink()
    else:
        kept.save_json("head", kept.load_json("head") | {"kinds": ["abs", "sum"]})
    assert {kind: summed(again, kind) for kind in ("abs", "square")} == undisturbed
    assert len(passes) == len(undisturbed["abs"][1])


def test_snapshots_are_a_minute_apart_and_rarer_where_writing_takes_long(tmp_path, monkeypatch):
    clock, sums = [0.0], {"a": {"abs": torch.ones(2, 2)}}
    monkeypatch.setattr(harness.stages.gradients.time, "perf_counter", lambda: clock[0])
    real = Partial.save_tensors

    def slow(self, name, tensors):
        clock[0] += 10.0
        real(self, name, tensors)

    monkeypatch.setattr(Partial, "save_tensors", slow)
    snapshots, at = GradientSnapshots(Partial(tmp_path), 60.0), []
    for done in range(1, 60):
        clock[0] += 10.0
        before = clock[0]
        snapshots.after(done, [0.0] * done, sums)
        if clock[0] > before:
            at.append(before)
    # ten seconds of writing, then 200 of work
    assert at[0] == 60.0 and at[1] - at[0] == 210.0 and at[2] - at[1] == 210.0


# ---- scorers ----

@pytest.mark.parametrize(("name", "where", "what", "pieces"), [
    ("TAQoS", methods.taqos, "prompt_kl", 2), ("TAQO-oracle", harness.stages.scores, "mean_task_metric", 4)])
def test_a_scorer_goes_on_at_the_piece_where_it_was_killed(tiny_folder, tmp_path, monkeypatch, name, where, what,
                                                           pieces):
    """A prompt of TAQoS, a block of the oracle; one damaged piece is made again.  The oracle's first piece is the full
    model's metric.
    """
    make = partial(Bench, tiny_folder, name=name, oracle_docs=2, oracle_metric="loglik")
    whole, plain = make(tmp_path / "whole"), counted(monkeypatch, where, what)
    scores(whole.case)
    key = scores_key(whole.case)[0]
    total = len(plain)
    assert total > pieces and not whole.leftovers()
    with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
        stop_after(kill, where, what, pieces)
        cut = make(tmp_path / "cut")
        scores(cut.case)
    again, calls = make(tmp_path / "cut"), counted(monkeypatch, where, what)
    damage(again.partial(key).folder / {"TAQoS": "kl-0", "TAQO-oracle": "full"}[name])
    assert scores(again.case).values and scores_key(again.case)[0] == key
    assert len(calls) == total - pieces + 1 and not again.leftovers()
    assert entry(again, key) == entry(whole, key)


# ---- pieces ----

def test_a_piece_is_written_although_the_folder_goes_away_meanwhile(tmp_path, monkeypatch):
    """Another process stored the samples and removed the folder just now; for good is another matter."""
    fails = [1, 1]

    def gone(path, *pieces):
        if fails:
            fails.pop()
            raise FileNotFoundError(path)
        atomic_write(path, *pieces)

    monkeypatch.setattr(harness.store.partial, "atomic_write", gone)
    kept = Partial(tmp_path / "stage")
    kept.save_record("one", {"a": [0.1, None]}, {"w": torch.arange(3)})
    value, tensors = kept.load_record("one")
    assert value == {"a": [0.1, None]} and torch.equal(tensors["w"], torch.arange(3)) and not fails
    fails.extend([1] * harness.store.partial.TRIES)
    with pytest.raises(FileNotFoundError):
        kept.save("two", b"")


def test_kept_values_are_exact_and_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return (0.1 + 0.2, 1e-300, float("inf"), {"n": None})

    unfinished = Partial(tmp_path)
    first = unfinished.once("a", make)
    assert first == unfinished.once("a", make) == [0.1 + 0.2, 1e-300, float("inf"), {"n": None}] and len(made) == 1
    assert unfinished.spent == 0  # its own work is no earlier process's
    later = Partial(tmp_path)
    assert later.once("a", make) == first and len(made) == 1 and later.spent > 0
