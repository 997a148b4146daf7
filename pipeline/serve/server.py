"""From model folders to a listening server."""

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from llm.compute import Compute, ComputeConfig
from llm.decoder import TorchDecoder
from llm.errors import WordmillError
from llm.model import folder
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.serve.app import LOOPBACK, Limits, Served, build

DEFAULT = (Path("models/base"), Path("models/dpo"))


def load(folders: Sequence[Path], config: ComputeConfig) -> dict[str, Served]:
    """The models by the names of their folders. Raises WordmillError."""
    compute = Compute(config)
    models: dict[str, Served] = {}
    for path in folders:
        name = path.resolve().name
        if name in models:
            raise WordmillError(f"{path}: another model is called {name}; rename one of the folders")
        tokenizer = Tokenizer.load(path)
        decoder = TorchDecoder(folder.load(path, vocab_size=tokenizer.vocab_size), compute)
        models[name] = Served(decoder, tokenizer, int((path / "config.json").stat().st_mtime))
    return models


def serve(models: dict[str, Served], host: str, port: int, limits: Limits) -> None:
    """Answer until SIGINT or SIGTERM. Raises WordmillError if the address cannot be had."""
    listening = bound(host, port)
    local = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
    if not local:
        print("warning: whoever reaches this address can use the models; there is no password", file=sys.stderr)
    app = build(models, limits, LOOPBACK if local else ())
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    print(f"{', '.join(models)}: {address} (the page), {address}/v1 (the API)", flush=True)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=5, timeout_graceful_shutdown=3
    )
    with contextlib.suppress(KeyboardInterrupt):  # it raises it again once it has ended well
        uvicorn.Server(settings).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises WordmillError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except socket.gaierror as error:
        raise WordmillError(f"--host: {host}: {error.strerror}; give an address of this machine") from None
    except OSError as error:
        raise WordmillError(f"{host}:{port}: {os.strerror(error.errno or 0)}; give another --port or --host") from None
