"""Split Bregman: the iterations that denoise by total variation.

The steps of an iteration, with their equations, are in `srm_triton/ops/shrink.py`; between them stands the estimate: it
solves (2 or penalty + λ·penalty·(∂xᵀ∂x + ∂yᵀ∂y))·u = target (`srm_triton/ops/poisson.py`). In the first iterations the
penalty is multiplied, now and then, by the square root of primal over dual residual: a form of the residual balancing
of Boyd et al., "Distributed Optimization … via the Alternating Direction Method of Multipliers", 2011, section 3.4.1.
`SeedIteration` is that of the seed text, whose penalties are constant.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from srm_triton.ops.poisson import PoissonEquation
from srm_triton.ops.shrink import StepSizes, bregman_part, bregman_step, differences, divergence
from srm_triton.ops.variation import Problem

# Found on natural images with Gaussian noise (l2) and with salt and pepper (l1)
RELAXATION = {"l1": 1.5, "l2": 1.8}
_PENALTY = {"l1": 0.9, "l2": 1.5}  # at the start, in units of one over the mean difference of neighbours that differ
_CHECK_EVERY = 5  # iterations
_ADAPT_UNTIL = 30  # constant penalties from there on: convergence is proven for those
_LAST_FACTOR = {"l1": 1.0, "l2": 4.0}  # of the penalty, there: what balances the first residuals is small for the rest
_SEED_PENALTIES = 500.0, 50.0


class DenoisingState(NamedTuple):
    """Where `denoise_tv` stopped, to start from in images that are similar."""

    splits: Tensor
    """Of differences along each axis, the last first, and of residuals for ``"l1"`` or with `known`,
    [samples, kinds, channels, height, width]."""
    penalty: Tensor
    """[samples]."""


class Result(NamedTuple):
    """What the iterations came to, of each sample."""

    estimate: Tensor
    """[samples, channels, height, width]."""
    iterations: Tensor
    """int64 [samples]."""
    converged: Tensor
    """bool [samples]."""
    gap: Tensor
    """What part of the objective may lie above its minimum, float64 [samples]; the seed's iteration proves nothing."""
    state: DenoisingState | None
    rows: list[Tensor]
    """Of each iteration, if traced: objective, primal and dual residual, mean squared error, float64 [4, samples]."""


def iterate(
    solver: "SplitBregman | SeedIteration",
    tolerance: float,
    max_iterations: int,
    reference: Tensor | None,
    traced: bool,
    keep_state: bool,
    after_iteration: Callable[[], object],
) -> Result:
    """Lets the solver run, from time to time without the images that are finished; those of weight 0 are at once."""
    images, weight = solver.problem.images, solver.problem.weight
    rows: list[Tensor] = []
    result = Result(
        images.clone(),
        torch.zeros(len(images), dtype=torch.int64, device=images.device),
        weight == 0,  # the noisy image is the minimum
        torch.zeros_like(weight, dtype=torch.float64),
        solver.state,
        rows,
    )
    active = weight.nonzero()[:, 0]
    if 0 < len(active) < len(images):
        solver.keep(weight > 0)
    for iteration in range(1, max_iterations + 1):
        if not len(active):
            break
        checked = iteration % _CHECK_EVERY == 0 or iteration == max_iterations
        adapting = checked and iteration <= _ADAPT_UNTIL
        residuals = solver.step(measured=traced or adapting)
        after_iteration()
        if traced:
            rows.append(rows[-1].clone() if rows else images.new_zeros((4, len(images)), dtype=torch.float64))
            rows[-1][:, active] = _describe(solver, residuals, None if reference is None else reference[active])
        if not checked:
            continue
        gap = solver.gap()
        met = gap <= tolerance
        finished = met | (iteration == max_iterations)
        if finished.any():
            places = active[finished]
            result.estimate[places] = solver.estimate[finished]
            result.iterations[places] = iteration
            result.converged[places] = met[finished]
            result.gap[places] = gap[finished]
            if keep_state and result.state is not None and solver.state is not None:
                result.state.splits[places] = solver.state.splits[finished]
                result.state.penalty[places] = solver.state.penalty[finished]
            active = active[~finished]
            if len(active):
                solver.keep(~finished)
        if len(active) and adapting:
            solver.adapt(last=iteration == _ADAPT_UNTIL)
    return result


def _describe(solver: "SplitBregman | SeedIteration", residuals: Tensor, reference: Tensor | None) -> Tensor:
    objective = solver.problem.objective(solver.estimate)
    error = torch.zeros_like(objective)
    if reference is not None:
        error = (solver.estimate - reference).square().flatten(1).mean(1, dtype=torch.float64)
    return torch.stack((objective, *residuals.double(), error))


def estimate_equation(problem: Problem, penalty: Tensor, *, centred: bool) -> PoissonEquation:
    """The equation that the estimate solves; `centred` leaves out the mean, where that of all images is 0."""
    penalty = penalty.double()
    distance = penalty if problem.splits_residual else torch.full_like(penalty, 2)
    images, edges = problem.images, problem.splitting.edges
    return PoissonEquation(distance, problem.weight * penalty, problem.size, images.dtype, edges, centred=centred)


class SplitBregman:
    """The adaptive method."""

    def __init__(self, problem: Problem, start: DenoisingState | None) -> None:
        self.problem = problem
        self.relaxation = RELAXATION[problem.splitting.fidelity]
        self.estimate = images = problem.images
        self.state: DenoisingState
        self.sizes: StepSizes | None = None  # of the last step that was measured
        if start is None:
            kinds = len(problem.size) + problem.splits_residual
            splits = images.new_zeros((len(images), kinds, *images.shape[1:]))
            self.state = DenoisingState(splits, self._first_penalty())
        else:
            splits, penalty = (tensor.clone(memory_format=torch.contiguous_format) for tensor in start)
            if problem.splitting.edges == "mirrored":  # the state may be of images with other edges
                for kind in range(len(problem.size)):
                    splits[:, kind].select(-1 - kind, -1).zero_()
            self.state = DenoisingState(splits, penalty)
        penalty = self.state.penalty
        if not (penalty.isfinite() & (penalty * problem.weight < torch.finfo(images.dtype).max / 8)).all():
            raise ValueError(
                f"image and weight must not be so large or small that {images.dtype} cannot hold their ratio, got "
                f"weights up to {float(problem.weight.max()):.1e} in units of the brightest pixel"
            )
        self.allocate()
        if start is not None and images.numel():
            self.advance(0.0)  # the estimate that the splits ask for

    def _first_penalty(self) -> Tensor:
        images = self.problem.images
        total = count = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for axis in range(2, images.dim()):
            difference = images.diff(dim=axis).abs_()
            total = total + difference.sum(-1).double().flatten(1).sum(1)
            count = count + difference.ne_(0).sum(-1).double().flatten(1).sum(1)  # most of a drawing is flat
        return (_PENALTY[self.problem.splitting.fidelity] * count / total).where(total > 0, 1).to(images.dtype)

    def allocate(self) -> None:
        """Memory for what is computed anew in every step, and what depends on the penalties."""
        self.target = torch.empty_like(self.problem.images)
        self.work = torch.empty_like(self.state.splits)
        self.prepare()

    def prepare(self) -> None:
        """The equation that the estimate solves."""
        self.equation = estimate_equation(self.problem, self.state.penalty, centred=not self.problem.splits_residual)

    def advance(self, relaxation: float) -> Callable[[], StepSizes]:
        """A step, and the estimate that it leads to; returns what measures the step."""
        problem, (splits, penalty) = self.problem, self.state
        splits, self.work, measure = bregman_step(
            self.estimate, problem.images, splits, penalty, problem.weight, self.work, self.target, relaxation,
            problem.splitting,
        )  # fmt: skip
        self.state = self.state._replace(splits=splits)
        self.estimate = self.equation.solve(self.target)
        return measure

    def step(self, *, measured: bool) -> Tensor:
        """Takes a step; if it is measured, returns the relative residuals, primal and dual, [2, samples]."""
        measure = self.advance(self.relaxation)
        if not measured:
            return self.estimate.new_empty(0)
        self.sizes = primal, dual, splits, bregman = measure()
        # in units of the Bregman variables too: where all noise is smoothed away, the splits come to nothing
        return torch.stack((_relative(primal, torch.maximum(splits, bregman)), _relative(dual, bregman)))

    def gap(self) -> Tensor:
        """What part of the objective may lie above its minimum, float64 [samples]."""
        objective, bound = self.problem.objective_and_bound(self.estimate, *self.state)
        return _relative((objective - bound).clamp(min=0), objective)

    def adapt(self, *, last: bool = False) -> None:
        """Changes the penalty for residuals of equal size; neither splits nor Bregman variables change by that."""
        assert self.sizes is not None
        factor = (self.sizes.primal / self.sizes.dual).sqrt().nan_to_num(1.0).clamp(0.5, 2)
        factor = factor.where(factor.log().abs() > 0.2, 1) * (
            _LAST_FACTOR[self.problem.splitting.fidelity] if last else 1
        )
        if (factor != 1).any():
            splits, penalty = self.state
            bregman = bregman_part(splits, penalty, self.problem.splitting)
            torch.lerp(bregman, splits, factor.view(-1, *[1] * (splits.dim() - 1)), out=splits)
            penalty.mul_(factor)
            self.prepare()

    def keep(self, chosen: Tensor) -> None:
        """Goes on with these images only."""
        self.problem, self.estimate = self.problem.keep(chosen), self.estimate[chosen]
        self.state = DenoisingState(*(tensor[chosen] for tensor in self.state))
        if self.sizes is not None:
            self.sizes = StepSizes(*(size[chosen] for size in self.sizes))
        self.allocate()


def _relative(size: Tensor, unit: Tensor) -> Tensor:
    return (size / unit).where(size != 0, 0)  # 0 / 0 where an image is constant


class SeedIteration:
    """The seed text's iteration: α = 500 for the differences, β = 50 for the residual, which is split off for l2 too.

    With several channels it shrinks by the sum of magnitudes over them. It keeps no state.
    """

    state: DenoisingState | None = None

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.estimate = images = problem.images
        self.splits, self.bregman = images.new_zeros((2, len(images), 3, *images.shape[1:]))
        self.prepare()

    def prepare(self) -> None:
        """The equation that the estimate solves."""
        alpha, beta = _SEED_PENALTIES
        images, edges = self.problem.images, self.problem.splitting.edges
        one = torch.ones(len(images), dtype=torch.float64, device=images.device)
        self.equation = PoissonEquation(one, alpha / beta * one, self.problem.size, images.dtype, edges)

    def step(self, *, measured: bool) -> Tensor:
        """Takes a step and returns the relative residuals, primal and dual, [2, samples]."""
        alpha, beta = _SEED_PENALTIES
        images, edges = self.problem.images, self.problem.splitting.edges
        penalties = images.new_tensor([alpha, alpha, beta])[:, None, None, None]
        target = self.splits + self.bregman / penalties
        self.estimate = self.equation.solve(target[:, 2] + images + alpha / beta * divergence(target))
        values = torch.stack((*differences(self.estimate, edges), self.estimate - images), 1)
        before = self.splits
        x, y, f = (values - self.bregman / penalties).unbind(1)
        f = _shrink_together(f, 1 / beta) if self.problem.splitting.fidelity == "l1" else beta / (2 + beta) * f
        threshold = (self.problem.weight / alpha)[:, None, None, None]
        self.splits = torch.stack((_shrink_together(x, threshold), _shrink_together(y, threshold), f), 1)
        self.bregman = self.bregman + penalties * (self.splits - values)
        primal = _relative(_norm(values - self.splits), torch.maximum(_norm(values), _norm(self.splits)))
        dual = _relative(_norm(penalties * (self.splits - before)), _norm(self.bregman))
        return torch.stack((primal, dual))

    def gap(self) -> Tensor:
        """Infinite: the iteration runs to its last step."""
        return torch.full_like(self.problem.weight, torch.inf, dtype=torch.float64)

    def adapt(self, *, last: bool = False) -> None:
        """Does nothing: its penalties are constant."""

    def keep(self, chosen: Tensor) -> None:
        """Goes on with these images only."""
        self.problem, self.estimate = self.problem.keep(chosen), self.estimate[chosen]
        self.splits, self.bregman = self.splits[chosen], self.bregman[chosen]
        self.prepare()


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def _shrink_together(values: Tensor, threshold: Tensor | float) -> Tensor:
    """The soft threshold by the sum of magnitudes over channels, [samples, channels, ...]."""
    magnitude = values.abs().sum(1, keepdim=True)
    return values * ((magnitude - threshold).clamp(min=0) / magnitude).where(magnitude > 0, 0)
