"""Importance: how much a unit of a group is worth. One criterion a file.

An importance is any callable ``(deps, group) -> tensor or array of shape (group.size,)`` of finite numbers; units of larger
numbers stay longer. With ``scope="global"`` and with budgets over several groups the numbers of different groups are compared.
"""

from fxprune.importance.activation import Activation
from fxprune.importance.batch_norm import BatchNormScale
from fxprune.importance.criterion import Criterion, Importance
from fxprune.importance.fpgm import FPGM
from fxprune.importance.hessian import Hessian
from fxprune.importance.lamp import LAMP
from fxprune.importance.magnitude import Magnitude
from fxprune.importance.random import Random
from fxprune.importance.taylor import Taylor

__all__ = [
    "FPGM",
    "LAMP",
    "Activation",
    "BatchNormScale",
    "Criterion",
    "Hessian",
    "Importance",
    "Magnitude",
    "Random",
    "Taylor",
]
