# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`GuidedDenoiser` as a module: its settings may be changed, and what it does not take is refused (tests/export exports it)."""

import pytest
import torch

pytest.importorskip("diffusers")

from test_unet import DROP_IN as UNET
from tiny import seeded, texts

from nag_kernels.diffusers import GuidedDenoiser

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}


def inputs():
    model = seeded(UNET["sd15"].build)
    positive, negative = texts(2, 7, 5, UNET["sd15"].width, torch.float32)
    call = UNET["sd15"].arguments(2, torch.float32) | {"encoder_hidden_states": positive}
    return model, call, {"encoder_hidden_states": negative}


@pytest.mark.parametrize("name", ["nag_scale", "nag_tau", "nag_alpha", "rule", "layers"])
@pytest.mark.parametrize("way", ["attribute", "change"])
def test_settings_may_be_changed(name, way):
    model, call, negative = inputs()
    value = {"nag_scale": 3.0, "nag_tau": 1.1, "nag_alpha": 0.25, "rule": "nasa", "layers": "1"}[name]
    guided = GuidedDenoiser(model, **FIRM)
    before = guided(call, negative)
    if way == "attribute":
        setattr(guided, name, value)
    else:
        guided.change(**{name: value})
    assert getattr(guided, name) == value
    after = guided(call, negative)
    assert (after - before).abs().max() > 1e-4
    assert torch.equal(after, GuidedDenoiser(model, **FIRM | {name: value})(call, negative))


def test_settings_that_are_changed_are_checked():
    model, call, negative = inputs()
    guided = GuidedDenoiser(model, **FIRM)
    before = guided(call, negative)
    for name, value in {"nag_scale": 0.5, "rule": "cfg", "layers": "99", "nag_alpha": 2.0}.items():
        with pytest.raises(ValueError, match=name):
            setattr(guided, name, value)
    assert torch.equal(guided(call, negative), before)


def test_settings_of_a_call_are_tensors():
    model, call, negative = inputs()
    guided = GuidedDenoiser(model, **FIRM)
    with pytest.raises(
        TypeError, match=r"nag_scale of a call must be a tensor, got 3.0; numbers are settings of the module"
    ):
        guided(call, negative, 3.0)
    guided(call, negative, torch.tensor(3.0))


def test_return_dict_is_refused():
    model, call, negative = inputs()
    with pytest.raises(ValueError, match="arguments must be without return_dict"):
        GuidedDenoiser(model, **FIRM)(call | {"return_dict": True}, negative)
