"""The parts of any causal LM, found by walking its module tree; no file for each family.

The decoder blocks are the longest ``nn.ModuleList`` below the model whose members share one class, and every
``nn.Linear`` inside them is quantizable.  lm_head, embeddings and norms lie outside and count only in whole-model bits.
"""

from torch import nn

from core.errors import UserError


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the path of the decoder-block list and the blocks in order."""
    best: tuple[str, nn.ModuleList] | None = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(m) for m in module}) != 1:
            continue
        if not any(isinstance(m, nn.Linear) for m in module[0].modules()):
            continue
        if best is None or len(module) > len(best[1]):
            best = (path, module)
    if best is None:
        raise UserError(f"{type(model).__name__} has no list of decoder blocks with nn.Linear in them; only such "
                        "causal LMs can be quantized here")
    return best[0], list(best[1])


def find_linears(model: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, int]]:
    """Return every nn.Linear in the decoder blocks by full name, and the block index of each."""
    path, blocks = find_blocks(model)
    linears, block_of = {}, {}
    for index, block in enumerate(blocks):
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                fqn = f"{path}.{index}.{name}"
                linears[fqn], block_of[fqn] = module, index
    return linears, block_of


def uncovered(linears: dict[str, nn.Linear], blocks: list[nn.Module]) -> list[str]:
    """Names of weight matrices in the blocks that no nn.Linear holds: they would stay unquantized in silence."""
    inside = {id(lin.weight) for lin in linears.values()}
    return [f"block {i} {name}" for i, block in enumerate(blocks) for name, p in block.named_parameters()
            if p.ndim >= 2 and id(p) not in inside]


def other_bits(model: nn.Module, linears: dict[str, nn.Linear]) -> tuple[int, int]:
    """Return (stored bits, number of values) of all parameters that are not quantized weights; tied ones count once."""
    inside = {id(lin.weight) for lin in linears.values()}
    rest = {id(p): p for p in model.parameters() if id(p) not in inside}
    return sum(p.numel() * p.element_size() * 8 for p in rest.values()), sum(p.numel() for p in rest.values())
