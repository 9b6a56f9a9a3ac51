"""nginx beside the router: unprivileged, on loopback, in its own folder."""

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import nginx

CONFIGS = {
    "nodes": lambda folder: nginx.nodes_config(folder, (9001, 9002)),
    "front": lambda folder: nginx.front_config(folder, 9000, (9001, 9002)),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@every_config
def test_it_listens_on_loopback_only(config):
    listens = re.findall(r"listen (\S+)", config(Path("/there")))

    assert listens
    assert all(listen.startswith("127.0.0.1:") for listen in listens)


@every_config
def test_everything_it_writes_is_in_its_folder(config):
    paths = re.findall(r"(?:_path|pid|error_log) (\S+);", config(Path("/there")))

    assert len(paths) == 7
    assert all(path.startswith("/there/") for path in paths)


def test_the_front_knows_every_node_and_keeps_connections():
    config = nginx.front_config(Path("/there"), 9000, (9001, 9002))

    assert "server 127.0.0.1:9001; server 127.0.0.1:9002;" in config
    assert "keepalive 200;" in config
    assert 'proxy_set_header Connection "";' in config


@pytest.mark.skipif(nginx.binary() is None, reason="nginx is not installed")
@every_config
def test_nginx_itself_accepts_the_config(config, tmp_path):
    command = nginx.command(str(nginx.binary()), tmp_path, config(tmp_path))

    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=20, check=False)

    assert checked.returncode == 0, checked.stderr
