"""A model's blocks over several devices: the same numbers, and everything back where it was."""

import pytest
import torch

from core import placement
from core.architecture import find_blocks, find_linears
from core.errors import UserError
from core.forward import call, pad
from core.placement import parse_devices, placed, shares
from streams.gradients import gradient_sums
from tests.tiny import CONFIGS, calib_set, tiny_model

CPU, META = torch.device("cpu"), torch.device("meta")


def test_names_of_devices(monkeypatch):
    monkeypatch.setattr(placement, "pick_device", torch.device)
    assert parse_devices("cpu") == (CPU,)
    assert parse_devices("cuda:0,1") == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert parse_devices("cuda:1,cpu") == (torch.device("cuda:1"), CPU)
    with pytest.raises(UserError, match="'cuda:1' stands twice in 'cuda:1,1'; name each once"):
        parse_devices("cuda:1,1")


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="'cuda:97' cannot be used here"):
        parse_devices("cpu,97")


def test_blocks_are_shared_out_by_size():
    model = tiny_model("llama", num_hidden_layers=8)
    blocks = find_blocks(model)[1]
    assert shares(model, blocks, 1) == [0] * 8
    places = shares(model, blocks, 2)
    assert places == sorted(places) and set(places) == {0, 1}
    assert places.count(0) < places.count(1)  # the embeddings and the head lie on device 0 too
    big = tiny_model("llama", num_hidden_layers=8, vocab_size=20 * 320)
    assert shares(big, find_blocks(big)[1], 2) == [1] * 8


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_input_of_a_block_goes_with_it(family, monkeypatch):
    """The last blocks on the meta device: torch refuses a product of what lies apart."""
    model = tiny_model(family)
    blocks, seen = find_blocks(model)[1], []
    monkeypatch.setattr(placement, "shares", lambda *_: [0, 1, 1])
    to = placement.moved

    def moved(value, device):
        if torch.is_tensor(value) and value.device == META and device == CPU:  # no values to bring back
            seen.append(value.shape)
            return torch.zeros(value.shape)
        return to(value, device) if not isinstance(value, tuple) else tuple(moved(one, device) for one in value)

    monkeypatch.setattr(placement, "moved", moved)
    with placed(model, blocks, (CPU, META), home=META), torch.no_grad():
        places = [{p.device for p in block.parameters()} for block in blocks]
        assert places == [{CPU}, {META}, {META}] and model.get_input_embeddings().weight.device == CPU
        assert call(model, *pad([[5, 6, 7]], CPU)).logits.device == CPU
    assert seen == [(1, 3, 32)]


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_gradients_are_those_of_one_device(family):
    model, calib = tiny_model(family), calib_set()
    blocks, linears = find_blocks(model)[1], find_linears(model)[0]
    weights = [id(p) for p in model.parameters()]
    whole = gradient_sums(model, linears, calib, ("sum",))
    with placed(model, blocks, (CPU, CPU), home=CPU):
        assert all(block._forward_pre_hooks for block in blocks)
        apart = gradient_sums(model, linears, calib, ("sum",))
    assert whole.losses == apart.losses
    assert all(torch.equal(value, apart.sums["sum"][fqn]) for fqn, value in whole.sums["sum"].items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert weights == [id(p) for p in model.parameters()]


def test_weights_that_blocks_share_stay_together(monkeypatch):
    model = tiny_model("llama")
    blocks = find_blocks(model)[1]
    blocks[2].mlp = blocks[0].mlp
    monkeypatch.setattr(placement, "shares", lambda *_: [0, 0, 1])
    with pytest.raises(UserError, match=r"share weights.*name one device"), placed(model, blocks, (CPU, META), CPU):
        pass
    assert {p.device for p in model.parameters()} == {CPU}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_sums_lie_on_a_gpu_with_four_times_their_room(monkeypatch):
    class Weight:
        def __init__(self, device):
            self.device = torch.device(device)

        def numel(self):
            return 100

    monkeypatch.setattr(placement, "_free", lambda device: 1600 if device.index else 3200)
    assert placement.has_room([Weight("cuda:0"), Weight("cuda:0"), Weight("cuda:1")], 4)
    assert not placement.has_room([Weight("cuda:1"), Weight("cuda:1")], 4)
    assert not placement.has_room([Weight("cuda:0"), Weight("cpu")], 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_gradients_with_half_of_the_blocks_on_a_gpu(family):
    model, calib = tiny_model(family), calib_set()
    blocks, linears = find_blocks(model)[1], find_linears(model)[0]
    whole = gradient_sums(model, linears, calib, ("sum",)).sums["sum"]
    with placed(model, blocks, (CPU, torch.device("cuda:0")), home=CPU):
        apart = gradient_sums(model, linears, calib, ("sum",)).sums["sum"]
    assert {p.device for p in model.parameters()} == {CPU}
    for fqn, value in whole.items():
        torch.testing.assert_close(apart[fqn], value, rtol=1e-3, atol=1e-4)
