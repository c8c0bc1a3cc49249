"""``manage.py upstash_dev_server``: for development, before the site's Redis or one of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command

from redis_infra.connection.embedded import free_port
from redis_infra.kv.upstash_store import UpstashStore

RUN = """
import sys, tests.settings
tests.settings.DEBUG = True
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "upstash_dev_server", *sys.argv[1:]])
"""
PREFIX = "export "


class Running:
    """The command as a process of its own; what it told to export is in ``environment``."""

    def __init__(self, *args, **variables):
        left_out = ("REDIS_URL", "REDIS_HOST", "KV_URL")
        environ = {name: value for name, value in os.environ.items() if name not in left_out}
        environ |= {"DJANGO_SETTINGS_MODULE": "tests.settings", **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
        )  # fmt: skip
        self.said, self.environment = "", {}
        while "UPSTASH_REDIS_REST_TOKEN" not in self.environment:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self.said += line
            if line.startswith(PREFIX):
                name, _, value = line.removeprefix(PREFIX).strip().partition("=")
                self.environment[name] = value

    def store(self):
        url, token = (self.environment[f"UPSTASH_REDIS_REST_{name}"] for name in ("URL", "TOKEN"))
        return UpstashStore("ri:kv:", url, token, command_timeout=20.0)

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        said, complained = self.process.communicate(timeout=30)
        self.said += said
        return self.process.returncode, complained

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def refused(*args, **variables):
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **variables}
    return subprocess.run(
        [sys.executable, "-c", RUN, *args],
        check=False,
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
    )


def test_it_serves_the_sites_redis(redis_server):
    with Running("--port", "0", REDIS_URL=redis_server.url) as server, server.store() as store:
        store.set("k", "v")
        assert redis_server.command("GET", "ri:kv:k") == b"v"


def test_without_a_redis_it_has_one_of_its_own():
    with Running("--port", "0") as server, server.store() as store:
        assert "keeps nothing" in server.said
        assert store.incr("n") == 1


def test_what_it_tells_to_export_does_not_send_it_before_itself(redis_server):
    with Running("--port", "0", REDIS_URL=redis_server.url) as first:
        exported = {**first.environment, "REDIS_PROVIDER": "upstash"}
        with Running("--port", "0", **exported) as second, second.store() as store:
            assert store.ping()


def test_another_redis_may_be_named(redis_server):
    with Running("--port", "0", "--redis", redis_server.url) as server, server.store() as store:
        store.set("k", "v")
        assert redis_server.command("GET", "ri:kv:k") == b"v"


def test_port_and_tokens_may_be_chosen(redis_server):
    port = free_port()
    words = (
        "--port",
        str(port),
        "--token",
        "mine",
        "--read-only-token",
        "reads",
        "--redis",
        redis_server.url,
    )
    with Running(*words) as server:
        assert server.environment["UPSTASH_REDIS_REST_URL"] == f"http://127.0.0.1:{port}"
        assert server.environment["UPSTASH_REDIS_REST_TOKEN"] == "mine"
        with UpstashStore("ri:kv:", f"http://127.0.0.1:{port}", "reads", command_timeout=20.0) as store:
            assert store.get("k") is None


def test_ctrl_c_ends_it_without_a_word():
    with Running("--port", "0") as server, server.store() as store:
        assert store.ping()  # with a connection open
        assert server.interrupt() == (0, "")


def test_the_password_of_redis_is_not_shown(own_redis):
    redis = own_redis(unix_socket=False, config={"requirepass": "s3cret"})
    url = f"redis://:s3cret@127.0.0.1:{redis.url.rpartition(':')[2]}"
    with Running("--port", "0", "--redis", url) as server, server.store() as store:
        assert store.ping()
        assert "s3cret" not in server.said


def test_it_is_refused_unless_debug(settings):
    settings.DEBUG = False
    with pytest.raises(CommandError, match="DEBUG only") as caught:
        call_command("upstash_dev_server")
    assert caught.value.returncode == 2


def test_a_port_that_is_taken_is_told(redis_server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused("--port", str(taken.getsockname()[1]), "--redis", redis_server.url)
    assert done.returncode == 2
    assert "take another one" in done.stderr


@pytest.mark.parametrize("port", ["-1", "70000"])
def test_a_port_that_is_none_is_told(redis_server, port):
    done = refused("--port", port, "--redis", redis_server.url)
    assert (done.returncode, "take another one" in done.stderr) == (2, True)


def test_a_redis_that_does_not_answer_is_told():
    done = refused("--redis", f"redis://:s3cret@127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert "s3cret" not in done.stderr


def test_what_it_cannot_stand_before_is_told():
    done = refused("--redis", "redis+cluster://127.0.0.1:7000")
    assert (done.returncode, "cannot stand before that" in done.stderr) == (2, True)
