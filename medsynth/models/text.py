"""Words that a U-Net listens to: a small text encoder, trained with it, and attention of every place to what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import nn

WIDTH, HEADS, LAYERS = 64, 4, 2  # of the text encoder: its words are few
_HEAD = 16  # channels of each head with which a place listens


class TextEncoder(nn.Module):
    """Numbers of tokens (n, t), NaN = no word, to (n, t, WIDTH).

    Without positions: the order of words says nothing. No word has a learned embedding of its own, as a missing value of
    `Conditioning` has, so that nothing is masked and a row of NaN is the empty text of classifier-free guidance.
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1 + tokens, WIDTH)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, t) -> (n, t, WIDTH)."""
        x = self.embed(torch.nan_to_num(tokens + 1, nan=0.0).long())
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class _Layer(nn.Module):
    # MONAI's own holds a norm that it never uses, whose gradient would be missing
    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = SABlock(WIDTH, HEADS, use_combined_linear=False)
        self.mlp = MLPBlock(WIDTH, 2 * WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))


class Listening(nn.Module):
    """h + attention of each place of h (n, c, *spatial) to words (n, t, WIDTH); it starts as h."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        heard = {"hidden_input_size": channels, "context_input_size": WIDTH, "dim_head": _HEAD}
        self.attention = CrossAttentionBlock(HEADS * _HEAD, HEADS, **heard)
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.zeros_(self.attention.out_proj.bias)

    def forward(self, h: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """(n, c, *spatial), (n, t, WIDTH) -> (n, c, *spatial)."""
        places = self.norm(h).flatten(2).transpose(1, 2)  # (n, places, c)
        return h + self.attention(places, words).transpose(1, 2).reshape(h.shape)


class ListeningUNet(DiffusionModelUNet):
    """MONAI's U-Net, its layers under their names, that listens to words after its middle and every step up but the last.

    columns: of the condition, which hold numbers of `tokens` tokens. Before training it is the plain U-Net.
    """

    def __init__(self, columns: Sequence[int], tokens: int, **architecture: Any) -> None:
        super().__init__(**architecture)
        channels, groups = architecture["channels"], architecture["norm_num_groups"]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.text = TextEncoder(tokens)
        self.listening = nn.ModuleList(Listening(c, groups) for c in (channels[-1], *channels[:0:-1]))
        # what all words say together is told to every layer, as the time is (GLIDE, arXiv:2112.10741)
        self.gist = nn.Linear(WIDTH, 4 * channels[0])
        nn.init.zeros_(self.gist.weight)
        nn.init.zeros_(self.gist.bias)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """(n, c, *spatial), (n,), conditions (n, k) -> (n, c, *spatial)."""
        words = self.text(class_labels.index_select(1, self.columns))
        times = get_timestep_embedding(timesteps, self.block_out_channels[0]).to(x.dtype)
        asked = self.time_embed(times) + self.class_embedding(class_labels).to(x.dtype) + self.gist(words.mean(1))
        h = self.conv_in(x)
        kept = [h]
        for block in self.down_blocks:
            h, states = block(hidden_states=h, temb=asked)
            kept += states
        h = self.middle_block(hidden_states=h, temb=asked)
        for listening, block in zip(self.listening, self.up_blocks, strict=True):
            # the first listens to the middle, each other to the step up before
            h, passed = listening(h, words), len(block.resnets)
            h = block(hidden_states=h, res_hidden_states_list=kept[-passed:], temb=asked)
            kept = kept[:-passed]
        return self.out(h)
