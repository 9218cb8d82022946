"""The gradient of total-variation denoising, by implicit differentiation where the iterations settle.

A step of split Bregman takes splits v to Φ(v, f, λ), the estimate is u = E(v, f, λ), and at the end v = Φ(v, f, λ). So

    ∂L/∂f = (∂E/∂f)ᵀ·∂L/∂u + (∂Φ/∂f)ᵀ·a        a = (∂E/∂v)ᵀ·∂L/∂u + (∂Φ/∂v)ᵀ·a

and likewise for λ; a is found by repetition, which converges as the iterations did. For F = ‖·‖₂² and a variation that
is neither isotropic nor coupled, ∂L/∂f is the mean of ∂L/∂u over each flat region.

Source: Bai, Kolter and Koltun, "Deep Equilibrium Models", NeurIPS 2019.
"""

from typing import Any

import torch
from torch import Tensor

from srm_triton.functions import Function, Gradients, once_differentiable
from srm_triton.images.split_bregman import RELAXATION, DenoisingState, estimate_equation
from srm_triton.ops.poisson import PoissonEquation
from srm_triton.ops.shrink import advance_splits, differences, next_target
from srm_triton.ops.variation import Problem


def attach_gradient(
    estimate: Tensor, images: Tensor, weight: Tensor, problem: Problem, state: DenoisingState, max_iterations: int
) -> Tensor:
    """Returns the estimate as a differentiable function of images and weight.

    Args:
        estimate: the solution of `problem`.
        images: those of `problem`.
        weight: that of `problem`.
        problem: what was solved.
        state: where the iterations stopped.
        max_iterations: of the repetition that finds the gradient.
    """
    attached: Tensor = _Attach.apply(estimate, images, weight, problem, state, max_iterations)
    return attached


class _Attach(Function):
    @staticmethod
    def forward(
        estimate: Tensor, images: Tensor, weight: Tensor, problem: Problem, state: DenoisingState, max_iterations: int
    ) -> Tensor:
        return estimate.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])  # what a second derivative would be by
        ctx.arguments = inputs[3:]

    @staticmethod
    @once_differentiable("denoise_tv")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        problem, state, max_iterations = ctx.arguments
        by_images, by_weight = _implicit(problem, state, max_iterations, grad)
        return None, by_images, by_weight, None, None, None


def _implicit(problem: Problem, state: DenoisingState, max_iterations: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of images and weight."""
    splitting, penalty = problem.splitting, state.penalty
    equation = estimate_equation(problem, penalty, centred=False)  # gradients have a mean
    with torch.enable_grad():
        f, weight, v = (x.detach().requires_grad_() for x in (problem.images, problem.weight, state.splits))
        u = _Solve.apply(next_target(f, v, penalty, weight, splitting), weight, penalty, equation, splitting.edges)
        following = advance_splits(u, f, v, penalty, RELAXATION[splitting.fidelity], splitting)
    (first,) = torch.autograd.grad(u, v, grad, retain_graph=True)
    adjoint = first
    for _ in range(max_iterations):
        (rest,) = torch.autograd.grad(following, v, adjoint, retain_graph=True)
        before, adjoint = adjoint, first + rest
        if (adjoint - before).norm() <= torch.finfo(grad.dtype).eps ** 0.5 * adjoint.norm():
            break
    by_images, by_weight = torch.autograd.grad((u, following), (f, weight), (grad, adjoint))
    return by_images, by_weight


class _Solve(Function):
    """The solution u of (distance + λ·penalty·∂ᵀ∂)·u = target, of whose matrix λ is a part."""

    @staticmethod
    def forward(target: Tensor, weight: Tensor, penalty: Tensor, equation: PoissonEquation, edges: Any) -> Tensor:
        return equation.solve(target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[2])
        ctx.equation, ctx.edges = inputs[3:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        solution, penalty = ctx.saved_tensors
        by_target = ctx.equation.solve(grad)
        along = (differences(x, ctx.edges) for x in (by_target, solution))
        by_weight = -penalty * sum((x * y).flatten(1).sum(1) for x, y in zip(*along, strict=True))
        return by_target, by_weight, None, None, None
