"""ResNet-18 for images: with a sparse representation in place of the fully connected layer, and with spiking neurons.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. A spiking block adds the spikes of both
branches, s = a + b, as SEW ResNet does (Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS
2021). The gradient with respect to the times of those spikes is shared by the branches as each took part:

    grad_a = grad·a/s      grad_b = grad·b/s      both 0 where s = 0

since a convolution hands back the gradient of one spike times s. With the surrogate gradient the sum is plain.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.checks import check_number, check_option, check_size, check_tensor
from srm_triton.functions import Function, Gradients, once_differentiable, traced
from srm_triton.layers import LayerOptions, SRMConv2d, SRMLinear
from srm_triton.levels import Form, Keep, decode, encode
from srm_triton.networks import Readout
from srm_triton.ops.srm_scan import Gradient, needs_gradient
from srm_triton.parameters import SRMParameters
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout
from srm_triton.sparse_code import SparseRepresentation
from srm_triton.sparse_linear import SparseLinear

Head = Literal["sparse", "linear", "sparse-linear"]

_HEADS: dict[str, Callable[..., nn.Module]] = {
    "sparse": SparseRepresentation,
    "linear": nn.Linear,
    "sparse-linear": SparseLinear,
}


def _stages(block: Callable[[int, int, int], nn.Module], width: int) -> dict[str, nn.Sequential]:
    """`layer1` … `layer4`, of blocks that are made from their channels in, channels out and stride."""
    stages, channels = {}, width
    for number, stride in enumerate((1, 2, 2, 2), 1):
        wider = width * 2 ** (number - 1)
        stages[f"layer{number}"] = nn.Sequential(block(channels, wider, stride), block(wider, wider, 1))
        channels = wider
    return stages


def _sizes(**sizes: Any) -> tuple[int, ...]:
    return tuple(check_number(name, size, 1, whole=True) for name, size in sizes.items())


class BasicBlock2D(nn.Module):
    """Two 3 × 3 convolutions, and a shortcut around them: the identity, or a 1 × 1 convolution where the shape changes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and of the shortcut.

    Shape:
        [batch, in_channels, height, width] to [batch, out_channels, ⌈height / stride⌉, ⌈width / stride⌉].

    Example:
        >>> BasicBlock2D(4, 8, stride=2)(torch.rand(2, 4, 5, 6)).shape
        torch.Size([2, 8, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        in_channels, out_channels, stride = _sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the rectified sum of both branches."""
        outputs = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(outputs)) + self.shortcut(inputs))


class ResNet18_2D(nn.Sequential):  # noqa: N801, the published name
    """ResNet-18 for images, whose last layer, `fc`, is a sparse representation.

    Its modules have the published names, so that checkpoints load; those with a fully connected layer of as many
    outputs load with ``head="linear"`` in full.

    Args:
        out_features: size of each output, with ``head="sparse"`` the number of atoms.
        in_channels: channels of the images.
        head: what `fc` is: ``"sparse"`` a `SparseRepresentation`, ``"linear"`` a `torch.nn.Linear`, ``"sparse-linear"``
            a `SparseLinear`.
        width: channels of the first convolution; the last block has 8 times as many.
        **head_options: keyword arguments of that layer, such as `sparsity` and `iterations` or `density`.

    Shape:
        [batch, in_channels, height, width] to [batch, out_features].

    Raises:
        TypeError: for a size that is no int, or an option that the head does not have.
        ValueError: for a size below 1, another head, or inputs of another shape.

    Example:
        >>> model = ResNet18_2D(10, in_channels=3, head="sparse-linear", width=8, density=0.2)
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        out_features: int = 512,
        in_channels: int = 1,
        head: Head = "sparse",
        *,
        width: int = 64,
        **head_options: Any,
    ) -> None:
        out_features, in_channels, width = _sizes(out_features=out_features, in_channels=in_channels, width=width)
        check_option("head", head, get_args(Head))
        if foreign := {"device", "dtype"} & head_options.keys():
            raise TypeError(
                f"{min(foreign)} is no option of ResNet18_2D, which has other layers too: call .to(...) on it"
            )
        stages = _stages(BasicBlock2D, width)
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
                bn1=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                maxpool=nn.MaxPool2d(3, stride=2, padding=1),
                **stages,
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=_HEADS[head](8 * width, out_features, **head_options),
            )
        )
        self.in_channels = in_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns what `fc` makes of the features."""
        check_tensor("inputs", inputs, "[batch, in_channels, height, width]")
        check_size("inputs", inputs, 1, self.in_channels, "in_channels")
        outputs: Tensor = super().forward(inputs)
        return outputs


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
        in_channels, out_channels, stride = _sizes(in_channels=in_channels, out_channels=out_channels, stride=stride)
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
    def __init__(self, gradient: Gradient, keep: Keep) -> None:
        super().__init__()
        self.gradient, self.keep = gradient, keep

    def forward(self, inputs: Tensor) -> Tensor:
        pool = SpikeAvgPool2d((inputs.shape[-2], inputs.shape[-1]), gradient=self.gradient, keep=self.keep)
        return pool(inputs).flatten(2)


class SpikingResNet18_2D(nn.Sequential):  # noqa: N801, after it
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
        **options: as in `SRMLayer`, for all layers, but for the gradient, which is ``"surrogate"`` unless given.

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
        out_features, in_channels, width = _sizes(out_features=out_features, in_channels=in_channels, width=width)
        check_option("readout", readout, get_args(Readout))
        options = {"gradient": "surrogate", **options}
        gradient, keep = options["gradient"], options.get("keep", "current")
        stages = _stages(partial(SpikingBasicBlock2D, parameters=parameters, **options), width)
        if readout == "membrane":
            output: nn.Module = SRMReadout(
                8 * width, out_features, parameters, batch_first=options.get("batch_first", True), keep=keep
            )
        else:
            of_output = options.copy()
            of_output["output"] = True
            output = SRMLinear(8 * width, out_features, parameters, **of_output)
        super().__init__(
            OrderedDict(
                conv1=SRMConv2d(in_channels, width, 7, stride=2, padding=3, parameters=parameters, **options),
                pool=SpikeAvgPool2d(3, stride=2, padding=1, gradient=gradient, keep=keep),
                **stages,
                avgpool=_GlobalSpikeAvgPool2d(gradient, keep),
                fc=output,
            )
        )
