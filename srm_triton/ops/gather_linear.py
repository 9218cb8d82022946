"""The product of a weight with inputs that are mostly 0, as spikes are, for inference on the CPU.

    outputs[n] = bias + Σ inputs[n, i]·weight[:, i]        over the inputs i of sample n that are not 0

so that work falls with the firing rate. For it a weight lies in memory input by input (`by_inputs`), which the dense
product of PyTorch reads as well; the layers keep their normalised weight so in evaluation. Up to one input in eight
this was the faster for every size of `bench/gather_linear.py` (break-even at one in five and more); above that, and for
small weights, the dense product serves. Each output is summed from the first input to the last: it rounds as
sums in another order do, the same for any number of samples and threads.
"""

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.functions import traced
from srm_triton.kernels import native
from srm_triton.precision import autocast_of

_SMALLEST = 1 << 16  # values of a weight
_NARROWEST = 64  # outputs
_MOST = 8  # inputs, of which one may be other than 0
_SMALL = (torch.bfloat16, torch.float16, torch.uint8, torch.bool)


def by_inputs(weight: Tensor) -> Tensor:
    """A weight [outputs, inputs] with the same values, input by input in memory if `gather_linear` takes it so.

    That is on the CPU, where the C library was built, in float32 or float64, if the weight is finite and not small.
    """
    large = weight.dim() == 2 and len(weight) >= _NARROWEST and weight.numel() >= _SMALLEST
    if not (large and weight.dtype in (torch.float32, torch.float64) and _serves(weight)):
        return weight
    if not weight.isfinite().all():  # 0 times such a weight is no number
        return weight
    rows = weight.new_zeros(weight.shape[1], native.row_of_panels(len(weight)))
    result = rows.t()[: len(weight)]
    result.copy_(weight)
    return result


def gather_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """`torch.nn.functional.linear`, without a gradient, as a sum of rows; None where it is slower.

    Args:
        inputs: [samples, in_features], in the dtype of the weight, half precision, uint8 or bool.
        weight: [out_features, in_features], as `by_inputs` returns it.
        bias: [out_features] in the dtype of the weight, or None.

    Returns:
        [samples, out_features] in the dtype of the weight.

    Example:
        >>> inputs, weight = torch.zeros(2, 1000), by_inputs(torch.rand(100, 1000))
        >>> inputs[:, 7] = 1
        >>> outputs = gather_linear(inputs, weight)
        >>> outputs is None or torch.equal(outputs, weight[:, 7].expand(2, 100))
        True
    """
    if weight.stride(0) != 1 or traced() or not (weight.is_cpu and _serves(weight)):
        return None
    if weight.stride(1) != native.row_of_panels(len(weight)) or autocast_of(weight) is not None:
        return None
    if inputs.dtype not in (weight.dtype, *_SMALL):
        return None
    inputs = inputs.contiguous()
    if native.count_nonzero(inputs) * _MOST > inputs.numel():
        return None
    results = weight.new_empty(len(inputs), len(weight))
    native.gather_linear(inputs, weight, bias, results)
    return results


def _serves(weight: Tensor) -> bool:
    return weight.is_cpu and resolve_backend(weight.device, requested_backend(), has_native=True) == "native"
