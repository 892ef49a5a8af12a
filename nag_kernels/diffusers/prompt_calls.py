# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which of a run's calls of the denoiser carry the prompt.

A step may call the denoiser several times: for the prompt, for the unconditional branch of classifier-free guidance, for a second
prompt, in any order. A call is known by its text. A text carries the prompt if it is another one in the same call of the same
pipeline with another prompt, and such a call is at hand: the negative's (`negative_prompt.NegativeRecorder`).
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .models.spec import ModelSpec
from .negative_prompt import NegativeRecorder, RecordedCall
from .text_rows import different_rows, halves, has_rows, is_half, rows_of_prompts, same, same_halves, same_rows

PROMPT, SECOND_PROMPT, UNCONDITIONAL = "prompt", "second prompt", "unconditional"
# The contexts of diffusers' pipelines and guiders. LTX-2's last four have the prompt, and layers that are switched off: other
# guidance takes its difference to the prompt's call, and they stay as they are, like the unconditional call.
CONTEXTS = {
    "cond": PROMPT,
    "cond_uncond": PROMPT,
    "uncond": UNCONDITIONAL,
    "pred_cond": PROMPT,
    "pred_uncond": UNCONDITIONAL,
    "uncond_stg": UNCONDITIONAL,
    "uncond_modality": UNCONDITIONAL,
    "pred_cond_stg": UNCONDITIONAL,
    "pred_cond_modality": UNCONDITIONAL,
}
_CANNOT_TELL = (
    "guide: the denoiser is called with several texts, and which of them carry the prompt and which belong to the unconditional "
    "branch cannot be told; give the calls a context: `with denoiser.cache_context('cond'):` and ('uncond')"
)

_ONE_AFTER_ANOTHER = (
    "the prompts seem to be drawn one after another. Call the pipeline once for each prompt, with its own negative prompt; or "
    "give the prompts in one text if it takes that ('a | b')"
)


@dataclasses.dataclass
class _Known:
    """A text, as it came first and as it came last: pipelines may make its tensors anew in each step."""

    first: list[Any]
    latest: list[Any]
    kind: str


class PromptCalls:
    """Tells the calls of one run apart. What cannot be told apart raises in the first step.

    recorder: gives the calls that the pipeline makes with the negative for its prompt; `first` is the first of them.
    prompts, made: how many the run has, and how many images it is told to make of them.
    """

    def __init__(self, spec: ModelSpec, recorder: NegativeRecorder, first: RecordedCall, prompts: int, made: int):
        self.spec, self.recorder, self.prompts, self.made = spec, recorder, prompts, made
        self._counted: Any = None  # the text whose rows were compared with `made`, the latest one
        self.negative: RecordedCall | None = None  # beside the prompt's call
        self._recorded: dict[tuple[int, bool], RecordedCall | None] = {(0, False): first}
        self._known: list[_Known] = []
        self._outputs: list[Any] = []  # of the first step
        self._pattern: list[str] = []  # the kinds of the first step's calls
        self._times: list[Any] = []  # timesteps of the latest calls, back to where a step may have begun
        self._first_step = True
        self._matched: set[int] = set()  # recorded calls with the text of a running one
        self._prompt_first: bool | None = None
        self._rows: int | None = None  # of the latest call's text
        self._by_context = False
        self._new_text = False  # in this step, which is not the first
        self._step_ended = False  # a callback has run since the latest call
        self._negative_at = 0  # the place of `negative`
        self._changed = False  # a callback may have changed the text since the latest step

    def text_may_change(self) -> None:
        """Called when a callback of the user's has run."""
        self._changed = True
        self._step_ended = True

    def kind(self, arguments: Mapping[str, Any], context: str | None) -> str:
        """What a call with these arguments of forward is for.

        context: as the pipeline calls it by `cache_context`; None where it does not. Raises RuntimeError where nothing tells.
        """
        self._count(arguments)
        if context is None:
            self._check_rows(arguments)
        text = _text(self.spec, arguments)
        found = self._find(text)
        if self._new_text:
            place = self._place()
            if place >= len(self._pattern):  # classifier-free guidance begins now, say
                raise RuntimeError(_CANNOT_TELL)
            self._new_text = place > 0
        kind = found or self._new_kind(text, context)
        if context is not None and (kind == UNCONDITIONAL) != (CONTEXTS[context] == UNCONDITIONAL):
            kind = CONTEXTS[context]  # both may have the same text
        if found is None:
            self._known.append(_Known(text, text, kind))
        if self._first_step:
            self._pattern.append(kind)
        if kind != UNCONDITIONAL and self.negative is None:
            self._negative_at = self._place()
            self.negative = self._beside(self._negative_at, context)
        return kind

    def images(self, arguments: Mapping[str, Any]) -> int:
        """How many a call makes. Raises ValueError where its rows are not those of so many images.

        A batch of two rows is one image under classifier-free guidance, or two images of one prompt, whose rows are alike.
        """
        name = next(iter(self.spec.text))
        text: Any = arguments.get(name)
        if not has_rows(text, self.spec.text[name]) or text is self._counted:
            return self.made
        each = self.spec.rows_per_image(arguments)
        if self._counted is None and self.prompts < self.made:
            self._count_images(text, each)
        rows, made = len(text), self.made * each
        if rows < made and self.prompts > 1:
            raise ValueError(
                f"guide: the denoiser was called with {rows} texts for {made} images; {_ONE_AFTER_ANOTHER}"
            )
        if (
            rows == made
            and self.prompts < self.made
            and not rows_of_prompts(text, self.prompts, self.made // self.prompts)
        ):
            raise ValueError(
                f"guide: the denoiser was called with {rows} texts for {self.made} images of {self.prompts} prompts, and those "
                "of one prompt differ; the call makes fewer images than it was told to (num_images_per_prompt, say), or a "
                "callback has changed their number. Leave that argument out, and keep the number of images"
            )
        if rows == made > 1:
            self._check_each_has_prompt(name, text)
        if self._counted is not None and len(self._counted) > rows == made and not is_half(text, self._counted):
            raise ValueError(
                f"guide: the denoiser was called with {len(self._counted)} texts, and then with {rows}, which are no half of "
                "them; a callback may end classifier-free guidance, or change the texts, but not the number of images"
            )
        self._counted = text
        return self.made

    def _count_images(self, text: Any, each: int) -> None:
        """Some pipelines do not look at num_videos_per_prompt, and make one of each prompt."""
        most = self.spec.cfg_rows
        told, one = ([n * x * each for n in range(1, most + 1)] for x in (self.made, self.prompts))
        alike = rows_of_prompts(text, self.prompts, self.made // self.prompts)
        given = self.recorder.arguments.get("prompt")
        different = len(set(given)) if isinstance(given, list) and all(isinstance(x, str) for x in given) else 1
        ignored = len(text) in one and (len(text) not in told or (len(text) == told[0] and not alike))
        if ignored and different_rows(text) >= different:  # else they are the images of some of the prompts
            self.made = self.prompts

    def _check_each_has_prompt(self, name: str, text: Any) -> None:
        """Of a batch with as many rows as images. Raises ValueError where one of them does not carry a prompt: it is the
        unconditional one of fewer images, as a text that is beside two negatives the same."""
        assert self.negative is not None
        of_negative: Any = self.negative.arguments.get(name)
        if not has_rows(of_negative, self.spec.text[name]) or len(of_negative) == 2 * len(text):
            return  # a ready-made negative comes with an unconditional text where the call has none (AnyFlow)
        if self.recorder.same_unconditional and not any(same_rows(text, of_negative, self.spec.text[name])):
            return
        other = self._record(self._negative_at, True) if self._first_step or self._negative_at == 0 else None
        if other is None or any(same_rows(of_negative, other.arguments.get(name), self.spec.text[name])):
            raise ValueError(
                f"guide: the denoiser was called with {len(text)} texts for {self.made} images, and some of the texts carry no "
                f"prompt; {_ONE_AFTER_ANOTHER}"
            )

    def ended(self, output: Any) -> None:
        """Called with what a call of the first step has given: a recording that must go beyond it is given the same."""
        if self._first_step:
            self._outputs.append(output)

    def prompt_first(self, arguments: Mapping[str, Any], images: int) -> bool:
        """Whether the doubled batch of the prompt's call is [conditional; unconditional]: as its rows show it, else as in the
        model's own pipelines.

        arguments: of that call, for so many images.
        """
        name = next(iter(self.spec.text))
        text = arguments.get(name)
        if not isinstance(text, (Tensor, list, tuple)) or len(text) != 2 * images:
            return self.spec.prompt_first if self._prompt_first is None else self._prompt_first
        if self._prompt_first is None:
            self._prompt_first = self._order(name, text)
        return self._prompt_first

    def _order(self, name: str, text: Any) -> bool:
        assert self.negative is not None
        of_negative = self.negative.arguments.get(name)
        if self.recorder.same_unconditional:
            alike = same_halves(text, of_negative)
        else:  # the recording has another text there
            alike, given = [], [self.recorder.ready_made([half]) for half in halves(text)]
            if given.count(True) == 1:
                return given[0] is True
        if sum(alike) != 1:  # of another length, or the negative is the prompt
            if (self.recorder.function.__module__ or "").startswith("diffusers."):
                return self.spec.prompt_first
            other = self._record(self._negative_at, True) if self._first_step else None
            alike = [] if other is None else same_halves(of_negative, other.arguments.get(name))
        if sum(alike) != 1:
            raise RuntimeError(
                "guide: which half of the batch is the unconditional one cannot be told; give the calls apart, with a context: "
                "`with denoiser.cache_context('cond'):` and ('uncond')"
            )
        return alike[1]

    def _count(self, arguments: Mapping[str, Any]) -> None:
        when = self.spec.time(arguments)
        ended, self._step_ended = self._step_ended, False
        if self._first_step and self._times and (ended or not _same_time(when, self._times[-1])):
            self.check()
            self._first_step, self._outputs, self._times = False, [], []
        if ended:
            self._times = []
        self._times.append(when)
        if not self._first_step:
            del self._times[: -len(self._pattern) - 1]

    def _place(self) -> int:
        """The place of the latest call in its step, at most the length of the first step. Looks at the values of timesteps, which
        waits for the device, and so only where it must be known."""
        if self._first_step:
            return len(self._times) - 1
        before = reversed(self._times[:-1])
        return sum(1 for _ in itertools.takewhile(lambda when: _same_time(when, self._times[-1]), before))

    def _check_rows(self, arguments: Mapping[str, Any]) -> None:
        name, dim = next(iter(self.spec.text.items()))
        text = arguments.get(name)
        before, self._rows = self._rows, len(text) if isinstance(text, Tensor) and dim else 0
        if before not in (None, self._rows) and self._place() > 0:
            raise ValueError(
                f"guide: the denoiser was called with {before} and then {self._rows} texts in one step (guidance that skips "
                "layers or attends to itself does so); whether the second is to be guided cannot be told"
            )

    def _find(self, text: list[Any]) -> str | None:
        """The kind of a text that was there before: the same tensors, or in a later step tensors with the same values."""
        for known in self._known:
            if all(x is y for x, y in zip(known.latest, text, strict=True)):
                return known.kind
        if self._first_step:
            return None  # the unconditional branch may have the text of the prompt
        alike = [known for known in self._known if same(known.first, text)]
        kinds = {known.kind for known in alike}
        if len(kinds) > 1 and (place := self._place()) < len(self._pattern):
            alike = [known for known in alike if known.kind == self._pattern[place]] or alike
        if alike:
            alike[0].latest = text
        return alike[0].kind if alike else None

    def _new_kind(self, text: list[Any], context: str | None) -> str:
        if context is not None:
            self._by_context = True
            return CONTEXTS[context]
        if not self._first_step:
            place = self._place()
            if self._changed and place < len(self._pattern):
                return self._pattern[place]
            if set(self._pattern) == {PROMPT} and place == 0:
                self._new_text = True
                return PROMPT
            raise RuntimeError(_CANNOT_TELL)
        if (given := self.recorder.ready_made(text)) is not None:
            return PROMPT if given else UNCONDITIONAL
        return self._told_apart(text)

    def _told_apart(self, text: list[Any]) -> str:
        """Of a new text in the first step: a text that comes beside the negative as well does not carry the prompt."""
        place = self._place()
        self._record(place, False)
        if self.recorder.same_unconditional:
            of_negative = self._texts_of_negative()
            places = [i for i, x in of_negative.items() if i not in self._matched and same(text, x)]
            if not places:
                return PROMPT if self.negative is None else SECOND_PROMPT
            place = places[-1]  # this call's, if it is among them
            self._matched.add(place)
            if self.negative is not None and not self._negative_is_prompt():
                if same(text, _text(self.spec, self.negative.arguments)):
                    first, other = self._record(self._negative_at, False), self._record(self._negative_at, True)
                    if first is None or other is None or self._same_text(first, other):
                        # What was taken for the negative's call is the unconditional branch's.
                        raise RuntimeError(_CANNOT_TELL)
                return UNCONDITIONAL
        first, other = self._record(place, False), self._record(place, True)
        if first is None or other is None or not _same_time(self.spec.time(first.arguments), self._times[-1]):
            raise RuntimeError(_CANNOT_TELL)
        if self._same_text(first, other):
            return UNCONDITIONAL
        return PROMPT if self.negative is None else SECOND_PROMPT

    def _same_text(self, one: RecordedCall, two: RecordedCall) -> bool:
        return same(_text(self.spec, one.arguments), _text(self.spec, two.arguments))

    def _texts_of_negative(self) -> dict[int, list[Any]]:
        """Of the calls of the first step, as far as they are recorded, by place."""
        calls = {place: x for (place, changed), x in self._recorded.items() if x is not None and not changed}
        when = self.spec.time(calls[0].arguments)
        same_step = {i: x for i, x in calls.items() if _same_time(self.spec.time(x.arguments), when)}
        return {i: _text(self.spec, x.arguments) for i, x in same_step.items()}

    def check(self) -> None:
        """Called when the first step has ended. Raises RuntimeError where its calls do not fit the negative's:
        the text of the unconditional branch changes with the prompt, say."""
        if self.negative is None or not self.recorder.same_unconditional or self._by_context:
            return
        for text in self._texts_of_negative().values():
            of_negative = same(text, _text(self.spec, self.negative.arguments))
            if not of_negative and not any(same(known.first, text) for known in self._known):
                raise RuntimeError(_CANNOT_TELL)

    def _negative_is_prompt(self) -> bool:
        assert self.negative is not None
        text = _text(self.spec, self.negative.arguments)
        return any(known.kind == PROMPT and same(known.first, text) for known in self._known)

    def _beside(self, place: int, context: str | None) -> RecordedCall:
        recorded = self._record(place, False) if self._first_step else None
        if recorded is None or (context is not None and recorded.context not in (context, None)):
            raise RuntimeError(
                f"guide: the denoiser's first call with the prompt is call {place + 1} of its step; with the negative for the "
                "prompt there is no such call, so the negative's text is not known"
            )
        return recorded

    def _record(self, place: int, changed: bool) -> RecordedCall | None:
        key = (place, changed)
        if key not in self._recorded:
            self._recorded[key] = self.recorder.record(self._outputs[:place], changed)
        return self._recorded[key]


def _text(spec: ModelSpec, arguments: Mapping[str, Any]) -> list[Any]:
    """What a call says of its text."""
    return [arguments.get(name) for name in spec.text]


def _same_time(one: Any, two: Any) -> bool:
    if one is two:
        return True
    # Of the frames' times the largest: given ones have time 0 in Wan 2.2.
    one, two = (x.max().item() if isinstance(x, Tensor) else x for x in (one, two))
    return bool(one == two)
