"""What a layer's inputs and output gradients say about its parameters' gradients, patient by patient and in sum.

Shapes: inputs and output gradients (rows, ...), those of some patients with equally many rows (patients, rows, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn import grad as conv_grad

STRIDED = 20  # multiplications of a matrix product in the time of one strided addition, on a CPU
ROUNDING = 16  # units in the last place by which a product of positions may be off

Pair = tuple[torch.Tensor, torch.Tensor]  # inputs and output gradients of one use of a layer
Vectors = dict[str, torch.Tensor]


class Rule(NamedTuple):
    """For one kind of layer."""

    axes: Callable[[nn.Module], int]  # fewest axes of its inputs, rows included
    vectors: Callable[[nn.Module, Collection[str], torch.Tensor, torch.Tensor], Vectors]  # named ones of each row: (rows, ...)
    each: Callable[[nn.Module, list[Pair]], torch.Tensor] | None = None  # the weight's gradients, (patients, *weight.shape)
    squares: Callable[[nn.Module, list[Pair]], torch.Tensor] | None = None  # their squared norms, (patients,)
    total: Callable[[nn.Module, list[Pair]], torch.Tensor] | None = None  # the weight's gradient, summed over rows


def _square(gradients: torch.Tensor) -> torch.Tensor:
    """(patients, ...) -> (patients,) squared norms."""
    return torch.linalg.vector_norm(gradients.flatten(1), dim=1) ** 2


def _inner(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Sum of x g (patients, positions, positions), never too small: where products cancel, rounding could hide a gradient."""
    products = x * g
    return products.sum((1, 2)) + ROUNDING * torch.finfo(g.dtype).eps * products.abs().sum((1, 2))


# Linear: the weight's gradient of a row is the sum over positions of g x^T


def _linear_vectors(layer: nn.Linear, keys: Collection[str], x: torch.Tensor, g: torch.Tensor) -> Vectors:
    return {"bias": g.reshape(len(g), -1, g.shape[-1]).sum(1)} if "bias" in keys else {}


def _linear_each(layer: nn.Linear, pairs: list[Pair]) -> torch.Tensor:
    return sum(g.flatten(1, -2).mT @ x.flatten(1, -2) for x, g in pairs)


def _linear_squares(layer: nn.Linear, pairs: list[Pair]) -> torch.Tensor:
    x = torch.cat([x.flatten(1, -2) for x, _ in pairs], dim=1)  # (patients, positions, in)
    g = torch.cat([g.flatten(1, -2) for _, g in pairs], dim=1)
    if _by_positions(x.shape[1], x.shape[1], layer.weight.shape) < x.shape[1] * layer.weight.numel():
        return _inner(x @ x.mT, g @ g.mT)
    return _square(g.mT @ x)


def _linear_total(layer: nn.Linear, pairs: list[Pair]) -> torch.Tensor:
    return sum(g.flatten(0, -2).mT @ x.flatten(0, -2) for x, g in pairs)


def _by_positions(before: int, after: int, weight: torch.Size) -> int:
    """Multiplications for the products of every two positions, which need no gradient (Goodfellow, arXiv:1510.01799)."""
    out, into, *kernel = weight
    return before**2 * into + after**2 * (out + STRIDED * sum(kernel))


# Convolutions: the same with patches for x


def _conv_vectors(layer: nn.Conv2d, keys: Collection[str], x: torch.Tensor, g: torch.Tensor) -> Vectors:
    return {"bias": g.flatten(2).sum(2)} if "bias" in keys else {}


def _padded(layer: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Inputs (n, c, *spatial) as the convolution proper takes them, and the zeros it then adds on either side."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return x, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(x, layer._reversed_padding_repeated_twice, mode), (0,) * (x.ndim - 2)


def _conv_gradient(layer: nn.Conv2d, x: torch.Tensor, g: torch.Tensor, networks: int = 1) -> torch.Tensor:
    """The weight's gradient; of several networks whose channels lie side by side, (networks * out, in, *kernel)."""
    form = {1: conv_grad.conv1d_weight, 2: conv_grad.conv2d_weight, 3: conv_grad.conv3d_weight}[x.ndim - 2]
    x, padding = _padded(layer, x)
    shape = (networks * layer.weight.shape[0], *layer.weight.shape[1:])
    return form(x, shape, g, layer.stride, padding, layer.dilation, networks * layer.groups)


def _conv_each(layer: nn.Conv2d, pairs: list[Pair]) -> torch.Tensor:
    # patients' channels, side by side, are groups of one convolution: as fast as the ordinary gradient, where patients in a
    # loop take three times as long
    patients = len(pairs[0][0])
    beside = [[t.transpose(0, 1).flatten(1, 2) for t in pair] for pair in pairs]
    return sum(_conv_gradient(layer, x, g, patients) for x, g in beside).reshape(patients, *layer.weight.shape)


def _conv_squares(layer: nn.Conv2d, pairs: list[Pair]) -> torch.Tensor:
    x, g = pairs[0]
    before, after = (t.shape[1] * math.prod(t.shape[3:]) for t in (x, g))
    if len(pairs) == layer.groups == 1 and _by_positions(before, after, layer.weight.shape) < after * layer.weight.numel():
        return _conv_squares_by_positions(layer, x, g)
    return _square(_conv_each(layer, pairs))


def _conv_squares_by_positions(layer: nn.Conv2d, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """No patch is formed: products of patches are sums over the kernel, axis by axis, of products of pixels."""
    patients, rows, _, *sides = g.shape
    flat, padding = _padded(layer, x.flatten(0, 1))
    pixels = flat.unflatten(0, (patients, rows)).movedim(2, -1).flatten(1, -2)  # (patients, rows * positions, in)
    products = (pixels @ pixels.mT).view(patients, rows, *flat.shape[2:], rows, *flat.shape[2:])
    for axis, side in enumerate(sides):
        pixel = (layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis], padding[axis])
        products = _along(products, 2 + axis, 3 + len(sides) + axis, side, *pixel)
    g = g.movedim(2, -1).flatten(1, -2)
    return _inner(products.reshape(patients, g.shape[1], -1), g @ g.mT)


def _along(
    products: torch.Tensor, first: int, second: int, side: int, kernel: int, stride: int, dilation: int, padding: int
) -> torch.Tensor:
    """Products at pixels to products of patches along one spatial axis, which is axis `first` and axis `second`."""
    shape = [side if axis in (first, second) else size for axis, size in enumerate(products.shape)]
    made = products.new_zeros(shape)
    for k in range(kernel):
        offset = dilation * k - padding
        # patches whose k-th pixel lies in the image
        low, high = max(0, -(offset // stride)), min(side - 1, (products.shape[first] - 1 - offset) // stride)
        to, at = [slice(None)] * made.ndim, [slice(None)] * made.ndim
        to[first] = to[second] = slice(low, high + 1)
        at[first] = at[second] = slice(stride * low + offset, stride * high + offset + 1, stride)
        if low <= high:
            made[tuple(to)] += products[tuple(at)]
    return made


def _conv_total(layer: nn.Conv2d, pairs: list[Pair]) -> torch.Tensor:
    return sum(_conv_gradient(layer, x, g) for x, g in pairs)


# Norms: their parameters are vectors


def _group_norm_vectors(layer: nn.GroupNorm, keys: Collection[str], x: torch.Tensor, g: torch.Tensor) -> Vectors:
    vectors = {"weight": functional.group_norm(x, layer.num_groups, eps=layer.eps) * g} if "weight" in keys else {}
    vectors |= {"bias": g} if "bias" in keys else {}
    return {key: v.reshape(*v.shape[:2], -1).sum(2) for key, v in vectors.items()}


def _layer_norm_vectors(layer: nn.LayerNorm, keys: Collection[str], x: torch.Tensor, g: torch.Tensor) -> Vectors:
    shape = layer.normalized_shape
    vectors = {"weight": functional.layer_norm(x, shape, eps=layer.eps) * g} if "weight" in keys else {}
    vectors |= {"bias": g} if "bias" in keys else {}
    return {key: v.reshape(len(v), -1, *shape).sum(1) for key, v in vectors.items()}


# Embedding: the gradient of a row of the table is the sum over the positions that name it


def _table(layer: nn.Embedding, index: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """(patients, positions), (patients, positions, dim) -> (patients, entries, dim)."""
    patients, entries = len(index), layer.num_embeddings
    if layer.padding_idx is not None:
        g = g * (index != layer.padding_idx)[..., None]
    start = torch.arange(patients, device=index.device)[:, None] * entries
    table = g.new_zeros(patients * entries, g.shape[-1])
    return table.index_add_(0, (start + index).flatten(), g.flatten(0, 1)).view(patients, entries, -1)


def _embedding_each(layer: nn.Embedding, pairs: list[Pair]) -> torch.Tensor:
    return sum(_table(layer, x.flatten(1), g.flatten(1, -2)) for x, g in pairs)


def _embedding_squares(layer: nn.Embedding, pairs: list[Pair]) -> torch.Tensor:
    return _square(_embedding_each(layer, pairs))


def _embedding_total(layer: nn.Embedding, pairs: list[Pair]) -> torch.Tensor:
    return sum(_table(layer, x.reshape(1, -1), g.reshape(1, -1, g.shape[-1]))[0] for x, g in pairs)


_CONVOLUTION = Rule(lambda layer: layer.weight.ndim, _conv_vectors, _conv_each, _conv_squares, _conv_total)

# Of a subclass nothing is known: its forward pass may differ
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(lambda layer: 2, _linear_vectors, _linear_each, _linear_squares, _linear_total),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.GroupNorm: Rule(lambda layer: 2, _group_norm_vectors),
    nn.LayerNorm: Rule(lambda layer: 1 + len(layer.normalized_shape), _layer_norm_vectors),
    nn.Embedding: Rule(lambda layer: 1, lambda *_: {}, _embedding_each, _embedding_squares, _embedding_total),
}
