"""A recurrent layer: its equation written out, its state, what it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srm_triton import SRMLinear, SRMRecurrent, SRMState, srm_linear


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"gradient": "surrogate"}, {"weight_norm": False, "input_gradient": "value"}])
def test_recurrent_layer_is_the_loop_written_out(options, batch_first):
    """Each step an ordinary layer on inputs and the last spikes side by side: its two gradients are those here."""
    torch.manual_seed(0)
    layer = SRMRecurrent(4, 5, dtype=torch.float64, batch_first=batch_first, **options)
    torch.nn.init.constant_(layer.norm_bias if layer.norm_bias is not None else layer.recurrent_weight, 0.4)
    inputs = (2 * torch.rand(3, 9, 4, dtype=torch.float64)).requires_grad_()
    spikes = layer(inputs if batch_first else inputs.transpose(0, 1))
    spikes = spikes if batch_first else spikes.transpose(0, 1)
    joined = torch.cat((layer.effective_weight(), layer.effective_recurrent_weight()), 1)
    last, state, expected = torch.zeros(3, 1, 5, dtype=torch.float64), None, []
    rules = {name: value for name, value in options.items() if name == "gradient"}
    for x in inputs.split(1, 1):
        both = torch.cat((x, last), 2)
        last, state = srm_linear(both, joined, None, state, return_state=True, **rules)
        expected.append(last)
    expected = torch.cat(expected, 1)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.9
    grad = torch.randn_like(spikes)
    leaves = list(layer.parameters()) + ([] if "input_gradient" in options else [inputs])
    for result, reference in zip(*(torch.autograd.grad(s, leaves, grad) for s in (spikes, expected)), strict=True):
        torch.testing.assert_close(result, reference, rtol=1e-12, atol=1e-12)
        assert result.any()


def test_states_of_a_recurrent_layer():
    layer = SRMRecurrent(4, 3)
    outputs, state = layer(torch.rand(2, 0, 4), return_state=True)
    assert outputs.shape == (2, 0, 3) and not any(part.any() for part in (*state.neurons, state.spikes))
    _, state = layer(torch.rand(2, 5, 4), return_state=True)
    assert state.spikes.requires_grad and not state.detach().spikes.requires_grad
    layer(torch.rand(2, 5, 4), state.detach()).sum().backward()
    for other, error, message in (
        (
            state._replace(spikes=torch.zeros(3, 3)),
            ValueError,
            r"state.spikes must have the shape \[2, 3\], got \[3, 3\]",
        ),
        (state._replace(spikes=torch.zeros(2, 3).double()), TypeError, "state.spikes must have the dtype of spikes"),
        (state._replace(spikes=None), TypeError, r"state.spikes must be a torch\.Tensor, got NoneType"),
        (state._replace(neurons=SRMState(*[torch.zeros(3, 3)] * 3)), ValueError, "state.membrane must have the shape"),
    ):
        with pytest.raises(error, match=message):
            layer(torch.rand(2, 5, 4), other)


def test_recurrent_layer_without_recurrence_is_a_linear_one():
    torch.manual_seed(0)
    recurrent, linear = SRMRecurrent(4, 5), SRMLinear(4, 5)
    linear.load_state_dict(recurrent.state_dict(), strict=False)
    lengths = recurrent.effective_recurrent_weight().norm(dim=1)
    assert lengths.min() > 0.7 and lengths.max() < 1.3
    torch.nn.init.zeros_(recurrent.recurrent_norm_weight)
    inputs = torch.rand(2, 9, 4)
    assert torch.equal(recurrent(inputs), linear(inputs))
    rows = recurrent.recurrent_weight.detach()
    torch.testing.assert_close(rows @ rows.t(), torch.eye(5), atol=1e-5, rtol=0)


def test_recurrent_layer_learns_what_needs_a_memory():
    """Which of two inputs came first, asked for when both are long gone."""
    torch.manual_seed(0)
    model = nn.Sequential(SRMRecurrent(2, 40, gradient="surrogate"), SRMLinear(40, 2, gradient="surrogate"))
    labels = torch.arange(64) % 2
    inputs = torch.zeros(64, 16, 2)
    inputs[torch.arange(64), 1, labels] = inputs[torch.arange(64), 4, 1 - labels] = 3.0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs)[:, 8:].sum(1), labels).backward()
        optimizer.step()
    assert (model(inputs)[:, 8:].sum(1).argmax(1) == labels).all()
