"""``Link``: one blocking connection: what it says first, how long it waits, and what it says of silence."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time

import pytest
from redis import exceptions as redis_errors

from redis_infra.connection import resolver as resolver_module
from redis_infra.connection.failures import LinkClosed, LinkTimeout, classify
from redis_infra.connection.wire import pack
from redis_infra.resilience.faults import Fault
from redis_infra.testing import TcpProxy
from tests.faults.site import MARGIN, wait_until
from tests.redis.conftest import Peer

PING = pack("PING")
GET = pack("GET", "k")
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
SHORT = 0.1
"""Seconds of a timeout that is to pass."""


@pytest.fixture(params=["tcp", "unix"])
def server(request, own_redis):
    return own_redis(unix_socket=request.param == "unix")


@pytest.fixture
def link(server, open_one):
    return open_one(server.url)


@pytest.fixture
def proxy(own_redis):
    with TcpProxy(own_redis().url) as proxy:
        yield proxy


@pytest.fixture(params=["kernel", "python"])
def short(request, proxy, open_one):
    """A link with a short timeout, which the kernel or Python watches; it has been used before."""
    link = open_one(proxy.url, command_timeout=SHORT)
    link.keep_time(in_kernel=request.param == "kernel")
    link.used_at = time.monotonic()
    return link


class Clock:
    """How long a block took."""

    def __enter__(self):
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc_info):
        self.seconds = time.monotonic() - self._began


class TestTalking:
    def test_a_command_gets_its_reply(self, link):
        assert link.call(pack("SET", "k", b"\x00\xff")) == b"OK"
        assert link.call(GET) == b"\x00\xff"
        assert link.call(pack("INCR", "n")) == 1
        assert link.call(pack("MGET", "k", "nothing")) == [b"\x00\xff", None]

    def test_an_error_reply_is_returned(self, link):
        link.call(pack("SET", "k", "v"))
        error = link.call(pack("LPUSH", "k", "v"))
        assert isinstance(error, redis_errors.ResponseError)
        assert link.call(PING) == b"PONG"

    def test_several_in_one_write_get_theirs_in_order(self, link):
        packed = pack("SET", "k", 1) + pack("LPUSH", "k", 1) + pack("GET", "k")
        ok, error, value = link.call_many(packed, 3)
        assert (ok, value) == (b"OK", b"1")
        assert "WRONGTYPE" in str(error)

    def test_more_replies_than_one_read_takes_arrive_too(self, link):
        link.call(pack("SET", "k", b"x" * 50_000))
        replies = link.call_many(GET * 20, 20)
        assert [len(reply) for reply in replies] == [50_000] * 20

    def test_a_value_larger_than_any_buffer_passes(self, link):
        value = os.urandom(20_000_000)
        assert link.call(pack("SET", "k", value)) == b"OK"
        assert link.call(GET) == value
        assert link.call(PING) == b"PONG"

    def test_redis_py_can_use_it_too(self, link):
        """A pool lends the same connections to raw clients."""
        link.keep_time(in_kernel=False)
        link.send_command("SET", "k", "v")
        assert link.read_response() == b"OK"
        link.keep_time(in_kernel=True)
        assert link.call(GET) == b"v"


class TestGreeting:
    def test_it_is_one_round_trip(self, proxy, open_one):
        open_one(proxy.url + "?client_name=web", identify=True)
        assert proxy.round_trips == 1

    def test_the_server_says_who_it_is_and_which_connection_this_is(self, server, open_one):
        link = open_one(server.url, identify=True)
        assert link.call(pack("CLIENT", "ID")) == link.facts.connection_id
        info = server.command("INFO", "server").decode()
        assert f"run_id:{link.facts.run_id}\r\n" in info
        assert link.facts.version in info

    def test_the_database_and_the_name_are_as_asked(self, proxy, open_one):
        link = open_one(proxy.url.replace("/0", "/3") + "?client_name=web")
        info = link.call(pack("CLIENT", "INFO")).decode()
        assert " name=web " in info
        assert " db=3 " in info

    def test_a_password_is_said(self, own_redis, open_one):
        server = own_redis(unix_socket=False, config={"requirepass": "s:cr@t"})
        link = open_one(server.url.replace("redis://", "redis://:s%3Acr%40t@"))
        assert link.call(PING) == b"PONG"

    @pytest.mark.parametrize("userinfo", ["", ":wrong@", "nobody:wrong@"])
    def test_a_wrong_one_is_a_matter_of_configuration(self, own_redis, open_one, userinfo):
        server = own_redis(unix_socket=False, config={"requirepass": "secret"})
        with pytest.raises(redis_errors.RedisError) as caught:
            open_one(server.url.replace("redis://", f"redis://{userinfo}"))
        assert classify(caught.value).fault is Fault.MISCONFIGURED

    def test_so_is_a_database_that_there_is_not(self, own_redis, open_one):
        server = own_redis(unix_socket=False, config={"databases": "2"})
        with pytest.raises(redis_errors.ResponseError) as caught:
            open_one(server.url.replace("/0", "/5"))
        assert classify(caught.value).fault is Fault.MISCONFIGURED

    def test_a_server_that_does_not_know_hello_is_greeted_in_the_old_way(self, own_redis, open_one):
        server = own_redis(unix_socket=False, config={"rename-command": 'HELLO ""', "requirepass": "secret"})
        link = open_one(server.url.replace("redis://", "redis://:secret@").replace("/0", "/2"), identify=True)
        assert link.facts.connection_id is None
        assert " db=2 " in link.call(pack("CLIENT", "INFO")).decode()

    def test_so_is_one_whose_acl_forbids_it(self, own_redis, open_one):
        server = own_redis(unix_socket=False, config={"user": "default on nopass ~* &* +@all -hello"})
        assert open_one(server.url).call(PING) == b"PONG"

    def test_somebody_elses_port_is_found_out(self, proxy, open_one):
        proxy.http()
        with pytest.raises(redis_errors.InvalidResponse) as caught:
            open_one(proxy.url)
        assert classify(caught.value).fault is Fault.MISCONFIGURED


class TestConnecting:
    def test_a_port_that_refuses_is_said_at_once(self, open_one, proxy):
        proxy.refuse()
        with pytest.raises(redis_errors.ConnectionError) as caught:
            open_one(proxy.url)
        failure = classify(caught.value)
        assert (failure.fault, failure.executed) == (Fault.UNREACHABLE, False)

    def test_so_is_a_socket_file_that_is_not_there(self, open_one, tmp_path):
        with pytest.raises(redis_errors.ConnectionError) as caught:
            open_one(f"unix://{tmp_path}/none.sock")
        assert classify(caught.value).executed is False

    def test_one_that_takes_nobody_is_waited_for_no_longer_than_asked(self, open_one):
        with full_house() as port, Clock() as took, pytest.raises(redis_errors.TimeoutError) as caught:
            open_one(f"redis://127.0.0.1:{port}", connect_timeout=SHORT)
        failure = classify(caught.value)
        assert (failure.fault, failure.executed) == (Fault.TIMEOUT, False)
        assert took.seconds < SHORT * 2 * MARGIN

    def test_one_that_takes_everybody_and_says_nothing_too(self, open_one, proxy):
        proxy.drop()
        with Clock() as took, pytest.raises(redis_errors.TimeoutError) as caught:
            open_one(proxy.url, command_timeout=SHORT)
        assert classify(caught.value).executed is False
        assert took.seconds < SHORT * 2 * MARGIN

    def test_all_addresses_of_a_name_are_tried(self, own_redis, open_one, monkeypatch):
        server = own_redis(unix_socket=False)
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            names = [bound.getsockname(), ("127.0.0.1", server.port)]
            monkeypatch.setattr(
                resolver_module.socket,
                "getaddrinfo",
                lambda *args: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", name) for name in names],
            )
            assert open_one(f"redis://redis.example:{server.port}/0").call(PING) == b"PONG"

    @pytest.mark.parametrize("error", [[], socket.gaierror(socket.EAI_NONAME, "Name or service not known")])
    def test_a_name_without_any_is_unreachable(self, open_one, monkeypatch, error):
        def getaddrinfo(*args):
            if error:
                raise error
            return []

        monkeypatch.setattr(resolver_module.socket, "getaddrinfo", getaddrinfo)
        with pytest.raises(redis_errors.ConnectionError) as caught:
            open_one("redis://redis.example:6379/0")
        assert classify(caught.value).fault is Fault.UNREACHABLE


@contextlib.contextmanager
def full_house():
    """A port whose queue is full: the system lets a new connection wait until its client gives up."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        waiting = select.poll()
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            waiting.register(client, select.POLLOUT)
        wait_until(lambda: waiting.poll(0), 5)
        yield listener.getsockname()[1]


class TestDeadline:
    def test_a_server_that_is_silent_is_waited_for_as_long_as_asked(self, proxy, short):
        proxy.hold()
        with Clock() as took, pytest.raises(LinkTimeout) as caught:
            short.call(PING)
        assert SHORT * 0.9 < took.seconds < SHORT * MARGIN
        assert caught.value.executed is None

    def test_the_link_is_of_no_more_use_then(self, proxy, short):
        """The reply may come yet, and would be taken for another command's."""
        proxy.hold()
        with pytest.raises(LinkTimeout):
            short.call(PING)
        proxy.heal()
        assert short.unanswered
        assert not short.is_usable()

    def test_a_reply_that_drips_is_bounded_as_a_whole(self, proxy, short):
        """A timeout for each byte would let this one take a minute."""
        short.call(pack("SET", "k", "x" * 1000))
        proxy.drip(1, SHORT / 2)
        with Clock() as took, pytest.raises(LinkTimeout) as caught:
            short.call(GET)
        assert took.seconds < SHORT * 2 * MARGIN
        assert caught.value.executed is None

    def test_one_that_comes_in_pieces_and_in_time_is_read(self, proxy, open_one):
        link = open_one(proxy.url)
        link.call(pack("SET", "k", "x" * 100))
        proxy.drip(10, 0.002)
        assert link.call(GET) == b"x" * 100
        assert link.call_many(GET * 2, 2) == [b"x" * 100] * 2

    def test_after_such_a_one_the_next_wait_is_as_long_as_the_first(self, proxy, short):
        short.call(pack("SET", "k", "x" * 100))
        proxy.drip(40, 0.001)
        with contextlib.suppress(LinkTimeout):  # a busy machine
            short.call(GET)
            timeout = short._sock.gettimeout()
            assert timeout in (None, SHORT)
            assert timeout == short.timeout

    @pytest.mark.parametrize("first", [7, 10], ids=["between two replies", "in the middle of one"])
    def test_of_several_replies_the_last_is_waited_for_no_longer(self, proxy, short, first):
        proxy.drip(first, 60)
        with Clock() as took, pytest.raises(LinkTimeout) as caught:
            short.call_many(PING * 3, 3)
        assert took.seconds < SHORT * 2 * MARGIN
        assert caught.value.executed is None

    def test_a_large_reply_may_take_as_long_as_its_size_does(self, open_one):
        """Or 100 MB would look like an outage, and twice that would be one."""
        size, over = 20_000_000, threading.Event()

        def act(client):
            client.recv(1000)
            client.sendall(b"$%d\r\n" % size + b"x" * (size - 1))
            over.wait(SHORT * 1.5)  # past the deadline of a small one
            client.sendall(b"x\r\n")

        with Peer(act) as peer:
            link = open_one(peer.url, command_timeout=SHORT)
            with Clock() as took:
                assert link.call(GET) == b"x" * size
            assert took.seconds > SHORT

    def test_a_large_command_may_take_longer_to_be_answered(self, proxy, short):
        proxy.delay(SHORT * 0.75)
        assert short.call(pack("SET", "k", b"x" * 20_000_000)) == b"OK"

    def test_one_that_nobody_answers_is_given_up_in_its_time_too(self, proxy, short):
        proxy.hold()
        with Clock() as took, pytest.raises(LinkTimeout) as caught:
            short.call(pack("SET", "k", b"x" * 2_000_000))
        assert took.seconds < SHORT * 2 * MARGIN
        assert caught.value.executed is None

    def test_a_patient_link_waits_as_long_as_the_command_asks(self, proxy, open_one):
        """For BLPOP and Pub/Sub."""
        link = open_one(proxy.url, patient=True, command_timeout=SHORT)
        link.send_command("BLPOP", "nothing", SHORT * 3)
        assert link.read_response() is None


class Telling:
    """A socket that says when something has been sent."""

    def __init__(self, sock, sent):
        self._sock = sock
        self._sent = sent

    def sendall(self, data):
        self._sock.sendall(data)
        self._sent.set()

    def __getattr__(self, name):
        return getattr(self._sock, name)


class TestHeldUp:
    """A deadline that fires late means that we were held up ourselves, and says nothing about Redis."""

    @pytest.mark.parametrize("in_kernel", [True, False], ids=["kernel", "python"])
    def test_a_reply_that_came_while_our_thread_did_not_run_is_read(self, own_redis, open_one, in_kernel):
        """The other thread keeps the interpreter to itself until the reply lies in the socket."""
        server = own_redis(unix_socket=False)
        link = open_one(server.url, command_timeout=SHORT)
        link.keep_time(in_kernel=in_kernel)
        link.call(PING)
        server.freeze()
        answers, pid, sent = [], server.pid, threading.Event()
        link._sock = Telling(link._sock, sent)

        def ask():
            try:
                answers.append(link.call(PING))
            except LinkTimeout as error:
                answers.append(error)

        thread = threading.Thread(target=ask)
        with keeping_the_interpreter():
            thread.start()
            assert sent.wait(30)  # the last time that the other one gets to run
            deadline, descriptor = time.monotonic() + SHORT * 2, link._sock.fileno()
            spin_until(lambda: time.monotonic() > deadline)
            os.kill(pid, signal.SIGCONT)
            spin_until(lambda: waiting_in(descriptor))
        thread.join(5)
        assert answers == [b"PONG"]

    def test_nothing_that_came_meanwhile_is_silence(self, own_redis, open_one):
        server = own_redis(unix_socket=False)
        link = open_one(server.url, command_timeout=SHORT)
        server.freeze()
        with pytest.raises(LinkTimeout):
            link.call(PING)

    def test_half_a_reply_that_came_meanwhile_is_too_little(self, proxy, short):
        short.call(pack("SET", "k", "x" * 1000))
        proxy.drip(100, 60)
        with Clock() as took, pytest.raises(LinkTimeout):
            short.call(GET)
        assert took.seconds < SHORT * 2 * MARGIN

    @pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "closed"])
    def test_the_end_of_the_connection_that_came_meanwhile_is_no_timeout(self, open_one, is_reset):
        """A large command waits a second time, for its size, and learns then that nobody is there."""
        size = 20_000_000
        packed = pack("SET", "k", b"x" * size)
        with Peer(lambda client: end_late(client, len(packed), is_reset=is_reset)) as peer:
            link = open_one(peer.url, command_timeout=SHORT)
            with pytest.raises(LinkClosed) as caught:
                link.call(packed)
        assert caught.value.executed is None


def end_late(client, size, *, is_reset):
    """Take a command of so many bytes, and hang up when a small one's deadline is over."""
    while size:
        size -= len(client.recv(min(size, 1 << 20)))
    threading.Event().wait(SHORT * 1.5)
    if is_reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


@contextlib.contextmanager
def keeping_the_interpreter():
    """Other threads get to run only when this one waits, and not every few milliseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def spin_until(predicate, patience=10.0):
    """As `wait_until`, but without letting another thread run."""
    deadline = time.monotonic() + patience
    while not predicate():
        assert time.monotonic() < deadline


def waiting_in(descriptor):
    """How many bytes wait to be read; asked without letting another thread run, unlike with ``fcntl``."""
    count = ctypes.c_int()
    ctypes.PyDLL(None).ioctl(descriptor, termios.FIONREAD, ctypes.byref(count))
    return count.value


class TestBreaking:
    def test_half_a_reply_and_then_nothing_may_have_been_executed(self, proxy, short):
        short.call(pack("SET", "k", "x" * 1000))
        proxy.half_reply(100, request=b"GET")
        with pytest.raises(LinkClosed) as caught:
            short.call(GET)
        assert caught.value.executed is None
        assert short.unanswered

    def test_so_may_one_whose_reply_was_lost(self, proxy, short):
        proxy.lose_replies(request=b"INCR")
        with pytest.raises(LinkClosed) as caught:
            short.call(pack("INCR", "n"))
        assert caught.value.executed is None

    def test_so_may_several_of_which_one_was_answered(self, proxy, short):
        proxy.half_reply(7, request=b"PING")
        with pytest.raises(LinkClosed) as caught:
            short.call_many(PING * 2, 2)
        assert caught.value.executed is None

    def test_so_may_one_that_the_server_only_hung_up_on(self, open_one):
        with Peer(lambda client: (client.recv(1000), client.close())) as peer:
            link = open_one(peer.url)
            with pytest.raises(LinkClosed, match="closed by server") as caught:
                link.call(PING)
        assert caught.value.executed is None

    def test_a_link_that_was_idle_had_gone_stale(self, proxy, open_one):
        link = open_one(proxy.url)
        link.used_at = time.monotonic()
        proxy.reset()
        with pytest.raises(LinkClosed) as caught:
            link.call(PING)
        assert caught.value.stale

    def test_one_that_is_new_had_not(self, proxy, open_one):
        link = open_one(proxy.url)
        proxy.reset()
        with pytest.raises(LinkClosed) as caught:
            link.call(PING)
        assert not caught.value.stale

    def test_what_could_not_even_be_sent_was_not_executed(self, proxy, open_one):
        link = open_one(proxy.url)
        proxy.reset()
        with pytest.raises(LinkClosed) as caught:  # the system takes one more packet before it says so
            link.call(pack("SET", "k", b"x" * 20_000_000))
        assert caught.value.executed is False

    def test_on_a_closed_link_nothing_is_sent(self, link):
        link.close_link()
        with pytest.raises(LinkClosed) as caught:
            link.call(PING)
        assert caught.value.executed is False

    def test_closing_twice_is_as_once(self, link):
        link.close_link()
        link.close_link()
        assert not link.is_usable()

    def test_an_answer_that_is_none_of_redis_closes_it(self, proxy, open_one):
        link = open_one(proxy.url)
        proxy.http()
        with pytest.raises(redis_errors.InvalidResponse):
            link.call(PING)
        assert not link.is_usable()

    def test_a_caller_who_is_interrupted_leaves_no_half_used_link(self, proxy, open_one):
        link = open_one(proxy.url)
        proxy.hold()
        sent = proxy.bytes
        with interrupted_when(lambda: proxy.bytes > sent), pytest.raises(KeyboardInterrupt):
            link.call(PING)
        assert link.unanswered
        assert not link.is_usable()

    def test_nor_does_one_who_had_the_first_of_two_replies(self, proxy, open_one):
        link = open_one(proxy.url)
        proxy.drip(7, 60)
        answered = proxy.round_trips
        with interrupted_when(lambda: proxy.round_trips > answered), pytest.raises(KeyboardInterrupt):
            link.call_many(PING * 2, 2)
        assert link.unanswered
        assert not link.is_usable()


@contextlib.contextmanager
def interrupted_when(condition):
    """Interrupt the main thread, as Ctrl-C does, once ``condition`` holds and the thread is waiting."""
    signal_number = signal.SIGUSR1
    before = signal.signal(signal_number, signal.default_int_handler)
    main, over = threading.get_ident(), threading.Event()

    def interrupt():
        wait_until(condition, 10)
        while not over.wait(0.02):  # until it took effect: the first may come before the wait
            signal.pthread_kill(main, signal_number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)
        signal.signal(signal_number, before)


class TestIdle:
    def test_a_link_that_is_open_and_silent_is_usable(self, link):
        link.call(PING)
        assert link.is_usable()

    def test_one_that_the_server_has_closed_is_not(self, server, link):
        server.command("CLIENT", "KILL", "ID", link.facts.connection_id)
        wait_until(lambda: not link.is_usable(), 5)

    def test_nor_one_on_which_something_has_come_unasked(self, link):
        """The next command would take it for its reply."""
        link._sock.sendall(PING)
        wait_until(lambda: not link.is_usable(), 5)


class TestTls:
    def test_commands_and_replies_pass(self, tls_url, open_one):
        link = open_one(tls_url, identify=True)
        assert link.call(PING) == b"PONG"
        assert link.is_usable()
        assert link.facts.run_id

    def test_large_ones_too(self, tls_url, open_one):
        value = os.urandom(3_000_000)
        link = open_one(tls_url)
        assert link.call(pack("SET", "k", value)) == b"OK"
        assert link.call_many(GET * 2, 2) == [value] * 2

    def test_the_deadline_holds(self, tls_url, open_one):
        with TcpProxy(tls_url) as proxy:
            link = open_one(proxy.url, command_timeout=SHORT)
            with contextlib.suppress(LinkTimeout):  # a busy machine
                link.call(pack("SET", "k", "x" * 1000))
            proxy.drip(1, SHORT / 2)
            with Clock() as took, pytest.raises((LinkTimeout, LinkClosed)):
                link.call(GET)
            assert took.seconds < SHORT * 2 * MARGIN

    def test_redis_py_can_use_it_too(self, tls_url, open_one):
        link = open_one(tls_url)
        link.send_command("PING")
        assert link.read_response() == b"PONG"
        assert link.call(PING) == b"PONG"

    def test_a_certificate_that_is_not_trusted_is_refused(self, tls_url, open_one):
        with pytest.raises(redis_errors.ConnectionError, match="certificate verify failed") as caught:
            open_one(tls_url.partition("?")[0])
        assert classify(caught.value).executed is False

    def test_one_for_another_name_is_too(self, tls_url, open_one, monkeypatch):
        real = socket.getaddrinfo
        monkeypatch.setattr(
            resolver_module.socket, "getaddrinfo", lambda host, *args: real("127.0.0.1", *args)
        )
        with pytest.raises(redis_errors.ConnectionError, match="certificate verify failed"):
            open_one(tls_url.replace("127.0.0.1", "other.example"))

    def test_what_is_left_of_a_record_waits_to_be_read_too(self, tls_url, open_one):
        """The socket is silent then, because TLS has taken it in already."""
        link = open_one(tls_url)
        link._sock.sendall(PING)
        assert link._sock.recv(1) == b"+"
        assert not link.is_usable()

    def test_a_server_without_it_is_found_out(self, proxy, open_one):
        with pytest.raises(redis_errors.RedisError):
            open_one(proxy.url.replace("redis://", "rediss://"), command_timeout=0.2, connect_timeout=0.2)
