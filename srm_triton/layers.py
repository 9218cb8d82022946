"""Spiking layers as `torch.nn` modules: an affine map and SRM neurons behind it; the mathematics is elsewhere."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.affine import (
    Convolution,
    InputGradient,
    Linear,
    Map,
    ModuleMap,
    Rules,
    as_floats,
    map_inputs,
    prepare_inputs,
)
from srm_triton.checks import check_number, check_option, check_same, check_size, check_sizes, check_tensor, time_axes
from srm_triton.functions import Function, Gradients, once_differentiable
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.batch_norm import batch_norm
from srm_triton.ops.srm_scan import Gradient, Surrogate, check_gradient
from srm_triton.parameters import SRMParameters, SRMState

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NOT_AFFINE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class LayerOptions(TypedDict, total=False):
    """What every spiking layer takes by name, with the meaning and the defaults of `SRMLayer`."""

    learn: Iterable[str]
    gradient: Gradient
    surrogate: Surrogate
    output: bool
    input_gradient: InputGradient
    time_gradient_scale: float
    batch_first: bool


class SRMLayer(nn.Module):
    """What spiking layers share: neurons behind an affine map.

    Args:
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        learn: which of them are learned, a value for each channel: any of ``"threshold"``, ``"tau_m"``, ``"tau_s"``.
        gradient: ``"event"``, the rule for spike times, or ``"surrogate"``, backpropagation through time.
        surrogate: ``"arctan"`` or ``"fast_sigmoid"``.
        output: True for a layer whose spikes a loss looks at: in the backward of the event rule, its silent neurons
            count as firing once, so that they learn.
        input_gradient: what inputs receive from the event rule: ``"time"``, for spikes, the gradient with respect to
            their times; ``"value"``, for what ordinary layers computed, such as an encoder, the derivative.
        time_gradient_scale: factor on the gradient to the inputs' spike times.
        batch_first: False for [time, batch, ...].

    Attributes:
        neuron: an `SRMNeuron` with the constants.

    Raises:
        TypeError: for values of another type.
        ValueError: for sizes below 1 or another option.
    """

    neuron: SRMNeuron
    norm_weight: nn.Parameter | None

    def _add_neurons(
        self,
        channels: int | None,
        parameters: SRMParameters | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        learn: Iterable[str] = (),
        batch_first: bool = True,
        **rules: Any,
    ) -> None:
        """Makes a spiking layer of a module."""
        self.rules = Rules.of(rules)
        self.batch_first = batch_first
        self.neuron = SRMNeuron(
            parameters,
            learn=learn,
            channels=channels,
            gradient=self.rules.gradient,
            surrogate=self.rules.surrogate,
            output=self.rules.output,
            batch_first=batch_first,
            device=device,
            dtype=dtype,
        )

    def _map(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        """Inputs that are checked and padded, the map, and what it is made of."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, state: SRMState | None = None, *, return_state: bool = False) -> Any:
        """Returns spikes, and with `return_state` the state of the neurons after the last step.

        Args:
            inputs: spikes or values; bool and integer events too, which receive no gradient.
            state: what the neurons begin with, each tensor as the spikes without time; None for 0.
            return_state: whether to return the state too.
        """
        inputs, affine, tensors = self._map(inputs)
        current, earlier = map_inputs(inputs, affine, tensors, self.rules, 1 if self.batch_first else 0)
        return self.neuron.scan(current, earlier, state, return_state)


class SRMAffine(SRMLayer):
    """SRM neurons behind any module that is affine in its inputs.

    Such as `nn.ConvTranspose2d`, or a convolution with hooks, pruning or parametrizations of its own: the module is
    called as it is. Its parameters receive the weight path, its inputs the time path through its transpose, for which
    the backward runs the module once more; as in `SRMConv2d`, it is multiplied by the inputs if there is a convolution.

    Args:
        affine: maps [samples, ...] to [samples, channels, ...]; not checked to be affine, but batch normalisation and
            dropout, which are not in training, are refused there.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        channels: number of them; None for what the module says (`out_features` or `out_channels`).
        **options: as in `SRMLayer`.

    Shape:
        [batch, time, ...] to [batch, time, channels, ...].

    Raises:
        TypeError: if `affine` is no module.
        ValueError: as `SRMLayer`.

    Example:
        >>> SRMAffine(nn.ConvTranspose2d(2, 3, 2, stride=2))(torch.rand(1, 8, 2, 4, 4)).shape
        torch.Size([1, 8, 3, 8, 8])
    """

    def __init__(
        self,
        affine: nn.Module,
        parameters: SRMParameters | None = None,
        *,
        channels: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        if not isinstance(affine, nn.Module):
            raise TypeError(f"affine must be a torch.nn.Module, got {type(affine).__name__}")
        if channels is None:
            channels = getattr(affine, "out_features", getattr(affine, "out_channels", None))
        first = next(affine.parameters(), torch.empty(0))
        self.affine = affine
        self.by_inputs = any(isinstance(module, CONVOLUTIONS) for module in affine.modules())
        self.norm_weight = None
        self._add_neurons(channels, parameters, first.device, first.dtype, **options)

    def _map(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        named = dict(self.affine.named_parameters())
        inputs = as_floats(inputs, torch.get_default_dtype()) if not named else inputs
        inputs = prepare_inputs(inputs, next(iter(named.values()), inputs), time_axes(self.batch_first, "..."))
        for module in self.affine.modules() if self.rules.splits else ():
            if module.training and isinstance(module, NOT_AFFINE):
                raise TypeError(
                    f"affine must be affine in its inputs, got {type(module).__name__} in training; put it into "
                    'evaluation, or choose gradient="surrogate" or input_gradient="value"'
                )
        return inputs, ModuleMap(self.affine, tuple(named), self.by_inputs), tuple(named.values())


class WeightedLayer(SRMLayer):
    """What spiking layers with a weight of their own share: its normalisation over each output's fan-in.

    Args:
        weight_norm: whether each channel's weights are normalised to mean `norm_bias` (0 at first) and standard
            deviation `norm_weight` (1 at first), two learned vectors. None, the default, for a fan-in of 3 or more:
            of one or two weights it would leave nothing to learn but the gain. A weight of exactly 0 counts as pruned
            and stays 0 in what is applied.
        eps: added to the variance in the normalisation.

    Attributes:
        weight: the weight before the normalisation.
        norm_weight: gain of each channel; None without normalisation.
        norm_bias: offset of each channel; None without normalisation.

    Raises:
        ValueError: for `weight_norm` with a fan-in of 1.
    """

    weight: Tensor
    bias: Tensor | None

    def _add_norm(self, weight_norm: bool | None = None, eps: float = 1e-5) -> None:
        check_number("eps", eps, 0, above=True)
        if weight_norm is not None:
            check_option("weight_norm", weight_norm, (False, True))
        fan_in = self.weight[0].numel()
        if weight_norm and fan_in < 2:
            raise ValueError(f"weight_norm=True needs a fan-in of at least 2, got {fan_in}; pass weight_norm=False")
        self.eps = eps
        self.narrow = weight_norm is None and fan_in < 3
        self.norm_weight = self.norm_bias = None
        if weight_norm or (weight_norm is None and not self.narrow):
            self.norm_weight, self.norm_bias = (nn.Parameter(self.weight.new_empty(len(self.weight))) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets an orthogonal weight, gains of 1 and offsets of 0.

        A weight that is not normalised because its fan-in is 1 or 2 starts with the deviation that the others get, 1.
        """
        if "neuron" not in self._modules:  # torch's module calls it before the layer is complete
            return
        self.neuron.reset_parameters()
        _initialise(self.weight, nn.init.normal_ if self.narrow else nn.init.orthogonal_)
        for vector, value in ((self.norm_weight, 1.0), (self.norm_bias, 0.0), (self.bias, 0.0)):
            if vector is not None:
                nn.init.constant_(vector, value)

    def effective_weight(self) -> Tensor:
        """The weight that the layer applies: raw, or normalised over each fan-in; what is 0, as pruned, stays 0."""
        return self._normalised("weight", self.norm_weight, self.norm_bias)

    def _normalised(self, name: str, gain: Tensor | None, offset: Tensor | None) -> Tensor:
        weight: Tensor = getattr(self, name)
        if gain is None:
            return weight
        rows = batch_norm(weight.flatten(1), gain, offset, dim=1, eps=self.eps).view_as(weight)
        return rows * (weight != 0)

    def extra_repr(self) -> str:
        """Sizes and options, as the module prints them."""
        options = f"weight_norm={self.norm_weight is not None}, input_gradient={self.rules.input_gradient}"
        return f"{super().extra_repr()}, {options}"


def _initialise(weight: Tensor, initialise: Any) -> None:
    exact = torch.promote_types(weight.dtype, torch.float32)  # the decomposition knows no half precision
    with torch.no_grad():
        weight.copy_(initialise(torch.empty_like(weight, dtype=exact)))


class SRMLinear(WeightedLayer, nn.Linear):  # type: ignore[misc]
    """A fully connected layer of SRM neurons.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        bias: whether the current has a learned bias.
        weight_norm: as in `WeightedLayer`.
        eps: as in `WeightedLayer`.
        device: of the parameters, as in `torch.nn.Linear`.
        dtype: of the parameters.
        **options: as in `SRMLayer`.

    Shape:
        [batch, time, in_features] to [batch, time, out_features].

    Raises:
        TypeError: as `SRMLayer`.
        ValueError: as `WeightedLayer`.

    Example:
        >>> layer = SRMLinear(64, 10, output=True)
        >>> layer(torch.rand(2, 8, 64)).shape
        torch.Size([2, 8, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parameters: SRMParameters | None = None,
        *,
        bias: bool = False,
        weight_norm: bool | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            check_number(name, size, 1, whole=True)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_neurons(out_features, parameters, device, dtype, **options)
        self._add_norm(weight_norm, eps)

    def _map(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        inputs = prepare_inputs(inputs, self.weight, time_axes(self.batch_first, "in_features"))
        check_size("inputs", inputs, 2, self.in_features, "in_features")
        return inputs, Linear(), (self.effective_weight(), self.bias)


class _SRMConvolution(WeightedLayer):
    """What the convolutions share; the class of `torch.nn` beside it holds the sizes."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    in_channels: int
    padding_mode: str
    SPACE: tuple[str, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        parameters: SRMParameters | None = None,
        *,
        bias: bool = False,
        padding_mode: str = "zeros",
        weight_norm: bool | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        for name, size in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            check_number(name, size, 1, whole=True)
        windows = (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0))
        sizes = [
            value if name == "padding" and isinstance(value, str) else check_sizes(name, value, smallest, self.SPACE)
            for name, value, smallest in (*windows, ("dilation", dilation, 1))
        ]
        super().__init__(
            in_channels, out_channels, *sizes, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        self._add_neurons(out_channels, parameters, device, dtype, **options)
        self._add_norm(weight_norm, eps)

    def _map(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        axes = time_axes(self.batch_first, f"in_channels, {', '.join(self.SPACE)}")
        inputs = prepare_inputs(inputs, self.weight, axes)
        check_size("inputs", inputs, 2, self.in_channels, "in_channels")
        padding, pads = self._paddings()
        if pads:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            inputs = F.pad(inputs.flatten(0, 1), pads, mode).unflatten(0, inputs.shape[:2])
        convolution = Convolution(self.stride, padding, self.dilation, self.groups)
        return inputs, convolution, (self.effective_weight(), self.bias)

    def _paddings(self) -> tuple[tuple[int, ...], list[int]]:
        """The zeros that the convolution adds on both sides, and what `F.pad` adds where sides or values differ."""
        if isinstance(self.padding, str):
            spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(span // 2, span - span // 2) if self.padding == "same" else (0, 0) for span in spans]
        else:
            sides = [(padding, padding) for padding in self.padding]
        if self.padding_mode == "zeros" and all(before == after for before, after in sides):
            return tuple(before for before, _ in sides), []
        return (0,) * len(sides), [side for both in reversed(sides) for side in both]


class SRMConv1d(_SRMConvolution, nn.Conv1d):  # type: ignore[misc]
    """A 1-D convolution with SRM neurons at every output position; arguments as those of `SRMConv2d`.

    Shape:
        [batch, time, in_channels, length] to [batch, time, out_channels, out_length].

    Example:
        >>> SRMConv1d(3, 4, 5, padding="same")(torch.rand(2, 8, 3, 20)).shape
        torch.Size([2, 8, 4, 20])
    """

    SPACE = ("length",)


class SRMConv2d(_SRMConvolution, nn.Conv2d):  # type: ignore[misc]
    """A 2-D convolution with SRM neurons at every output position.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: an int or a pair (height, width), as the three below.
        stride: step of the kernel.
        padding: what stands around the input; ``"valid"`` for nothing, ``"same"`` (stride 1) for an output of the
            input's size.
        dilation: spacing of the kernel's elements.
        groups: number of blocks that input and output channels are split into.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        bias: whether the current has a learned bias.
        padding_mode: as in `torch.nn.Conv2d`.
        weight_norm: as in `WeightedLayer`, over a channel's whole kernel.
        eps: as in `WeightedLayer`.
        device: of the parameters, as in `torch.nn.Conv2d`.
        dtype: of the parameters.
        **options: as in `SRMLayer`.

    Shape:
        [batch, time, in_channels, height, width] to [batch, time, out_channels, out_height, out_width].

    Raises:
        TypeError: as `SRMLayer`.
        ValueError: as `WeightedLayer` and `torch.nn.Conv2d`.

    Example:
        >>> layer = SRMConv2d(1, 4, 3, padding="same")
        >>> layer(torch.rand(2, 8, 1, 6, 6)).shape
        torch.Size([2, 8, 4, 6, 6])
    """

    SPACE = ("height", "width")


class SRMConv3d(_SRMConvolution, nn.Conv3d):  # type: ignore[misc]
    """A 3-D convolution with SRM neurons at every output position; arguments as those of `SRMConv2d`.

    Shape:
        [batch, time, in_channels, depth, height, width] to [batch, time, out_channels, out_depth, out_height, …].

    Example:
        >>> SRMConv3d(1, 2, 3)(torch.rand(2, 8, 1, 4, 5, 6)).shape
        torch.Size([2, 8, 2, 2, 3, 4])
    """

    SPACE = ("depth", "height", "width")


class SRMRecurrentState(NamedTuple):
    """What an `SRMRecurrent` layer carries from one step to the next."""

    neurons: SRMState
    """State of the neurons, each [batch, out_features]."""
    spikes: Tensor
    """Spikes of the last step, [batch, out_features]."""

    def detach(self) -> "SRMRecurrentState":
        """The same state without its history."""
        return SRMRecurrentState(self.neurons.detach(), self.spikes.detach())


class SRMRecurrent(SRMLinear):
    """A fully connected layer whose neurons also receive the layer's own spikes, a step later.

        current[t] = W·inputs[t] + R·spikes[t − 1]

    Both weights receive the weight path, inputs and spikes of the step before the time path (or, with the surrogate
    gradient, the one path there is). R is normalised as W is, with `recurrent_norm_weight` 1/√out_features at first, so
    that its rows begin with length 1. Time passes in a loop of single steps.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        bias: whether the current has a learned bias.
        weight_norm: as in `WeightedLayer`, for both weights.
        eps: as in `WeightedLayer`.
        device: of the parameters.
        dtype: of the parameters.
        **options: as in `SRMLayer`, but for ``output=True``.

    Shape:
        [batch, time, in_features] to [batch, time, out_features].

    Raises:
        TypeError: as `SRMLinear`, or for another state than `SRMRecurrentState`.
        ValueError: as `SRMLinear`, or for ``output=True``, as it is not known at a step whether a neuron stays silent.

    Example:
        >>> layer = SRMRecurrent(6, 4)
        >>> spikes, state = layer(torch.rand(2, 8, 6), return_state=True)
        >>> spikes.shape, layer(torch.rand(2, 1, 6), state).shape
        (torch.Size([2, 8, 4]), torch.Size([2, 1, 4]))
    """

    def __init__(self, in_features: int, out_features: int, *arguments: Any, **options: Any) -> None:
        super().__init__(in_features, out_features, *arguments, **options)
        if self.rules.output:
            raise ValueError(
                "output must be False for SRMRecurrent, got True; let an SRMLinear(…, output=True) follow it"
            )
        self.recurrent_weight = nn.Parameter(self.weight.new_empty(out_features, out_features))
        self.recurrent_norm_weight = self.recurrent_norm_bias = None
        if self.norm_weight is not None and out_features > 2:
            self.recurrent_norm_weight = nn.Parameter(torch.empty_like(self.norm_weight))
            self.recurrent_norm_bias = nn.Parameter(torch.empty_like(self.norm_weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the other layers, for both weights."""
        super().reset_parameters()
        if "recurrent_weight" not in self._parameters:
            return
        _initialise(self.recurrent_weight, nn.init.orthogonal_)
        if self.recurrent_norm_weight is not None and self.recurrent_norm_bias is not None:
            nn.init.constant_(self.recurrent_norm_weight, self.out_features**-0.5)
            nn.init.zeros_(self.recurrent_norm_bias)

    def effective_recurrent_weight(self) -> Tensor:
        """The weight that the layer applies to its own spikes."""
        return self._normalised("recurrent_weight", self.recurrent_norm_weight, self.recurrent_norm_bias)

    def forward(self, inputs: Tensor, state: SRMRecurrentState | None = None, *, return_state: bool = False) -> Any:  # type: ignore[override]
        """Returns spikes, and with `return_state` an `SRMRecurrentState`; arguments as in the other layers."""
        time_axis = 1 if self.batch_first else 0
        inputs, affine, tensors = self._map(inputs)
        current, earlier = map_inputs(inputs, affine, tensors, self.rules, time_axis)
        neurons, last = self._start(state, current.narrow(time_axis, 0, 0).sum(time_axis, keepdim=True))
        recurrent = self.effective_recurrent_weight(), None
        rules, spikes = replace(self.rules, input_gradient="time"), [current.narrow(time_axis, 0, 0)]
        for t in range(current.shape[time_axis]):
            x, times = current.narrow(time_axis, t, 1), None if earlier is None else earlier.narrow(time_axis, t, 1)
            own, own_times = map_inputs(last, Linear(), recurrent, rules, time_axis)
            times = own_times if times is None else times if own_times is None else times + own_times
            last, neurons = self.neuron.scan(x + own, times, neurons, True)
            spikes.append(last)
        outputs = torch.cat(spikes, time_axis)
        return (outputs, SRMRecurrentState(neurons, last.squeeze(time_axis))) if return_state else outputs

    def _start(self, state: Any, zeros: Tensor) -> tuple[SRMState, Tensor]:
        """The state of the neurons, which the first step checks, and the last spikes, in the shape of `zeros`."""
        shape = zeros.flatten(0, 1)
        if state is None:
            silent = torch.zeros_like(shape, dtype=accumulator_dtype(zeros.dtype))
            return SRMState(silent, silent, silent), zeros
        if not isinstance(state, SRMRecurrentState):
            raise TypeError(f"state must be an SRMRecurrentState or None, got {type(state).__name__}")
        check_tensor("state.spikes", state.spikes, "[batch, out_features]")
        check_same("state.spikes", state.spikes, "inputs", zeros)
        if state.spikes.shape != shape.shape:
            raise ValueError(f"state.spikes must have the shape {list(shape.shape)}, got {list(state.spikes.shape)}")
        return state.neurons, state.spikes.unsqueeze(1 if self.batch_first else 0)


class _ShareByActivity(Function):
    @staticmethod
    def forward(average: Tensor) -> Tensor:
        return average.view_as(average)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable("SpikeAvgPool2d")
    def backward(ctx: Any, saved: tuple[Tensor], grad: Tensor) -> Gradients:
        (average,) = saved
        return (torch.where(average == 0, 0, grad / average),)


class SpikeAvgPool2d(nn.Module):
    """Average pooling that keeps the sum of a window's gradients to spike times.

    The forward is `torch.nn.functional.avg_pool2d`. With the event rule the backward divides the gradient by the output
    (0 where that is 0), so that the spikes of a window share the whole of it instead of the fraction that a plain
    average hands back. Source: the code of Zhu et al., NeurIPS 2022. With the surrogate gradient it is plain.

    Args:
        kernel_size: an int or a pair (height, width), as the two below.
        stride: step of the window; None stands for `kernel_size`.
        padding: zeros around the input.
        gradient: ``"event"`` or ``"surrogate"``, as in the layers around it.

    Shape:
        [batch, time, channels, height, width], with either order of batch and time, to the same with pooled height and
        width.

    Raises:
        TypeError: for windows that are neither an int nor a pair.
        ValueError: for inputs of another rank, or another `gradient`.

    Example:
        >>> SpikeAvgPool2d(2)(torch.ones(1, 3, 1, 4, 4)).shape
        torch.Size([1, 3, 1, 2, 2])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        *,
        gradient: Gradient = "event",
    ) -> None:
        super().__init__()
        self.kernel_size = check_sizes("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else check_sizes("stride", stride, 1)
        self.padding = check_sizes("padding", padding, 0)
        check_gradient(gradient, "arctan")
        self.gradient = gradient

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the averages of the windows."""
        inputs = as_floats(inputs, torch.get_default_dtype())
        check_tensor("inputs", inputs, "[batch, time, channels, height, width]")
        images = F.avg_pool2d(inputs.flatten(0, 1), self.kernel_size, self.stride, self.padding)
        if self.gradient == "event":
            images = _ShareByActivity.apply(images)
        return images.unflatten(0, inputs.shape[:2])

    def extra_repr(self) -> str:
        """The window, as the module prints it."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, gradient={self.gradient}"
