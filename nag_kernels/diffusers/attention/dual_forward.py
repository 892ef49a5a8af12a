# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The dual forward, for models whose prompts cannot be packed: the untouched model runs twice, with the prompt and with the
negative prompt, side by side.

At each guided layer the two runs wait for each other, and both go on with the guided output for the image. A doubled batch does
the same and costs the same, but its prompts must be of one length and lie in one place. The runs take turns in two threads, one
of them at a time, so nothing in the model has to know.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nag_kernels import guidance

from ..denoiser_calls import Denoiser, as_they_came, denoiser_arguments
from ..restore import Replaced
from .base import Layer, PackedText, SharedText, settings_of
from .second_thread import Mode, second_thread


@dataclass(frozen=True)
class DualForward:
    """How the two runs of a model differ.

    text: the arguments that hold the text and whatever depends on it; they come from the negative.
    image: image(model, arguments, length of the sequence in a guided layer) -> where the image lies in it, as a slice.
    after: the layer after attention, whose input is guided; [B, S, C], or [S, C] in a model without a batch.
    fixed: arguments of the run with the negative, whatever the run with the prompt has.
    made: made(arguments of the running call, of the negative's recorded call) -> arguments of the run with the negative that
        neither call has as they must be, or that have no rows.
    """

    text: tuple[str, ...]
    image: Callable[[Denoiser, Mapping[str, Any], int], slice]
    after: Callable[[Layer], Layer] = lambda layer: layer.to_out[0]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    made: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda running, negative: {}


class Negatives(Protocol):
    """Where the negative's arguments come from: a `packing.Packer`."""

    negative: Mapping[str, Any]  # its recorded call

    def negative_for(self, name: str, positive: Any) -> Any: ...


class _Finished(BaseException):
    """Ends the run with the negative after the last layer that the other needs it for."""


class DualForwardRun:
    """Replaces a denoiser's call: it runs `call` with the arguments given and, at the same time, with the negative's.

    negatives: gives the negative's arguments, with the rows of this call.
    replaced: remembers what is set on the model's layers.
    unsteered: the layers that are not to be guided: both runs go on with the prompt's output there.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        model: Denoiser,
        layers: list[Layer],
        spec: DualForward,
        shared: SharedText,
        negatives: Negatives,
        replaced: Replaced,
        unsteered: Collection[Layer] = (),
    ):
        if shared.packed.rule == "vsf":
            raise ValueError(
                "guide: rule 'vsf' needs texts in one sequence, which this model does not have; take 'nag'"
            )
        self.call, self.model, self.layers, self.spec, self.shared = call, model, layers, spec, shared
        self.negatives, self.replaced, self.unsteered = negatives, replaced, unsteered

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = denoiser_arguments(self.model, args, kwargs)
        own = {name: self.negatives.negative_for(name, arguments.get(name)) for name in self.spec.text}
        own |= self.spec.made(arguments, self.negatives.negative)
        both = (arguments, {**arguments, **self.spec.fixed, **own})
        positional, named = as_they_came(self.model, args, both[1])
        meeting = _Meeting(self.shared.packed, len(self.layers), self.unsteered)
        mark = self.replaced.mark()
        try:
            for layer in self.layers:
                self._watch(layer, meeting, both)
            meeting.begin(self.replaced, lambda: self.call(*positional, **named))
            result = self.call(*args, **kwargs)
        finally:
            self.replaced.put_back(mark)
        if meeting.met != len(self.layers):
            raise RuntimeError(
                f"guide: each of {len(self.layers)} attention layers must see the text once per call, but there were "
                f"{meeting.met} meetings of the runs with the prompt and the negative: guidance would not act everywhere"
            )
        return result

    def _watch(self, layer: Layer, meeting: "_Meeting", both: Sequence[Mapping[str, Any]]) -> None:
        def steer(after: Layer, inputs: tuple[Any, ...]) -> tuple[Tensor]:
            x = inputs[0]
            rows = x if x.ndim == 3 else x[None]
            image = self.spec.image(self.model, both[meeting.place()], rows.shape[1])
            guided = meeting.exchange(layer, rows[:, image].clone())
            # Not in place: under torch.func.vmap one run may have the mapped dimension, and the other not.
            rows = torch.slice_scatter(rows, guided, 1, image.start, image.stop)
            return (rows if x.ndim == 3 else rows[0],)

        self.replaced.hook(self.spec.after(layer).register_forward_pre_hook, steer)


class _Meeting:
    """Two threads that take turns, from one guided layer to the next."""

    def __init__(self, text: PackedText, layers: int, unsteered: Collection[Layer]):
        self.text, self.layers, self.unsteered, self.met = text, layers, unsteered, 0
        self.main = threading.get_ident()
        self.turns = threading.Semaphore(0), threading.Semaphore(0)  # of the run with the prompt, and of the other
        self.outputs: list[Tensor | None] = [None, None]
        self.guided: Tensor | None = None
        self.over = False
        self.error: BaseException | None = None

    def place(self) -> int:
        return int(threading.get_ident() != self.main)

    def exchange(self, layer: Layer, x: Tensor) -> Tensor:
        """Waits for the other run to come to this layer. Returns the guided output for both."""
        place = self.place()
        self.outputs[place] = x
        put_back_modules = _modules_being_called()
        self.turns[1 - place].release()
        self.turns[place].acquire()
        if place == 1 and self.over:
            raise _Finished
        put_back_modules()
        if place == 1:
            assert self.guided is not None
            return self.guided
        if self.error is not None:
            raise self.error
        positive, negative = self.outputs
        assert positive is not None
        assert negative is not None
        if positive.shape != negative.shape:
            raise RuntimeError(f"guide: the two runs see images of {tuple(positive.shape)} and {tuple(negative.shape)}")
        self.met += 1
        if layer in self.unsteered:
            self.guided = positive
            return positive
        settings = settings_of(self.text)
        assert settings is not None
        if self.text.watch is not None:
            self.text.watch.branches(layer, positive, negative, settings)
        self.guided = guidance(positive, negative, *settings, rule=self.text.rule)
        return self.guided

    def begin(self, replaced: Replaced, run: Callable[[], Any]) -> None:
        """Until `replaced` is put back, `run` goes on in another thread whenever this one waits in `exchange`."""

        def work(as_here: Mode) -> None:
            self.turns[1].acquire()
            try:
                if not self.over:
                    with as_here():
                        run()
                        raise RuntimeError("guide: the run with the negative has fewer attention layers that see text")
            except _Finished:
                pass
            except BaseException as error:
                self.error = error
            finally:
                self.turns[0].release()

        thread = second_thread(work)

        def end() -> None:
            self.over = True
            self.turns[1].release()
            if thread.ident is not None:  # it was started
                thread.join()

        replaced.later(end)
        thread.start()


def _modules_being_called() -> Callable[[], None]:
    """What puts back, under torch.export, which modules this thread is calling."""
    if not torch.compiler.is_exporting():
        return lambda: None
    from . import exported_threads

    return exported_threads.stack_of_modules()
