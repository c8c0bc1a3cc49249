"""What stands in the way of STATE_DIR: then everything stays in memory, said once, and the site is up."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.outages import Outage
from tests.faults.site import MARGIN, Site, SiteProcess, wait_until
from tests.faults.test_stale import let_know, let_notice

NOBODY = 65534
RECOVERED = 5.0 * MARGIN

IS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def outage(make_outage: Any) -> Outage:
    return make_outage("refused")


@pytest.fixture
def site(outage: Outage, make_site: Any) -> Site:
    return make_site(outage.url)


def files(site: Site) -> list[Path]:
    directory = Path(site.state_dir)
    return sorted(directory.iterdir()) if directory.is_dir() else []


def journals(site: Site) -> list[Path]:
    return [path for path in files(site) if path.name.startswith("journal-")]


def survive_an_outage(process: SiteProcess, outage: Outage) -> None:
    """In memory: the process itself serves nothing stale."""
    let_know(process)
    outage.begin()
    let_notice(process)
    assert process.delete("k") in (True, False)
    process.set("k2", "v")
    assert process.get("k2") == "v"
    outage.end()
    assert process.get("k") is None
    wait_until(process.is_well, RECOVERED)
    assert process.get("k") is None


def warnings_about_the_directory(process: SiteProcess) -> list[str]:
    return [text for level, text in process.logs() if level == "WARNING" and "state_dir" in text]


def somebody_elses(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY, NOBODY)


def open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def a_link(path: Path) -> None:
    real = path.with_name("real")
    real.mkdir(mode=0o700)
    path.symlink_to(real)


def a_file(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    "spoil",
    [pytest.param(somebody_elses, marks=IS_ROOT), open_to_others, a_link, a_file],
)
def test_a_directory_that_cannot_be_trusted(
    spoil: Callable[[Path], None], site: Site, outage: Outage
) -> None:
    spoil(Path(site.state_dir))
    process = site.process()
    survive_an_outage(process, outage)
    assert len(warnings_about_the_directory(process)) == 1
    assert not Path(site.state_dir).is_dir() or files(site) == []


@IS_ROOT
def test_a_directory_that_cannot_be_written(server: Any, make_site: Any) -> None:
    """As on a read-only file system: it is there, it is ours, and it takes nothing."""
    from redis_infra.testing import TcpProxy

    with TcpProxy(server.url) as proxy:
        outage = Outage(server, proxy, "refused")
        site = make_site(outage.url)
        directory = Path(site.state_dir)
        directory.mkdir(mode=0o500)
        os.chown(directory, NOBODY, NOBODY)
        for parent in list(directory.parents)[:3]:
            parent.chmod(0o755)
        process = site.process(user=NOBODY)
        survive_an_outage(process, outage)
        assert len(warnings_about_the_directory(process)) == 1


def test_a_directory_that_cannot_be_made(outage: Outage, make_site: Any) -> None:
    site = make_site(outage.url, STATE_DIR="/proc/redis_infra")
    process = site.process()
    survive_an_outage(process, outage)
    assert len(warnings_about_the_directory(process)) == 1


def test_a_full_disk(site: Site, outage: Outage) -> None:
    process = site.process(file_size=200)
    let_know(process)
    process.set_numbered("n", 50, "old")
    outage.begin()
    let_notice(process)
    process.delete_numbered("n", 50)
    outage.end()
    names = [f"n{number}" for number in range(50)]
    assert process.get_many(names) == {}
    wait_until(process.is_well, RECOVERED)
    assert process.get_many(names) == {}
    assert len(warnings_about_the_directory(process)) == 1


def test_a_disk_without_room_for_a_byte(site: Site, outage: Outage) -> None:
    process = site.process(file_size=0)
    survive_an_outage(process, outage)
    assert len(warnings_about_the_directory(process)) == 1


def test_a_torn_last_line(site: Site, outage: Outage) -> None:
    """A process died while it wrote: what it wrote before counts, the half line does not."""
    deleting, reading = site.processes(2)
    let_know(deleting, reading, keys=("k", "torn"))
    outage.begin()
    let_notice(deleting)
    deleting.delete("k")
    (journal,) = journals(site)
    deleting.kill()
    with journal.open("ab") as file:
        file.write(b"Ksite:1:to")
    outage.end()
    newcomer = site.process()
    assert newcomer.get("k") is None
    wait_until(lambda: newcomer.is_well() and reading.get("k") is None, RECOVERED)
    assert newcomer.get("torn") == "old"
    wait_until(lambda: journals(site) == [], RECOVERED)


def test_damaged_lines_do_no_harm(site: Site, outage: Outage) -> None:
    deleting, reading = site.processes(2)
    let_know(deleting, reading, keys=("k", "k2"))
    outage.begin()
    let_notice(deleting)
    deleting.delete("k")
    (journal,) = journals(site)
    with journal.open("ab") as file:
        file.write(b"\x00\xff\nQwhat\nK\\q\n\n")
    deleting.delete("k2")
    deleting.kill()
    outage.end()
    newcomer = site.process()
    assert newcomer.get_many(["k", "k2"]) == {}
    wait_until(newcomer.is_well, RECOVERED)


def test_nobody_else_can_read_it_and_it_is_gone_when_drained(site: Site, outage: Outage) -> None:
    processes = site.processes(3)
    let_know(*processes)
    assert files(site) == []
    outage.begin()
    let_notice(*processes)
    for process in processes:
        process.delete("k")
    assert len(journals(site)) == 3
    assert stat.S_IMODE(os.stat(site.state_dir).st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(site)} == {0o600}
    outage.end()
    for process in processes:
        wait_until(process.is_well, RECOVERED)
    wait_until(lambda: files(site) == [], RECOVERED)


def test_it_names_keys_and_never_values(site: Site, outage: Outage) -> None:
    process = site.process()
    outage.begin()
    let_notice(process)
    process.set("name-of-a-key", "a-secret-value")
    text = b"".join(path.read_bytes() for path in files(site))
    assert b"name-of-a-key" in text
    assert b"a-secret-value" not in text
    outage.end()


def test_the_journals_of_the_dead_are_removed_once_they_are_drained(site: Site, outage: Outage) -> None:
    first, second = site.processes(2)
    let_know(first, second)
    outage.begin()
    let_notice(first, second)
    first.delete("k")
    second.delete("k")
    first.kill()
    second.kill()
    assert len(journals(site)) == 2
    outage.end()
    newcomer = site.process()
    assert newcomer.get("k") is None
    wait_until(lambda: journals(site) == [], RECOVERED)


def test_a_directory_removed_in_the_outage_is_made_again(site: Site, outage: Outage) -> None:
    """A tidied temporary directory: what was in it is lost, what comes is not."""
    deleting, reading = site.processes(2)
    let_know(deleting, reading, keys=("k", "k2"))
    outage.begin()
    let_notice(deleting)
    deleting.delete("k")
    for path in files(site):
        path.unlink()
    Path(site.state_dir).rmdir()
    deleting.delete("k2")
    deleting.kill()
    outage.end()
    newcomer = site.process()
    assert newcomer.get_many(["k", "k2"]) == {}
    assert warnings_about_the_directory(newcomer) == []
