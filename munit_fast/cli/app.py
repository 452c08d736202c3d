"""munit-fast app."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from munit_fast.cli.base import app
from munit_fast.cli.models import CheckpointOption, ConfigOption, EmaOption, PretrainedOption, load_model
from munit_fast.cli.options import (
    Amp,
    AmpOption,
    DeviceOption,
    Impl,
    ImplOption,
    TrainerName,
    TrainerOption,
    find_device,
    new_console,
)


@app.command(name="app")
def serve_app(
    pretrained: PretrainedOption = None,
    config: ConfigOption = None,
    checkpoint: CheckpointOption = None,
    trainer: TrainerOption = TrainerName.auto,
    ema: EmaOption = True,
    device: DeviceOption = "auto",
    amp: AmpOption = Amp.auto,
    impl: ImplOption = Impl.auto,
    host: Annotated[
        str, typer.Option(help="Listen on this address; 0.0.0.0: whoever reaches this machine may use the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 7860, or the next free one.", show_default=False)
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also open a public address, through Gradio's servers, for a week.")
    ] = False,
    max_pixels: Annotated[
        float, typer.Option("--max-pixels", min=0.001, help="Largest translated picture, in million pixels.")
    ] = 1.0,
    max_upload: Annotated[float, typer.Option("--max-upload", min=0.01, help="Largest upload, in MB.")] = 20.0,
    max_styles: Annotated[int, typer.Option("--max-styles", min=1, max=100, help="Most styles at once.")] = 12,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; one is computed at a time.")] = 16,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page on which to draw or upload pictures, translate them and change their style."""
    from munit_fast.app import Limits, launch

    if pretrained is None and config is None and not checkpoint:
        from munit_fast.models.pretrained import names

        pretrained = names()[0]
    console = new_console()
    model = load_model(pretrained, config, checkpoint, trainer=trainer, impl=impl, ema=ema, console=console)
    limits = replace(
        Limits(),
        translated_pixels=max(1, round(max_pixels * 1e6)),
        upload_bytes=round(max_upload * 1e6),
        styles=max_styles,
        queue=queue,
    )

    def started(address: str) -> None:
        console.print(f"{address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        if open:
            import webbrowser

            webbrowser.open(address)

    # A file is known by its name; a folder, or a repository of the Hub, by what was given.
    named = pretrained is not None and not pretrained.endswith(".safetensors")
    launch(
        model.to(find_device(device)),
        name=pretrained if named else None,
        host=host,
        port=port,
        share=share,
        amp=amp.value,
        limits=limits,
        started=started,
    )
