"""What the estimates of memory and time are made of: the model's sizes, the batches that will run, and what is in the store."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from core.forward import length_batches
from core.model import empty_model
from core.registry import ScorerSpec
from evaluation.engine.batches import request_cost, shared_prefix
from evaluation.engine.kv_cache import MIN_SAVED
from harness.grid import Cell
from harness.stages.cell import cell_key
from harness.stages.documents import CellData
from harness.stages.model import Session
from report.records import read_if_whole


class Dims:
    """The sizes of a model that its stored structure does not name, from its configuration."""

    def __init__(self, session: Session):
        model = empty_model(session.where, session.ref, session.token)
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        self.parameters = session.structure["parameters"]
        self.linears = sum(r * c for r, c in session.shapes.values())
        self.largest = max(r * c for r, c in session.shapes.values())
        self.widest_in = max(c for _, c in session.shapes.values())
        self.widest = max(max(shape) for shape in session.shapes.values())
        self.itemsize = getattr(torch, session.ref.dtype).itemsize
        self.blocks = max(session.block_of.values()) + 1
        self.vocabulary, self.hidden = head.weight.shape if head is not None else (config.vocab_size, config.hidden_size)
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.cache = 2 * (getattr(config, "num_key_value_heads", None) or heads) * width  # numbers a token and block: key and value
        self.attention = heads if config._attn_implementation == "eager" else 0  # heads whose whole [T, T] weights are held


def dims(session: Session) -> Dims:
    """The model's sizes, looked up once a session."""
    if "_dims" not in session.__dict__:
        session.__dict__["_dims"] = Dims(session)
    return session.__dict__["_dims"]


@dataclass(frozen=True)
class Asked:
    """One batch of the evaluation as it is run."""

    rows: int  # contexts
    width: int  # tokens of the longest
    tails: int  # rows after the contexts: options, or the gold answer
    tail: int  # tokens of the longest
    real: int  # tokens of all tails, whose logits are read
    steps: int  # tokens generated, one forward each
    prefix: int  # leading tokens that were run before

    @cached_property
    def padded(self) -> int:
        """Tokens of the tails as they are run: those of like length together, so that little padding is left."""
        return min(self.tails * self.tail, self.real + 2 * MIN_SAVED)


def asked(data: CellData) -> list[Asked]:
    """The evaluation's batches."""
    shared, found = shared_prefix(data.requests, data.cfg), []
    for batch in data.batches:
        requests = [data.requests[i] for i in batch]
        tails = [len(c) - 1 for r in requests for c in (r.continuations or (r.gold,)) if len(c) > 1]
        width = max(request_cost(r, data.cfg)[0] for r in requests)
        steps = data.cfg.max_new_tokens if data.task.kind == "generate" else 0
        prefix = 0 if any(r.truncated for r in requests) else shared
        found.append(Asked(len(batch), width, len(tails), max(tails, default=0), sum(tails), steps, prefix))
    return found


def prompt_batches(session: Session, spec: ScorerSpec, data: CellData) -> list[tuple[int, int]]:
    """(rows, tokens of the longest) of every batch of prompts that a scorer reads; which limit holds is told by its declared parameters."""
    count = session.grid.kl_docs if "kl_docs" in spec.params else session.grid.score_docs
    lengths = [len(t) for t in data.calib.tokens[:count]]
    return [(len(batch), lengths[batch[0]]) for batch in length_batches(lengths, session.grid.batch_tokens)]


def stored(session: Session, key: str) -> bool:
    """Whether an entry is there.  Its checksums are not read: scores of a large model take minutes, and whoever uses them checks."""
    return (session.store.path(key) / "meta.json").is_file()


def finished(session: Session, cell: Cell, data: CellData) -> bool:
    """Whether a cell has a result whose samples are in the store: a run then only reads."""
    for file in Path(session.grid.results_dir).glob(f"*__{cell_key(session, cell, data)}.json"):
        found = read_if_whole(file)
        if found and found.get("status") == "ok" and stored(session, found["stages"]["samples"]):
            return True
    return False
