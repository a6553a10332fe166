"""The clipped sum of patients' gradients from one backward pass.

A *row* is one record with one draw of noise. A patient's gradient is the weighted sum over its rows, so it is averaged before it
is clipped (Abadi et al. 2016, Algorithm 1, with the patient as the unit). The backward pass computes no gradient of a weight;
it leaves each layer's inputs and output gradients. From them a patient's gradient is formed for its norm alone, and one
contraction, output gradients scaled by clip factors, gives the sum over patients. Where patients' gradients take less memory
than these inputs and output gradients, they are formed at once and kept instead: then nothing is computed twice.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from medsynth.privacy.dp.gradients.layer_rules import RULES, Pair

CHUNK = 2**22  # numbers in the gradients that are formed at a time: 16 MiB in float32
ROUNDING = 128  # units in the last place by which a computed norm may be too small; 10 were seen


class ClippedSums(NamedTuple):
    """Of one physical batch. Nothing in it is private yet."""

    sums: dict[str, torch.Tensor]  # of each trainable parameter, over patients; float32, or float64 in a float64 model
    norms: torch.Tensor  # (patients,), before clipping; inf or nan for a patient that was left out
    loss: float  # mean over patients that were not left out; nan without any


def clipped_sums(
    model: nn.Module,
    losses: Callable[[], torch.Tensor],
    patient: torch.Tensor,
    weight: torch.Tensor,
    *,
    clip: float,
) -> ClippedSums:
    """Sum over patients p of min(1, clip / |g_p|) g_p, where g_p sums weight * gradient of the loss over the rows of p.

    losses() runs `model` once on the whole batch and returns (rows,) losses; patient: (rows,) integers from 0; weight: (rows,).
    The norm is over all trainable parameters together. A patient whose gradient is not finite counts as zero. Without rows,
    sums are zero and losses() is not called.
    Raises ValueError where `refuse_unsuitable` does, for a layer whose inputs do not begin with the rows or are overwritten, and
    for a parameter that is used outside of its layer.
    """
    refuse_unsuitable(model)
    rows = len(patient)
    if patient.shape != (rows,) or weight.shape != (rows,):
        raise ValueError(f"patient {tuple(patient.shape)}, weight {tuple(weight.shape)}; expected (rows,) of both")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in trained.values()) else torch.float32
    zeros = {name: torch.zeros_like(p, dtype=dtype, requires_grad=False) for name, p in trained.items()}
    if rows == 0:
        return ClippedSums(zeros, weight.new_zeros(0, dtype=dtype), math.nan)
    book = _Book(model, patient, dtype)
    with book.kept(trained):
        per_row = losses()
        if per_row.shape != (rows,):
            raise ValueError(f"losses have shape {tuple(per_row.shape)}; expected ({rows},), one for each row")
        weighted = weight * per_row
        if weighted.requires_grad:
            weighted.sum().backward()
    with _exactly(patient.device):
        norms = book.norms()
        good = norms.isfinite()
        # a little less than clip / norms: rounding must not carry a patient over the bound
        factor = (clip / (norms * (1 + ROUNDING * torch.finfo(dtype).eps))).clamp(max=1)
        sums = book.sums(torch.where(good, factor, 0))
        of_patients = book.by_patient(weighted.detach().to(dtype))
    return ClippedSums(zeros | sums, norms, float(of_patients[good].mean()))


def refuse_unsuitable(model: nn.Module) -> None:
    """ValueError that names a layer in which patients' gradients cannot be told apart.

    Refused: a trainable parameter of a layer without a rule, or of two layers at once; a layer that mixes the rows of a batch.
    """
    owners: dict[nn.Parameter, str] = {}
    for name, layer in model.named_modules():
        label = f"{name or 'the model'} ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            running = layer.training and layer.track_running_stats
            if running or (isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None):
                raise ValueError(f"{label} takes statistics over patients; expected a norm of each row, such as nn.GroupNorm")
        trained = _trained(layer)
        if trained and type(layer) not in RULES:
            known = ", ".join(kind.__name__ for kind in RULES)
            raise ValueError(f"{label} has no rule for {', '.join(trained)}; expected one of {known}, or a frozen layer")
        if trained and isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
            raise ValueError(f"{label} depends on the whole batch; expected neither max_norm nor scale_grad_by_freq")
        for key, p in trained.items():
            if p in owners:
                raise ValueError(f"{label} shares its {key} with {owners[p]}; expected each trainable parameter in one layer")
            owners[p] = label


class _Book:
    """What one forward and one backward pass leave of each trainable layer."""

    def __init__(self, model: nn.Module, patient: torch.Tensor, dtype: torch.dtype) -> None:
        self.layers = {name: layer for name, layer in model.named_modules() if _trained(layer)}
        self.patient, self.dtype = patient, dtype
        self.patients = int(patient.max()) + 1
        self.groups = _by_count(patient)
        self.pairs: dict[str, list[Pair]] = defaultdict(list)
        # (patients, ...) of biases and norms, which are smaller than the feature maps that they are sums over, and of weights
        # that are
        self.gradients: dict[str, torch.Tensor] = {}

    @contextlib.contextmanager
    def kept(self, trained: dict[str, nn.Parameter]) -> Iterator[None]:
        """Inside, layers are watched, and hide their parameters from autograd, which goes through them to their inputs alone."""
        handles = [p.register_hook(functools.partial(_refuse_stray, name)) for name, p in trained.items()]
        for name, layer in self.layers.items():
            own = _trained(layer)
            handles += [
                layer.register_forward_pre_hook(functools.partial(_require_grad, own.values(), False)),
                layer.register_forward_hook(functools.partial(self._use, name, list(own)), with_kwargs=True, prepend=True),
                layer.register_forward_hook(functools.partial(_require_grad, own.values(), True)),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            _require_grad(trained.values(), True)

    def _use(self, name: str, keys: list[str], layer: nn.Module, args: Any, named: dict[str, Any], output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        x, rule = args[0] if args else named["input"], RULES[type(layer)]
        if x.ndim < rule.axes(layer) or len(x) != len(self.patient):
            found = f"{name} ({type(layer).__name__}) was given {tuple(x.shape)}"
            raise ValueError(f"{found}; expected the {len(self.patient)} rows of the batch as its first axis")
        # under autocast a product is one of rounded inputs
        x = x.detach().to(output.dtype) if rule.squares and x.is_floating_point() else x.detach()
        receive = functools.partial(self._receive, name, keys, x, x._version)
        if output.requires_grad:
            output.register_hook(receive)
        else:
            # nothing before this layer is trained, so the backward pass ends here
            output.requires_grad_(True).register_post_accumulate_grad_hook(functools.partial(_take, receive))

    def _receive(self, name: str, keys: list[str], x: torch.Tensor, version: int, g: torch.Tensor) -> None:
        layer = self.layers[name]
        if x._version != version:
            raise ValueError(f"the inputs of {name} ({type(layer).__name__}) were overwritten; expected no operation in place")
        rule = RULES[type(layer)]
        with _exactly(g.device):
            for key, of_rows in rule.vectors(layer, keys, *self._typed(x, g)).items():
                full = _joined(name, key)
                self.gradients[full] = self.gradients.get(full, 0) + self.by_patient(of_rows)
            if rule.each and "weight" in keys:
                full = _joined(name, "weight")
                # what the first use of a layer decides holds for the others: its gradients are summed before the norm
                if full in self.gradients or (name not in self.pairs and self._are_small(layer, x, g)):
                    self._form(layer, full, x, g)
                else:
                    self.pairs[name].append((x, g))

    def _are_small(self, layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> bool:
        """Whether patients' gradients of the weight take less memory than what they follow from."""
        return self.patients * layer.weight.numel() * self.dtype.itemsize < x.nbytes + g.nbytes

    def _form(self, layer: nn.Module, full: str, x: torch.Tensor, g: torch.Tensor) -> None:
        """Add to the patients' gradients of a weight."""
        if full not in self.gradients:
            self.gradients[full] = torch.zeros(self.patients, *layer.weight.shape, dtype=self.dtype, device=g.device)
        for patients, rows in self.groups:
            each = RULES[type(layer)].each(layer, [self._typed(_rows(x, rows), _rows(g, rows))])
            self.gradients[full].index_add_(0, patients.to(g.device), each)

    def by_patient(self, of_rows: torch.Tensor) -> torch.Tensor:
        """(rows, ...) -> (patients, ...), summed."""
        return of_rows.new_zeros(self.patients, *of_rows.shape[1:]).index_add_(0, self.patient, of_rows)

    def norms(self) -> torch.Tensor:
        """(patients,) norms over all parameters."""
        squares = torch.zeros(self.patients, dtype=self.dtype, device=self.patient.device)
        for gradients in self.gradients.values():
            squares += torch.linalg.vector_norm(gradients.flatten(1), dim=1) ** 2
        for name, pairs in self.pairs.items():
            layer = self.layers[name]
            chunk = max(1, CHUNK // layer.weight.numel())
            for patients, rows in self.groups:
                for some, its_rows in zip(patients.split(chunk), rows.split(chunk), strict=True):
                    of_some = [self._typed(_rows(x, its_rows), _rows(g, its_rows)) for x, g in pairs]
                    squares[some] += RULES[type(layer)].squares(layer, of_some)
        return squares.sqrt()

    def sums(self, factor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of each parameter that has a gradient, the sum over patients of factor (patients,) * gradient; the pairs are spent."""
        # what is not finite must not enter: zero times infinity is no number
        kept = factor > 0
        everybody = bool(kept.all())
        some = slice(None) if everybody else kept.nonzero()[:, 0]
        sums = {name: torch.tensordot(factor[some], v[some], dims=1) for name, v in self.gradients.items()}
        rows = slice(None) if everybody else kept[self.patient].nonzero()[:, 0]
        of_rows = factor[self.patient][rows]
        while self.pairs:
            name, pairs = self.pairs.popitem()
            layer = self.layers[name]
            typed = [self._typed(x[rows], g[rows]) for x, g in pairs]
            scaled = [(x, g * of_rows.view(-1, *[1] * (g.ndim - 1))) for x, g in typed]
            sums[_joined(name, "weight")] = RULES[type(layer)].total(layer, scaled)
        return sums

    def _typed(self, x: torch.Tensor, g: torch.Tensor) -> Pair:
        return x.to(self.dtype) if x.is_floating_point() else x, g.to(self.dtype)


def _by_count(patient: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Patients (p,) who have equally many rows, with these rows (p, r), for each number of rows."""
    patient = patient.cpu()
    counts, order = torch.bincount(patient), torch.argsort(patient, stable=True)
    starts = counts.cumsum(0) - counts
    groups = []
    for count in counts[counts > 0].unique().tolist():
        patients = (counts == count).nonzero()[:, 0]
        groups.append((patients, order[starts[patients][:, None] + torch.arange(count)]))
    return groups


def _rows(of_rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(rows, ...) -> (patients, r, ...) for chosen rows (patients, r); a view where these are neighbours."""
    start = int(chosen[0, 0])
    if torch.equal(chosen.flatten(), torch.arange(start, start + chosen.numel())):
        return of_rows[start : start + chosen.numel()].unflatten(0, chosen.shape)
    return of_rows[chosen]


@contextlib.contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Products in the tensors' own precision: the norm and the sum must be of one gradient, or clipping does not bound it."""
    kept = torch.backends.cudnn
    flags = {"enabled": kept.enabled, "benchmark": kept.benchmark, "deterministic": kept.deterministic, "allow_tf32": False}
    with torch.autocast(device.type, enabled=False), kept.flags(**flags):
        yield


def _trained(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in layer.named_parameters(recurse=False) if p.requires_grad}


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _require_grad(parameters: Iterable[nn.Parameter], on: bool, *_: Any) -> None:
    for p in parameters:
        p.requires_grad_(on)


def _refuse_stray(name: str, _: torch.Tensor) -> None:
    raise ValueError(f"{name} is used outside of its layer's forward pass; expected every use to be a call of the layer")


def _take(receive: Callable[[torch.Tensor], None], leaf: torch.Tensor) -> None:
    receive(leaf.grad)
    leaf.grad = None
