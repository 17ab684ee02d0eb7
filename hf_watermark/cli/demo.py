"""`hf-watermark demo`."""

from typing import Annotated

import typer


EXAMPLE = "Example:\n\nhf-watermark demo"


def demo(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on this machine.")] = 7860,
    public: Annotated[
        bool, typer.Option("--public", help="As the Space shows it: no Hub token, no keys, smaller models.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Start the app of the Space on your own machine, where keys may be used too (extra: demo). Nobody else can reach it."""
    from ..demo import build_demo, launch
    from .loading import silence_loading

    silence_loading()
    launch(build_demo(public), server_name="127.0.0.1", server_port=port, inbrowser=browser)
