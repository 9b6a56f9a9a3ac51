"""nginx as mock nodes and as the measure of a plain proxy: generated configs, no privileges, loopback only."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mock import COMPLETION, METRICS, MODELS

_DECISION = '{"node":"node-0","url":"http://127.0.0.1:9001"}'
#: Debian installs it where an ordinary user's PATH does not look.
_PLACES = "/usr/sbin:/usr/local/sbin:/usr/local/nginx/sbin"


def binary() -> str | None:
    """Path of nginx, or ``None`` where it is not installed."""
    return shutil.which("nginx") or shutil.which("nginx", path=_PLACES)


def command(nginx: str, folder: Path, config: str) -> list[str]:
    """What starts nginx in the foreground with this config, everything it writes inside ``folder``."""
    file = folder / "nginx.conf"
    file.write_text(config)
    return [nginx, "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]


def nodes_config(folder: Path, ports: Sequence[int]) -> str:
    """Mock nodes: every POST gets the same completion, telemetry says idle."""
    listen = " ".join(f"listen 127.0.0.1:{port} backlog=1024;" for port in ports)
    return _config(
        folder,
        f"""
        server {{
            {listen}
            location = /metrics {{ default_type text/plain; return 200 '{METRICS}'; }}
            location = /v1/models {{ default_type application/json; return 200 '{MODELS}'; }}
            location / {{ default_type application/json; return 200 '{COMPLETION}'; }}
        }}""",
    )


def front_config(folder: Path, port: int, nodes: Sequence[int]) -> str:
    """A plain proxy over the nodes; ``/route`` is a fixed answer, the cheapest a decision could be."""
    servers = " ".join(f"server 127.0.0.1:{node};" for node in nodes)
    return _config(
        folder,
        f"""
        upstream nodes {{ {servers} keepalive 200; keepalive_requests 1000000000; }}
        server {{
            listen 127.0.0.1:{port} backlog=1024;
            location = /route {{ default_type application/json; return 200 '{_DECISION}'; }}
            location / {{
                proxy_pass http://nodes;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_buffering off;
            }}
        }}""",
    )


def _config(folder: Path, servers: str) -> str:
    # The body buffer holds the largest prompt, so that no request touches the disk.
    temp_paths = "\n        ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
    daemon off;
    worker_processes 1;
    pid {folder}/nginx.pid;
    error_log {folder}/error.log;
    events {{ worker_connections 4096; }}
    http {{
        access_log off;
        client_body_buffer_size 64k;
        keepalive_requests 1000000000;
        {temp_paths}
        {servers}
    }}
    """
