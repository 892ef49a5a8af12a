# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers of the training of shapes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights. Batches are per process."""

    seed: int = 20260
    workers: int = 2
    ae_steps: int = 2400
    ae_batch: int = 16
    ae_rate: float = 2e-3
    ae_noise: float = 0.5  # the largest noise, in spreads of the latents, that the decoder learns to remove
    classifier_steps: int = 7600
    classifier_batch: int = 24
    classifier_rate: float = 2e-3
    text_steps: int = 600
    text_batch: int = 64
    text_rate: float = 2e-3
    flow_two_share: float = 0.45  # share of scenes with two objects that the generator learns from
    full_share: float = 0.5  # share of captions that name everything
    flow_steps: int = 9500
    flow_batch: int = 32
    flow_rate: float = 2e-3
    flow_visited: float = 0.6  # share of the batch at the four noise levels that sampling visits
    compiled: bool = False  # the denoiser by torch.compile while it learns flow matching
    few_two_share: float = 0.25  # of the distillation: the world's own
    few_steps: int = 1000
    few_rate: float = 5e-4
    few_substeps: int = 3
    few_guidance: float = 2.5  # classifier-free guidance of the teacher
    shift: float = 2.0  # of the scheduler
    watch_every: int = 4750
    judged: int = 1000  # samples of each kind in the final evaluation


QUICK = Settings(
    ae_steps=4, ae_batch=8, classifier_steps=3, classifier_batch=18, text_steps=3, text_batch=8, flow_steps=3,
    flow_batch=8, few_steps=2, watch_every=2, judged=8,
)  # fmt: skip
