"""``TcpProxy``: what it does to connections, and what it counts."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from redis_infra.connection.plainsocket import PlainConnection, ServerError
from redis_infra.testing import TcpProxy

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"


def address(proxy: TcpProxy) -> tuple[str, int]:
    parts = urlsplit(proxy.url)
    return parts.hostname, parts.port


def connect(proxy: TcpProxy, timeout: float = 5.0) -> PlainConnection:
    return PlainConnection(address(proxy), timeout=timeout)


@contextlib.contextmanager
def plain_socket(proxy: TcpProxy):
    """A connection that has been through, so that the proxy knows of it."""
    with socket.create_connection(address(proxy), 5.0) as client:
        client.sendall(PING)
        assert client.recv(100) == PONG
        yield client


def received(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += client.recv(size - len(data))
    return data


def received_until_the_end(client: socket.socket) -> tuple[bytes, bool]:
    """What arrives, and whether a reset ends it (and not a close)."""
    data = b""
    try:
        while piece := client.recv(100):
            data += piece
    except ConnectionResetError:
        return data, True
    return data, False


@pytest.fixture(params=[True, False], ids=["unix", "tcp"])
def proxy(request, own_redis):
    """A proxy before a server of either kind."""
    with TcpProxy(own_redis(unix_socket=request.param).url) as proxy:
        yield proxy


class TestPassing:
    def test_commands_and_replies_pass(self, proxy):
        with connect(proxy) as connection:
            assert connection.call("SET", "k", "v") == "OK"
            assert connection.call("GET", "k") == b"v"

    def test_large_ones_too(self, redis_proxy):
        value = os.urandom(8_000_000)
        with connect(redis_proxy) as connection:
            connection.call("SET", "k", value)
            assert connection.call("GET", "k") == value

    def test_many_at_once(self, redis_proxy):
        def count(_):
            with connect(redis_proxy) as connection:
                return [connection.call("INCR", "n") for _ in range(20)]

        with ThreadPoolExecutor(16) as pool:
            seen = sorted(n for counted in pool.map(count, range(50)) for n in counted)
        assert seen == list(range(1, 1001))

    def test_a_client_that_leaves_leaves_the_server_too(self, redis_proxy, redis_server):
        with connect(redis_proxy) as connection:
            connection.call("CLIENT", "SETNAME", "through")
        redis_proxy.wait_until(lambda proxy: proxy.active == 0)
        with connect(redis_proxy) as connection:
            while b"name=through" in connection.call("CLIENT", "LIST"):
                pass

    def test_a_server_that_dies_ends_the_connection(self, own_redis):
        server = own_redis()
        with TcpProxy(server.url) as proxy, plain_socket(proxy) as client:
            server.kill()
            assert received_until_the_end(client)[0] == b""

    def test_a_server_that_is_down_is_a_reset(self, redis_down):
        """As where a balancer stands before it: whether connecting or asking fails is chance."""
        proxy = TcpProxy(redis_down.url)
        with proxy, pytest.raises(ConnectionError), connect(proxy) as connection:
            connection.call("PING")

    @pytest.mark.parametrize(
        ("upstream", "url"),
        [
            ("redis://localhost:6379/3", "redis://127.0.0.1:{}/3"),
            ("redis://me:p%40ss@redis.example:7000/1?x=y", "redis://me:p%40ss@127.0.0.1:{}/1?x=y"),
            ("rediss://:pw@redis.example", "rediss://:pw@127.0.0.1:{}"),
            ("unix:///run/redis.sock", "redis://127.0.0.1:{}/0"),
            ("unix://:pw@/run/redis.sock?db=5", "redis://:pw@127.0.0.1:{}/5"),
        ],
    )
    def test_its_url_is_the_servers_by_way_of_the_proxy(self, upstream, url):
        with TcpProxy(upstream) as proxy:
            assert proxy.url == url.format(urlsplit(proxy.url).port)


class TestCounting:
    def test_one_command_is_one_round_trip(self, redis_proxy):
        with connect(redis_proxy) as connection:
            for _ in range(5):
                connection.call("PING")
        assert redis_proxy.round_trips == 5

    def test_a_pipeline_is_one_round_trip(self, redis_proxy):
        with plain_socket(redis_proxy) as client:
            redis_proxy.reset_counts()
            client.sendall(PING * 10)
            assert received(client, len(PONG) * 10) == PONG * 10
        assert redis_proxy.round_trips == 1

    def test_a_request_in_pieces_is_one_round_trip(self, redis_proxy):
        with plain_socket(redis_proxy) as client:
            redis_proxy.reset_counts()
            for byte in PING:
                client.send(bytes([byte]))
            assert client.recv(100) == PONG
        assert redis_proxy.round_trips == 1

    def test_a_message_that_nobody_asked_for_is_none(self, redis_proxy, redis_server):
        with plain_socket(redis_proxy) as client:
            client.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n")
            assert b"subscribe" in client.recv(100)
            redis_proxy.reset_counts()
            redis_server.command("PUBLISH", "c", "hello")
            assert b"hello" in client.recv(100)
        assert redis_proxy.round_trips == 0

    def test_connections_and_how_many_are_open(self, redis_proxy):
        with connect(redis_proxy), connect(redis_proxy):
            redis_proxy.wait_until(lambda proxy: proxy.active == 2)
        redis_proxy.wait_until(lambda proxy: proxy.active == 0)
        assert redis_proxy.connections == 2

    def test_bytes_of_both_directions(self, redis_proxy):
        with plain_socket(redis_proxy):
            assert redis_proxy.bytes == len(PING) + len(PONG)

    def test_waiting_for_what_does_not_come_ends(self, redis_proxy):
        with pytest.raises(TimeoutError, match="connections=0"):
            redis_proxy.wait_until(lambda proxy: proxy.connections == 1, timeout=0.01)


class TestSlowness:
    def test_delay_is_for_each_direction(self, proxy):
        with connect(proxy) as connection:
            connection.call("PING")
            proxy.delay(0.03)
            began = time.monotonic()
            connection.call("PING")
            assert time.monotonic() - began >= 0.06

    def test_what_is_late_stays_in_order(self, redis_proxy):
        with plain_socket(redis_proxy) as client:
            redis_proxy.delay(0.03)
            client.sendall(b"*2\r\n$4\r\nECHO\r\n$1\r\n1\r\n")
            redis_proxy.wait_until(lambda proxy: proxy.bytes > 2 * len(PING))
            redis_proxy.delay(0.0)
            client.sendall(b"*2\r\n$4\r\nECHO\r\n$1\r\n2\r\n")
            assert received(client, 14) == b"$1\r\n1\r\n$1\r\n2\r\n"

    def test_heal_waits_for_nothing(self, redis_proxy):
        with connect(redis_proxy) as connection:
            redis_proxy.delay(3600.0)
            with ThreadPoolExecutor(1) as pool:
                reply = pool.submit(connection.call, "PING")
                redis_proxy.wait_until(lambda proxy: proxy.bytes == len(PING))
                redis_proxy.heal()
                assert reply.result() == "PONG"

    def test_drip_hands_on_a_little_at_a_time(self, proxy):
        with plain_socket(proxy) as client:
            proxy.drip(2, 3600.0)
            client.sendall(PING)
            assert client.recv(100) == PONG[:2]
            proxy.heal()
            assert received(client, len(PONG) - 2) == PONG[2:]

    def test_drip_takes_its_time(self, proxy):
        with connect(proxy) as connection:
            connection.call("PING")
            proxy.drip(2, 0.01)
            began = time.monotonic()
            assert connection.call("PING") == "PONG"
            assert time.monotonic() - began >= 0.03


class TestLoss:
    def test_hold_delivers_late_what_its_client_gave_up(self, proxy):
        """The danger of a network that comes back: a write is executed when nobody expects it any more."""
        with connect(proxy) as connection:
            connection.call("PING")
            proxy.hold()
            connection.timeout = 0.02
            with pytest.raises(TimeoutError):
                connection.call("SET", "k", "late")
        proxy.wait_until(lambda proxy: proxy.active == 0)
        with connect(proxy) as observer, ThreadPoolExecutor(1) as pool:
            first = pool.submit(observer.call, "GET", "k")
            proxy.heal()
            first.result()
            while observer.call("GET", "k") != b"late":
                pass

    def test_drop_swallows_and_takes_connections(self, proxy):
        with connect(proxy) as old:
            old.call("PING")
            proxy.drop()
            with connect(proxy) as new:
                for connection in (old, new):
                    connection.timeout = 0.02
                    with pytest.raises(TimeoutError):
                        connection.call("SET", "k", "v")
        proxy.heal()
        with connect(proxy) as connection:
            assert connection.call("GET", "k") is None

    def test_a_stream_that_lost_bytes_is_reset_when_healed(self, proxy):
        with plain_socket(proxy) as client:
            proxy.drop()
            client.sendall(PING)
            proxy.wait_until(lambda proxy: proxy.bytes > len(PING + PONG))
            proxy.heal()
            assert received_until_the_end(client) == (b"", True)

    def test_one_that_lost_nothing_goes_on(self, proxy):
        with plain_socket(proxy) as client:
            proxy.drop()
            proxy.heal()
            client.sendall(PING)
            assert client.recv(100) == PONG

    def test_while_it_drops_the_server_does_not_see_a_client_leave(self, proxy):
        with connect(proxy) as observer:
            with connect(proxy) as connection:
                connection.call("CLIENT", "SETNAME", "half-open")
                proxy.drop()
            proxy.wait_until(lambda proxy: proxy.active == 1)
            proxy.behaviour.drop = False  # look, without healing
            assert b"name=half-open" in observer.call("CLIENT", "LIST")
            proxy.heal()
            while b"name=half-open" in observer.call("CLIENT", "LIST"):
                pass


class TestResets:
    def test_reset_is_a_reset_and_once(self, proxy):
        with plain_socket(proxy) as client:
            proxy.reset()
            assert received_until_the_end(client) == (b"", True)
        with plain_socket(proxy):
            pass

    def test_it_reaches_the_server(self, proxy):
        with connect(proxy) as connection:
            connection.call("CLIENT", "SETNAME", "before")
            proxy.reset()
        with connect(proxy) as observer:
            while b"name=before" in observer.call("CLIENT", "LIST"):
                pass

    def test_new_connections_too_if_asked(self, proxy):
        proxy.reset(new=True)
        with pytest.raises(ConnectionResetError), connect(proxy) as connection:
            connection.call("PING")
        proxy.heal()
        with plain_socket(proxy):
            pass

    def test_half_a_reply_arrives_before_the_reset(self, proxy):
        with plain_socket(proxy) as client:
            proxy.half_reply(3)
            client.sendall(PING)
            assert received_until_the_end(client) == (PONG[:3], True)

    def test_half_a_reply_to_some_requests_only(self, proxy):
        proxy.half_reply(1, request=b"secret")
        with connect(proxy) as connection:
            assert connection.call("GET", "public") is None
            with pytest.raises(ConnectionResetError):
                connection.call("GET", "secret")

    def test_a_lost_reply_is_one_to_a_command_that_was_executed_once(self, proxy):
        proxy.lose_replies(2, request=b"INCR")
        for _ in range(2):
            with connect(proxy) as connection, pytest.raises(ConnectionResetError):
                connection.call("INCR", "n")
        with connect(proxy) as connection:
            assert connection.call("GET", "n") == b"2"
            assert connection.call("INCR", "n") == 3

    def test_faults_add_up(self, proxy):
        with plain_socket(proxy) as client:
            proxy.delay(0.02)
            proxy.half_reply(1)
            began = time.monotonic()
            client.sendall(PING)
            assert received_until_the_end(client) == (PONG[:1], True)
            assert time.monotonic() - began >= 0.04


class TestRefusal:
    def test_refuse_ends_and_refuses_connections(self, proxy):
        with plain_socket(proxy) as client:
            proxy.refuse()
            assert received_until_the_end(client) == (b"", True)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)

    def test_those_that_exist_may_go_on(self, proxy):
        with plain_socket(proxy) as client:
            proxy.refuse(keep=True)
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            client.sendall(PING)
            assert client.recv(100) == PONG

    def test_heal_listens_again_at_the_same_address(self, proxy):
        url = proxy.url
        for _ in range(3):
            proxy.refuse()
            proxy.heal()
            with plain_socket(proxy):
                pass
        assert proxy.url == url

    def test_http_is_what_answers_at_somebody_elses_port(self, proxy):
        with plain_socket(proxy) as client:
            proxy.http()
            client.sendall(PING)
            reply, _ = received_until_the_end(client)
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert proxy.round_trips == 1


class TestClosing:
    def test_nothing_is_left(self, redis_server, leak_check):
        with leak_check(redis_server), TcpProxy(redis_server.url) as proxy:
            connections = [connect(proxy) for _ in range(5)]
            for connection in connections:
                connection.call("PING")
            proxy.close()
            for connection in connections:
                connection.close()

    @pytest.mark.parametrize("fault", ["drop", "hold", "http", "refuse"])
    def test_in_the_middle_of_a_fault_too(self, redis_server, leak_check, fault):
        with leak_check(redis_server), TcpProxy(redis_server.url) as proxy, plain_socket(proxy) as client:
            getattr(proxy, fault)()
            with contextlib.suppress(OSError):
                client.sendall(PING)

    def test_with_late_bytes_on_their_way_too(self, redis_server, leak_check):
        with leak_check(redis_server), TcpProxy(redis_server.url) as proxy, plain_socket(proxy) as client:
            proxy.delay(3600.0)
            client.sendall(PING)
            proxy.wait_until(lambda proxy: proxy.bytes > len(PING + PONG))

    def test_twice_is_as_once_and_nothing_works_then(self, redis_server):
        proxy = TcpProxy(redis_server.url)
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        with pytest.raises(RuntimeError, match="closed"):
            proxy.drop()


def test_a_forked_child_keeps_no_connection_open(redis_proxy):
    """A reset ends a connection for its client even while a child of ours lives."""
    with plain_socket(redis_proxy) as client:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        redis_proxy.reset()
        assert received_until_the_end(client) == (b"", True)
        os.close(writing)
        os.waitpid(child, 0)


def test_it_is_safe_to_change_its_mind_under_load(redis_proxy):
    """No behaviour, in any order, wedges it: at the end every client is served again."""
    stop = threading.Event()

    def hammer():
        while not stop.is_set():
            with (
                contextlib.suppress(OSError, ServerError, ValueError),
                connect(redis_proxy, timeout=0.01) as client,
            ):
                while not stop.is_set():
                    client.call("INCR", "n")

    threads = [threading.Thread(target=hammer) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            for change in (
                redis_proxy.drop,
                redis_proxy.reset,
                lambda: redis_proxy.half_reply(1),
                redis_proxy.hold,
                redis_proxy.heal,
                redis_proxy.http,
                redis_proxy.refuse,
                lambda: redis_proxy.delay(0.001),
                redis_proxy.heal,
                lambda: redis_proxy.lose_replies(3),
                lambda: redis_proxy.drip(1, 0.001),
                redis_proxy.heal,
            ):
                change()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    with connect(redis_proxy) as connection:
        assert connection.call("PING") == "PONG"
