"""From model folders to a listening server."""

import contextlib
import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm.compiled_decoder import fastest
from llm.compute import Compute, ComputeConfig
from llm.errors import WordmillError
from llm.model import folder
from llm.model.hf_configs import read_config
from llm.tokenizer.tokenizer import Tokenizer
from pipeline.serve import connections
from pipeline.serve.app import build
from pipeline.serve.engine import Served
from pipeline.serve.limits import Limits
from pipeline.warm_up import warm_up

OTHER_FILES = 128 + connections.ACCEPTED  # that the process has open, and connections above the limit for a moment
DEFAULT = (Path("models/base"), Path("models/dpo"))


def load(folders: Sequence[Path], config: ComputeConfig) -> dict[str, Served]:
    """The models by the names of their folders. Raises WordmillError."""
    compute = Compute(config)
    models: dict[str, Served] = {}
    for path in folders:
        name = path.resolve().name
        if name in models:
            raise WordmillError(f"{path}: another model is called {name}; rename one of the folders")
        read_config(path)  # what holds no model is named as such, and not for its missing tokenizer
        tokenizer = Tokenizer.load(path)
        decoder = fastest(folder.load(path, vocab_size=tokenizer.vocab_size), compute)
        models[name] = Served(decoder, tokenizer, int((path / "config.json").stat().st_mtime))
    for served in models.values():
        warm_up(served.decoder)
    return models


def serve(models: dict[str, Served], host: str, port: int, limits: Limits, names: Sequence[str] = ()) -> None:
    """Answer until SIGINT or SIGTERM. `names` are further ones by which clients may address the server.

    Raises WordmillError if the address cannot be had.
    """
    listening = bound(host, port)
    local = ipaddress.ip_address(listening.getsockname()[0]).is_loopback
    if not local:
        print("warning: whoever reaches this address can use the models; there is no password", file=sys.stderr)
    limits = with_files(limits)
    app = build(models, limits, [host, *names], local)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    print(f"{', '.join(models)}: {address} (the page), {address}/v1 (the API)", flush=True)
    gc.freeze()  # else every large request would have the collector go through all of torch
    with contextlib.suppress(KeyboardInterrupt):  # it raises it again once it has ended well
        connections.Server(connections.Config(app, limits)).run(sockets=[listening])


def with_files(limits: Limits) -> Limits:
    """`limits` with no more connections than this process may open files, a limit that is raised if need be."""
    try:
        import resource  # not on every system
    except ImportError:
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.connections + OTHER_FILES
    if 0 <= soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    possible = limits.connections if soft == resource.RLIM_INFINITY else soft - OTHER_FILES
    return replace(limits, connections=max(1, min(limits.connections, possible)))


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises WordmillError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=connections.BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        problem = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise WordmillError(f"--host: {host}: {problem}; give an address of this machine") from None
    except OSError as error:
        raise WordmillError(f"{host}:{port}: {os.strerror(error.errno or 0)}; give another --port or --host") from None
