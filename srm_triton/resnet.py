"""ResNet-18 of spiking neurons.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. A spiking block adds the spikes of both
branches, s = a + b, as SEW ResNet does (Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS
2021). The gradient with respect to the times of those spikes is shared by the branches as each took part:

    grad_a = grad·a/s      grad_b = grad·b/s      both 0 where s = 0

since a convolution hands back the gradient of one spike times s. With the surrogate gradient the sum is plain.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack, get_args

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number, check_option
from srm_triton.functions import Function, Gradients, once_differentiable, traced
from srm_triton.layers import LayerOptions, SRMConv2d, SRMLinear
from srm_triton.levels import Form, Keep, decode, encode
from srm_triton.networks import OF_OUTPUT, Readout, averages_of
from srm_triton.ops.srm_scan import needs_gradient
from srm_triton.parameters import SRMParameters
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout


def residual_stages(block: Callable[[int, int, int], nn.Module], width: int) -> dict[str, nn.Sequential]:
    """`layer1` … `layer4`, of blocks that are made from their channels in, channels out and stride."""
    stages, channels = {}, width
    for number, stride in enumerate((1, 2, 2, 2), 1):
        wider = width * 2 ** (number - 1)
        stages[f"layer{number}"] = nn.Sequential(block(channels, wider, stride), block(wider, wider, 1))
        channels = wider
    return stages


def check_sizes(**sizes: Any) -> tuple[int, ...]:
    """The sizes as ints; raises, with its name, for one that is no int or below 1."""
    return tuple(check_number(name, size, 1, whole=True) for name, size in sizes.items())


class SlicedSequential(nn.Sequential):
    """A network whose slices, such as ``model[:-1]``, are those of a `torch.nn.Sequential` with the same modules."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class _AddSpikes(Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, keep: Keep) -> Tensor:
        return a + b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Keep], output: Tensor) -> None:
        *branches, keep = inputs
        forms: list[Form | None] = [None, None]
        if keep == "spikes" and not traced():
            (first, forms[0]), (second, forms[1]) = map(encode, branches)
            ctx.count = len(first)
            ctx.save_for_backward(*first, *second)
        else:
            ctx.count = 1
            ctx.save_for_backward(*branches)
        ctx.forms = forms

    @staticmethod
    @once_differentiable("sums of spikes")
    def backward(ctx: Any, saved: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        a, b = map(decode, (saved[: ctx.count], saved[ctx.count :]), ctx.forms)
        share = torch.where(a + b == 0, 0, grad / (a + b))
        return share * a, share * b, None


class SpikingBasicBlock2D(nn.Module):
    """`BasicBlock2D` of spiking convolutions: the sum of the spikes of both branches.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and of the shortcut.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        **options: as in `SRMLayer`, for all layers.

    Shape:
        [batch, time, in_channels, height, width] to [batch, time, out_channels, ⌈height / stride⌉, ⌈width / stride⌉].

    Example:
        >>> SpikingBasicBlock2D(4, 8, stride=2)(torch.rand(2, 6, 4, 5, 6)).shape
        torch.Size([2, 6, 8, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        parameters: SRMParameters | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        in_channels, out_channels, stride = check_sizes(
            in_channels=in_channels, out_channels=out_channels, stride=stride
        )
        convolution = partial(SRMConv2d, parameters=parameters, **options)
        self.conv1 = convolution(in_channels, out_channels, 3, stride, padding=1)
        self.conv2 = convolution(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(convolution(in_channels, out_channels, 1, stride))
        self.plain, self.keep = options.get("gradient") == "surrogate", options.get("keep", "current")

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the number of branches that fire, and inputs that the identity passes on."""
        return self.add(self.conv2(self.conv1(inputs)), self.shortcut(inputs))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of the spikes of two branches."""
        if self.plain or not needs_gradient(a, b):
            return a + b
        added: Tensor = _AddSpikes.apply(a, b, self.keep)
        return added


class _GlobalSpikeAvgPool2d(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, inputs: Tensor) -> Tensor:
        pool = SpikeAvgPool2d((inputs.shape[-2], inputs.shape[-1]), **self.options)
        return pool(inputs).flatten(2)


class SpikingResNet18_2D(SlicedSequential):  # noqa: N801, after it
    """ResNet-18 of spiking neurons.

    `SRMConv2d` stands for each convolution with its batch normalisation and rectifier, average pooling for max pooling,
    and `SRMLinear` for the fully connected layer. Call `calibrate_gain` before training: a fresh network this deep may
    be silent. Choose ``readout="membrane"`` where spikes as the answer learn slowly.

    Args:
        out_features: number of output neurons.
        in_channels: channels of the images.
        parameters: constants of all neurons; None stands for `SRMParameters()`.
        width: channels of the first convolution; the last block has 8 times as many.
        readout: ``"spikes"``, or ``"membrane"`` for the potentials of an `SRMReadout`.
        **options: as in `SRMLayer`, for all layers, but for the gradient, which is ``"surrogate"`` unless given;
            `spike_dtype` for all but the output.

    Shape:
        [batch, time, in_channels, height, width] to [batch, time, out_features].

    Raises:
        TypeError: for a size that is no int, or other `parameters`.
        ValueError: for a size that is too small, or inputs of another shape.

    Example:
        >>> model = SpikingResNet18_2D(10, in_channels=3, width=8)
        >>> model(torch.rand(2, 6, 3, 32, 32)).shape
        torch.Size([2, 6, 10])
    """

    def __init__(
        self,
        out_features: int = 10,
        in_channels: int = 1,
        parameters: SRMParameters | None = None,
        *,
        width: int = 64,
        readout: Readout = "spikes",
        **options: Unpack[LayerOptions],
    ) -> None:
        out_features, in_channels, width = check_sizes(out_features=out_features, in_channels=in_channels, width=width)
        check_option("readout", readout, get_args(Readout))
        options = {"gradient": "surrogate", **options}
        keep = options.get("keep", "current")
        pooling: dict[str, Any] = {"gradient": options["gradient"], "keep": keep, "dtype": averages_of(options)}
        stages = residual_stages(partial(SpikingBasicBlock2D, parameters=parameters, **options), width)
        if readout == "membrane":
            output: nn.Module = SRMReadout(
                8 * width, out_features, parameters, batch_first=options.get("batch_first", True), keep=keep
            )
        else:
            of_output: LayerOptions = {**options, **OF_OUTPUT}
            output = SRMLinear(8 * width, out_features, parameters, **of_output)
        super().__init__(
            OrderedDict(
                conv1=SRMConv2d(in_channels, width, 7, stride=2, padding=3, parameters=parameters, **options),
                pool=SpikeAvgPool2d(3, stride=2, padding=1, **pooling),
                **stages,
                avgpool=_GlobalSpikeAvgPool2d(**pooling),
                fc=output,
            )
        )
