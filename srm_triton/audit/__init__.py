"""How exact the event-driven gradient is, and which of its published choices costs how much: `srm-triton audit`.

In the networks of `srm_triton.audit.networks`, the gradient by the package, by the rule written out
(`srm_triton.audit.event_rule`), where single choices can be switched, and by finite differences, with steps of 1/n in
place of 1, is compared with the exact one of continuous time (`srm_triton.audit.eventprop`): for the first layer's
weights, whose gradient has passed through the whole of the network. The error is ‖g − exact‖/‖exact‖, the cosine that
of the angle between both; medians over the seeds.
"""

from srm_triton.audit.certificate import (
    CHOICES,
    DERIVATIVE,
    PUBLISHED,
    REFINEMENTS,
    SWITCHED_OFF,
    Audit,
    Convergence,
    Deviation,
    audit,
)
from srm_triton.audit.event_rule import Rule
from srm_triton.audit.networks import NETWORKS, Layer, Network

__all__ = [
    "CHOICES",
    "DERIVATIVE",
    "NETWORKS",
    "PUBLISHED",
    "REFINEMENTS",
    "SWITCHED_OFF",
    "Audit",
    "Convergence",
    "Deviation",
    "Layer",
    "Network",
    "Rule",
    "audit",
]
