"""Block by block over a model: collect the inputs of its linears, quantize them, go on with what they now give.

Only the hidden states that enter the current block are alive, besides the model, one block's Hessian and the outputs of
the block's solved parts and, up to a limit, of its solved linears (streams/settled.py); for quantizers that ask for
inputs, these are replayed by running the block again.

    H = (2 / sequences) Σ over sequences and tokens of x xᵀ      float32 [in, in], x = what the linear reads

Short sequences of like length run together, padded on the right, where no real token of a causal model sees the
padding; padded positions enter no Hessian.  Long sequences weigh more than short ones, as published.  Linears that
are handed the very same tensor share one Hessian (q, k, v; gate, up).  An expert's Hessian is of the tokens that are
routed to it; the same linears of all experts of a block are one wave: their Hessians come from one run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from core.architecture import EXPERT, expert_of
from core.batching import LAUNCH, length_batches
from core.errors import UserError
from core.forward import call, device_of, hidden_of, pad, watch
from core.offload import at_work
from core.types import Aid
from streams.hessians import add_gram, mirror
from streams.settled import Settled

BATCH_TOKENS = 1024  # padded tokens that run together; a longer sequence runs alone
GPU_INPUTS = 2**24  # of the widest linear in a batch on a GPU, where a pass costs what thousands of tokens cost
WAVE_BYTES = 2**30  # of the Hessians that are collected in one run


def batch_tokens(device: torch.device, widest: int) -> int:
    """Padded tokens that run together on a device; ``widest``: inputs of the widest linear."""
    return max(BATCH_TOKENS, GPU_INPUTS // widest) if device.type == "cuda" else BATCH_TOKENS


class _Enough(Exception):
    """Everything asked for was seen; the rest of the block need not run."""


class BlockStream:
    """The calibration sequences on their way through the blocks."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], tokens: Sequence[np.ndarray]):
        if not len(tokens):
            raise UserError("the calibration set is empty; give at least one document (--calib_size, --calib_tokens)")
        if max(len(t) for t in tokens) < 2:
            raise UserError("every calibration document is a single token; give longer documents (--calib, "
                            "--max_length)")
        self.model, self.blocks = model, blocks
        # per block and batch: (other positional arguments, keywords)
        self.calls: list[list[tuple]] = [[] for _ in blocks]
        self.hidden: list[torch.Tensor] = []
        self.tokens: dict[str, int] = {}  # read by each linear in the last run for Hessians
        self.settled: Settled | None = None  # of the block at work
        self._record(tokens)

    @torch.no_grad()
    def _record(self, tokens) -> None:
        """Run the model around its blocks, which only note how they are called; keeps what enters the first block."""
        lengths = [len(row) for row in tokens]
        # experts see loose tokens, which could not be told from padding
        routed = any("expert" in name for block in self.blocks for name, _ in block.named_modules())
        inside = (module for block in self.blocks for module in block.modules())
        widest = max((module.in_features for module in inside if isinstance(module, nn.Linear)), default=1)
        most = batch_tokens(device_of(self.model), widest)
        batches = length_batches(lengths, 1 if routed else most, launch=LAUNCH * most // BATCH_TOKENS)
        self.lengths = [[lengths[i] for i in batch] for batch in batches]
        self.sequences = len(tokens)
        rows = [pad([tokens[i] for i in batch], device_of(self.model), left=False)[0] for batch in batches]
        with watch(self.blocks, lambda _block, _hidden: None) as widths:  # which blocks return tuples, from a short run
            call(self.model, rows[0][:1, :8], torch.ones_like(rows[0][:1, :8]))
        held = [block.__dict__.get("forward") for block in self.blocks]
        try:
            for index, block in enumerate(self.blocks):
                block.forward = self._recorder(index, widths[index])
            for ids in rows:
                call(self.model, ids, torch.ones_like(ids))
        finally:
            for block, old in zip(self.blocks, held):
                if old is None:
                    del block.forward
                else:
                    block.forward = old

    def _recorder(self, index: int, width: int):
        def forward(*args, **kwargs):
            hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if index == 0:
                self.hidden.append(hidden)
            self.calls[index].append((rest, kwargs))
            return (hidden, *[None] * (width - 1)) if width else hidden
        return forward

    def _run(self, index: int, batch: int):
        rest, kwargs = self.calls[index][batch]
        with nullcontext() if self.settled is None else self.settled.remembered(batch):
            return self.blocks[index](self.hidden[batch], *rest, **kwargs)

    def _real(self, x: torch.Tensor, batch: int) -> list[torch.Tensor]:
        """The unpadded rows [T, in] of what a linear read, a tensor [B, T, in] or flattened over B and T."""
        lengths = self.lengths[batch]
        if len(lengths) == 1:
            return [x.reshape(-1, x.shape[-1])]
        return [row[:length] for row, length in zip(x.reshape(len(lengths), -1, x.shape[-1]), lengths)]

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Let block ``index`` make the next block's inputs, with the weights it holds now."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = hidden_of(self._run(index, batch))
        self.calls[index].clear()
        self.settled = None

    @torch.no_grad()
    def groups(self, index: int, linears: dict[str, nn.Linear]) -> list[list[str]]:
        """Names of the block's linears by the tensor they read, in running order; unused ones last, one by one."""
        seen: list[tuple[torch.Tensor, list[str]]] = []

        def note(fqn, x):
            if any(fqn in names for _, names in seen):
                return  # called twice
            for tensor, names in seen:
                if tensor is x:
                    names.append(fqn)
                    return
            seen.append((x, [fqn]))

        with self._hooks(linears, note):
            self._run(index, 0)
        groups = [names for _, names in seen]
        return groups + [[fqn] for fqn in linears if not any(fqn in names for names in groups)]

    @contextmanager
    def _hooks(self, linears: dict[str, nn.Linear], see: Callable[[str, torch.Tensor], None]):
        hooks = [lin.register_forward_pre_hook(lambda _m, args, fqn=fqn: see(fqn, args[0]))
                 for fqn, lin in linears.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def inputs(self, index: int, fqn: str, linear: nn.Linear) -> Iterator[torch.Tensor]:
        """What ``linear`` reads, one sequence [T, in] at a time; the block stops as soon as it has read it."""
        caught: list[torch.Tensor] = []

        def see(_name, x):
            caught.append(x)
            raise _Enough

        for batch in range(len(self.hidden)):
            caught.clear()
            self._watched(index, batch, {fqn: linear}, see)
            if caught:
                yield from self._real(caught[0], batch)

    def _watched(self, index: int, batch: int, linears: dict[str, nn.Linear], see) -> None:
        with self._hooks(linears, see):
            try:
                self._run(index, batch)
            except _Enough:
                pass

    @torch.no_grad()
    def hessians(self, index: int, watched: dict[str, nn.Linear]) -> dict[str, torch.Tensor]:
        """Undamped Hessians float32 [in, in] of the linears watched, from one run of the block."""
        sums = {f: torch.zeros(lin.in_features, lin.in_features, dtype=torch.float32, device=lin.weight.device)
                for f, lin in watched.items()}
        left: set[str] = set()
        self.tokens.update(dict.fromkeys(watched, 0))

        for batch in range(len(self.hidden)):
            def see(fqn, x, batch=batch):
                rows = torch.cat(self._real(x, batch)).float()
                # a batched expert is handed rows of zeros for the tokens of others
                self.tokens[fqn] += len(rows) if expert_of(fqn) is None else int(rows.any(1).sum())
                add_gram(sums[fqn], rows, alpha=2.0 / self.sequences)
                left.discard(fqn)
                if not left:
                    raise _Enough

            left.update(watched)
            self._watched(index, batch, watched, see)
        return {fqn: mirror(total) for fqn, total in sums.items()}


def walk(stream: BlockStream, linears: dict[str, nn.Linear], block_of: dict[str, int],
         solve_one: Callable[[str, Aid], torch.Tensor | None], *, sequential: bool = True, hessian: bool = True,
         writes: bool = True, progress: Callable[[int, int], None] = lambda done, total: None,
         resume: Callable[[int], bool] = lambda block: False,
         after: Callable[[int], None] = lambda block: None) -> None:
    """Call ``solve_one(fqn, Aid)`` for every linear in running order and put the weight that it returns into the model.

    sequential: a linear's Hessian reflects the linears of its own block that were quantized before it; otherwise all
    Hessians of a block come from the block as it stood.  A returned None leaves the weight alone; where it always does,
    ``writes`` is False, and an offloaded block need not be written back.
    resume: puts a block's finished weights into the model, if there are any, and says so; such a block is only run.
    It is asked when the block's turn comes, so that the blocks before it run as they did the first time.
    after: called with every block that was solved, when its weights are in the model.
    """
    done = 0
    for index in range(len(stream.blocks)):
        inside = {fqn: lin for fqn, lin in linears.items() if block_of[fqn] == index}
        with at_work(stream.model, index, written=writes):
            if inside and resume(index):
                progress(done + len(inside), len(linears))
            elif inside:
                _solve_block(stream, index, inside, solve_one, sequential=sequential, hessian=hessian,
                             progress=lambda n, before=done: progress(before + n, len(linears)))
                after(index)
            done += len(inside)
            stream.advance(index)


def _solve_block(stream: BlockStream, index: int, inside: dict[str, nn.Linear], solve_one, *, sequential: bool,
                 hessian: bool, progress) -> None:
    groups = stream.groups(index, inside)
    results: dict[str, torch.Tensor] = {}
    done = 0
    running = [fqn for names in groups for fqn in names]
    stream.settled = Settled(stream.blocks[index], inside, running) if sequential else None
    for wave in _waves(groups, inside, together=not sequential):
        leads = {names[0]: inside[names[0]] for names in wave}
        matrices = stream.hessians(index, leads) if hessian else {}
        for names in wave:
            matrix, tokens = matrices.pop(names[0], None), stream.tokens.get(names[0]) if hessian else None
            # e.g. an expert that no token reached: nothing is known, so nothing is repaired
            if hessian and not matrix.diagonal().any():
                matrix.fill_diagonal_(1.0)
            shared: dict = {}
            for fqn in names:
                aid = Aid(fqn, hessian=matrix, shared=shared, tokens=tokens,
                          replay=lambda lead=names[0]: stream.inputs(index, lead, inside[lead]))
                value = solve_one(fqn, aid)
                if value is not None:
                    results[fqn] = value
                done += 1
                progress(done)
        if sequential:
            _write(inside, results)
            if done < len(inside):
                stream.settled.solved(fqn for names in wave for fqn in names)
    _write(inside, results)


def _waves(groups: list[list[str]], inside: dict[str, nn.Linear], together: bool) -> list[list[list[str]]]:
    """Groups whose Hessians come from one run, in running order: all of a block, or the same linears of its experts.

    A wave holds Hessians of at most WAVE_BYTES, or one; a block's of ``together`` are never cut.
    """
    if together:
        return [groups]
    waves: dict[str, list[list[str]]] = {}
    for names in groups:
        waves.setdefault(EXPERT.sub(lambda at: at[0].replace(at[1], "*"), names[0]), []).append(names)
    cut = []
    for wave in waves.values():
        count = max(1, WAVE_BYTES // (4 * inside[wave[0][0]].in_features ** 2))
        cut += [wave[start:start + count] for start in range(0, len(wave), count)]
    return cut


@torch.no_grad()
def _write(linears: dict[str, nn.Linear], results: dict[str, torch.Tensor]) -> None:
    for fqn in list(results):
        linears[fqn].weight.data.copy_(results.pop(fqn))
