"""`sdengine serve`: the engine over HTTP, with a page, for the clients that people already have."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from sdengine.cli.terminal import note, say
from sdengine.errors import ConfigError
from sdengine.storage.byte_size import parse_bytes

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    bundle: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Bundle, or demo; more than one may be given."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others need --tokens.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 for one that is free.")] = 7860,
    tokens: Annotated[
        str | None, typer.Option(metavar="FILE", help="Clients that may ask; see --add-token.")
    ] = None,
    add_token: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add a client to --tokens, print its secret, and end."),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, or a name such as native.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most to take, as in 8GiB.")
    ] = None,
    device: Annotated[int | None, typer.Option(metavar="N", help="Number of the GPU.")] = None,
    models: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Checkpoints that requests may name.")
    ] = None,
    loras: Annotated[str | None, typer.Option(metavar="FOLDER", help="LoRAs, likewise.")] = None,
    embeddings: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Textual inversions, likewise.")
    ] = None,
    hypernetworks: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Hypernetworks, likewise.")
    ] = None,
    upscalers: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="ONNX files of upscalers, likewise.")
    ] = None,
    ip_adapters: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="IP-Adapters, likewise.")
    ] = None,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Of a picture.")] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option(help="Of a request.")] = 200,
    max_images: Annotated[int, typer.Option(help="Of a request.")] = 16,
    max_body: Annotated[
        str, typer.Option(metavar="SIZE", help="Of the body of a request.")
    ] = "32MiB",
    join: Annotated[
        bool | None,
        typer.Option("--join/--no-join", help="Run alike requests at once; else native alone."),
    ] = None,
    drain: Annotated[
        int, typer.Option(metavar="SECONDS", help="That requests may take when the server ends.")
    ] = 120,
    warm_up: Annotated[
        bool, typer.Option("--warm-up", help="Load each bundle's usual size before the first.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of this machine in addresses."),
    ] = None,
) -> None:
    """Serve pictures over HTTP: a page, the web UI's API, OpenAI's, and one of our own."""
    from sdengine.serving.tokens import Tokens, read_tokens
    from sdengine.serving.tokens import add_token as added

    if add_token is not None:
        if tokens is None:
            raise ConfigError.for_field("--add-token", add_token, "--tokens FILE with it")
        say(added(tokens, add_token))
        return
    known = Tokens([] if tokens is None else read_tokens(tokens))
    is_local = host in _LOOPBACK
    if not is_local and not len(known):
        hint = "`sdengine serve --tokens FILE --add-token NAME` makes one."
        raise ConfigError.for_field("--host", host, "127.0.0.1 without --tokens", hint)
    if not 0 <= port < 1 << 16:
        raise ConfigError.for_field("--port", port, "0 to 65535")
    if drain < 0:
        raise ConfigError.for_field("--drain", drain, "seconds from 0")

    from sdengine.loading import load
    from sdengine.serving.app import create_app
    from sdengine.serving.bundle_names import named_bundles
    from sdengine.serving.catalogue import Catalogue
    from sdengine.serving.guard import LOOPBACK
    from sdengine.serving.http_server import logs_as_json, run_server
    from sdengine.serving.limits import Limits
    from sdengine.serving.service import Service

    folders = {
        "model": models,
        "lora": loras,
        "embedding": embeddings,
        "hypernetwork": hypernetworks,
        "upscaler": upscalers,
        "ip_adapter": ip_adapters,
    }
    catalogue = Catalogue({kind: one for kind, one in folders.items() if one is not None})
    body = parse_bytes("--max-body", max_body)
    limits = Limits(
        max_pixels=max_pixels,
        max_steps=max_steps,
        max_images=max_images,
        max_body_bytes=body,
        max_bodies_bytes=max(8 * body, Limits.max_bodies_bytes),
        max_queue=max_queue,
        max_queue_of_token=max_queue if not len(known) else max(1, max_queue // 2),
    )
    memory_bytes = None if memory is None else parse_bytes("--memory", memory)
    named = named_bundles(bundle or ["demo"])
    with ExitStack() as opened:
        engines = {}
        for name, path in named.items():
            engines[name] = opened.enter_context(
                load(
                    path,
                    backend,
                    precision,
                    threads,
                    memory_bytes=memory_bytes,
                    device=device,
                    embeddings=embeddings,
                    loras_folder=loras,
                    hypernetworks_folder=hypernetworks,
                )
            )
            if warm_up:
                engines[name].warm_up()
        service = Service(engines, catalogue, limits, known, joins=join)
        names = {name.lower() for name in allow_host or []}
        hosts = {*LOOPBACK, *names} if is_local else None
        app = create_app(service, hosts, drain)
        opened.enter_context(logs_as_json())
        try:
            whole = run_server(
                app,
                service,
                host,
                port,
                drain,
                lambda at, number: say(f"http://{_address(at)}:{number}", at_once=True),
            )
        except OSError as error:
            message = f"{host}:{port} cannot be listened on: {error.strerror}."
            raise ConfigError(f"--host, --port: {message} Give another --port.") from None
    note("all requests were finished." if whole else "requests that took too long were cancelled.")


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host
