"""The membrane potential of SRM neurons that neither fire nor reset: a linear filter over time.

From an input current x[t], for t = 0 … T−1, with the constants and the state of `srm_triton.ops.srm_scan`:

    s ← s + x          u ← a_m·u + s/τ_s          s ← a_s·s          membrane[t] = u

Backward: u[t] = Σ k[t − i]·x[i] with one impulse response k, so ∂L/∂x[i] = Σ k[t − i]·∂L/∂u[t], which is the same
filter run backwards in time. Both are the scan that records membrane potentials, with a threshold out of reach.
"""

from typing import Any

import torch
from torch import Tensor

from srm_triton.backend import requested_backend
from srm_triton.checks import check_option
from srm_triton.functions import Function, Gradients
from srm_triton.ops.srm_scan import check_scan
from srm_triton.parameters import SRMParameters, SRMState, check_parameters, unstack_state

_THRESHOLD = 4  # row of the constants


class _Membrane(Function):
    traceable = False

    @staticmethod
    def forward(current: Tensor, constants: Tensor, backend: str) -> Tensor:
        membrane: Tensor = torch.ops.srm_triton.srm_trace(current, constants, None, 1, backend)[1]
        return membrane

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, constants, ctx.backend = inputs
        ctx.save_for_backward(constants)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        (constants,) = ctx.saved_tensors
        return _Membrane.apply(grad.flip(1), constants, ctx.backend).flip(1), None, None


def srm_membrane(
    current: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    return_state: bool = False,
    batch_first: bool = True,
) -> Any:
    """Membrane potentials of SRM neurons that neither fire nor reset, differentiable in current and state.

    Args:
        current: input current, [batch, time, channels, ...], as `srm_scan` takes it.
        parameters: constants of the neurons, of which `tau_m` and `tau_s` matter; None stands for `SRMParameters()`.
        state: what the neurons begin with, as `srm_scan` takes it; None for 0. Its gradient trace is not looked at.
        return_state: whether to return the state after the last step too, its gradient trace 0.
        batch_first: False for [time, batch, channels, ...].

    Returns:
        Membrane potentials, in the shape of `current`, in float64 for float64, else in float32; and with `return_state`
        the state.

    Raises:
        TypeError: as `srm_scan`.
        ValueError: as `srm_scan`, and for constants that require a gradient.

    Example:
        >>> srm_membrane(torch.tensor([[1.0, 1.0, 1.0]]))
        tensor([[0.3333, 0.8222, 1.3615]])
    """
    for name, flag in (("return_state", return_state), ("batch_first", batch_first)):
        check_option(name, flag, (False, True))
    initial, constants, time_axis = check_scan(current, check_parameters(parameters), state, batch_first)
    if constants.requires_grad:
        raise ValueError("parameters must not require a gradient, which srm_membrane does not hand on to them")
    rows = list(constants.unbind(0))
    rows[_THRESHOLD] = torch.full_like(rows[_THRESHOLD], torch.inf)
    x = current.movedim(time_axis, 1).to(constants.dtype)
    steps = x.shape[1]
    membrane_decay, synapse_decay = (row.view(-1, *[1] * max(0, x.dim() - 3)) for row in rows[:2])
    t = torch.arange(steps, device=x.device).view(-1, *[1] * (x.dim() - 2))
    start = None if initial is None else unstack_state(initial)
    if start is not None:  # the synaptic current left is one more input of the first step
        x = torch.cat((x[:, :1] + start.synapse.unsqueeze(1), x[:, 1:]), 1)
    membrane: Tensor = _Membrane.apply(x, torch.stack(rows), requested_backend())
    if start is not None:
        membrane = membrane + start.membrane.unsqueeze(1) * membrane_decay ** (t + 1)
    result = membrane.movedim(1, time_axis)
    if not return_state:
        return result
    if steps:
        last, synapse = membrane[:, -1], (x * synapse_decay ** (steps - t)).sum(1)
    else:
        last, synapse = (x.sum(1), x.sum(1)) if start is None else start[:2]
    return result, SRMState(last, synapse, torch.zeros_like(synapse))
