"""Total-variation denoising: what is asked for is checked, and put into the units in which it is solved.

The problem, and how near a result is to its solution, are in `srm_triton/ops/variation.py`, the iterations in
`srm_triton/images/split_bregman.py`, the gradient in `srm_triton/images/gradient.py`.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypedDict, Unpack, get_args, overload

import torch
from torch import Tensor

from srm_triton.checks import check_number, check_option, check_same, check_tensor
from srm_triton.functions import eager_only
from srm_triton.images.gradient import attach_gradient
from srm_triton.images.split_bregman import DenoisingState, SeedIteration, SplitBregman, iterate
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.ops.shrink import Edges, Fidelity, Splitting
from srm_triton.ops.variation import Problem

Method = Literal["adaptive", "seed"]
Coupling = Literal["none", "channels"]

_TOLERANCE = {"l1": 0.02, "l2": 0.01}  # the photograph of the tests is then within 0.05 dB of its end
_SCALED = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16)  # integers whose type says what is white
_SIZES = {2: "height, width", 3: "depth, height, width"}


class DenoisingTrace(NamedTuple):
    """What the iterations came to, each [iterations, ...] for images [..., channels, height, width].

    An image that is finished before others keeps its last values.
    """

    objective: Tensor
    """What is minimised."""
    primal_residual: Tensor
    """How far values (differences, for ``"l1"`` or a mask residuals too) are from their splits, relative to either."""
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
    gap: Tensor
    """The duality gap over the objective, float64 [...]: at most that part of it lies above the minimum. Infinite for
    ``method="seed"``, which proves nothing."""


@eager_only
def tv_objective(
    image: Tensor,
    noisy: Tensor,
    weight: float | Tensor,
    fidelity: Fidelity = "l2",
    *,
    edges: Edges = "mirrored",
    isotropic: bool = False,
    coupling: Coupling = "none",
    mask: Tensor | None = None,
    spatial_dims: Literal[2, 3] = 2,
) -> Tensor:
    """Returns what `denoise_tv` minimises, F(image − noisy) + weight·‖∂ image‖, for each image.

    Args:
        image: [..., channels, height, width], floating point.
        noisy: in the same shape.
        weight: λ, a number or a tensor of one for each image, [...].
        fidelity: F, ``"l2"`` for the sum of squares or ``"l1"`` for that of magnitudes.
        edges: as of `denoise_tv`, like the next four.
        isotropic: whether ‖∂‖ has one norm for all directions.
        coupling: whether it has one norm for all channels.
        mask: which pixels of `noisy` are known; None for all.
        spatial_dims: 3 for volumes.

    Returns:
        float64 [...].

    Raises:
        TypeError: for anything but floating-point tensors of one dtype, or another argument of another type.
        ValueError: for other shapes, a negative weight, or another value of an option.

    Example:
        >>> tv_objective(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), 0.5)
        tensor(4., dtype=torch.float64)
    """
    layout = _Layout("image", image, spatial_dims, None)
    check_tensor("image", image)
    check_tensor("noisy", noisy)
    check_same("noisy", noisy, "image", image)
    if noisy.shape != image.shape:
        raise ValueError(f"noisy must have the shape of image, {list(image.shape)}, got {list(noisy.shape)}")
    splitting = _splitting(layout, image, fidelity, edges, isotropic, coupling, mask)
    dtype = accumulator_dtype(image.dtype)
    estimate, noisy = (layout.samples(tensor).to(dtype) for tensor in (image, noisy))
    noisy = noisy if splitting.known is None else noisy.where(splitting.known, 0)
    problem = Problem(noisy, _weights(weight, layout, noisy).to(dtype), splitting)
    return problem.objective(estimate).reshape(layout.batch)


class _Options(TypedDict, total=False):
    """Keyword arguments of `denoise_tv`."""

    edges: Edges | None
    isotropic: bool
    coupling: Coupling
    mask: Tensor | None
    spatial_dims: Literal[2, 3]
    channel_axis: int | None
    method: Method
    tolerance: float | None
    max_iterations: int
    start: DenoisingState | None
    reference: Tensor | None
    after_iteration: Callable[[], object]


@overload
def denoise_tv(
    image: Tensor,
    weight: float | Tensor,
    fidelity: Fidelity = ...,
    *,
    trace: Literal[False] = ...,
    **options: Unpack[_Options],
) -> Tensor: ...


@overload
def denoise_tv(
    image: Tensor,
    weight: float | Tensor,
    fidelity: Fidelity = ...,
    *,
    trace: Literal[True],
    **options: Unpack[_Options],
) -> Denoised: ...


@eager_only
def denoise_tv(
    image: Tensor,
    weight: float | Tensor,
    fidelity: Fidelity = "l2",
    *,
    edges: Edges | None = None,
    isotropic: bool = False,
    coupling: Coupling = "none",
    mask: Tensor | None = None,
    spatial_dims: Literal[2, 3] = 2,
    channel_axis: int | None = None,
    method: Method = "adaptive",
    tolerance: float | None = None,
    max_iterations: int = 500,
    start: DenoisingState | None = None,
    reference: Tensor | None = None,
    trace: bool = False,
    after_iteration: Callable[[], object] = lambda: None,
) -> Tensor | Denoised:
    """Removes noise and keeps edges: minimises F(u − image) + weight·‖∂u‖ over images u.

    ‖∂u‖ is the total variation, the sum of `|∂x u| + |∂y u|` over pixels (equations: `srm_triton/ops/variation.py`).
    Every image of a batch has penalties of its own and stops by itself, so its result does not depend on the others.

    Args:
        image: [..., channels, height, width], with any number of channels; [height, width] has one. Floating point,
            computed in float64 for float64, else in float32. Integers of 8 and 16 bits are converted as scikit-image
            does: divided by their type's largest value, and at least −1; bool becomes 0 and 1.
        weight: λ of the total variation, at least 0; the larger, the smoother. A number, or a tensor of one for each
            image, [...]. For ``"l2"``, scikit-image's ``denoise_tv_bregman(…, weight=2 / λ, isotropic=False)``
            minimises the same sum.
        fidelity: F, ``"l2"`` for the sum of squares (Gaussian noise), ``"l1"`` for the sum of magnitudes (salt and
            pepper).
        edges: ``"mirrored"``, so that opposite edges have nothing to do with each other, or ``"periodic"`` for images
            that repeat; None for ``"mirrored"``, with ``method="seed"`` for ``"periodic"``, all that it knows.
        isotropic: whether √(∂x u² + ∂y u²) takes the place of `|∂x u| + |∂y u|`, which favours no direction of edges.
        coupling: ``"channels"`` for one norm of all channels, so that their edges lie together: no fringes of colour;
            ``"none"`` for channels that have nothing to do with each other.
        mask: which pixels are known, bool in the shape of `image` or of its spatial axes; the others, whatever they
            hold, NaN too, are filled in, and every channel needs one that is known. None for all.
        spatial_dims: 3 for volumes, [..., channels, depth, height, width] or [depth, height, width].
        channel_axis: which axis of `image` (and of `mask` and `reference`) holds the channels, as in scikit-image: −1
            for [height, width, channels]. None for the one before the spatial axes, if there is one.
        method: ``"adaptive"``, or ``"seed"`` for the seed text's iteration with the penalties 500 and 50, which shrinks
            several channels together and takes `max_iterations` steps; it knows none of the five options above it but
            `channel_axis`.
        tolerance: largest duality gap to stop at, relative to the objective, ≥ 0: the result's is then at most that
            part above the minimum. None for 0.01 (``"l2"``) or 0.02 (``"l1"``, where it is within 0.01 as a rule).
            Below 1e-6 float32 has no digits.
        max_iterations: where to stop at the latest, at least 1.
        start: `Denoised.state` of an earlier call for images of the same shape and options; None starts afresh.
        reference: the image without noise, in the shape and dtype of `image`, for the trace only.
        trace: whether to return `Denoised`, which costs the objective in every iteration.
        after_iteration: called after each, for progress bars.

    Returns:
        The image, in the shape of `image` and its dtype (float32 for integers), or `Denoised`.

    Raises:
        TypeError: for arguments of another type; for integers of 32 and 64 bits, of which nothing says what is white.
        ValueError: for another shape or device, known values that are not finite, a negative weight or tolerance, or
            options that do not go together; for what looks like [height, width, channels] without `channel_axis`.
        RuntimeError: if a gradient is asked of ``method="seed"``, and within transforms of `torch.func`.

    Example:
        >>> edge = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).expand(1, 6, 6)
        >>> noise = 0.05 * torch.tensor([1.0, -1.0, 1.0]).repeat(2)[:, None]
        >>> (denoise_tv(edge + noise, 0.1) - edge).abs().max() < 0.06
        tensor(True)
    """
    layout = _Layout("image", image, spatial_dims, channel_axis)
    check_option("method", method, get_args(Method))
    if edges is None:
        edges = "periodic" if method == "seed" else "mirrored"
    splitting = _splitting(layout, image, fidelity, edges, isotropic, coupling, mask)
    if method == "seed" and (
        splitting != Splitting(fidelity, "periodic") or layout.spatial_dims == 3 or start is not None
    ):
        raise ValueError(
            'method="seed" must go without start, isotropic, coupling, mask, spatial_dims=3 and edges="mirrored", none '
            "of which it knows"
        )
    tolerance = check_number("tolerance", _TOLERANCE[fidelity] if tolerance is None else tolerance, 0)
    max_iterations = check_number("max_iterations", max_iterations, 1, whole=True)
    noisy = _checked("image", image, layout, splitting.known)
    clean = None if reference is None else _checked("reference", reference, layout, None)
    if clean is not None:
        check_same("reference", clean, "image", noisy)
    weights = _weights(weight, layout, noisy)
    if splitting.known is not None and not (weights > 0).all():
        raise ValueError("weight must be > 0 with a mask: without smoothing nothing fills in what is unknown")
    differentiable = torch.is_grad_enabled() and (noisy.requires_grad or weights.requires_grad)
    if differentiable and method == "seed":
        raise RuntimeError('image and weight must not require a gradient with method="seed", which has none')

    noisy = noisy.to(accumulator_dtype(noisy.dtype)).contiguous()
    scale, mean = _units(noisy.detach(), splitting.known)
    if method == "seed":  # whose penalties are for values up to 1
        scale, mean = torch.ones_like(scale), torch.zeros_like(mean)
    images = noisy / scale - mean
    images = images if splitting.known is None else images.where(splitting.known, 0)
    unit = scale.flatten().double()
    weights = (weights / unit if fidelity == "l2" else weights).to(images.dtype)
    with torch.no_grad():
        problem = Problem(images.detach(), weights.detach(), splitting)
        if start is not None:
            _check_start(start, problem)
        solver = SeedIteration(problem) if method == "seed" else SplitBregman(problem, start)
        clean = None if clean is None else clean.to(images.dtype) / scale - mean
        result = iterate(solver, tolerance, max_iterations, clean, trace, trace or differentiable, after_iteration)
    estimate = result.estimate
    if differentiable:
        assert result.state is not None
        estimate = attach_gradient(estimate, images, weights, problem, result.state, max_iterations)
    pixels = ((estimate + mean) * scale).where(weights.view_as(scale) > 0, noisy)
    pixels = layout.image(pixels).to(to_float(image).dtype)
    if not _finite(pixels.detach()):
        raise ValueError(f"image must not be so large that {pixels.dtype} cannot hold its smoothed values")
    if not trace:
        return pixels
    none = images.new_zeros((4, 0, len(images)), dtype=torch.float64)
    objective, primal, dual, error = torch.stack(result.rows, 1) if result.rows else none
    objective, error = objective * (unit.square() if fidelity == "l2" else unit), error.sqrt() * unit
    objective, primal, dual, error = (
        row.reshape(len(row), *layout.batch) for row in (objective, primal, dual, error)
    )  # fmt: skip
    errors = (None, None) if clean is None else (error, -20 * error.log10())
    iterations, converged, gap = (
        values.reshape(layout.batch) for values in (result.iterations, result.converged, result.gap)
    )
    traced = DenoisingTrace(objective, primal, dual, *errors)
    return Denoised(pixels, iterations, converged, traced, result.state, gap)


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


class _Layout:
    """Where images keep their channels, and how they become samples [samples, channels, height, width] or volumes."""

    def __init__(self, name: str, image: Tensor, spatial_dims: int, channel_axis: int | None) -> None:
        spatial_dims = check_option("spatial_dims", spatial_dims, (2, 3))
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
        self.spatial_dims, self.channel_axis, self.shape = spatial_dims, channel_axis, image.shape
        dims, shape = image.dim(), image.shape
        if channel_axis is not None:
            self.channel_axis = channel_axis = check_number("channel_axis", channel_axis, -dims, whole=True)
            if dims <= spatial_dims or channel_axis >= dims:
                raise ValueError(
                    f"channel_axis must be one of the axes of {name}, of which {spatial_dims} remain for "
                    f"{_SIZES[spatial_dims]}; got {channel_axis} for {list(shape)}"
                )
            shape = image.movedim(channel_axis, -1 - spatial_dims).shape
        if dims < spatial_dims or 0 in shape[-1 - spatial_dims :]:
            sizes = _SIZES[spatial_dims]
            raise ValueError(
                f"{name} must have the shape [..., channels, {sizes}] or [{sizes}], without empty axes but in "
                f"front, got {list(shape)}"
            )
        self.moved = shape if dims > spatial_dims else torch.Size((1, *shape))
        self.batch = self.moved[: -1 - spatial_dims]
        if channel_axis is None and dims > spatial_dims and shape[-1] <= 4 < shape[-1 - spatial_dims]:
            raise ValueError(
                f"{name} must have the shape [..., channels, {_SIZES[spatial_dims]}]; {list(shape)} looks like "
                f"channels at the end: pass channel_axis=-1, or channel_axis={-1 - spatial_dims} if these are not"
            )

    def samples(self, tensor: Tensor) -> Tensor:
        """Of an image in this layout."""
        if self.channel_axis is not None:
            tensor = tensor.movedim(self.channel_axis, -1 - self.spatial_dims)
        return tensor.reshape(math.prod(self.batch), *self.moved[-1 - self.spatial_dims :])

    def image(self, samples: Tensor) -> Tensor:
        """Of its samples."""
        image = samples.reshape(self.moved)
        if self.channel_axis is not None:
            image = image.movedim(-1 - self.spatial_dims, self.channel_axis)
        return image.reshape(self.shape)

    def known(self, mask: Tensor, like: Tensor) -> Tensor:
        """Of a mask, which may be one for all channels and images."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
        if mask.device != like.device:
            raise ValueError(f"mask must be on the device of image, {like.device}, got {mask.device}")
        size = self.moved[-self.spatial_dims :]
        if mask.shape == size:
            known = mask.expand(self.moved).reshape(math.prod(self.batch), *self.moved[-1 - self.spatial_dims :])
        elif mask.shape == self.shape:
            known = self.samples(mask)
        else:
            raise ValueError(
                f"mask must have the shape of image, {list(self.shape)}, or {list(size)}, got {list(mask.shape)}"
            )
        if not known.flatten(2).any(-1).all():
            raise ValueError("mask must hold a known pixel in each channel of each image, got none in some")
        return known


def _splitting(
    layout: _Layout,
    image: Tensor,
    fidelity: Fidelity,
    edges: Edges,
    isotropic: bool,
    coupling: Coupling,
    mask: Tensor | None,
) -> Splitting:
    check_option("fidelity", fidelity, get_args(Fidelity))
    check_option("edges", edges, get_args(Edges))
    check_option("isotropic", isotropic, (False, True))
    check_option("coupling", coupling, get_args(Coupling))
    coupled = (1,) * isotropic + (2,) * (coupling == "channels")
    return Splitting(fidelity, edges, coupled, None if mask is None else layout.known(mask, image))


def _weights(weight: float | Tensor, layout: _Layout, like: Tensor) -> Tensor:
    """λ of each sample, float64 [samples]."""
    samples = math.prod(layout.batch)
    if not isinstance(weight, Tensor) or (weight.numel() == 1 and not weight.requires_grad):
        number = float(check_number("weight", weight, 0))
        return torch.full((samples,), number, dtype=torch.float64, device=like.device)
    check_tensor("weight", weight)
    if weight.numel() != 1 and weight.shape != layout.batch:
        raise ValueError(
            f"weight must be a number or a tensor of one for each image, {list(layout.batch)}, got {list(weight.shape)}"
        )
    if weight.device != like.device:
        raise ValueError(f"weight must be on the device of image, {like.device}, got {weight.device}")
    if not (weight.isfinite() & (weight >= 0)).all():
        raise ValueError(f"weight must be finite and ≥ 0, got values from {weight.min():g} to {weight.max():g}")
    return weight.double().flatten().expand(samples)


def _checked(name: str, image: Tensor, layout: _Layout, known: Tensor | None) -> Tensor:
    """Samples in floating point, all checks done, 0 where they are unknown."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
    if not image.dtype.is_floating_point and not image.dtype.is_complex and image.dtype not in _SCALED:
        raise TypeError(
            f"{name} must be floating point or of 8 or 16 bits, got {image.dtype}, which does not say what is white: "
            f"divide by that, such as {name} / 255"
        )
    image = to_float(image)
    check_tensor(name, image)
    if image.shape != layout.shape:
        raise ValueError(f"{name} must have the shape of image, {list(layout.shape)}, got {list(image.shape)}")
    samples = layout.samples(image)
    samples = samples if known is None else samples.where(known, 0)
    if not _finite(samples.detach()):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    return samples


def _finite(image: Tensor) -> bool:
    return not image.numel() or all(map(math.isfinite, image.aminmax()))


def _units(samples: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """What to divide samples by, a power of 2 that none exceeds by more than twice, and then to subtract.

    Images that are constant are then exactly 0, and means cost no digits.
    """
    brightest = samples.flatten(1).abs().amax(1) if samples.numel() else samples.new_zeros(len(samples))
    exponent = brightest.frexp().exponent - 1
    ones = [1] * (samples.dim() - 1)
    scale = torch.pow(2.0, exponent.double()).to(samples.dtype).where(brightest > 0, 1).view(-1, *ones)
    scaled = samples / scale
    first = scaled.flatten(2)[..., :1].view(*samples.shape[:2], *ones[1:])
    if known is not None:
        first = scaled.masked_fill(~known, math.inf).flatten(2).amin(2).view_as(first)
    rest = (scaled - first) if known is None else (scaled - first).where(known, 0)
    count = math.prod(samples.shape[2:]) if known is None else known.flatten(2).sum(2)
    mean = (rest.sum(-1).double().flatten(2).sum(2) / count).to(samples.dtype).view_as(first)
    return scale, first + mean


def _check_start(start: DenoisingState, problem: Problem) -> None:
    """Checks that a state belongs to such a problem."""
    if not isinstance(start, DenoisingState):
        raise TypeError(f"start must be a DenoisingState, got {type(start).__name__}")
    samples, *rest = problem.images.shape
    splits = (samples, len(problem.size) + problem.splits_residual, *rest)
    for name, tensor, shape in zip(start._fields, start, (splits, splits[:1]), strict=True):
        check_tensor(f"start.{name}", tensor)
        if tensor.shape != shape:
            raise ValueError(
                f"start.{name} must have the shape {list(shape)} for this image and these options, got "
                f"{list(tensor.shape)}"
            )
        check_same(f"start.{name}", tensor, "image (float64, else float32)", problem.images)
        if not tensor.isfinite().all() or (name == "penalty" and not (tensor > 0).all()):
            raise ValueError(f"start.{name} must be finite{' and positive' * (name == 'penalty')}, got other values")
