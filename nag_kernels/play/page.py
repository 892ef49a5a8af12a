# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The page itself: what can be typed and moved, what each change does, and the server. What is drawn is in `drawing.py`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from ..checks import RULES
from ..user_errors import UserError
from . import markup
from .drawing import Model
from .look import CSS, SHOW_ADDRESS
from .settings import (
    MOST_PICTURES,
    MOST_STEPS,
    MOST_VALUES,
    NAMES,
    OF_NAG_ALONE,
    SWEPT,
    WIDEST,
    Settings,
    query_of,
    settings_of,
    sweep_range,
    sweep_values,
)

TOGETHER = {"concurrency_limit": 8, "concurrency_id": "model"}  # the model itself draws one after the other
UNCHANGED = "The negative left every picture as it was: raise nag_alpha or nag_scale, or name something that is there."


@contextmanager
def said_on_the_page() -> Iterator[None]:
    """A `UserError` within the block is shown on the page as it is."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), title="This cannot be drawn", print_exception=False) from error


def numbers_of_rule(rule: str, values: dict[str, Any]) -> list[Any]:
    """The sliders of scale, tau and alpha as they are under a rule."""
    scale = gr.update(value=values["nag_scale"], maximum=max(WIDEST.get(rule, 0.0), values["nag_scale"]))
    used = rule == "nag"
    return [scale, *(gr.update(value=values[name], visible=used) for name in OF_NAG_ALONE)]


def texts(first: Settings) -> dict[str, Any]:
    """What is typed, and the button."""
    made: dict[str, Any] = {}
    made["prompt"] = gr.Textbox(first.prompt, label="Prompt", max_lines=3)
    made["negative"] = gr.Textbox(first.negative, label="Negative prompt", max_lines=3)
    made["draw"] = gr.Button("Draw", variant="primary", elem_id="draw")
    return made


def numbers(model: Model) -> dict[str, Any]:
    """The other inputs, by the names of `Settings`."""
    first, made = model.first, dict[str, Any]()
    made["rule"] = gr.Radio(list(RULES), value=first.rule, label="Rule")
    made["nag_scale"] = gr.Slider(0, WIDEST["nag"], first.nag_scale, step=0.1, label="nag_scale: how far to go away")
    made["nag_tau"] = gr.Slider(0, 10, first.nag_tau, step=0.1, label="nag_tau: how long a token may become")
    made["nag_alpha"] = gr.Slider(0, 1, first.nag_alpha, step=0.01, label="nag_alpha: how much of it is used")
    with gr.Row():
        made["seed"] = gr.Number(first.seed, precision=0, label="Seed", min_width=100)
        made["pictures"] = gr.Slider(1, MOST_PICTURES, first.pictures, step=1, label="Pictures", min_width=200)
    with gr.Accordion("Steps and classifier-free guidance", open=False):
        made["steps"] = gr.Slider(1, MOST_STEPS, first.steps, step=1, label="Steps")
        made["start"] = gr.Slider(
            0, 1, first.start, step=0.05, label="start: the part of the steps before which none is guided"
        )
        made["end"] = gr.Slider(
            0, 1, first.end, step=0.05, label="end: the part of the steps after which none is guided"
        )
        made["cfg_scale"] = gr.Slider(
            0, 20, first.cfg_scale, step=0.1, label=f"CFG scale of both pictures ({model.no_cfg:g} is none)"
        )
    return made


def build(model: Model) -> Any:
    """The page for a model, to be launched."""
    first = model.first

    def draw(**values: Any) -> tuple[str, str, str, str]:
        settings, began = Settings(**values), time.perf_counter()
        with said_on_the_page():
            without, steered = model.pair(settings)
            spent = time.perf_counter() - began
            code = model.code(settings)
        if all(a.tobytes() == b.tobytes() for a, b in zip(without, steered, strict=True)):
            gr.Warning(UNCHANGED, title="Nothing changed")
        shown = markup.pair(without, steered, settings)
        return (
            shown,
            f"Drawn in {spent:.2f} seconds. The same seeds stand in the same places.",
            code,
            query_of(settings),
        )

    def sweep(
        setting: str, low: float, high: float, values: float, progress: Any = gr.Progress(), **others: Any  # noqa: B008
    ) -> str:  # fmt: skip
        settings = Settings(**others)
        with said_on_the_page():
            chosen = sweep_values(settings, setting, low, high, values)
            strip = model.sweep(
                settings, setting, chosen, lambda done: progress((done, len(chosen)), desc=setting, unit="values")
            )
            named = [(f"{value:g}", images) for value, images in zip(chosen, strip, strict=True)]
            if setting not in ("steps", "cfg_scale", "seed"):  # those change the picture without the negative, too
                named.insert(0, ("no negative", model.without(settings)))
        return markup.strip(named, settings)

    def measure(**values: Any) -> str:
        with said_on_the_page():
            return markup.measured(*model.measured(Settings(**values)))

    def usual(rule: str) -> list[Any]:
        return numbers_of_rule(rule, model.usual(rule))

    def restore(request: gr.Request) -> list[Any]:
        settings, refused = settings_of(dict(request.query_params), first)
        for sentence in refused:
            gr.Warning(sentence, title="Not taken from the address")
        values: dict[str, Any] = {name: getattr(settings, name) for name in NAMES}
        of_rule: dict[str, Any] = dict(
            zip(("nag_scale", *OF_NAG_ALONE), numbers_of_rule(settings.rule, values), strict=True)
        )
        return [of_rule.get(name, value) for name, value in values.items()]

    with gr.Blocks(analytics_enabled=False, title="nag_kernels: play", fill_width=True) as page:
        gr.Markdown("# Steer away from a negative prompt", elem_id="title")
        gr.Markdown(f"Model: {model.name}. The negative acts inside attention, in one pass.", elem_classes="hint")
        with gr.Row(elem_id="main"):
            with gr.Column(elem_id="texts"):
                made = texts(first)
            with gr.Column(elem_id="numbers"):
                made |= numbers(model)
            with gr.Column(elem_id="tabs"), gr.Tabs():
                with gr.Tab("Pictures"):
                    shown = gr.HTML(elem_id="pictures", min_height=160)
                    said = gr.Markdown(elem_classes="hint")
                with gr.Tab("Sweep"):
                    low, high = sweep_range(first.rule, "nag_scale")
                    with gr.Row():
                        name = gr.Dropdown(list(SWEPT), value="nag_scale", label="Setting", min_width=170)
                        low_box = gr.Number(low, label="From", min_width=80)
                        high_box = gr.Number(high, label="To", min_width=80)
                        count = gr.Slider(2, MOST_VALUES, 5, step=1, label="Values", min_width=200)
                    run_sweep = gr.Button("Draw the strip", elem_id="sweep")
                    strip = gr.HTML(elem_id="strip", min_height=160)
                with gr.Tab("Layers"):
                    gr.Markdown(
                        "What rule nag clips and moves in each layer and step, for the settings here.",
                        elem_classes="hint",
                    )
                    run_measure = gr.Button("Measure", elem_id="measure")
                    measured = gr.HTML(elem_id="measured", min_height=160)
                with gr.Tab("Code"):
                    code = gr.Code(language="python", label="Code that draws exactly these pictures", lines=18,
                                   interactive=False, wrap_lines=True, buttons=["copy"], elem_id="code")  # fmt: skip
                    link = gr.Textbox(
                        label="Link to these settings", interactive=False, buttons=["copy"], elem_id="link"
                    )
        query = gr.Textbox(visible=False)
        inputs = {each: made[each] for each in NAMES}
        drawing: dict[str, Any] = {
            "fn": draw,
            "inputs_kwargs": inputs,
            "outputs": [shown, said, code, query],
            **TOGETHER,
        }
        drawn = [made["draw"].click(**drawing, api_name="draw")]
        drawn += [made[each].submit(**drawing, api_visibility="private") for each in ("prompt", "negative", "seed")]
        opened = page.load(restore, None, list(inputs.values()), api_name="open", show_progress="hidden")
        ruled = made["rule"].input(
            usual, made["rule"], [made[each] for each in ("nag_scale", *OF_NAG_ALONE)], api_name="usual",
            show_progress="hidden",
        )  # fmt: skip
        if model.shipped:  # it draws at once; others when they are told to
            sliders = [made[each].release for each in NAMES if isinstance(made[each], gr.Slider)]
            drawn.append(gr.on(sliders, **drawing, api_visibility="private", trigger_mode="always_last"))
            drawn += [event.then(**drawing, api_visibility="private") for event in (opened, ruled)]
        for event in drawn:
            event.success(None, query, link, js=SHOW_ADDRESS, api_visibility="private")
        gr.on([name.input, made["rule"].input], sweep_range, [made["rule"], name], [low_box, high_box],
              show_progress="hidden", api_visibility="private")  # fmt: skip
        swept = {"setting": name, "low": low_box, "high": high_box, "values": count}
        run_sweep.click(sweep, inputs_kwargs=swept | inputs, outputs=strip, api_name="sweep", **TOGETHER)
        run_measure.click(measure, inputs_kwargs=inputs, outputs=measured, api_name="measure", **TOGETHER)
    return page


def launch(model: Model, host: str, port: int | None, browser: bool) -> Any:
    """Begins to serve the page for a model; returns it, with its address as `local_url`. Raises UserError for a port in use."""
    page = build(model)
    plain = ["system-ui", "sans-serif"]  # fonts that are there
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="zinc", font=plain, font_mono=["monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True, quiet=True, share=False,
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
            theme=theme, css=CSS,
        )  # fmt: skip
    except OSError as error:
        where = "no port from 7860 on is free" if port is None else f"--port {port} is in use"
        raise UserError(f"{where} at --host {host}, or that is no address of this machine: give another") from error
    return page
