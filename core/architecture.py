"""The parts of any causal LM, found by walking its module tree; no file for each family.

The decoder blocks are the largest outermost ``nn.ModuleList`` of the model with linears in it, and every ``nn.Linear``
inside them is quantizable, but for routers of experts (core/plain.py makes linears of what holds matrices otherwise).
Everything else keeps its dtype: inside the blocks it is counted and shown (``rest_of_blocks``), and lm_head, embeddings
and norms count in whole-model bits.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn

from core.errors import UserError

OTHER_SENSES = re.compile("vision|visual|image|audio|speech|encoder")  # parts of a model that reads more than text
NARROWEST = 8
EXPERT = re.compile(r"\.(?:experts?|input_linear|output_linear)\.(\d+)\.")  # its number, in the name of a linear
ROUTER = re.compile(r"(?:^|[._])(?:gate|router|wg)(?:[._]|$)")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # in a config.json


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the path of the decoder-block list and the blocks in order.

    Raises UserError for a model without one, and for one whose layers lie in several lists.
    """
    lists: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer, _ in lists)
        if isinstance(module, nn.ModuleList) and not inside and any(isinstance(m, nn.Linear) for m in module.modules()):
            lists.append((path, module))
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of decoder blocks with nn.Linear in them; only such "
                        "causal LMs can be quantized here")
    sizes = {path: (not OTHER_SENSES.search(path), sum(p.numel() for p in module.parameters()))
             for path, module in lists}
    best = max(lists, key=lambda one: sizes[one[0]])
    for path, other in lists:
        if path != best[0] and len(other) == len(best[1]) and not OTHER_SENSES.search(path):
            raise UserError(f"{type(model).__name__} keeps its layers in several lists ({best[0]}, {path}), so it has "
                            "no blocks that run one after another; use a causal LM with one list of decoder blocks")
    return best[0], list(best[1])


def find_linears(model: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, int]]:
    """Return every nn.Linear in the decoder blocks by full name, and the block index of each.

    Routers are left out, and linears of fewer than NARROWEST inputs (Gemma 3n mixes its four streams by such), whose
    scales would weigh more than they do.  A linear that several blocks share stands once, in the first.
    """
    path, blocks = find_blocks(model)
    linears, block_of, seen = {}, {}, set()
    experts = _expert_counts(model)
    for index, block in enumerate(blocks):
        for name, module in block.named_modules():
            if not isinstance(module, nn.Linear) or id(module) in seen or module.in_features < NARROWEST:
                continue
            if not _is_router(name, module, experts):
                fqn = f"{path}.{index}.{name}"
                linears[fqn], block_of[fqn] = module, index
                seen.add(id(module))
    return linears, block_of


def _expert_counts(model: nn.Module) -> set[int]:
    config = getattr(model, "config", None)
    configs = [] if config is None else [config.get_text_config(), getattr(config, "ffn_config", None)]
    counts = {getattr(one, name, None) for one in configs for name in EXPERT_COUNTS}
    return {count for count in counts if isinstance(count, int) and count > 1}


def _is_router(name: str, linear: nn.Linear, experts: set[int]) -> bool:
    """Whether a linear chooses experts, or how much a shared one counts; it stays at full precision."""
    return bool(experts) and linear.out_features in experts | {1} and bool(ROUTER.search(name))


def expert_of(fqn: str) -> int | None:
    """The number of the expert that a linear belongs to."""
    match = EXPERT.search(fqn)
    return int(match[1]) if match else None


def rest_of_blocks(linears: dict[str, nn.Linear], blocks: list[nn.Module]) -> tuple[float, list[str]]:
    """What of the blocks is not quantized: its share of their values, 0 to 1, and its matrices by name without numbers.
    """
    inside = {id(lin.weight) for lin in linears.values()}
    values = {id(p): (name, p) for block in blocks for name, p in block.named_parameters()}
    rest = [(name, p) for key, (name, p) in values.items() if key not in inside]
    names = dict.fromkeys(re.sub(r"\.\d+\.", ".", name) for name, p in rest if p.ndim >= 2)
    return sum(p.numel() for _, p in rest) / sum(p.numel() for _, p in values.values()), list(names)


def other_bits(model: nn.Module, linears: dict[str, nn.Linear]) -> tuple[int, int]:
    """Return (stored bits, number of values) of all parameters that are not quantized weights; tied ones count once."""
    inside = {id(lin.weight) for lin in linears.values()}
    rest = {id(p): p for p in model.parameters() if id(p) not in inside}
    return sum(p.numel() * p.element_size() * 8 for p in rest.values()), sum(p.numel() for p in rest.values())


@dataclass(frozen=True)
class Attention:
    """The linears of one block's attention, by full name, and how its heads lie in them.

    Query head h owns rows h·width to (h + 1)·width of q, the same columns of o, and shares its key/value head's rows
    of k and v with the other query heads of its group.
    """

    q: str
    k: str
    v: str
    o: str
    heads: int  # query heads
    kv_heads: int
    width: int  # of a head

    def kv_head(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head * self.kv_heads // self.heads

    def lines(self, of_head: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is known of each query head [heads] at the lines that belong to it: [out, 1] rows of q, k and v, [1, in]
        columns of o.  Of query heads that share a key/value head, the highest counts there: a kept one needs it.
        """
        rows = of_head.repeat_interleave(self.width)[:, None]
        groups = of_head.view(self.kv_heads, -1).amax(1).repeat_interleave(self.width)[:, None]
        return {self.q: rows, self.o: rows.t().clone(), self.k: groups, self.v: groups.clone()}


def find_heads(model: nn.Module) -> list[Attention]:
    """The attention of every block, found by its q, k and v linears; the linear beside them that reads the heads is o.

    Raises UserError where queries, keys and values are one linear, or a block has no such attention.
    """
    path, blocks = find_blocks(model)
    return [_attention(model, f"{path}.{index}", block) for index, block in enumerate(blocks)]


def _attention(model: nn.Module, path: str, block: nn.Module) -> Attention:
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    place = next((name.removesuffix(".q_proj") for name in linears if name.endswith(".q_proj")), None)
    if place is None:
        fused = next((name for name in linears if "qkv" in name or "query_key_value" in name), None)
        what = f"has queries, keys and values in one linear ({path}.{fused})" if fused else f"has no q_proj in {path}"
        raise UserError(f"{type(model).__name__} {what}, so single heads cannot be kept; use LIG or another score of "
                        "blocks")
    module = block.get_submodule(place)
    inside = {child: lin for child, lin in module.named_children() if isinstance(lin, nn.Linear)}
    if not {"k_proj", "v_proj"} <= set(inside):
        raise UserError(f"{type(model).__name__} has no keys and values of its own in {path}, so single heads cannot "
                        "be kept; use LIG or another score of blocks")
    rows = inside["q_proj"].out_features
    width = getattr(module, "head_dim", None)  # the module's own: a config may have another for each layer
    if width is None:
        config = model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    out = [child for child, lin in inside.items() if child not in ("q_proj", "k_proj", "v_proj")
           and lin.in_features == rows]
    if len(out) != 1 or rows % width or inside["k_proj"].out_features % width:
        raise UserError(f"{type(model).__name__}: {len(out)} linears of {path}.{place} can be the attention's output "
                        f"and {rows} rows of queries are heads of {width}; single heads cannot be told apart")
    q, k, v, o = (f"{path}.{place}.{child}" for child in ("q_proj", "k_proj", "v_proj", out[0]))
    return Attention(q, k, v, o, heads=rows // width, kv_heads=inside["k_proj"].out_features // width, width=width)


@dataclass(frozen=True)
class Mlp:
    """The linears of one block's feed-forward part: neuron n is row n of each of ``into`` and column n of ``out``."""

    into: tuple[str, ...]
    out: str
    neurons: int

    def lines(self, of_neuron: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is known of each neuron [neurons] at its rows [out, 1] of ``into`` and its column [1, in] of ``out``."""
        return {fqn: of_neuron[:, None].clone() for fqn in self.into} | {self.out: of_neuron[None]}


def find_mlps(model: nn.Module) -> list[Mlp]:
    """The feed-forward part of every block: the one linear outside the attention whose inputs are other linears' rows.

    Raises UserError where there is not exactly one, as in a mixture of experts or with gate and up in one linear.
    """
    linears, block_of = find_linears(model)
    found = []
    for block, attention in enumerate(find_heads(model)):
        own = {fqn: lin for fqn, lin in linears.items() if block_of[fqn] == block
               and fqn not in (attention.q, attention.k, attention.v, attention.o)}
        hidden = linears[attention.q].in_features
        outs = [fqn for fqn, lin in own.items() if lin.out_features == hidden]
        into = tuple(fqn for fqn in own if len(outs) == 1 and fqn != outs[0]
                     and own[fqn].out_features == own[outs[0]].in_features)
        if len(outs) != 1 or not into:
            raise UserError(f"{type(model).__name__} has no feed-forward part of single neurons in block {block} "
                            f"({len(outs)} linears lead back to the hidden state, {len(into)} feed them); use heads or "
                            "LIG")
        found.append(Mlp(into, outs[0], own[outs[0]].in_features))
    return found
