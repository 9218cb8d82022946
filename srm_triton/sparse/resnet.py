"""ResNet-18 for images, with a sparse representation in place of the fully connected layer.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.checks import check_option, check_size, check_tensor
from srm_triton.resnet import SlicedSequential, check_sizes, residual_stages
from srm_triton.sparse.code import SparseRepresentation
from srm_triton.sparse.linear import SparseLinear

Head = Literal["sparse", "linear", "sparse-linear"]

_HEADS: dict[str, Callable[..., nn.Module]] = {
    "sparse": SparseRepresentation,
    "linear": nn.Linear,
    "sparse-linear": SparseLinear,
}


class BasicBlock2D(nn.Module):
    """Two 3 × 3 convolutions, and a shortcut around them: the identity, or a 1 × 1 convolution where the shape changes.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and of the shortcut.

    Shape:
        [batch, in_channels, height, width] to [batch, out_channels, ⌈height / stride⌉, ⌈width / stride⌉].

    Example:
        >>> import torch
        >>> BasicBlock2D(4, 8, stride=2)(torch.rand(2, 4, 5, 6)).shape
        torch.Size([2, 8, 3, 3])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        in_channels, out_channels, stride = check_sizes(
            in_channels=in_channels, out_channels=out_channels, stride=stride
        )
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Takes torchvision's name of the shortcut too."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}downsample.")]:
            ours = f"{prefix}shortcut.{name.removeprefix(f'{prefix}downsample.')}"
            if ours not in state_dict:
                state_dict[ours] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class ResNet18_2D(SlicedSequential):  # noqa: N801, the published name
    """ResNet-18 for images, whose last layer, `fc`, is a sparse representation.

    Its modules have the published names, so that checkpoints load, those of torchvision too, whose shortcuts are called
    `downsample`; those with a fully connected layer of as many outputs load with ``head="linear"`` in full. Slices are
    plain sequences of modules: ``model[:-1]`` returns the features.

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
        >>> import torch
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
        out_features, in_channels, width = check_sizes(out_features=out_features, in_channels=in_channels, width=width)
        check_option("head", head, get_args(Head))
        if foreign := {"device", "dtype"} & head_options.keys():
            raise TypeError(
                f"{min(foreign)} is no option of ResNet18_2D, which has other layers too: call .to(...) on it"
            )
        stages = residual_stages(BasicBlock2D, width)
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
