"""Which parameters of a denoiser are trained: noise grows with their number, and the cost of a step with their layers."""

from __future__ import annotations

from torch import nn

from medsynth.models.conditioning import Conditioning
from medsynth.models.lora import LowRankLinear, insert_adapters
from medsynth.models.text import TextEncoder

TRAINABLE = ("bias", "attention", "lora", "full")

_NORMS = (nn.GroupNorm, nn.LayerNorm)
_PROJECTIONS = ("to_q", "to_k", "to_v", "out_proj")  # of MONAI's attention


def make_trainable(model: nn.Module, which: str) -> list[str]:
    """Freeze all but one of TRAINABLE in `model`, a denoiser; the names of what is trained.

    "bias": norms, biases, and the embeddings of time and condition (as Zaken et al., arXiv:2106.10199, where these are new);
    "attention": these, the projections of attention, and how each block takes time and condition; "lora": adapters of these
    projections, which it inserts, and the embeddings; "full": everything.
    Raises ValueError for another word, and where there is no attention to train.
    """
    if which not in TRAINABLE:
        raise ValueError(f"trainable set {which!r}; expected one of {', '.join(TRAINABLE)}")
    projections = [name for name, layer in model.named_modules() if _is_projection(name, layer)]
    if which in ("attention", "lora") and not projections:
        raise ValueError(f"trainable set {which!r}: the model has no projections of attention; choose 'bias' or 'full'")
    if which == "lora":
        insert_adapters(model, projections)
    model.requires_grad_(which == "full")
    for name, layer in model.named_modules():
        if isinstance(layer, Conditioning | TextEncoder) or name.endswith("time_embed"):
            layer.requires_grad_(True)
        if which in ("bias", "attention"):
            _train_small(layer)
        if which == "attention" and (name in projections or name.endswith("time_emb_proj")):
            layer.requires_grad_(True)
        if isinstance(layer, LowRankLinear):
            layer.down.requires_grad_(True)
            layer.up.requires_grad_(True)
    return [name for name, p in model.named_parameters() if p.requires_grad]


def _is_projection(name: str, layer: nn.Module) -> bool:
    return name.rpartition(".")[2] in _PROJECTIONS and isinstance(layer, nn.Linear)


def _train_small(layer: nn.Module) -> None:
    """Norms, and the biases of anything else."""
    for key, p in layer.named_parameters(recurse=False):
        if key == "bias" or isinstance(layer, _NORMS):
            p.requires_grad_(True)
