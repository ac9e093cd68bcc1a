"""Heads' importance during training: the average by hand, and a ranking that moves with what is learnt."""

import pytest
import torch

from core.errors import UserError
from streams.adaptive import AdaptiveImportance
from tests.tiny import tiny_model


def loss_of(model, ids) -> torch.Tensor:
    return model(ids, labels=ids).loss


def test_the_average_is_that_of_the_gradients():
    model = tiny_model("llama").requires_grad_(True)
    batches = [torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    want = torch.zeros(4, dtype=torch.float64)
    for ids in batches:
        seen = []
        hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        (grad,) = torch.autograd.grad(loss_of(model, ids), seen)
        hook.remove()
        want = 0.8 * want + 0.2 * grad.abs().view(18, 4, 8).sum(2).mean(0).double()
    with AdaptiveImportance(model, beta=0.8) as importance:
        for ids in batches:
            loss_of(model, ids).backward()
    torch.testing.assert_close(importance.scores[1], want / (1 - 0.8**3), rtol=1e-4, atol=1e-9)
    assert importance.passes == [3, 3, 3]


def test_the_ranking_moves_with_training_and_the_hooks_go():
    torch.manual_seed(0)
    model = tiny_model("llama").requires_grad_(True)
    ids = torch.randint(3, 250, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    importance = AdaptiveImportance(model, beta=0.5)
    losses, rankings = [], []
    for _ in range(30):
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        rankings.append(importance.best(1.0))
    assert losses[-1] < 0.2 * losses[0]
    assert set(rankings[0]) == {(b, h) for b in range(3) for h in range(4)} and rankings[0] != rankings[-1]
    importance.close()
    after = [scores.clone() for scores in importance.scores]
    loss_of(model, ids).backward()
    assert all(torch.equal(a, b) for a, b in zip(after, importance.scores))
    assert not any(m._backward_hooks for m in model.modules())


def test_a_head_without_influence_has_no_importance():
    model = tiny_model("llama").requires_grad_(True)
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight[:, 8:16] = 0  # head 1
    with AdaptiveImportance(model) as importance:
        loss_of(model, torch.randint(3, 250, (2, 9))).backward()
    assert float(importance.scores[2][1]) == 0 and float(importance.scores[2][0]) > 0
    assert (2, 1) not in importance.best(0.9) and len(importance.best(0.1)) == 1


def test_a_rate_out_of_range_is_one_sentence():
    with pytest.raises(UserError, match=r"beta is 1; give a share of the old average from 0 to below 1"):
        AdaptiveImportance(tiny_model("llama"), beta=1)
