# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Waiting for calls that other threads began before guidance came (`turns.wait_for_calls_begun`)."""

import threading

import pytest
import torch

pytest.importorskip("diffusers")

from nag_kernels.diffusers.turns import wait_for_calls_begun

PATIENCE = 60


class Held:
    """Something to call, which returns when it is let go."""

    def __init__(self):
        self.inside, self.go = threading.Event(), threading.Event()

    def stay(self):
        self.inside.set()
        assert self.go.wait(PATIENCE)


class Pipeline(Held):
    @torch.no_grad()
    def __call__(self, prompt):
        result = prompt  # a local variable with a value of its own, as every pipeline has
        self.stay()
        return result


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.held = Held()

    def forward(self, sample):
        self.held.stay()
        return sample


class ModularPipeline(Held):
    def __call__(self, prompt):
        state = prompt
        return Blocks()(self, state)


class Blocks:
    @torch.no_grad()
    def __call__(self, pipe, state):
        pipe.stay()
        return pipe, state


@torch.no_grad()
def a_servers_loop(pipe):
    pipe.stay()


@pytest.mark.parametrize("kind", ["pipeline", "model", "modular pipeline", "server"])
def test_whose_call_is_waited_for(kind):
    called = {"pipeline": Pipeline, "model": Model, "modular pipeline": ModularPipeline, "server": Pipeline}[kind]()
    held = called.held if kind == "model" else called
    call = threading.Thread(
        target=a_servers_loop if kind == "server" else called, args=[called if kind == "server" else 1]
    )
    call.start()
    assert held.inside.wait(PATIENCE)
    waits = [threading.Thread(target=wait_for_calls_begun, args=[[x]]) for x in (called, type(called)())]
    for wait in waits:
        wait.start()
    waits[1].join(PATIENCE)
    assert not waits[1].is_alive(), "another object of the class is not waited for"
    waits[0].join(0.2)
    assert waits[0].is_alive() == (kind != "server")
    held.go.set()
    for thread in (call, waits[0]):
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_looking_at_a_call_keeps_none_of_its_values():
    """Kept, they die while a later look reads the frame; that crashed Python 3.11, where the frame ended in the middle."""
    died, parts = [], [Held(), Held()]

    class Value:
        def __del__(self):
            died.append(threading.get_ident())

    class Called:
        def __call__(self):
            value = Value()
            for part in parts:
                part.stay()
                value = None
            return value

    call = threading.Thread(target=Called())
    call.start()
    for part in parts:
        assert part.inside.wait(PATIENCE)
        wait_for_calls_begun([part])
        part.go.set()
    call.join(PATIENCE)
    assert died == [call.ident]
