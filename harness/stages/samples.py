"""The samples stage: quantize, ask, and keep every finished batch.

Batches are fixed before the first one.  Each finished batch is a file under ``.partial/<digest>``, so a
killed run loses the batch in flight and no more, and the resumed run replays whole batches to the same
bytes.  The solved weights are kept as long (harness/store/solved_blocks.py).  An out-of-memory error halves the token
budget: a new batch plan, hence a new digest.
"""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import torch

from core.digest import canonical_json
from core.errors import UserError
from core.forward import is_out_of_memory
from core.registry import QUANTIZERS
from core.types import Plan
from evaluation.engine.ask import make_prefix, run_batch
from harness.grid import Cell
from harness.progress import Progress
from harness.stages.documents import CellData, back_off
from harness.stages.model import Session
from harness.stages.options import VERSIONS, published_quantizer, reads_data
from harness.stages.plan import provenance
from harness.stages.weights import put_weights, weights_key
from harness.store.store import Store, stage_key
from report.records import read_samples


def samples_key(session: Session, cell: Cell, data: CellData, plan_id: str) -> tuple[str, dict]:
    """Digest of the samples: the weights by content, what is asked and how it is batched, and the arithmetic."""
    quant = published_quantizer(cell.method, session.grid.published)
    if quant and QUANTIZERS.get(quant).needs:
        weights = weights_key(session, cell, data, plan_id)[0]
    else:
        weights = [plan_id, [quant, QUANTIZERS.get(quant).version] if quant else None, VERSIONS["weights"]]
    return stage_key("samples", VERSIONS["samples"], model=session.ref.key, weights=weights, evaluation=data.eval_digest,
                     machine=session.machine)


log = logging.getLogger(__name__)

LEAST_TOKENS = 256  # a batch budget below this does not help: one document is then too long for the memory


def batch_name(index: int) -> str:
    """The file of a finished batch."""
    return f"{index:05d}.jsonl"


def samples(session: Session, cell: Cell, data: CellData, plan_id: str, made: Plan, progress: Progress):
    """Return (digest, samples in document order, seconds, the data as it was batched in the end)."""
    while True:
        key, identity = samples_key(session, cell, data, plan_id)
        try:
            with session.store.lock(key, identity["stage"]):
                entry = session.store.get(key)
                if entry is None:
                    seconds = compute(session, cell, data, key, plan_id, made, progress)
                    found = provenance(session, cell, data, made) | {"seconds": seconds}
                    solved = weights_key(session, cell, data, plan_id)[0] if reads_data(cell) else None
                    entry = _store(session.store, key, identity, found, data, solved)
                session.store.partial(key).clear()  # a stored entry's batches too: a process may be killed before it comes to this line
            meta = json.loads((entry / "meta.json").read_text())
            return key, read_samples(entry / "samples.jsonl"), meta["provenance"]["seconds"], data
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            session.store.partial(key).clear()
            data = smaller(session, data)


def smaller(session: Session, data: CellData) -> CellData:
    """The same questions at half the batch tokens; says so."""
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    half = data.cfg.batch_tokens // 2
    if data.cfg.batch_size is not None or half < LEAST_TOKENS:
        raise UserError(f"out of memory on {session.device} with batches of {data.cfg.batch_size or data.cfg.batch_tokens} "
                        f"{'documents' if data.cfg.batch_size else 'tokens'}; lower --batch_size or --max_length, or use a smaller model")
    log.warning("out of memory with batches of %d tokens; going on with %d (new batch plan, new digest)", data.cfg.batch_tokens, half)
    return back_off(session, data, half)


def compute(session: Session, cell: Cell, data: CellData, key: str, plan_id: str, made: Plan, progress: Progress) -> float:
    """Run the batches that are not there yet; returns the seconds spent now."""
    kept, start = session.store.partial(key), time.perf_counter()
    todo = [i for i in range(len(data.batches)) if kept.load(batch_name(i)) is None]
    if not todo:
        return 0.0
    if reads_data(cell):
        put_weights(session, cell, data, plan_id, made, progress)
    else:
        session.originals.apply(made, published_quantizer(cell.method, session.grid.published), progress.stage(f"{cell.method.name}: quantizing"))
    prefix = make_prefix(session.model, data.requests, data.cfg)
    for index in todo:
        progress.update(f"{cell.method.name} on {data.task.name}", index, len(data.batches))
        batch = [data.requests[i] for i in data.batches[index]]
        found = run_batch(session.model, session.tokenizer, data.task, batch, data.cfg, prefix)
        kept.save(batch_name(index), "".join(canonical_json(asdict(s)) + "\n" for s in found).encode())
    progress.update(f"{cell.method.name} on {data.task.name}", len(data.batches), len(data.batches))
    return time.perf_counter() - start


def _store(store: Store, key: str, identity: dict, found: dict, data: CellData, solved: str | None) -> Path:
    """Make the entry from the finished batches, unless another process has.

    It may have, if this one lost its lease.  It removes the batches after it has stored the entry, so a batch that
    is gone means: look for the entry again.  The blocks of the ``solved`` weights were there for a kill in the evaluation;
    they go before the entry is stored, since a run that finds it does not look for them.
    """
    entry, text = store.get(key), None
    if entry is None:
        text = _collect(store, key, data)
        entry = store.get(key) if text is None else None
    if entry is None and text is None:
        raise RuntimeError(f"a batch of {key} was damaged while it was in use; run the same command again")
    if solved:
        store.partial(solved).clear()
    return entry or store.put(key, identity, found, lambda folder: (folder / "samples.jsonl").write_text(text))


def _collect(store: Store, key: str, data: CellData) -> str | None:
    """The batches' lines in document order, or None if a batch is gone."""
    lines: list[str] = [""] * len(data.requests)
    for index, batch in enumerate(data.batches):
        found = store.partial(key).load(batch_name(index))
        if found is None:
            return None
        for position, line in zip(batch, found.decode().splitlines(), strict=True):
            lines[position] = line
    return "\n".join(lines) + "\n"
