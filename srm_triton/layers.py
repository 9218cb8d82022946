"""Spiking layers as `torch.nn` modules: an affine map and SRM neurons behind it; the mathematics is elsewhere."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Self, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from srm_triton.affine import (
    Convolution,
    InputGradient,
    Linear,
    Map,
    ModuleMap,
    Rules,
    as_floats,
    map_and_fire,
    map_inputs,
    modes_of,
    normalise_fan_in,
    prepare_inputs,
)
from srm_triton.checks import check_number, check_option, check_size, check_sizes, time_axes
from srm_triton.functions import distributed, refuse_script, traced, transforms_active
from srm_triton.levels import Keep
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.srm_scan import Gradient, Surrogate, needs_gradient
from srm_triton.parameters import SRMParameters, SRMState
from srm_triton.readout import SRMReadout
from srm_triton.weight_cache import WeightCache

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
    keep: Keep
    spike_dtype: torch.dtype | None
    batch_first: bool


class SRMLayer(nn.Module):
    """What spiking layers share: neurons behind an affine map.

    Args:
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        learn: which of them are learned, a value for each channel: any of ``"threshold"``, ``"tau_m"``, ``"tau_s"``.
        gradient: ``"event"``, the rule for spike times; ``"original"``, the same with the derivative of the neurons'
            own response between spikes; or ``"surrogate"``, backpropagation through time.
        surrogate: ``"arctan"`` or ``"fast_sigmoid"``.
        output: True for a layer whose spikes a loss looks at: in the backward of the event rule, its silent neurons
            count as firing once, so that they learn.
        input_gradient: what inputs receive from the event rule: ``"time"``, for spikes, the gradient with respect to
            their times; ``"value"``, for what ordinary layers computed, such as an encoder, the derivative.
        time_gradient_scale: factor on the gradient to the inputs' spike times.
        keep: what the backward of the layer holds on to: ``"current"``, the input current, with the inputs as they are;
            or ``"spikes"``, for long sequences and large networks, the inputs in the few levels that spikes have (one
            bit; see `srm_triton.levels`), from which it computes the current again, one map more. Gradients are the
            same bit for bit. Compiled code and transforms of `torch.func` keep the current.
        spike_dtype: of the spikes, in a half or a quarter of the memory: ``torch.bfloat16`` or ``torch.float16``, whose
            gradients autograd rounds to it from layer to layer, or ``torch.uint8``, for inference, as it has none;
            None for that of the current. The next layer computes the same from all of them.
        batch_first: False for [time, batch, ...].

    Attributes:
        neuron: an `SRMNeuron` with the constants.

    Raises:
        TypeError: for values of another type.
        ValueError: for sizes below 1 or another option.
    """

    neuron: SRMNeuron
    norm_weight: nn.Parameter | None

    __prepare_scriptable__ = refuse_script

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
            spike_dtype=self.rules.spike_dtype,
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
            inputs: spikes or values, in the dtype of the weight or a narrower one; bool and integer events too, which
                receive no gradient.
            state: what the neurons begin with, each tensor as the spikes without time; None for 0.
            return_state: whether to return the state too.
        """
        inputs, affine, tensors = self._prepare(inputs)
        if self._joins(affine):
            flags = {"return_state": return_state, "batch_first": self.batch_first}
            return map_and_fire(inputs, affine, tensors, self.rules, self.neuron.srm_parameters, state, **flags)
        current, earlier = map_inputs(inputs, affine, tensors, self.rules, 1 if self.batch_first else 0)
        return self.fire(current, state, earlier=earlier, return_state=return_state)

    def _joins(self, affine: Map) -> bool:
        """Whether map and neurons may be one operation, as nobody sees the current between them."""
        neuron = self.neuron
        hooks = neuron._forward_hooks or neuron._forward_pre_hooks or neuron._backward_hooks or _has_any_global_hook()
        usual = type(self).fire is SRMLayer.fire and type(neuron) is SRMNeuron
        lean = self.rules.keep == "spikes" and not traced()
        return usual and not hooks and (isinstance(affine, Linear | Convolution) or lean)

    def current(self, inputs: Tensor) -> Tensor:
        """The input current of the neurons, W·inputs + b, in the shape of the spikes."""
        return map_inputs(*self._prepare(inputs), self.rules, 1 if self.batch_first else 0)[0]

    def fire(
        self,
        current: Tensor,
        state: SRMState | None = None,
        *,
        earlier: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """What `forward` returns for this current; `earlier`, in its shape, receives the time path."""
        return self.neuron(current, state, earlier=earlier, return_state=return_state)

    def _prepare(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        """What `_map` returns, once the layer is ready for it."""
        return self._map(inputs)


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
        again = self.rules.keep == "spikes"
        for module in self.affine.modules() if self.rules.splits or again else ():
            if module.training and isinstance(module, NOT_AFFINE):
                way = 'keep="current" and ' if again else ""
                raise TypeError(
                    f"affine must be affine in its inputs, got {type(module).__name__} in training; put it into "
                    f'evaluation, or choose {way}gradient="surrogate" or input_gradient="value"'
                )
        return (
            inputs,
            ModuleMap(self.affine, tuple(named), self.by_inputs, modes_of(self.affine)),
            tuple(named.values()),
        )


class WeightedLayer(SRMLayer):
    """What spiking layers with a weight of their own share: its normalisation over each output's fan-in.

    Args:
        weight_norm: whether each channel's weights are normalised to mean `norm_bias` (0 at first) and standard
            deviation `norm_weight` (1 at first), two learned vectors. None, the default, for a fan-in of 3 or more:
            of one or two weights it would leave nothing to learn but the gain. A weight of exactly 0 counts as pruned
            and stays 0 in what is applied.
        carry_scale: whether the threshold carries the scale, as in the code of Zhu et al., NeurIPS 2023: at each
            forward in training that finds another gain, threshold, offset and bias are divided by the gain, which
            becomes 1, so that the optimiser changes the scale by ratios. The neurons fire as before. A gain that is not
            above 0 stays. Transforms of `torch.func` leave all as it is.
        eps: added to the variance in the normalisation.

    Attributes:
        weight: the weight before the normalisation.
        norm_weight: gain of each channel; None without normalisation.
        norm_bias: offset of each channel; None without normalisation.
        weight_cache: the normalised weight in evaluation, computed once where no gradient is wanted.

    Raises:
        ValueError: for `weight_norm` with a fan-in of 1, or `carry_scale` without normalisation or with a threshold
            that is learned.
    """

    weight: Tensor
    bias: Tensor | None

    def _add_norm(self, weight_norm: bool | None, carry_scale: bool, eps: float) -> None:
        check_option("carry_scale", carry_scale, (False, True))
        if weight_norm is not None:
            check_option("weight_norm", weight_norm, (False, True))
        fan_in = self.weight[0].numel()
        if weight_norm and fan_in < 2:
            raise ValueError(f"weight_norm=True needs a fan-in of at least 2, got {fan_in}; pass weight_norm=False")
        self.eps: float = check_number("eps", eps, 0, above=True)
        self.narrow = weight_norm is None and fan_in < 3
        self.norm_weight = self.norm_bias = None
        if weight_norm or (weight_norm is None and not self.narrow):
            self.norm_weight, self.norm_bias = (nn.Parameter(self.weight.new_empty(len(self.weight))) for _ in range(2))
        self.weight_cache = WeightCache()
        self.carry_scale = carry_scale
        self._carried: tuple[int, int] | None = None
        if carry_scale:
            if self.norm_weight is None:
                raise ValueError("carry_scale=True needs a normalised weight; pass weight_norm=True")
            self.neuron.spread_threshold(len(self.weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets an orthogonal weight, gains of 1, offsets of 0, and biases of 0.3 times the weights' deviation.

        A weight that is not normalised because its fan-in is 1 or 2 starts with the deviation that the others get, 1.
        """
        if "neuron" not in self._modules:  # torch's module calls it before the layer is complete
            return
        self.neuron.reset_parameters()
        self._initialise(self.weight, nn.init.normal_ if self.narrow else nn.init.orthogonal_)
        for vector, value in ((self.norm_weight, 1.0), (self.norm_bias, 0.0)):
            if vector is not None:
                nn.init.constant_(vector, value)
        if self.bias is not None:
            deviation = 1.0 if self.narrow or self.norm_weight is not None else self.weight[0].numel() ** -0.5
            nn.init.normal_(self.bias, std=0.3 * deviation)

    def _prepare(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        if self.carry_scale and self.training and not transforms_active():  # which allow no changes; it fires the same
            self._carry()
        return super()._prepare(inputs)

    @torch.no_grad()
    def _carry(self) -> None:
        """Moves the scale of each channel's current into its threshold."""
        if self.norm_weight is None:
            return
        compiling = torch.compiler.is_compiling()
        if not compiling and self._carried == (id(self.norm_weight), self.norm_weight._version):
            if distributed() and ((self.norm_weight > 0) & (self.norm_weight != 1)).any():
                raise RuntimeError("carry_scale=True cannot be used with fully_shard, which loses what is carried")
            return  # unchanged since; the backward of an earlier forward may need it as it is
        gain = torch.where(self.norm_weight > 0, self.norm_weight, 1.0)
        for vector in (self.neuron.threshold, *self._beside_gain()):
            vector.div_(gain.to(vector.dtype))
        self.norm_weight.div_(gain)
        if not compiling:
            self._carried = id(self.norm_weight), self.norm_weight._version

    def _beside_gain(self) -> list[Tensor]:
        """What the current of each channel is proportional to, beside the gain of the inputs' weight."""
        return [vector for vector in (self.norm_bias, self.bias) if vector is not None]

    @staticmethod
    def _initialise(weight: Tensor, rule: Any) -> None:
        exact = torch.promote_types(weight.dtype, torch.float32)  # the decomposition knows no half precision
        with torch.no_grad():
            weight.copy_(rule(torch.empty_like(weight, dtype=exact)))

    def effective_weight(self) -> Tensor:
        """The weight that the layer applies: raw, or normalised over each fan-in; what is 0, as pruned, stays 0."""
        return self._normalised("weight", self.norm_weight, self.norm_bias)

    def _normalised(self, name: str, gain: Tensor | None, offset: Tensor | None) -> Tensor:
        weight: Tensor = getattr(self, name)
        if gain is None:
            return weight

        normalise = partial(normalise_fan_in, weight, gain, offset, self.eps)
        # a weight that hooks or parametrizations compute is another tensor each time
        keep = not self.training and name in self._parameters
        return self.weight_cache.get(name, (weight, gain, offset), normalise, self.eps) if keep else normalise()

    def _weighted(self, affine: Callable[[float | None], Map]) -> tuple[Map, tuple[Tensor | None, ...]]:
        """The map and its tensors, with what normalises the weight where it learns, as joined they take less time."""
        source = self.weight, self.bias, self.norm_weight, self.norm_bias
        learns = self.norm_weight is not None and not traced() and needs_gradient(*source)
        return (affine(self.eps), source) if learns else (affine(None), (self.effective_weight(), self.bias))

    def train(self, mode: bool = True) -> Self:
        """As any module; what evaluation kept of the normalised weights is forgotten."""
        self.weight_cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Sizes and options, as the module prints them."""
        options = f"weight_norm={self.norm_weight is not None}, input_gradient={self.rules.input_gradient}"
        return f"{super().extra_repr()}, {options}"


class SRMLinear(WeightedLayer, nn.Linear):  # type: ignore[misc]
    """A fully connected layer of SRM neurons.

    Args:
        in_features: size of each input.
        out_features: number of neurons.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        bias: whether the current has a learned bias.
        weight_norm: as in `WeightedLayer`; likewise the next two.
        carry_scale: see `weight_norm`.
        eps: see `weight_norm`.
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
        carry_scale: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        in_features = check_number("in_features", in_features, 1, whole=True)
        out_features = check_number("out_features", out_features, 1, whole=True)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_neurons(out_features, parameters, device, dtype, **options)
        self._add_norm(weight_norm, carry_scale, eps)

    def _map(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        inputs = prepare_inputs(inputs, self.weight, time_axes(self.batch_first, "in_features"))
        check_size("inputs", inputs, 2, self.in_features, "in_features")
        return inputs, *self._weighted(Linear)


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
        carry_scale: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        in_channels = check_number("in_channels", in_channels, 1, whole=True)
        out_channels = check_number("out_channels", out_channels, 1, whole=True)
        groups = check_number("groups", groups, 1, whole=True)
        if isinstance(padding, str):
            check_option("padding", padding, ("same", "valid"))
        windows = (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0))
        sizes = [
            value if name == "padding" and isinstance(value, str) else check_sizes(name, value, smallest, self.SPACE)
            for name, value, smallest in (*windows, ("dilation", dilation, 1))
        ]
        super().__init__(
            in_channels, out_channels, *sizes, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        self._add_neurons(out_channels, parameters, device, dtype, **options)
        self._add_norm(weight_norm, carry_scale, eps)

    def _map(self, inputs: Tensor) -> tuple[Tensor, Map, tuple[Tensor | None, ...]]:
        axes = time_axes(self.batch_first, f"in_channels, {', '.join(self.SPACE)}")
        inputs = prepare_inputs(inputs, self.weight, axes)
        check_size("inputs", inputs, 2, self.in_channels, "in_channels")
        padding, pads = self._paddings()
        if pads:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            inputs = as_floats(inputs, self.weight.dtype)
            inputs = F.pad(inputs.flatten(0, 1), pads, mode).unflatten(0, inputs.shape[:2])
        return inputs, *self._weighted(partial(Convolution, self.stride, padding, self.dilation, self.groups))

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
        weight_norm: as in `WeightedLayer`, over a channel's whole kernel; likewise the next two.
        carry_scale: see `weight_norm`.
        eps: see `weight_norm`.
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


def spiking_layers(model: nn.Module) -> list[tuple[str, SRMLayer | SRMNeuron]]:
    """The spiking layers of a model with their names: each `SRMLayer`, and each `SRMNeuron` used alone.

    Raises:
        ValueError: if there is none.
    """
    holders = (module for module in model.modules() if isinstance(module, SRMLayer | SRMReadout))
    inner = {id(module.neuron) for module in holders}
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, SRMLayer | SRMNeuron) and id(module) not in inner
    ]
    if not found:
        raise ValueError("model must contain a spiking layer, such as SRMLinear, SRMConv2d or SRMNeuron")
    return found
