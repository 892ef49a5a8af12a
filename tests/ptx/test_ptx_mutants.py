# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""PTX broken on purpose must be seen, by the machine or by the numbers."""

import re

import cuda_ptx
import pytest
import test_cuda_kernels
import torch

from nag_kernels import testing

LACKS = cuda_ptx.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LACKS is not None, reason=f"the PTX of the CUDA kernels is not here: {LACKS}"),
]

INPUTS = {
    "text": {"length": 20, "heads": 9, "positive": 33, "negative": 20, "masks": True},
    "branches": {"length": 130, "heads": 1, "positive": 70, "negative": 140, "shared": 150, "masks": True},
    "cluster": {"length": 20, "heads": 3, "positive": 140, "negative": 150, "shared": 300},
    "cluster, masks": {"length": 20, "heads": 2, "positive": 70, "negative": 150, "shared": 300, "masks": True},
    "joint, sm_90": {"length": 66, "heads": 1, "positive": 12, "negative": 70, "shared": 150},
    "joint, sm_80": {"length": 66, "heads": 1, "positive": 12, "negative": 70, "shared": 150},
}


def run(form: str, change=None, **how):
    """The kernel of one form; `change` alters its PTX, `broken` its text."""
    inputs = testing.make_inputs(**{"size": 64, "dtype": torch.bfloat16, **INPUTS[form]})
    if form.startswith("joint"):
        triton_ptx = pytest.importorskip("triton_ptx", reason="triton is not here: not installed")
        out = triton_ptx.Launcher(int(form[-2:]), change, **how).attention(inputs, test_cuda_kernels.SETTINGS)
    elif form.startswith("cluster"):
        out = cuda_ptx.Launcher(change=change, **how).cluster(inputs, test_cuda_kernels.SETTINGS, blocks=2, slots=4)
    else:
        out = getattr(cuda_ptx.Launcher(change=change, **how), form)(inputs, test_cuda_kernels.SETTINGS)
    testing.assert_within_baseline(out, inputs, *test_cuda_kernels.SETTINGS)


SAID = {
    "race": "race in shared memory", "copy": "where a copy is on its way", "fence": "no proxy fence",
    "numbers": "error .* against float64", "deadlock": "deadlock", "ended": "a block that has ended", "bounds": "out of bounds",
    "unwaited": "for which nobody waited", "arrivals": "more arrivals",
}  # fmt: skip
SYNC_CLUSTER = r"barrier\.cluster\.arrive\.release\.aligned;\s*(//.*\s*)*barrier\.cluster\.wait\.acquire\.aligned;"
# (form, what is looked for, what comes in its place, which one of the places or all of them, who sees it)
MUTANTS = {
    "rounding to bfloat16 exchanges two numbers": (
        "text", r"(cvt\.rn\.bf16x2\.f32 %r\d+), (%f\d+), (%f\d+);", r"\1, \3, \2;", None, "numbers"),
    "words of a fragment exchanged": (
        "text", r"(mma\.sync\.aligned\.m16n8k16\S+ \{[^}]*\}, \{%r\d+), (%r\d+), (%r\d+),", r"\1, \3, \2,", None, "numbers"),
    "the other bytes": ("text", r"\b30258;", "21520;", None, "numbers"),
    "a shuffle from elsewhere": ("text", r"(shfl\.sync\.bfly\.b32\s+%\w+\|%\w+, %\w+), %r\d+,", r"\1, 4,", None, "numbers"),
    "no barrier before the norms of all warps": ("text", r"bar\.sync\s+0;", "", None, "race"),
    "the last key is not masked": ("text", r"setp\.lt\.s32(.*), (%r\d+), (%r\d+);", r"setp.le.s32\1, \2, \3;", None, "bounds"),
    "values as if they were keys": ("branches", r"x4\.trans\.shared", "x4.shared", None, "numbers"),
    "no wait for the copies": ("branches", r"cp\.async\.wait_group \d;", "", None, "copy"),
    "a wait for too few groups": ("branches", r"cp\.async\.wait_group 1;", "cp.async.wait_group 2;", None, "copy"),
    "copies in no group": ("branches", r"cp\.async\.commit_group;", "", 1, "copy"),
    "no barrier before a stage is read": ("branches", r"bar\.sync\s+0;", "", 0, "race"),
    "no barrier after a stage was read": ("branches", r"bar\.sync\s+0;", "", 1, "race"),
    "no wait for the scores": ("cluster", r"wgmma\.wait_group\.sync\.aligned 1;", "", None, "race"),
    "no wait for the values": ("cluster", r"wgmma\.wait_group\.sync\.aligned 0;", "", None, "race"),
    "values as if they were keys, wgmma": ("cluster", r"add, 1, 1, 1;", "add, 1, 1, 0;", None, "copy"),
    "rows of a matrix elsewhere": (
        "cluster", str((1 << 62) + (64 << 32) + (1 << 16)), str((1 << 62) + (32 << 32) + (1 << 16)), None, "numbers"),
    "bytes of half a tile expected": ("cluster", r"(mbarrier\.arrive\.expect_tx.*), (%r\d+);", r"\1, 8192;", None, "deadlock"),
    "the parity of a wait": ("cluster", r"xor\.b32(\s+%r\d+, %r\d+), 1;", r"or.b32\1, 0;", None, "deadlock"),
    "barriers used before they are made": ("cluster", r"bar\.sync\s+0;", "", None, "race"),
    "norms of the own block alone": ("cluster", r"(mapa\.shared::cluster\.u32 \w+, %r\d+), %r\d+;", r"\1, 0;", None, "numbers"),
    "norms read before they are there": ("cluster", SYNC_CLUSTER, "", -2, "race"),
    "a block ends while others read": ("cluster", SYNC_CLUSTER, "", -1, "ended"),
    "no fence after the threads' copies": ("cluster, masks", r"fence\.proxy\.async\.shared::cta;", "", None, "fence"),
    "no wait for the threads' copies": ("cluster, masks", r"cp\.async\.wait_group 0;", "", None, "copy"),
    "a slot given back while lanes still read its mask": ("cluster, masks", r"bar\.warp\.sync\s+-1;", "", None, "race"),
    "Triton: no barrier": ("joint, sm_80", r"bar\.sync\s+0;", "", None, "race"),
    "Triton: no wait for the copies": ("joint, sm_80", r"cp\.async\.wait_group\s+0;", "", None, "copy"),
    "Triton: no proxy fence": ("joint, sm_90", r"fence\.proxy\.async\.shared::cta;", "", None, "fence"),
    "Triton: no wait for the products": ("joint, sm_90", r"wgmma\.wait_group\.sync\.aligned 0;", "", None, "race"),
    "Triton: a barrier of the loop is missing": ("joint, sm_90", r"bar\.sync\s+0;", "", 1, "race"),
}  # fmt: skip
SAMPLE = ("rounding to bfloat16 exchanges two numbers", "no barrier before the norms of all warps", "no wait for the copies",
          "no barrier after a stage was read", "values as if they were keys, wgmma", "norms read before they are there",
          "no fence after the threads' copies", "Triton: no proxy fence")  # fmt: skip


def changed(text: str, pattern: str, replacement: str, which: int | None) -> str:
    """In the attention kernel alone, whose place in the module's text is the first."""
    if "guidance_kernel" in text or ".entry blend" in text:
        return text
    if which is None:
        out = re.sub(pattern, replacement, text)
    else:
        match = list(re.finditer(pattern, text))[which]
        out = text[: match.start()] + match.expand(replacement) + text[match.end() :]
    assert out != text, "nothing was changed"
    return out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.ptx_check) for name in MUTANTS]
)
def test_broken_ptx_is_seen(name):
    form, pattern, replacement, which, seen = MUTANTS[name]
    said = "|".join(SAID[each] for each in seen.split("|"))
    with pytest.raises((AssertionError, cuda_ptx.PtxError), match=said):
        run(form, lambda text: changed(text, pattern, replacement, which))


@pytest.mark.ptx_check
@pytest.mark.parametrize("form", INPUTS)
def test_the_same_without_a_change_passes(form):
    run(form)


NEEDED = {
    ("text", r"bar\.sync\s+0;"): 1,
    ("branches", r"bar\.sync\s+0;|cp\.async\.(wait|commit)_group[^;]*;"): 18,
    ("cluster", r"wgmma\.wait_group[^;]*;"): 15,
    ("cluster, masks", r"cp\.async\.(wait|commit)_group[^;]*;|fence\.proxy\.async[^;]*;"): 6,
}  # what each kernel waits for, and how often that stands in its PTX


@pytest.mark.ptx_check
@pytest.mark.parametrize(
    ("form", "pattern", "which"), [(*key, k) for key, count in NEEDED.items() for k in range(count)]
)
def test_each_barrier_and_wait_is_needed(form, pattern, which):
    """Each by itself."""

    def change(text):
        assert "guidance_kernel" in text or len(re.findall(pattern, text)) == NEEDED[form, pattern]
        return changed(text, pattern, "", which)

    with pytest.raises((AssertionError, cuda_ptx.PtxError), match="|".join(SAID.values())):
        run(form, change)


BROKEN = {  # what: (form, text of the kernel, what it became)
    "norm of one warp's heads": (
        "text",
        "for (int w = 0; w < (heads < kTextWarps ? heads : kTextWarps); ++w)",
        "for (int w = 0; w < 1; ++w)",
    ),
    "fork not taken up": ("branches", "states[0] = fork[0];", "states[0] = empty_state();"),
    "no wait for the copies": ("branches", "copies_wait<1>();", ""),
    "no barrier after a stage": ("branches", "query, states, z);\n    sync_threads();", "query, states, z);"),
}
IN_ONE_ARM, FADE = "      group_wait<0, kInOneArm>();\n", "      fade(z, fades);\n"
WAIT = f"    if (is_raised(fades)) {{\n{IN_ONE_ARM}{FADE}    }} else {{\n      group_wait<0, kInTheOther>();\n    }}\n"
BROKEN_CLUSTER = {
    "norm of one block's heads": ("other < p.blocks; ++other", "other < 1; ++other"),
    "norm of the last head": ("norms[16 * r] = i == 0 ? positive : norms[16 * r] + positive;", "norms[16 * r] = positive;"),
    "fork not taken up": ("states[1][0] = states[0][0];", ""),
    "a block ends while others read": ("  sync_cluster();  // a block must not end while others read from it\n", ""),
    "no fence after the threads' copies": ("    fence_for_async();\n", ""),
    "scores read before they are there": ("    group_wait<1>();\n", ""),
    "a slot given back before it was read": (
        f"{WAIT}    attending.release(values);\n",
        "    attending.release(values);\n    group_wait<0>();\n    if (is_raised(fades)) {\n      fade(z, fades);\n    }\n",
    ),
    "faded before the product was there": (WAIT, WAIT.replace(f"{IN_ONE_ARM}{FADE}", f"{FADE}{IN_ONE_ARM}")),
    "keys beyond the last": ("left < 8 * kTiles", "left < 0"),
    "not swizzled": ("((unit ^ row) & 7) * 16", "(unit & 7) * 16"),
    "scale of another row": ("low(Half(), pair) * scales[j % 2]", "low(Half(), pair) * scales[0]"),
}  # fmt: skip
TEXTS = {(form, name): tuple(change) for name, (form, *change) in BROKEN.items()}
TEXTS |= {("cluster", name): change for name, change in BROKEN_CLUSTER.items()}
MASKED = ("no fence after the threads' copies", "not swizzled")  # copies by threads, which masks make


@pytest.mark.parametrize(("form", "name"), TEXTS)
def test_kernels_broken_in_their_text_are_seen(form, name):
    """Compiled by nvcc."""
    with pytest.raises((AssertionError, cuda_ptx.PtxError), match="|".join(SAID.values())):
        run("cluster, masks" if name in MASKED else form, broken=TEXTS[form, name])
