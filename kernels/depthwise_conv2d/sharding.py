"""The operators on DTensors, images sharded by batch, weights replicated: `import kernels.depthwise_conv2d.sharding`.

Nothing here imports it: torch.distributed.tensor takes a second or two to import.
"""

from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

WHOLE, BATCH = Replicate(), Shard(0)
Placements = list[tuple[list[Any], list[Any]]]  # outputs, arguments; None for one that is not a tensor


@register_sharding(torch.ops.widefield.depthwise_conv2d.default)
def forward_placements(input: Any, weight: Any, bias: Any = None, activation: str = "none") -> Placements:
    rest = [WHOLE, None if bias is None else WHOLE, None]
    return [([each], [each, *rest]) for each in (WHOLE, BATCH)]


@register_sharding(torch.ops.widefield.depthwise_conv2d_before_activation.default)
def before_activation_placements(input: Any, weight: Any, bias: Any) -> Placements:
    return [([each], [each, WHOLE, None if bias is None else WHOLE]) for each in (WHOLE, BATCH)]


@register_sharding(torch.ops.widefield.depthwise_conv2d_grad_input.default)
def grad_input_placements(grad: Any, weight: Any) -> Placements:
    return [([each], [each, WHOLE]) for each in (WHOLE, BATCH)]


@register_sharding(torch.ops.widefield.depthwise_conv2d_grad_weight.default)
def grad_weight_placements(grad: Any, input: Any, kernel_size: Any) -> Placements:
    return [([WHOLE], [WHOLE, WHOLE, None]), ([Partial()], [BATCH, BATCH, None])]
