# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Open a page in the browser on which to try prompts and settings: pictures without and with the negative, side by side.

The page also draws a strip over a range of one setting, shows what is clipped and moved in each layer, and gives the code
and a link for what is shown. Nothing leaves this machine; docs/play.md says how to reach the page from another one.
"""

import argparse
import threading
from typing import Any

import torch

from .. import user_errors

try:
    import gradio
    import matplotlib.figure  # noqa: F401  # the figure comes when it is asked for

    from ..shapes.loading import load_model, try_guidance
    from .drawing import Model
    from .look import CSS
    from .page import build
except ImportError as error:
    raise user_errors.missing("nag_kernels.play", __name__, error) from error

EXAMPLES = """\
examples:
  python -m nag_kernels.play                              the shipped model, which draws in half a second
  python -m nag_kernels.play --model path/to/folder       a pipeline that diffusers loads
  python -m nag_kernels.play --no-browser --port 7860     on a server; then, on your own machine,
                                                          ssh -L 7860:localhost:7860 SERVER
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.play",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="shapes", help="shapes, or any diffusers model id or folder (default: shapes)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: 127.0.0.1)")
    add("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    add("--no-browser", action="store_true", help="print the page's address, and open no browser")
    options = parser.parse_args(arguments)
    user_errors.check_device(parser, options.device)
    if options.port is not None and not 0 < options.port < 65536:
        parser.error(f"--port must be between 1 and 65535, got {options.port}")
    return options


def launch(model: Model, host: str, port: int | None, browser: bool) -> Any:
    """Begins to serve the page for a model; returns it, with its address as `local_url`. Raises UserError for a port in use."""
    page = build(model)
    plain = ["system-ui", "sans-serif"]  # fonts that are there
    theme = gradio.themes.Default(primary_hue="blue", neutral_hue="zinc", font=plain, font_mono=["monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True, quiet=True, share=False,
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
            theme=theme, css=CSS,
        )  # fmt: skip
    except OSError as error:
        where = "no port from 7860 on is free" if port is None else f"--port {port} is in use"
        raise user_errors.UserError(
            f"{where} at --host {host}, or that is no address of this machine: give another"
        ) from error
    return page


@user_errors.in_one_sentence("nag_kernels.play")
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    pipe = load_model(options.model, options.device)
    with user_errors.named("the model refused", *user_errors.DRAWING):
        model = Model(options.model, pipe)
        try_guidance(pipe, model.first.negative, **model.first.guidance())
        if model.shipped:
            model.pair(model.first)  # the first picture of a process takes longer than those that follow
    page = launch(model, options.host, options.port, not options.no_browser)
    print(f"The page is at {page.local_url} (Ctrl-C ends it).", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


if __name__ == "__main__":
    main()
