"""What the benchmark of the query cache fills its servers with is what the real functions store."""

from __future__ import annotations

import pytest

from benchmarks.contest import WrongAnswerError
from benchmarks.peers import DJANGO_REDIS, OURS
from benchmarks.querycache_peers import CACHEOPS, is_installed, site
from benchmarks.querycache_stock import PAGES, STOCKS, Ours, Stock
from benchmarks.server import private_server


@pytest.fixture
def stock(request, tmp_path):
    name = request.param
    if not is_installed(name):
        pytest.skip(f"{name} is not installed on this machine")
    with private_server() as server, site({"default": server.url}, str(tmp_path)):
        it = STOCKS[name](2, server.url, "default")
        yield it
        it.close()


@pytest.mark.parametrize("stock", STOCKS, indirect=True)
def test_a_copy_is_what_the_real_function_stores(stock: Stock):
    stock.prove()


@pytest.mark.parametrize("stock", STOCKS, indirect=True)
def test_a_difference_is_found(stock: Stock, monkeypatch):
    """One message too few."""
    store = type(stock).store
    monkeypatch.setattr(type(stock), "store", lambda self, calls: store(self, calls[:-1]))
    with pytest.raises(WrongAnswerError, match="something else than its copy"):
        stock.prove()


@pytest.mark.parametrize("stock", [OURS, DJANGO_REDIS, CACHEOPS], indirect=True)
def test_a_chat_is_forgotten_and_no_other(stock: Stock):
    stock.fill()
    before = stock.helper.dbsize()
    stock.forget_chat(1)
    gone = before - stock.helper.dbsize()
    # cacheops removes the set of what depends on the chat, too.
    assert gone == PAGES + (stock.name == CACHEOPS)


@pytest.mark.parametrize("stock", [OURS], indirect=True)
def test_ours_looks_at_no_other_keys_and_at_all_of_them_once_the_index_is_lost(stock: Ours):
    """What is timed is the index, and not the way back to it."""
    stock.fill()
    stock.helper.config_resetstat()
    stock.forget_chat(1)
    assert "cmdstat_scan" not in stock.helper.info("commandstats")
    stock.store_chat(1)
    stock.lose_index()
    stock.forget_chat(1)
    assert "cmdstat_scan" in stock.helper.info("commandstats")


@pytest.mark.parametrize("stock", [OURS], indirect=True)
def test_the_index_does_not_keep_what_is_gone(stock: Ours):
    stock.begin()
    assert 1.0 <= stock.turn_over(2000, 5) <= 1.5
