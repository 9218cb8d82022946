"""Linear regression with the mean squared error: its gradients in one pass, and a fit by gradient descent."""

from srm_triton.regression.linear import ConvergenceWarning, LinearRegression
from srm_triton.regression.mse import MSEGradients, mse_gradients

__all__ = ["ConvergenceWarning", "LinearRegression", "MSEGradients", "mse_gradients"]
