"""Export of networks to ONNX, the neurons as a scan of standard operators; needs the extra `onnx`.

What depends on the parameters alone, such as normalised weights and the decays, is computed once, by PyTorch. The body
of each scan is the step of the reference in `srm_triton.ops.srm_scan`, so a runtime that does not fuse its operations
has the same spikes for the same currents, bit for bit. Products and convolutions round as the runtime has them: where a
potential comes within that rounding of the threshold, a spike may differ.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan_op
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.experimental.const_fold import split_const_subgraphs

from srm_triton.checks import check_tensor
from srm_triton.data.files import optional_module
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.srm_scan import Constants, Step, prepare_scan, take_steps
from srm_triton.parameters import SRMState
from srm_triton.recurrent import SRMRecurrent

__all__ = ["export"]


def export(network: nn.Module, inputs: Tensor) -> torch.onnx.ONNXProgram:
    """A network in evaluation as a program of ONNX; its `save` writes the file.

    The number of samples may differ from that of the example, and the number of steps, unless a layer is an
    `SRMRecurrent`, whose steps are written out one by one.

    Args:
        network: maps a tensor to one or several; in float32 or float64.
        inputs: an example, [batch, time, ...], or [time, batch, ...] as the network takes it, of two samples and two
            steps at least; its values do not matter.

    Raises:
        TypeError: for anything but a module and a tensor, a network in half precision, or one with operations that have
            no form in ONNX, such as `SparseRepresentation`.
        ValueError: for a network in training, or an example of fewer samples or steps.
        ModuleNotFoundError: without the extra `onnx`.

    Example:
        >>> from srm_triton import spiking_network
        >>> network = spiking_network("20", 64, 10, steps=8).eval()
        >>> program = export(network, torch.rand(2, 8, 64))  # program.save("network.onnx")
        >>> sorted({node.op_type for node in program.model.graph} & {"Scan", "Gemm"})
        ['Gemm', 'Scan']
    """
    _check(network, inputs)
    for package in ("onnx", "onnxscript"):
        optional_module(package, "onnx")
    fixed = any(isinstance(module, SRMRecurrent) for module in network.modules())
    later = any(isinstance(module, SRMNeuron) and not module.batch_first for module in network.modules())
    batch, time = (1, 0) if later else (0, 1)
    shapes = ({batch: Dim("batch")} if fixed else {batch: Dim("batch"), time: Dim("time")},)
    with torch.no_grad(), _quiet():
        traced = torch.export.export(network, (inputs,), dynamic_shapes=shapes)
        _check_operations(traced, (*_DECOMPOSITIONS, torch.ops.srm_triton.batch_norm.default))
        folded = split_const_subgraphs(traced.module(check_guards=False))
        folded.run_folding()
        program = torch.export.export(folded, (inputs,), dynamic_shapes=shapes).run_decompositions(_DECOMPOSITIONS)
        _check_operations(program, ())
        exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["inputs"], dynamic_shapes=shapes)
    assert exported is not None
    return exported


def _scan(
    current: Tensor,
    constants: Tensor,
    initial: Tensor | None,
    time_axis: int,
    asked: Sequence[bool],
    spike_dtype: torch.dtype | None,
    backend: str,
) -> list[Tensor]:
    dtype = spike_dtype or current.dtype
    state, spikes = _run(current, constants, initial, time_axis, lambda step: [step.spike.to(dtype)])
    return [*spikes, torch.stack(state)] if asked[0] else spikes


def _trace(
    current: Tensor, constants: Tensor, initial: Tensor | None, time_axis: int, backend: str
) -> tuple[Tensor, ...]:
    def record(step: Step) -> list[Tensor]:
        return [step.spike.to(current.dtype), step.membrane, step.gradient_trace]

    return tuple(_run(current, constants, initial, time_axis, record)[1])


_DECOMPOSITIONS = {torch.ops.srm_triton.srm_scan.default: _scan, torch.ops.srm_triton.srm_trace.default: _trace}


def _run(
    current: Tensor, constants: Tensor, initial: Tensor | None, time_axis: int, record: Callable[[Step], list[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """The state after the last step, and what is recorded at each, in the axes of the current."""
    x, state, rows = prepare_scan(current, constants, initial, time_axis)

    def advance(*values: Tensor) -> list[Tensor]:
        state, x, rows = SRMState(*values[:3]), values[3:4], Constants(*values[4:])
        (step,) = take_steps(torch.stack(x), state, rows)
        return [*step.state, *record(step)]

    if isinstance(x.shape[0], int) and x.shape[0] == 1:  # of a recurrent layer
        results = advance(*state, x[0], *rows)
        return results[:3], [result.unsqueeze(time_axis) for result in results[3:]]
    # a scan takes no views of one tensor
    results = scan_op(advance, [part.clone() for part in state], [x], tuple(row.clone() for row in rows))
    return results[:3], [result.movedim(0, time_axis) for result in results[3:]]


def _check(network: nn.Module, inputs: Tensor) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    for name, module in network.named_modules():
        if module.training:
            raise ValueError(
                f"network must be in evaluation, got {name or type(module).__name__} in training; call network.eval()"
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"network must be in float32 or float64, got {name} in {tensor.dtype}; call network.float()"
            )
    if isinstance(inputs, Tensor) and not inputs.is_floating_point() and not inputs.is_complex():
        inputs = inputs.to(torch.get_default_dtype())  # events
    check_tensor("inputs", inputs, "[batch, time, ...]")
    if min(inputs.shape[:2]) < 2:
        raise ValueError(f"inputs must have two samples and two steps at least, got the shape {list(inputs.shape)}")


def _check_operations(program: ExportedProgram, allowed: Collection[object]) -> None:
    for graph in (module.graph for module in program.graph_module.modules() if isinstance(module, GraphModule)):
        for node in graph.nodes:
            if getattr(node.target, "namespace", None) == "srm_triton" and node.target not in allowed:
                raise TypeError(f"network must consist of operations that have a form in ONNX, got {node.target}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what PyTorch warns of in its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        for start in ("Failed to fetch module", "Attempted to insert a get_attr", "The tensor attribute self.weight"):
            warnings.filterwarnings("ignore", start, UserWarning)
        yield
