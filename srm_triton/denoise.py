"""Total-variation denoising by split Bregman.

    min_u  F(u − f) + λ·(‖∂x u‖₁ + ‖∂y u‖₁)        F = ‖·‖₂² or ‖·‖₁, periodic edges

The steps of an iteration, with their equations, are in `srm_triton/ops/shrink.py`; between them stands the estimate: it
solves (2 or penalty + λ·penalty·(∂xᵀ∂x + ∂yᵀ∂y))·u = target by a Fourier transform. In the first iterations the
penalty is multiplied, now and then, by the square root of primal over dual residual: a form of the residual balancing
of Boyd et al., "Distributed Optimization … via the Alternating Direction Method of Multipliers", 2011, section 3.4.1.
``method="seed"`` runs the iteration of the seed text, whose penalties are constant.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

from srm_triton.checks import check_number, check_option, check_same, check_tensor
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.ops.poisson import PoissonEquation, frequencies
from srm_triton.ops.shrink import StepSizes, bregman_step, soft_threshold

Fidelity = Literal["l1", "l2"]
Method = Literal["adaptive", "seed"]

# Found on natural images with Gaussian noise (l2) and with salt and pepper (l1)
_RELAXATION = {"l1": 1.0, "l2": 1.8}
_PENALTY = {"l1": 0.9, "l2": 1.5}  # at the start, in units of one over the mean difference of neighbours that differ
_TOLERANCE = {"l1": 0.015, "l2": 0.01}  # the photograph of the tests is then within 0.05 dB of its end
_CHECK_EVERY = 5  # iterations
_ADAPT_UNTIL = 30  # constant penalties from there on: convergence is proven for those
_SEED_PENALTIES = 500.0, 50.0


class DenoisingState(NamedTuple):
    """Where `denoise_tv` stopped, to start from in images that are similar."""

    splits: Tensor
    """Of differences along x and y, for ``"l1"`` of residuals too, [samples, kinds, channels, height, width]."""
    penalty: Tensor
    """[samples]."""


class DenoisingTrace(NamedTuple):
    """What the iterations came to, each [iterations, ...] for images [..., channels, height, width].

    An image that is finished before others keeps its last values.
    """

    objective: Tensor
    """What is minimised."""
    primal_residual: Tensor
    """How far values (differences, for ``"l1"`` residuals too) are from their splits, relative to either."""
    dual_residual: Tensor
    """How far the splits moved, relative to their Bregman variables."""
    error: Tensor | None
    """Root mean square error to the reference; None without one."""
    psnr: Tensor | None
    """Peak signal-to-noise ratio to the reference in dB, for values between 0 and 1; None without one."""


class Denoised(NamedTuple):
    """An image and how it was found."""

    image: Tensor
    iterations: Tensor
    """Of each image, int64 [...]."""
    converged: Tensor
    """Whether each image reached the tolerance, bool [...]."""
    trace: DenoisingTrace
    state: DenoisingState | None
    """None for ``method="seed"``."""


def tv_objective(image: Tensor, noisy: Tensor, weight: float, fidelity: Fidelity = "l2") -> Tensor:
    """Returns what denoising minimises, F(image − noisy) + weight·(‖∂x image‖₁ + ‖∂y image‖₁), for each image.

    Args:
        image: [..., channels, height, width], floating point.
        noisy: in the same shape.
        weight: λ.
        fidelity: F, ``"l2"`` for the sum of squares or ``"l1"`` for that of magnitudes.

    Returns:
        float64 [...].

    Raises:
        TypeError: for anything but floating-point tensors of one dtype, or a weight that is no number.
        ValueError: for other shapes, a negative weight, or another fidelity.

    Example:
        >>> tv_objective(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), 0.5)
        tensor(4., dtype=torch.float64)
    """
    weight = check_number("weight", weight, 0)
    check_option("fidelity", fidelity, get_args(Fidelity))
    check_tensor("image", image)
    check_same("noisy", noisy, "image", image)
    if image.dim() < 3 or noisy.shape != image.shape:
        raise ValueError(
            f"image and noisy must have one shape [..., channels, height, width], got {list(image.shape)} and "
            f"{list(noisy.shape)}"
        )
    dtype = accumulator_dtype(image.dtype)
    return _objective(image.to(dtype), noisy.to(dtype), weight, fidelity)


def _objective(image: Tensor, noisy: Tensor, weight: float, fidelity: Fidelity) -> Tensor:
    residual = (image - noisy).flatten(-3)
    distance = residual.abs() if fidelity == "l1" else residual.square()
    variation = sum((image.roll(-1, axis) - image).abs().flatten(-3).sum(-1, dtype=torch.float64) for axis in (-1, -2))
    return distance.sum(-1, dtype=torch.float64) + weight * variation


@overload
def denoise_tv(
    image: Tensor,
    weight: float,
    fidelity: Fidelity = ...,
    *,
    method: Method = ...,
    tolerance: float | None = ...,
    max_iterations: int = ...,
    start: DenoisingState | None = ...,
    reference: Tensor | None = ...,
    trace: Literal[False] = ...,
    after_iteration: Callable[[], object] = ...,
) -> Tensor: ...


@overload
def denoise_tv(
    image: Tensor,
    weight: float,
    fidelity: Fidelity = ...,
    *,
    method: Method = ...,
    tolerance: float | None = ...,
    max_iterations: int = ...,
    start: DenoisingState | None = ...,
    reference: Tensor | None = ...,
    trace: Literal[True],
    after_iteration: Callable[[], object] = ...,
) -> Denoised: ...


def denoise_tv(
    image: Tensor,
    weight: float,
    fidelity: Fidelity = "l2",
    *,
    method: Method = "adaptive",
    tolerance: float | None = None,
    max_iterations: int = 500,
    start: DenoisingState | None = None,
    reference: Tensor | None = None,
    trace: bool = False,
    after_iteration: Callable[[], object] = lambda: None,
) -> Tensor | Denoised:
    """Removes noise and keeps edges: minimises F(u − image) + weight·(‖∂x u‖₁ + ‖∂y u‖₁) (equations: the module's).

    Every image of a batch has penalties of its own and stops by itself, so its result does not depend on the others.

    Args:
        image: [..., channels, height, width], with any number of channels; [height, width] has one. Floating point,
            computed in float64 for float64, else in float32. Integers are converted as scikit-image does: divided by
            their type's largest value, and at least −1; bool becomes 0 and 1.
        weight: λ of the total variation, at least 0; the larger, the smoother. For ``"l2"``, scikit-image's
            ``denoise_tv_bregman(…, weight=2 / λ, isotropic=False)`` minimises the same sum, but for the edges.
        fidelity: F, ``"l2"`` for the sum of squares (Gaussian noise), ``"l1"`` for the sum of magnitudes (salt and
            pepper).
        method: ``"adaptive"``, or ``"seed"`` for the seed text's iteration with the penalties 500 and 50, which shrinks
            several channels together and takes `max_iterations` steps.
        tolerance: largest relative residual to stop at, ≥ 0; None for 0.01 (``"l2"``) or 0.015 (``"l1"``).
        max_iterations: where to stop at the latest, at least 1.
        start: `Denoised.state` of an earlier call for images of the same shape and fidelity; None starts afresh.
        reference: the image without noise, in the shape and dtype of `image`, for the trace only.
        trace: whether to return `Denoised`, which costs the objective in every iteration.
        after_iteration: called after each, for progress bars.

    Returns:
        The image, in the shape of `image` and its dtype (float32 for integers), or `Denoised`.

    Raises:
        TypeError: for arguments of another type.
        ValueError: for another shape or device, values that are not finite or too large to sum, a negative weight or
            tolerance, or options that do not go together.
        RuntimeError: if `image` requires a gradient, which is not available.

    Example:
        >>> edge = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).expand(1, 6, 6)
        >>> noise = 0.05 * torch.tensor([1.0, -1.0, 1.0]).repeat(2)[:, None]
        >>> (denoise_tv(edge + noise, 0.1) - edge).abs().max() < 0.06
        tensor(True)
    """
    weight = check_number("weight", weight, 0)
    check_option("fidelity", fidelity, get_args(Fidelity))
    check_option("method", method, get_args(Method))
    tolerance = check_number("tolerance", _TOLERANCE[fidelity] if tolerance is None else tolerance, 0)
    max_iterations = check_number("max_iterations", max_iterations, 1, whole=True)
    noisy = _checked_image("image", image)
    clean = None if reference is None else _checked_image("reference", reference)
    if clean is not None:
        check_same("reference", clean, "image", noisy)
        if clean.shape != noisy.shape:
            raise ValueError(f"reference must have the shape of image, {list(noisy.shape)}, got {list(clean.shape)}")
    *batch, channels, height, width = noisy.shape if noisy.dim() > 2 else (1, *noisy.shape)
    with torch.no_grad():
        samples = noisy.to(accumulator_dtype(noisy.dtype)).reshape(math.prod(batch), channels, height, width)
        samples = samples.contiguous()
        mean = samples.new_zeros(())
        if method == "adaptive" and weight > 0:
            first = samples[..., :1, :1]  # without it, images that are constant are exactly 0
            samples = samples - first
            rest = (_row_sums(samples).sum(-1) / (height * width)).to(samples.dtype)[..., None, None]
            samples, mean = samples.sub_(rest), first + rest  # which only costs digits
        solver: _SplitBregman | _Seed
        if method == "adaptive":
            solver = _SplitBregman(samples, float(weight), fidelity, start)
        elif start is None:
            solver, tolerance = _Seed(samples, float(weight), fidelity), -1.0  # below every residual
        else:
            raise ValueError('start must be None with method="seed", which keeps no state')
        clean = None if clean is None else clean.reshape(samples.shape) - mean
        result = _iterate(solver, tolerance, max_iterations, clean, trace, after_iteration)
        pixels = (result.image + mean).reshape(noisy.shape).to(noisy.dtype)
    if not _finite(pixels):
        raise ValueError(
            f"image must not be so large that {samples.dtype} cannot hold its sums, got values up to "
            f"{float(noisy.abs().max()):.1e}"
        )
    if not trace:
        return pixels
    rows = (None if row is None else row.reshape(len(row), *batch) for row in result.trace)
    return result._replace(
        image=pixels,
        iterations=result.iterations.reshape(batch),
        converged=result.converged.reshape(batch),
        trace=DenoisingTrace._make(rows),
    )


def _iterate(
    solver: "_SplitBregman | _Seed",
    tolerance: float,
    max_iterations: int,
    reference: Tensor | None,
    traced: bool,
    after_iteration: Callable[[], object],
) -> Denoised:
    """Lets the solver run, from time to time without the images that are finished."""
    samples = solver.images
    active = torch.arange(len(samples) if solver.weight > 0 else 0, device=samples.device)
    none = samples.new_zeros((0, len(samples)), dtype=torch.float64)
    result = Denoised(
        samples.clone(),
        torch.zeros(len(samples), dtype=torch.int64, device=samples.device),
        torch.full((len(samples),), solver.weight == 0, device=samples.device),  # the noisy image is the minimum
        DenoisingTrace(none, none, none, None, None),
        solver.state,
    )
    rows: list[Tensor] = []
    for iteration in range(1, max_iterations + 1):
        if not len(active):
            break
        checked = iteration % _CHECK_EVERY == 0 or iteration == max_iterations
        residuals = solver.step(measured=checked or traced)
        after_iteration()
        if traced:
            rows.append(rows[-1].clone() if rows else samples.new_zeros((5, len(samples)), dtype=torch.float64))
            rows[-1][:, active] = _describe(solver, residuals, None if reference is None else reference[active])
        if not checked:
            continue
        met = residuals.amax(0) <= tolerance
        finished = met | (iteration == max_iterations)
        if finished.any():
            places = active[finished]
            result.image[places] = solver.estimate[finished]
            result.iterations[places] = iteration
            result.converged[places] = met[finished]
            if traced and result.state is not None and solver.state is not None:
                result.state.splits[places] = solver.state.splits[finished]
                result.state.penalty[places] = solver.state.penalty[finished]
            active = active[~finished]
            if len(active):
                solver.keep(~finished)
        if len(active) and iteration <= _ADAPT_UNTIL:
            solver.adapt()
    if rows:
        objective, primal, dual, error, psnr = torch.stack(rows, 1)
        errors = (None, None) if reference is None else (error, psnr)
        result = result._replace(trace=DenoisingTrace(objective, primal, dual, *errors))
    return result


def _describe(solver: "_SplitBregman | _Seed", residuals: Tensor, reference: Tensor | None) -> Tensor:
    """A row of the trace, [5, samples]."""
    objective = _objective(solver.estimate, solver.images, solver.weight, solver.fidelity)
    if reference is None:
        error = torch.zeros_like(objective)
    else:
        error = (solver.estimate - reference).square().flatten(1).mean(1, dtype=torch.float64).sqrt()
    return torch.stack((objective, *residuals.double(), error, -20 * error.log10()))


class _SplitBregman:
    """The adaptive method, for images [samples, channels, height, width]."""

    def __init__(self, images: Tensor, weight: float, fidelity: Fidelity, start: DenoisingState | None) -> None:
        self.images, self.weight, self.fidelity = images, weight, fidelity
        self.relaxation = _RELAXATION[fidelity]
        self.estimate = images
        samples, kinds = len(images), 3 if fidelity == "l1" else 2
        total = count = torch.zeros(samples, dtype=torch.float64, device=images.device)
        for axis in (-1, -2):
            difference = images.diff(dim=axis).abs_()
            total = total + _row_sums(difference).sum((1, 2))
            count = count + _row_sums(difference.ne_(0)).sum((1, 2))  # most of a drawing is flat
        penalty = (_PENALTY[fidelity] * count / total).where(total > 0, 1).to(images.dtype)
        shape = (samples, kinds, *images.shape[1:])
        if start is None:
            splits = images.new_zeros(shape)
        else:
            _check_start(start, images, shape)
            splits, penalty = (tensor.clone(memory_format=torch.contiguous_format) for tensor in start)
        self.state: DenoisingState = DenoisingState(splits, penalty)
        if not (penalty.isfinite() & (penalty > 0) & (weight * penalty < torch.finfo(images.dtype).max / 8)).all():
            raise ValueError(
                f"image and weight must not be so large or small that {images.dtype} cannot hold their ratio, got "
                f"weight {weight} for images with values up to {float(images.abs().max()):.1e} from their mean"
            )
        self.allocate()
        if start is not None and images.numel():
            self.advance(0.0)  # the estimate that the splits ask for

    def allocate(self) -> None:
        """Memory for what is computed anew in every step, and what depends on the penalties."""
        self.target = torch.empty_like(self.images)
        self.work = torch.empty_like(self.state.splits)
        self.prepare()

    def prepare(self) -> None:
        """The equation that the estimate solves."""
        penalty = self.state.penalty.double()
        distance = penalty if self.fidelity == "l1" else torch.full_like(penalty, 2)
        height, width = self.images.shape[-2:]
        self.equation = PoissonEquation(
            distance, self.weight * penalty, (height, width), self.images.dtype, centred=self.fidelity == "l2"
        )

    def advance(self, relaxation: float) -> Callable[[], StepSizes]:
        """A step, and the estimate that it leads to; returns what measures the step."""
        splits, self.work, measure = bregman_step(
            self.estimate, self.images, self.state.splits, self.state.penalty, self.work, self.target, self.weight,
            relaxation,
        )  # fmt: skip
        self.state = self.state._replace(splits=splits)
        self.estimate = self.equation.solve(self.target)
        return measure

    def step(self, *, measured: bool) -> Tensor:
        """Takes a step; if it is measured, returns the relative residuals, primal and dual, [2, samples]."""
        measure = self.advance(self.relaxation)
        if not measured:
            return self.estimate.new_empty(0)
        self.sizes = measure()
        primal, dual, splits, bregman = self.sizes
        # in units of the Bregman variables too: where all noise is smoothed away, the splits come to nothing
        return torch.stack((_relative(primal, torch.maximum(splits, bregman)), _relative(dual, bregman)))

    def adapt(self) -> None:
        """Changes the penalty for residuals of equal size; neither splits nor Bregman variables change by that."""
        factor = (self.sizes.primal / self.sizes.dual).sqrt().nan_to_num(1.0).clamp(0.5, 2)
        factor = factor.where(factor.log().abs() > 0.2, 1)
        if (factor != 1).any():
            splits = self.state.splits
            bregman = torch.clamp(splits, -1, 1, out=self.work)
            torch.lerp(bregman, splits, factor[:, None, None, None, None], out=splits)
            self.state.penalty.mul_(factor)
            self.prepare()

    def keep(self, chosen: Tensor) -> None:
        """Goes on with these images only."""
        self.images, self.estimate = self.images[chosen], self.estimate[chosen]
        self.state = DenoisingState(*(tensor[chosen] for tensor in self.state))
        self.sizes = StepSizes(*(size[chosen] for size in self.sizes))
        self.allocate()


def _row_sums(images: Tensor) -> Tensor:
    """In float64 from here on: as fast as in float32, and of an image in a batch the same as of the image alone."""
    return images.sum(-1).double()


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def _relative(size: Tensor, unit: Tensor) -> Tensor:
    return (size / unit).where(size != 0, 0)  # 0 / 0 where an image is constant


class _Seed:
    """The seed text's iteration: α = 500 for the differences, β = 50 for the residual, which is split off for l2 too.

    With several channels it shrinks by the sum of magnitudes over them.
    """

    def __init__(self, images: Tensor, weight: float, fidelity: Fidelity) -> None:
        self.images, self.weight, self.fidelity = images, weight, fidelity
        self.estimate = images
        self.state: DenoisingState | None = None
        self.splits, self.bregman = images.new_zeros((2, len(images), 3, *images.shape[1:]))
        height, width = (frequencies(length, images.device) for length in images.shape[-2:])
        self.variation = (width + height[:, None]).to(images.dtype)

    def step(self, *, measured: bool) -> Tensor:
        """Takes a step and returns the relative residuals, primal and dual, [2, samples]."""
        alpha, beta = _SEED_PENALTIES
        penalties = self.images.new_tensor([alpha, alpha, beta])[:, None, None, None]
        x, y, f = (self.splits + self.bregman / penalties).unbind(1)
        target = f + self.images + alpha / beta * ((x.roll(1, -1) - x) + (y.roll(1, -2) - y))
        self.estimate = torch.fft.ifft2(torch.fft.fft2(target) / (1 + alpha / beta * self.variation)).real
        differences = (self.estimate.roll(-1, axis) - self.estimate for axis in (-1, -2))
        values = torch.stack((*differences, self.estimate - self.images), 1)
        before = self.splits
        x, y, f = (values - self.bregman / penalties).unbind(1)
        f = _shrink_together(f, 1 / beta) if self.fidelity == "l1" else beta / (2 + beta) * f
        x, y = _shrink_together(x, self.weight / alpha), _shrink_together(y, self.weight / alpha)
        self.splits = torch.stack((x, y, f), 1)
        self.bregman = self.bregman + penalties * (self.splits - values)
        primal = _relative(_norm(values - self.splits), torch.maximum(_norm(values), _norm(self.splits)))
        dual = _relative(_norm(penalties * (self.splits - before)), _norm(self.bregman))
        return torch.stack((primal, dual))

    def adapt(self) -> None:
        """Does nothing: its penalties are constant."""

    def keep(self, chosen: Tensor) -> None:
        """Is not called while images remain: they all take the same number of steps."""


def _shrink_together(values: Tensor, threshold: float) -> Tensor:
    """The soft threshold by the sum of magnitudes over channels, [samples, channels, ...]."""
    magnitude = values.abs().sum(1, keepdim=True)
    return values * (soft_threshold(magnitude, threshold) / magnitude).where(magnitude > 0, 0)


def to_float(image: Tensor) -> Tensor:
    """Returns an image in floating point: integers divided by their type's largest value, and at least −1.

    Example:
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if image.dtype.is_floating_point or image.dtype.is_complex:
        return image
    scale = 1 if image.dtype == torch.bool else torch.iinfo(image.dtype).max
    return (image.double() / scale).clamp(min=-1).float()


def _checked_image(name: str, image: Tensor) -> Tensor:
    """The image in floating point, all checks done."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
    image = to_float(image)
    check_tensor(name, image)
    if image.dim() < 2 or 0 in image.shape[-3:]:
        raise ValueError(
            f"{name} must have the shape [..., channels, height, width] or [height, width], without empty axes but in "
            f"front, got {list(image.shape)}"
        )
    if image.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} must not require a gradient: denoise_tv has none; pass {name}.detach()")
    if not _finite(image):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return image


def _finite(image: Tensor) -> bool:
    return not image.numel() or all(map(math.isfinite, image.aminmax()))


def _check_start(start: DenoisingState, images: Tensor, splits: tuple[int, ...]) -> None:
    """Checks that a state belongs to such images, whose splits have such a shape."""
    if not isinstance(start, DenoisingState):
        raise TypeError(f"start must be a DenoisingState, got {type(start).__name__}")
    for name, tensor, shape in zip(start._fields, start, (splits, splits[:1]), strict=True):
        check_tensor(f"start.{name}", tensor)
        if tensor.shape != shape:
            raise ValueError(
                f"start.{name} must have the shape {list(shape)} for this image and fidelity, got {list(tensor.shape)}"
            )
        check_same(f"start.{name}", tensor, "image (float64, else float32)", images)
        if not tensor.isfinite().all() or (name == "penalty" and not (tensor > 0).all()):
            raise ValueError(f"start.{name} must be finite{' and positive' * (name == 'penalty')}, got other values")
