# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Open a page in the browser on which to try prompts and settings: pictures without and with the negative, side by side.

The page also draws a strip over a range of one setting, shows what is clipped and moved in each layer, and gives the code
and a link for what is shown. Nothing leaves this machine; docs/play.md says how to reach the page from another one.
"""

import argparse
import threading

import torch

from .. import user_errors

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


@user_errors.in_one_sentence("nag_kernels.play")
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:  # only now, so that --help needs none of it
        import matplotlib.figure  # noqa: F401  # the figure comes when it is asked for

        from ..shapes.loading import load_model, try_guidance
        from .drawing import Model
        from .page import launch
    except ImportError as error:
        raise user_errors.UserError(str(user_errors.missing("nag_kernels.play", __name__, error))) from error
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
