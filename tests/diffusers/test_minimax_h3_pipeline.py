# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""MiniMax-H3's modular pipeline, in all of its three ways to begin, against two runs of the untouched model in each step."""

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

if not hasattr(diffusers, "MiniMaxH3ModularPipeline"):
    pytest.skip("this diffusers has no MiniMax-H3", allow_module_level=True)

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.minimax_h3.references import MiniMaxH3AudioReference, MiniMaxH3ImageReference
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from every_model import TINY
from modular_tiny import NEGATIVE, PROMPT, UNCONDITIONAL, Words, minimax_h3_from_noise
from oracles import two_runs_oracle
from pipeline_parts import PICTURE
from tiny import error, noise

from nag_kernels.diffusers import diagnose, guide
from nag_kernels.diffusers.models.registry import guided_layers, spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

KIND = "MiniMaxH3Transformer3DModel"
FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}
ENCODED = noise(1, 24, 1, 2, 2, seed=9, dtype=torch.float32)
REFERENCES = [MiniMaxH3ImageReference(PICTURE), MiniMaxH3AudioReference(torch.zeros(2, 96), 32000)]
# Arguments of the pipeline's call; pictures and sounds are here also as their encoders give them.
WAYS = {
    "from noise": {},
    "from a picture": {"image": PICTURE, "keyframe_anchors": ("first",), "condition_latents": [ENCODED]},
    "by a reference": {
        "references": REFERENCES, "normalized_references": REFERENCES, "num_frames": 124,
        "condition_latents": [ENCODED], "audio_condition_latents": [noise(6, 32, seed=8, dtype=torch.float32)],
    },
}  # fmt: skip


class Given(ModularPipelineBlocks):
    """In the place of the blocks that prepare and encode pictures."""

    model_name = "given"

    def __init__(self, names):
        self.names = names
        super().__init__()

    @property
    def inputs(self):
        return [InputParam(name) for name in self.names]

    def __call__(self, components, state):
        return components, state


def pipeline(way, encodes=True):
    """The pipeline, its denoiser, and a call of it, which makes one call less of the denoiser than it has steps."""
    name = "transformer_ref" if way == "by a reference" else "transformer"
    parts, call, prompt, negative = minimax_h3_from_noise(name)()
    texts = {PROMPT: prompt, NEGATIVE: negative, UNCONDITIONAL: prompt}
    blocks = diffusers.MiniMaxH3ModularPipeline().blocks
    blocks.sub_blocks |= {
        "text_encoder": Words(texts, {}),
        "before_encode": Given([*WAYS[way], *([] if encodes else prompt)]),
    }
    for unused in ("vae_encoder", "decode", *([] if encodes else ["text_encoder"])):
        blocks.sub_blocks.pop(unused)
    pipe = diffusers.MiniMaxH3ModularPipeline(blocks)
    pipe.update_components(**parts.components)
    text = {"prompt": PROMPT} if encodes else prompt
    return (
        pipe,
        getattr(pipe, name),
        call | text | WAYS[way] | {"num_inference_steps": 4},
        NEGATIVE if encodes else negative,
    )


def calls_of(pipe, model, **call):
    """The arguments and the outputs of the denoiser's calls in a run, but of those that do not end."""
    found = []

    def note(model, args, kwargs, output):
        own = {
            name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()
        }  # it writes into them
        found.append((own, torch.cat([x.flatten(1) for x in output], dim=1)))

    hook = model.register_forward_hook(note, with_kwargs=True)
    pipe(**call, generator=torch.Generator().manual_seed(7))
    hook.remove()
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_step_equals_two_runs(way):
    pipe, model, call, negative = pipeline(way)
    of_negative = calls_of(pipe, model, **call | {"prompt": negative})
    with guide(pipe, negative, **FIRM):
        guided = calls_of(pipe, model, **call)
    assert len(guided) == len(of_negative) == 3
    own = ("encoder_hidden_states", "text_indices", "video_indices", "audio_indices", "position_ids", "token_tags",
           "timestep_indices")  # fmt: skip
    indices = [arguments["timestep_indices"] for arguments, _ in of_negative]
    assert not torch.equal(indices[0], indices[1])  # those of the first step would be wrong in the second
    times = [spec_of(model).time(arguments).max().item() for arguments, _ in guided]
    assert times == sorted(set(times))  # by which the steps are known, whatever is given
    for (arguments, got), (others, _) in zip(guided, of_negative, strict=True):
        assert torch.equal(arguments["timestep"], others["timestep"])
        tiny = dataclasses.replace(TINY[KIND], image=len(arguments["token_tags"]) - len(arguments["text_indices"]))
        text = {name: others[name] for name in own}
        wanted, clipped = two_runs_oracle(tiny, model, guided_layers(model), arguments, {}, text, *FIRM.values())
        assert len(clipped) == len(guided_layers(model))
        assert error(got, wanted) < 1e-5
        assert error(wanted, torch.cat([x.flatten(1) for x in model(**arguments)], dim=1)) > 1e-3


@pytest.mark.parametrize(
    "window", [{"start": 0.3}, {"nag_scale": [1.0, 8.0, 8.0]}], ids=["start", "a scale for each step"]
)
@pytest.mark.parametrize("way", ["from noise", "from a picture"])
def test_a_window_and_the_steps_outside_of_it(way, window):
    pipe, model, call, negative = pipeline(way)
    plain = calls_of(pipe, model, **call)
    with guide(pipe, negative, **FIRM | window):
        guided = calls_of(pipe, model, **call)
    different = [error(x[1], y[1]) > 1e-3 for x, y in zip(guided, plain, strict=True)]
    assert different == [False, True, True]


def test_ready_made_text():
    drawn = []
    for encodes in (True, False):
        pipe, model, call, negative = pipeline("from noise", encodes)
        with guide(pipe, negative, **FIRM):
            drawn.append([output for _, output in calls_of(pipe, model, **call)])
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)


def test_both_denoisers():
    """Each is guided in the calls that it has; the findings tell their layers apart."""
    pipe, model, call, negative = pipeline("by a reference")
    first = next(iter(minimax_h3_from_noise()()[0].components.values()))
    pipe.update_components(transformer=first)
    plain = calls_of(pipe, model, **call)
    with guide(pipe, negative, **FIRM):
        guided = calls_of(pipe, model, **call)
    assert error(guided[0][1], plain[0][1]) > 1e-3
    with diagnose(pipe, negative, **FIRM) as found:
        pipe(**call)
    assert {x.partition(".")[0] for x in found.layers} == {"transformer_ref"}


@pytest.mark.parametrize(("change", "says"), [
    (lambda own: own.pop("position_ids"), "missing: position_ids"),
    (lambda own: own.update(text_indices=own["text_indices"] + 1), "the text must come first in the sequence"),
])  # fmt: skip
def test_what_is_no_negative_of_it(change, says):
    tiny = TINY[KIND]
    model, text = tiny.build(), tiny.text(noise(3, 7, 32, seed=1, dtype=torch.float32), None)
    own = tiny.text(noise(3, 5, 32, seed=2, dtype=torch.float32), None)
    change(own)
    with pytest.raises(ValueError, match=says), guide(model, own):
        model(**tiny.arguments(3, torch.float32), **text)
