"""The samples stage: quantize, ask, and keep every finished batch.

Batches are fixed before the first one.  Each finished batch is a file of the unfinished stage, so a killed run loses
the batch in flight and no more, and the resumed run replays whole batches to the same bytes.  The solved weights are
kept as long.  An out-of-memory error halves the token budget: a new batch plan, hence a new digest.
"""

from dataclasses import replace

from core.digest import canonical_json
from core.forward import is_out_of_memory
from core.registry import QUANTIZERS
from core.sample import Sample
from evaluation.engine.ask import make_prefix, run_batch
from harness.stages.activations import activations, activations_identity, kept
from harness.stages.case import Case, smaller_batches
from harness.stages.options import VERSIONS, published_quantizer, reads_data
from harness.stages.plan import Planned, provenance
from harness.stages.weights import hold_weights, weights_key
from harness.store.entry import Content, stage_key
from harness.store.partial import Partial
from quantization.activations import quantizing
from quantization.dynamic import choosing_heads
from report.records import read_samples

LEAST_TOKENS = 256  # a batch budget below this does not help: one document is then too long for the memory


def batch_name(index: int) -> str:
    """The file of a finished batch."""
    return f"{index:05d}.jsonl"


def samples_key(case: Case, plan_id: str) -> tuple[str, dict]:
    """Digest of the samples: the weights by content, what is asked and how it is batched, and the arithmetic."""
    quantizer = published_quantizer(case)
    if quantizer and QUANTIZERS.get(quantizer).needs:
        weights = weights_key(case, plan_id)[0]
    else:
        weights = [plan_id, QUANTIZERS.identity(quantizer) if quantizer else None, VERSIONS["weights"]]
    # rounding on one kind of machine and asking on another
    made = {"made_on": case.model.machine} if case.model.machine != case.model.eval_machine else {}
    return stage_key("samples", VERSIONS["samples"], model=case.model.ref.key, weights=weights,
                     evaluation=case.data.eval_digest, machine=case.model.eval_machine, **made,
                     **activations_identity(case))


def samples(case: Case, planned: Planned) -> tuple[str, list[Sample]]:
    """Digest, and samples in document order; the case's batches are smaller afterwards if memory was short."""
    while True:
        key, identity = samples_key(case, planned.id)
        try:
            entry = case.store.make(key, identity, lambda partial: _compute(case, planned, partial))
            return key, labelled(case, read_samples(entry / "samples.jsonl"))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        case.store.partial(key).clear()
        smaller_batches(case, LEAST_TOKENS)


def labelled(case: Case, stored: list[Sample]) -> list[Sample]:
    """The samples with their documents' categories of today, which are no answers and so not in the key."""
    pairs = zip(stored, case.data.requests, strict=True)
    return [replace(sample, stratum=request.doc.stratum) for sample, request in pairs]


def _compute(case: Case, planned: Planned, partial: Partial) -> Content | None:
    """Run the batches that are not there yet; None if another process stored the samples and removed the batches."""
    data, model, label = case.data, case.model, case.cell.label
    todo = [i for i in range(len(data.batches)) if partial.load(batch_name(i)) is None]
    if todo:
        channels = kept(case)  # scored on the weights as loaded, so before others take their place
        if reads_data(case.method):
            hold_weights(case, planned)
        else:
            model.originals.apply(planned.plan, published_quantizer(case),
                                  case.progress.stage(f"{case.method.name}: quantizing"))
        with (model.on(model.eval_device),
              choosing_heads(model.module, planned.plan.layers, model.originals.weights),
              quantizing(model.module, activations(case), channels)):
            _ask(case, todo, partial)
    case.progress.update(label, len(data.batches), len(data.batches))
    text = _collect(case, partial)
    if text is None:
        return None
    solved = weights_key(case, planned.id)[0] if reads_data(case.method) else None

    def write(folder) -> None:
        # the blocks were there for a kill in the evaluation; a run that finds the entry does not look for them
        if solved:
            case.store.partial(solved).clear()
        (folder / "samples.jsonl").write_text(text)

    return Content(write, provenance(case, planned.plan))


def _ask(case: Case, todo: list[int], partial: Partial) -> None:
    """Run these batches and keep each."""
    data, model = case.data, case.model
    prefix = make_prefix(model.module, data.requests, data.cfg)
    for done, index in enumerate(todo, len(data.batches) - len(todo)):
        case.progress.update(case.cell.label, done, len(data.batches))
        batch = [data.requests[i] for i in data.batches[index]]
        answered = run_batch(model.module, model.tokenizer, data.task, batch, cfg=data.cfg, prefix=prefix)
        partial.save(batch_name(index), "".join(canonical_json(s.as_plain()) + "\n" for s in answered).encode())


def _collect(case: Case, partial: Partial) -> str | None:
    """The batches' lines in document order, or None if a batch is gone."""
    lines: list[str] = [""] * len(case.data.requests)
    for index, batch in enumerate(case.data.batches):
        stored = partial.load(batch_name(index))
        if stored is None:
            return None
        for position, line in zip(batch, stored.decode().splitlines(), strict=True):
            lines[position] = line
    return "\n".join(lines) + "\n"
