"""Batch normalisation as a `torch.nn` module; the mathematics is in `srm_triton/ops/batch_norm.py`."""

from typing import Any

from torch import Tensor, nn

from srm_triton.checks import check_number, check_tensor
from srm_triton.ops.batch_norm import batch_norm_with_statistics


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` on this package's batch-norm kernels: same arguments, statistics and `state_dict`.

    It differs in one point: in training it cannot be differentiated twice.

    Shape:
        [batch, features] or [batch, features, length] to the same.

    Raises:
        TypeError: for numbers of another type.
        ValueError: for numbers out of range, other shapes, or in training for a single value per feature.

    Example:
        >>> import torch
        >>> layer = BatchNorm1d(3)
        >>> layer(torch.rand(5, 3)).mean(0).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *arguments: Any, **options: Any
    ) -> None:
        num_features = check_number("num_features", num_features, 0, whole=True)
        eps = check_number("eps", eps, 0)
        momentum = None if momentum is None else check_number("momentum", momentum, 0)
        super().__init__(num_features, eps, momentum, *arguments, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalises by the batch's statistics in training, by the running ones in evaluation."""
        by_batch = self.training or self.running_mean is None
        if not by_batch or inputs.numel() == 0:
            return super().forward(inputs)
        self._check_input_dim(inputs)
        check_tensor("inputs", inputs)
        if inputs.shape[1] != self.num_features:
            raise ValueError(f"inputs must have {self.num_features} features on axis 1, got {list(inputs.shape)}")
        samples = inputs if inputs.dim() == 2 else inputs.movedim(1, -1).reshape(-1, self.num_features)
        if samples.shape[0] == 1:
            raise ValueError(
                f"inputs must have more than one value per feature for a variance, got the shape {list(inputs.shape)}"
            )
        outputs, mean, variance = batch_norm_with_statistics(
            samples, self.weight, self.bias, dim=0, eps=self.eps, correction=0
        )
        if self.training and self.running_mean is not None:
            self._update_running_statistics(mean, variance, samples.shape[0])
        if inputs.dim() == 2:
            return outputs
        return outputs.unflatten(0, (inputs.shape[0], *inputs.shape[2:])).movedim(-1, 1).contiguous()

    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum: Any = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), momentum)
