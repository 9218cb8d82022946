"""Custom ops, and autograd functions that give a first gradient only, also for the transforms of `torch.func`."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Allocate = TypeVar("Allocate", bound=Callable[..., Any])
Called = TypeVar("Called", bound=Callable[..., Any])


def transforms_active() -> bool:
    """Whether a transform of `torch.func` (`vmap`, `grad`, …) is running; PyTorch has no public name for it."""
    return torch._C._are_functorch_transforms_active()


def traced() -> bool:
    """Whether values cannot be looked at: in code that `torch.compile` traces and in transforms of `torch.func`."""
    return torch.compiler.is_compiling() or transforms_active()


def distributed() -> bool:
    """Whether several processes may share a model; `fully_shard` then changes tensors without PyTorch counting it."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def check_plain(name: str, value: Any) -> None:
    """Checks that a value is no DTensor, for which the operations of this package have no sharding.

    Raises:
        TypeError: if it is one.
    """
    if hasattr(value, "device_mesh"):
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor: shard the module by torch.distributed.fsdp.fully_shard, "
            "or call .to_local() or .full_tensor() first"
        )


def refuse_script(module: Any) -> Any:
    """What `torch.jit.script` calls on a module that has it as `__prepare_scriptable__`.

    Raises:
        RuntimeError: with what to use instead.
    """
    raise RuntimeError(f"torch.jit.script does not know {type(module).__name__}: {_INSTEAD_OF_JIT}")


_INSTEAD_OF_JIT = "use torch.compile, or torch.export for a program that other processes load"


def eager_only(function: Called) -> Called:
    """Makes compiled code call a function as it is, and transforms of `torch.func`, which it does not know, an error.

    For functions that hand memory to C themselves: traced, they would hand on what is none.
    """

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        if transforms_active():
            raise RuntimeError(
                f"{function.__name__} does not know the transforms of torch.func, such as vmap and grad; call it on "
                "plain tensors, and use torch.autograd for gradients"
            )
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            return torch.compiler.disable(function)(*arguments, **options)
        return function(*arguments, **options)

    return cast(Called, run)


def custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Makes an op `srm_triton::name` of a function of CPU and CUDA tensors, its schema from the type hints.

    As `torch.library.custom_op`, which takes three times as long a call and imports the compiler at the first one;
    `fake_of` and `torch.library.register_vmap` do the rest.
    """

    def define(function: Callable[..., Any]) -> Any:
        qualified = f"srm_triton::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
        without_gradients = torch.no_grad()(function)

        def run(*arguments: Any) -> Any:
            # exported programs call it directly; from autograd functions, which are within no_grad, it costs less
            return (without_gradients if torch.is_grad_enabled() else function)(*arguments)

        torch.library.impl(qualified, ("cpu", "cuda"), run)
        return getattr(torch.ops.srm_triton, name).default

    return define


def fake_of(op: Any) -> Callable[[Allocate], Allocate]:
    """Makes what allocates the results of an op its fake, by which tracers know their shapes."""
    return torch.library.register_fake(op)


class Function(torch.autograd.Function):
    """An autograd function in the form that `torch.func` takes: `forward` without a context, and `setup_context`.

    All arguments are positional and given.
    """

    generate_vmap_rule = True
    traceable = True  # by torch.jit.trace, which knows few types of arguments and keeps constants as they were

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """Calls the function."""
        if distributed():
            for argument in arguments:
                check_plain("each argument", argument)
        if not cls.traceable and torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise RuntimeError(f"torch.jit.trace does not know spiking neurons: {_INSTEAD_OF_JIT}")
        if transforms_active():
            return super().apply(*arguments)
        # PyTorch would first bind the arguments to their names, a fifth of the time of a small layer
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]


@contextmanager
def refuse_random_numbers(what: str, device: torch.device) -> Iterator[None]:
    """Raises an error if the block draws random numbers from PyTorch's own generators.

    Raises:
        RuntimeError: if it does; it says `what` must not.
    """
    states = [torch.get_rng_state]
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():  # the state is on the host
        states.append(partial(torch.cuda.get_rng_state, device))
    before = [state() for state in states]
    yield
    if not all(torch.equal(state(), one) for state, one in zip(states, before, strict=True)):
        raise RuntimeError(f"{what} must compute the same again, but it draws random numbers")


def keep_results(ctx: Any, results: tuple[Tensor, ...]) -> None:
    """Lets gradients pass through the first result only; for the others none is made, not even of zeros."""
    ctx.mark_non_differentiable(*results[1:])
    ctx.set_materialize_grads(False)


def once_differentiable(what: str) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """Makes a backward of ``rule(ctx, saved_tensors, *gradients)``; a second derivative raises an error that says what.

    Without it a second derivative would lack the parts that pass through intermediate values, and nobody would notice.
    Code compiled by `torch.compile` is not watched: PyTorch refuses there by itself, but with ``backend="eager"``.
    """

    def decorate(rule: Callable[..., Gradients]) -> Callable[..., Gradients]:
        def backward(ctx: Any, *gradients: Tensor) -> Gradients:
            if not [None for gradient in gradients if gradient is not None]:  # nothing depends on the results
                return (None,) * len(ctx.needs_input_grad)
            saved = ctx.saved_tensors
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # enabled by create_graph=True
                return rule(ctx, saved, *gradients)
            results = rule(ctx, _detached(saved), *_detached(gradients))
            sources = (*saved, *gradients)
            return tuple(None if r is None else _RefuseGradient.apply(r, what, *sources) for r in results)

        return backward

    return decorate


def _detached(tensors: Iterable[Tensor | None]) -> Gradients:
    return tuple(None if tensor is None else tensor.detach() for tensor in tensors)


class _RefuseGradient(Function):
    """Ties a gradient to what it depends on."""

    @staticmethod
    def forward(gradient: Tensor, what: str, *sources: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.what = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        raise RuntimeError(f"{ctx.what} cannot be differentiated twice: the first gradient has a rule of its own")
