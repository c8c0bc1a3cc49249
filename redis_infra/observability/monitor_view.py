"""How a look of the monitor reads: in one line of text, or, with rich, as a screen.

rich is imported with the first screen and not before; it comes with the extra ``cli``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis_infra.durations import format_duration
from redis_infra.observability.frames import Event, Frame, LimitLoad, ServerLoad, TypeRate
from redis_infra.observability.health import AliasHealth

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["amount", "count", "one_line", "screen", "sparkline"]

BARS: Final = "▁▂▃▄▅▆▇█"
COLOURS: Final = {"pass": "green", "warn": "yellow", "fail": "red"}
MOST_LIMITS: Final = 8
MOST_TYPES: Final = 12
_WHO: Final = {
    "redis": "Redis",
    "host": "the processes of this host",
    "process": "each process for itself",
    "": "nobody asked yet",
}

# --- pieces ---------------------------------------------------------------------------------------------


def count(number: float | None) -> str:
    """Return a number for people: ``"12 904"``, ``"3.1"``, ``"0.04"``; ``"-"`` for None."""
    if number is None:
        return "-"
    if isinstance(number, float) and number < 100:
        return f"{number:.2f}" if 0 < number < 1 else f"{number:.1f}"
    return f"{number:,.0f}".replace(",", " ")


def amount(nbytes: int | None) -> str:
    """Return a size for people: ``"18.4 MB"``; ``"-"`` for None."""
    if nbytes is None:
        return "-"
    size = float(nbytes)
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GB"


def sparkline(history: Sequence[float | None]) -> str:
    """Return one character for each minute, from all misses to all hits; a space where nobody asked."""
    return "".join(
        " " if rate is None else BARS[min(int(rate * len(BARS)), len(BARS) - 1)] for rate in history
    )


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate * 100:.0f} %"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _state(health: AliasHealth) -> str:
    """Return the state of an alias, and for how long its workers have been without Redis."""
    since = [worker.since for worker in health.workers if worker.alive and worker.since]
    if health.state == "up" or not since:
        return health.state
    return f"{health.state} for {format_duration(max(time.time() - min(since), 0.0))}"


def _workers(health: AliasHealth) -> str:
    """Return what the processes of this host say, "" if they are well."""
    alive = [worker for worker in health.workers if worker.alive]
    if not alive:
        return ""
    pending, local = sum(each.pending for each in alive), sum(each.fallback_ops for each in alive)
    who = "1 worker" if len(alive) == 1 else f"{len(alive)} workers"
    return f"{who} of this host without Redis, {local} operations served so, {pending} keys to drain"


def _breaker(health: AliasHealth) -> str:
    """Return the state of the circuits of this host's processes: the monitor itself has none to trip."""
    states = {worker.state for worker in health.workers if worker.alive}
    return "/".join(sorted(states)) or ("closed" if health.state == "up" else "not known")


def _memory(load: ServerLoad) -> str:
    return f"{amount(load.memory)}{f' of {amount(load.max_memory)}' if load.max_memory else ''}"


def _journal(health: AliasHealth) -> int:
    return sum(worker.pending for worker in health.workers)


# --- a line ---------------------------------------------------------------------------------------------


def one_line(frame: Frame) -> str:
    """Return a look as one line: time, each alias, hit rates by type, who is turned away."""
    parts = [_alias_in_words(health, load) for health, load in zip(frame.aliases, frame.servers, strict=True)]
    parts.append(_rates_in_words(frame))
    blocked = [f"{each.name} {each.blocked}" for each in frame.limits if each.blocked]
    denied = sum(each.denied or 0.0 for each in frame.limits)
    if blocked or denied:
        parts.append(f"denied {count(denied)}/s{_listed('blocked now: ', blocked)}")
    return f"{_clock(frame.time)} {frame.status}  " + "  |  ".join(parts)


def _listed(what: str, words: Sequence[str]) -> str:
    return f" ({what}{', '.join(words)})" if words else ""


def _alias_in_words(health: AliasHealth, load: ServerLoad) -> str:
    words = [f"{health.alias} {_state(health)}"]
    if load.ops is not None:
        words.append(f"ops {count(load.ops)}/s")
    if load.memory is not None:
        words.append(f"mem {_memory(load)}")
    if load.clients is not None:
        words.append(f"clients {load.clients}")
    if health.state != "memory":
        words.append(f"breaker {_breaker(health)}")
    if _journal(health):
        words.append(f"journal {_journal(health)}")
    if health.cause:
        words.append(f"({health.cause})")
    return " ".join(words)


def _rates_in_words(frame: Frame) -> str:
    if frame.counts_from is None:
        return "hits not known"
    rates = [
        f"{each.name} {percent(each.hit_rate)}"
        for each in frame.types[:MOST_TYPES]
        if each.hit_rate is not None
    ]
    said = f"hits {percent(frame.total.hit_rate)}{_listed('', rates)}"
    return said if frame.is_current else f"{said} as of {_clock(frame.counts_from)}"


# --- a screen -------------------------------------------------------------------------------------------


def screen(frame: Frame) -> RenderableType:
    """Return a look as rich draws it."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(f"redis_infra  {_clock(frame.time)}", style="bold")]
    parts += [_alias(health, load, frame) for health, load in zip(frame.aliases, frame.servers, strict=True)]
    parts += [Text(""), _side_by_side(_types(frame), _limits(frame)), Text("")]
    parts += [_event(each) for each in frame.events] or [Text("nothing has happened", style="dim")]
    parts += [Text(note, style="yellow") for note in frame.notes]
    return Group(*parts)


def _alias(health: AliasHealth, load: ServerLoad, frame: Frame) -> Text:
    from rich.text import Text

    text = Text(no_wrap=False)
    text.append(f"{health.alias} ", style="bold")
    text.append(f"● {_state(health)}", style=COLOURS[health.status])
    text.append(f"  {health.server}")
    for name, value in _facts(health, load):
        text.append(f"  {name} ", style="dim")
        text.append(value)
    for line in (health.cause, _workers(health)):
        if line:
            text.append(f"\n    {line}", style=COLOURS[health.status])
    return text


def _facts(health: AliasHealth, load: ServerLoad) -> Iterator[tuple[str, str]]:
    if load.uptime is not None:
        yield "up", format_duration(load.uptime)
    if load.ops is not None:
        yield "ops", f"{count(load.ops)}/s"
    if load.memory is not None:
        yield "mem", _memory(load)
    if load.keys_evicted:
        yield "evicted", count(load.keys_evicted)
    if load.clients is not None:
        yield "clients", count(load.clients)
    if health.state != "memory":
        yield "breaker", _breaker(health)
        yield "journal", f"{_journal(health)}"


def _side_by_side(left: Table, right: Table) -> RenderableType:
    from rich.columns import Columns

    return Columns([left, right], padding=(0, 4))


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right", header_style="dim", no_wrap=True)
    return table


def _types(frame: Frame) -> Table:
    title = "query cache"
    if frame.counts_from is not None and not frame.is_current:
        title = f"query cache, as of {_clock(frame.counts_from)}"
    table = _table(title, "type", "hit", "20 minutes", "hits/s", "misses/s", "mean", "p95")
    shown = [*frame.types[:MOST_TYPES], frame.total] if frame.types else []
    for each in shown:
        table.add_row(*_type(each))
    if not shown:
        table.add_row("(nothing)")
    return table


def _type(rate: TypeRate) -> tuple[str, ...]:
    times = ["-" if each is None else format_duration(each) for each in (rate.mean, rate.p95)]
    name, bars = rate.name[:32], sparkline(rate.history)
    return name, percent(rate.hit_rate), bars, count(rate.hits), count(rate.misses), *times


def _limits(frame: Frame) -> Table:
    table = _table(f"limits, by {_WHO[frame.decided_by]}", "policy", "blocked", "known", "denied/s")
    for each in frame.limits[:MOST_LIMITS]:
        name = f"{each.name} (DRF)" if each.group == "drf" else each.name
        table.add_row(name, count(each.blocked), count(each.identities), _denied(each))
    if not frame.limits:
        table.add_row("none")
    return table


def _denied(limit: LimitLoad) -> Any:
    from rich.text import Text

    return Text(count(limit.denied), style="red" if limit.denied else "")


def _event(event: Event) -> Text:
    from rich.text import Text

    mark = "WARN" if event.is_bad else "INFO"
    style = "yellow" if event.is_bad else "green"
    return Text.assemble(f"{_clock(event.time)} ", (mark, style), f" {event.text}", (f"  {event.who}", "dim"))
