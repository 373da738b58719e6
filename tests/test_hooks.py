"""What goes into a model's modules is seen in the order of the calls, and only while asked."""

import pytest
import torch
from torch import nn

from ngf.hooks import at_inputs


class Crossed(nn.Module):
    """Calls its modules in another order than it registers them, and the first of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.less, self.deaf = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            for layer, factor, offset in ((self.twice, 2, 0), (self.less, 1, -1)):
                layer.weight.copy_(factor * torch.eye(2))
                layer.bias.fill_(offset)

    def forward(self, x_NC):
        return self.deaf(self.twice(self.less(self.twice(x_NC))))


def hooked(model) -> bool:
    return any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def named(model) -> dict[str, nn.Linear]:
    return {"first": model.twice, "second": model.less}


def test_it_tells_name_module_and_inputs_in_the_order_of_the_calls():
    model, calls = Crossed(), []
    with at_inputs(named(model), lambda *call: calls.append(call)):
        model(torch.tensor([[3.0, 5.0]]))
    names, modules, inputs = zip(*calls, strict=True)
    assert names == ("first", "second", "first")
    assert modules == (model.twice, model.less, model.twice)
    expected = torch.tensor([[[3.0, 5.0]], [[6.0, 10.0]], [[5.0, 9.0]]])
    assert torch.equal(torch.stack(inputs), expected)


def test_a_module_changed_before_its_inputs_go_in_answers_as_changed():
    """The sieve relies on it: statistics follow in the same pass that uses them."""
    model, x_NC = Crossed().twice, torch.tensor([[3.0, 5.0]])

    def turn(_, layer, u):
        with torch.no_grad():
            layer.weight.neg_()

    with at_inputs({"first": model}, turn):
        assert torch.equal(model(x_NC), -2 * x_NC)


def test_hooks_are_gone_afterwards():
    model, calls = Crossed(), []
    with at_inputs(named(model), lambda *call: calls.append(call)):
        assert hooked(model)
    assert not hooked(model)
    model(torch.ones(1, 2))
    assert not calls


@pytest.mark.parametrize("act", [lambda *call: None, lambda *call: 1 / 0])
def test_hooks_are_gone_after_an_error(act):
    model = Crossed()
    with pytest.raises((RuntimeError, ZeroDivisionError)), at_inputs(named(model), act):
        model(torch.ones(1, 3))
    assert not hooked(model)


def test_hooks_of_others_stay():
    model, calls = Crossed(), []
    handle = model.twice.register_forward_pre_hook(lambda *_: calls.append(1))
    with at_inputs(named(model), lambda *call: None):
        pass
    model(torch.ones(1, 2))
    assert len(calls) == 2
    handle.remove()
