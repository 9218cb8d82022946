"""Diagnosis of a network while it trains: what its layers do, by hooks that change nothing, and what that says.

Within `watch(model)` every call of a spiking layer is measured: spikes, inputs, the slopes that the event rule divides
by, and gradients as they pass.
"""

from srm_triton.diagnosis.finding import Finding
from srm_triton.diagnosis.learning import LearningReport, find_in_learning
from srm_triton.diagnosis.report import LayerReport, Report
from srm_triton.diagnosis.watcher import Watcher, watch

__all__ = ["Finding", "LayerReport", "LearningReport", "Report", "Watcher", "find_in_learning", "watch"]
