# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance on a bare denoiser, for loops of one's own: `with guide(unet, {"encoder_hidden_states": negative}):`."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .denoiser_calls import Denoiser, forward_parameters, inner_denoiser
from .guard import forget_the_dead, owner_here, pipelines_calling
from .models.registry import spec_of
from .negative_prompt import RecordedCall
from .packing import look_up
from .prompt_calls import PROMPT, UNCONDITIONAL
from .restore import Replaced
from .run import GuidedRun
from .turns import is_mine, take, turn_of, wait_for_calls_begun

Model = TypeVar("Model")


class GivenTexts:
    """Tells the calls of a denoiser apart, as `prompt_calls.PromptCalls` does, by the unconditional text that is given.

    negative, unconditional: arguments of forward, by name; unconditional is empty where all rows carry a prompt.
    """

    prompts = made = 0  # not known

    def __init__(self, denoiser: Denoiser, negative: Mapping[str, Any], unconditional: Mapping[str, Any]):
        self.denoiser, self.spec = denoiser, spec_of(denoiser)
        self.negative: RecordedCall | None = RecordedCall(dict(negative), None)
        self.unconditional = unconditional
        self.outside = list(pipelines_calling(denoiser))  # whose call has the block in it
        self.unmatched = bool(unconditional)  # so far
        self._seen: list[
            tuple[Any, int | None, list[bool]]
        ] = []  # texts, as looking at their values waits for the device

    def kind(self, arguments: Mapping[str, Any], context: str | None) -> str:
        self._refuse_pipelines()
        self._refuse_missing(arguments)
        try:
            halves = self._unconditional_halves(arguments)
        except RuntimeError as error:
            if "Batching rule not implemented for aten::equal" not in str(error):
                raise
            raise RuntimeError(
                "guide: under torch.func.vmap over texts it cannot be told which of them is the unconditional one: leave "
                "`unconditional` out and put only the prompts' calls into the block, or go through the texts in a loop"
            ) from error
        return UNCONDITIONAL if halves == [True, True] else PROMPT

    def images(self, arguments: Mapping[str, Any]) -> int:
        """How many a call makes."""
        text = self._text(arguments)
        rows = len(text) if isinstance(text, list) or next(iter(self.spec.text.values())) else 1
        rows = rows // (2 if any(self._unconditional_halves(arguments)) else 1)
        images = rows // self.spec.rows_per_image(arguments)
        self._check_rows({1, images, rows})
        return images

    def _refuse_missing(self, arguments: Mapping[str, Any]) -> None:
        """A mask that is forgotten would show the padding of the negative."""
        assert self.negative is not None
        masks = [mask for _, mask in self.spec.concatenated if mask is not None]
        dual = self.spec.dual_forward
        for name in (*self.spec.text, *self.spec.masks, *masks, *(dual.text if dual else ())):
            if look_up(arguments, name) is not None and look_up(self.negative.arguments, name) is None:
                raise ValueError(
                    f"guide: negative_prompt has no {name}, and this call of the denoiser has one for the prompt: give the "
                    "negative's own (of a mask one of all ones, where all of its tokens are to be seen)"
                )

    def _check_rows(self, allowed: set[int]) -> None:
        """Raises ValueError where the negative has neither one row nor one for each image of the running call."""
        assert self.negative is not None
        batched = [name for name, dim in self.spec.text.items() if dim == 1]
        for name in (*batched, *(x for x in self.spec.masks if "." not in x), self.spec.pooled):
            given = self.negative.arguments.get(name)
            if isinstance(given, Tensor) and len(given) not in allowed:
                raise ValueError(
                    f"guide: negative_prompt['{name}'] must have one row, or one for each of the {max(allowed)} rows with a "
                    f"prompt in this call of the denoiser, got {len(given)}"
                )

    def prompt_first(self, arguments: Mapping[str, Any], images: int) -> bool:
        """Whether a doubled batch is [conditional; unconditional]."""
        return self._unconditional_halves(arguments) == [False, True]

    def ended(self, output: Any) -> None:
        pass

    def text_may_change(self) -> None:
        pass

    def _text(self, arguments: Mapping[str, Any]) -> Any:
        return arguments.get(next(iter(self.spec.text)))

    def _unconditional_halves(self, arguments: Mapping[str, Any]) -> list[bool]:
        """Whether each half of a call's rows is unconditional; an odd number of rows is so as a whole or not at all."""
        text = self._text(arguments)
        version = None if not isinstance(text, Tensor) or text.is_inference() else text._version
        # On a CPU the values are looked at, as numpy may have written into them unseen.
        changes = isinstance(text, Tensor) and (version is None or text.device.type == "cpu")
        for known, at, halves in self._seen:
            if known is text and at == version and not changes:
                return halves
        rows = [self._is_unconditional(text[i : i + 1]) for i in range(len(text))] if self.unconditional else [False]
        half = len(rows) // 2
        if not any(rows):
            found = [False, False]
        elif all(rows):
            found = [True, True]
        elif len(rows) % 2 == 0 and rows in ([True] * half + [False] * half, [False] * half + [True] * half):
            found = [rows[0], rows[-1]]
        else:
            raise ValueError(
                f"guide: rows {[i for i, yes in enumerate(rows) if yes]} of {len(rows)} in this call have the unconditional "
                "text; guidance knows calls without it, calls of it alone, and batches of which it is one half"
            )
        self.unmatched &= not any(rows)
        self._seen = [(text, version, found), *self._seen[:3]]
        return found

    def _is_unconditional(self, text: Any) -> bool:
        known = self.unconditional.get(next(iter(self.spec.text)))
        if known is None or not isinstance(text, (Tensor, list)):
            return False
        known, text = list(known), list(text)
        return all(any(x.shape == y.shape and torch.equal(x, y.to(x)) for y in known) for x in text)

    def _refuse_pipelines(self) -> None:
        for pipe in pipelines_calling(self.denoiser):
            if not any(pipe is x for x in self.outside):
                kind = type(inner_denoiser(self.denoiser)).__name__
                raise RuntimeError(
                    f"guide: this {kind} is guided for a loop of your own, and was called by {type(pipe).__name__}: guide the "
                    "pipeline instead, `with guide(pipe, ...):`"
                )


class DenoiserBlock(contextlib.ContextDecorator, Generic[Model]):
    """What `guide` gives for a bare denoiser: a block in which its calls by the thread that enters it are guided.

    settings: makes the guidance.
    """

    unused = False

    def __init__(
        self, denoiser: Model, settings: Callable[[Any], Any], negative: Any, unconditional: Any, unused: bool = True
    ):  # fmt: skip
        self.denoiser, self.settings, self.unused = denoiser, settings, unused
        self.negative, self.unconditional = negative, unconditional
        self.replaced = Replaced()
        self.run: GuidedRun | None = None
        self.texts: GivenTexts | None = None

    def _recreate_cm(self) -> "DenoiserBlock[Model]":  # as a decorator: one for each call of the function
        self.unused = False
        return DenoiserBlock(self.denoiser, self.settings, self.negative, self.unconditional, unused=False)

    def __enter__(self) -> Model:
        self.unused = False
        if self.run is not None:
            raise RuntimeError("guide: this block has been entered before; call guide(...) anew for each block")
        denoiser: Any = self.denoiser
        check_texts(denoiser, self.negative, self.unconditional)
        forget_the_dead([denoiser])
        if owner_here(denoiser) is not None:
            raise RuntimeError(
                "guide: guidance is enabled already on a pipeline with this denoiser; end it before you guide the denoiser"
            )
        guidance = self.settings(denoiser)
        try:
            turn = turn_of(denoiser, "run")
            if is_mine(turn):
                raise RuntimeError("guide: this denoiser is guided already; nesting is not supported")
            take(turn, self.replaced)
            self.texts = texts = GivenTexts(denoiser, self.negative, self.unconditional or {})
            self.run = run = GuidedRun(guidance, denoiser, denoiser, texts, may_double=True)
            run.keeps = False  # weights and texts are the loop's own
            self.replaced.attribute(turn, "run", run)
            run.stand_in(self.replaced, denoiser, guidance.check(denoiser))
            wait_for_calls_begun([denoiser, inner_denoiser(denoiser)])  # from now on no plain call begins unseen
        except BaseException:
            self._put_back()
            raise
        return self.denoiser

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._put_back()
        assert self.run is not None
        if kind is None and self.run.guided == 0:
            name = type(inner_denoiser(self.denoiser)).__name__
            what = "called with a prompt" if self.run.calls else "called"
            raise RuntimeError(
                f"guide: this {name} was never {what} in the block, so nothing was guided (calls of its forward method, and "
                "calls from within a function that you have compiled as a whole, are not seen: compile the model instead)"
            )
        if kind is None and self.texts is not None and self.texts.unmatched:
            raise RuntimeError(
                "guide: unconditional was given, and no call had that text to the bit, so all rows of all calls were guided; "
                "give the very tensor that the loop uses"
            )

    def _put_back(self) -> None:
        try:
            self.replaced.put_back()
        finally:
            self.replaced.put_back()

    def __del__(self) -> None:
        if "replaced" in self.__dict__:  # torch.compile makes objects without their __init__
            self._put_back()  # where an interrupt came between the block and __exit__
        if self.unused:
            warnings.warn(
                f"guide: this guide({type(self.denoiser).__name__}, ...) was never entered, so nothing was guided; write `with "
                "guide(denoiser, ...):` around your loop",
                stacklevel=2,
            )


def check_texts(denoiser: Denoiser, negative: Any, unconditional: Any) -> None:
    """Raises TypeError or ValueError where they are not what a call of a bare denoiser takes."""
    kind, spec = type(inner_denoiser(denoiser)).__name__, spec_of(denoiser)
    needed, known = next(iter(spec.text)), forward_parameters(denoiser)
    for name, value in (("negative_prompt", negative), ("unconditional", unconditional)):
        if value is None and name == "unconditional":
            continue
        if not isinstance(value, Mapping):
            raise TypeError(
                f"guide: {name} of a bare denoiser must be ready-made text under the names of its forward, "
                f"{{'{needed}': ...}}, got {type(value).__name__}"
            )
        for key in value:
            if key not in known:
                raise ValueError(
                    f"guide: {name} has the key {key}, which {kind}.forward does not take; it takes {needed}"
                )
        if value.get(needed) is None:
            raise ValueError(f"guide: {name} must have {needed}, the text that {kind}.forward takes, got {list(value)}")
        for key in (known[0], spec.timestep):
            if key in value and key not in spec.text:
                raise ValueError(
                    f"guide: {name} has the key {key}, which is no text: both prompts have that of your own call"
                )
