# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What all guided attention processors share: where the two texts lie, the settings, and the masks.

Where there is no negative text, or nag_scale is 1 (and nag_tau at least 1), a processor gives what the one that it replaces
gives.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from nag_kernels import fused_guided_attention
from nag_kernels.checks import check_scalars

from .distributed import PLAIN, attention_with_sharded_heads
from .kept import KeptKeysAndValues

KeyValue = tuple[Tensor, Tensor]  # each [B, T, H, D]
Masks = tuple[Tensor | None, Tensor | None]  # of text+ and text-, bool [B, T]
SettingTensors = tuple[Tensor, Tensor, Tensor]  # nag_scale, nag_tau and nag_alpha, each [] or [B]
Layer = Any  # an attention layer of diffusers: a Module, of whose attributes a type checker knows nothing


@dataclass(frozen=True, eq=False)
class PackedText:
    """How the prompts of one denoiser lie in the sequence [text+ ; text-], and how they are guided. It is immutable.

    length_positive, length_negative: tokens of each text, as the attention layers see them.
    mask_positive, mask_negative: bool [B, T]; tokens that are False are not seen. None: all are seen. Cross-attention only.
    parts: lengths (of text+, of text-) of each part, if a model puts several texts one after another and packs each by itself.
    unseen_bias: added to the logits of tokens that are not seen, for queries that are seen; None is -inf. Chroma only.
    nag_scale, nag_tau, nag_alpha: float32 tensors [] or [B] on the model's device, one value for each sample. None takes the
        settings of the processor itself.
    rule: "nag", "nasa" or "vsf".
    negative_logit_bias: added to the logits of text-; joint attention or rule "vsf".
    steered: bool [B], the rows that see text-; None is all. Rule "vsf" needs it, because none of its scales is neutral.
    kept: keys and values of both texts by attention layer, for the steps after the one that computed them. Other texts need a
        new one. None computes them in every call. Cross-attention only; a compiled model does not use it.
    sequence_group: the processes over which tokens are split, in equal parts of text+, of text- and of the image. The lengths are
        those of this process, the masks those of the whole texts. None: all tokens are in this process.
    head_group: the processes over which heads are sharded. None: all heads are in this process.
    watch: an object that looks at each guided layer and changes nothing (`diagnose`), or None.
    """

    length_positive: int = 0
    length_negative: int = 0
    mask_positive: Tensor | None = None
    mask_negative: Tensor | None = None
    unseen_bias: float | None = None
    parts: tuple[tuple[int, int], ...] = ()
    nag_scale: Tensor | None = None
    nag_tau: Tensor | None = None
    nag_alpha: Tensor | None = None
    rule: str = "nag"
    negative_logit_bias: float = 0.0
    steered: Tensor | None = None
    kept: KeptKeysAndValues | None = None
    sequence_group: Any = None
    head_group: Any = None
    watch: Any = None

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of text+ and of text-."""
        return self.length_positive, self.length_negative

    def split(self, x: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
        """What of x [.., T+ + T-, ..] belongs to text+ and to text-."""
        positive, negative = x.split(self.lengths, dim=dim)
        return positive, negative


class SharedText:
    """The packed text that the processors and the text modules of one guided run have in common.

    Where it must differ, `change` puts a changed copy in its place, for all of them at once.
    """

    def __init__(self, text: PackedText | None):
        self.text = text

    @property
    def packed(self) -> PackedText:
        """The text where there is one: in every guided run."""
        assert self.text is not None
        return self.text

    def change(self, **changes: Any) -> None:
        self.text = dataclasses.replace(self.packed, **changes)


class GuidedProcessor:
    """The settings of one processor, and how its layer's texts lie.

    fused: whether the layer's fused projections are used. None: use layer.fused_projections. That flag is not reliable for
        diffusers' `Attention`, where it stays True after unfuse_qkv_projections() while the fused weights are out of date.
    steers: False in a layer that is not to be guided: its image attends to text+ alone, and text- passes through.
    """

    fused: bool | None = None
    steers = True
    _plain: Any  # the stock processor, for calls that are not guided

    def __init__(self, nag_scale: float, nag_tau: float, nag_alpha: float, text: PackedText | SharedText | None):
        if text is not None and not isinstance(text, (PackedText, SharedText)):
            raise TypeError(f"{type(self).__name__}: text must be a PackedText or None, got {type(text).__name__}")
        self.shared = text if isinstance(text, SharedText) else SharedText(text)
        self.text_calls: int | None = None  # guided calls since it was set to 0; not counted while None
        self._settings = torch.zeros(3)
        self._set(nag_scale, nag_tau, nag_alpha)

    def _set(self, nag_scale: float, nag_tau: float, nag_alpha: float) -> None:
        values = (nag_scale, nag_tau, nag_alpha)
        check_scalars(type(self).__name__, *values)
        self._values = values
        # A tensor, so that a compiled model follows a change without being compiled again.
        with torch.inference_mode(False):  # a training step may save it for its gradient later
            self._settings = torch.tensor(values, dtype=torch.float32, device=self._settings.device)

    @property
    def text(self) -> PackedText | None:
        return self.shared.text

    @text.setter
    def text(self, text: PackedText | None) -> None:
        self.shared = SharedText(text)

    @property
    def _packed(self) -> PackedText:
        """`text` where it is not None."""
        return self.shared.packed

    @property
    def nag_scale(self) -> float:
        return self._values[0]

    @nag_scale.setter
    def nag_scale(self, value: float) -> None:
        self._set(value, *self._values[1:])

    @property
    def nag_tau(self) -> float:
        return self._values[1]

    @nag_tau.setter
    def nag_tau(self, value: float) -> None:
        self._set(self._values[0], value, self._values[2])

    @property
    def nag_alpha(self) -> float:
        return self._values[2]

    @nag_alpha.setter
    def nag_alpha(self, value: float) -> None:
        self._set(*self._values[:2], value)

    def _settings_for(self, query: Tensor, steered: slice) -> SettingTensors:
        """The three settings, [] or [B]; rows that are not `steered` keep their plain attention."""
        given = None if self.text is None else settings_of(self.text)
        if given is not None:
            return given
        if self._settings.device != query.device:
            with torch.inference_mode(False):
                self._settings = self._settings.to(query.device)
        scale, tau, alpha = self._settings.unbind()
        rows = query.shape[0]
        if steered.start or steered.stop < rows:
            row = torch.arange(rows, device=query.device)
            ours = (row >= steered.start) & (row < steered.stop)
            scale, tau = scale.where(ours, 1.0), tau.where(ours, math.inf)
        return scale, tau, alpha

    def _steered_rows(self, rows: int, text_rows: int) -> slice:
        """Which of `rows` images have a negative: all where texts are packed, else as the published batch of text has it.

        Its last rows are the negatives, of the rows after the unconditional ones; perturbed attention adds a third kind.
        """
        each = text_rows - rows
        if self.text is not None or text_rows == 2 * each:
            return slice(0, rows)
        if each > 0 and text_rows in (3 * each, 4 * each):
            return slice(each, 2 * each)
        raise ValueError(
            f"{type(self).__name__}: encoder_hidden_states must have batch {rows} (no negative), {2 * rows} ([positive; "
            f"negative]), with classifier-free guidance {rows * 3 // 2} ([unconditional; positive; negative]) or, with "
            f"perturbed attention as well, {rows * 4 // 3} ([unconditional; positive; perturbed; negative]) for "
            f"hidden_states of batch {rows}, got {text_rows}"
        )

    def _of_each_row(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """text+ and text- for each image, of a published batch x [text rows, ...]; rows that are not steered have their
        text+ twice: their settings make any text there a plain attention."""
        steered = self._steered_rows(rows, x.shape[0])
        positive, negative = x[:rows], x[rows:]
        if negative.shape[0] < rows:
            negative = torch.cat([positive[: steered.start], negative, positive[steered.stop :]])
        return positive, negative

    def _text_options(self, masks: Masks, length_negative: int) -> dict[str, Any]:
        """What the operation is told about the texts beside keys and values: masks, bias and rule."""
        text, (positive, negative) = self.text or PackedText(), masks
        if text.steered is not None:
            steered = text.steered[:, None]
            negative = steered.expand(-1, length_negative) if negative is None else negative & steered
        return {"mask_positive": positive, "mask_negative": negative,
                "negative_logit_bias": text.negative_logit_bias, "rule": text.rule}  # fmt: skip

    def _guided(self, query: Tensor, positive: KeyValue, negative: KeyValue, settings: SettingTensors, masks: Masks,
                shared: KeyValue | None = None) -> Tensor:  # fmt: skip
        """The operation on key and value of both texts and of what both branches see, [B, S, H, D]."""
        options = self._text_options(masks, negative[0].shape[1])
        if shared is not None:
            options |= {"key_shared": shared[0], "value_shared": shared[1]}
        if not self.steers:
            options |= {"mask_negative": None, "negative_logit_bias": 0.0, "rule": "nag"}
            nothing = (negative[0][:, :0], negative[1][:, :0])
            return fused_guided_attention(query, *positive, *nothing, *PLAIN, **options)
        if self.text is not None and self.text.watch is not None:
            self.text.watch.attention(self, query, positive, negative, settings, masks, shared)
        if self.text is not None and self.text.head_group is not None:
            return attention_with_sharded_heads(
                query, *positive, *negative, *settings, group=self.text.head_group, **options
            )
        return fused_guided_attention(query, *positive, *negative, *settings, **options)

    def takes_over(self, stock: Any) -> None:
        """Takes over what only the processor in whose place it comes knows; `guide` calls this."""

    def _is_fused(self, attn: Layer) -> bool:
        return bool(attn.fused_projections) if self.fused is None else self.fused

    def _count(self) -> None:
        # Only for who sets it to 0 before every call: a compiled model is compiled for the value it finds here.
        if self.text_calls is not None:
            self.text_calls += 1

    def _check_packed(self, encoder_hidden_states: Tensor) -> None:
        text = self._packed
        if encoder_hidden_states.shape[1] != sum(text.lengths):
            raise ValueError(
                f"{type(self).__name__}: encoder_hidden_states must hold {text.length_positive} + "
                f"{text.length_negative} tokens [text+ ; text-], got {encoder_hidden_states.shape[1]}"
            )


def settings_of(text: PackedText) -> SettingTensors | None:
    """Those that it brings along, None where it leaves them to each processor."""
    settings = (text.nag_scale, text.nag_tau, text.nag_alpha)
    return None if text.nag_scale is None else cast(SettingTensors, settings)  # all three or none


def put_processor(layer: Layer, processor: Any) -> None:
    """On a layer; a processor may be a module (those of IP-Adapters are) or not."""
    layer._modules.pop("processor", None)
    layer.processor = processor


def heads(attn: Layer, x: Tensor) -> Tensor:
    """[B, S, C] -> [B, S, H, D]; under tensor parallelism with the heads of this process alone."""
    size = attn.head_dim if hasattr(attn, "head_dim") else attn.inner_dim // attn.heads
    return x.unflatten(-1, (-1, size))
