"""The example as a Django project: its commands and its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.example.conftest import ROOT, Manage, run_python

EXAMPLE = ROOT / "example_project"

SEED_TWICE = """
import datetime, hashlib, sys
import django
django.setup()
from django.core.management import call_command
from django.contrib.auth.models import User
from example_project.relay.models import Document, Message, Room
from example_project.relay.seed import seed
call_command("migrate", verbosity=0)
seed(now=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc))
content = [
    *User.objects.order_by("pk").values_list("username", "date_joined"),
    *Room.objects.order_by("pk").values_list("slug", "topic"),
    *Message.objects.order_by("pk").values_list("author_id", "room_id", "body", "created_at"),
    *Document.objects.order_by("pk").values_list("owner_id", "title", "body", "updated_at"),
]
print(User.objects.count(), Room.objects.count(), Message.objects.count(), Document.objects.count())
print(hashlib.sha256(repr(content).encode()).hexdigest())
"""


def test_checks_pass(manage: Manage) -> None:
    assert manage("check", "--fail-level", "WARNING").returncode == 0


def test_migrations_are_complete(manage: Manage) -> None:
    done = manage("makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("face", ["wsgi", "asgi"])
def test_entry_point_can_be_imported_and_opens_nothing(face: str) -> None:
    looks = "print(callable(entry.application), 'redis' in sys.modules)"
    done = run_python("-c", f"import sys; import example_project.{face} as entry; {looks}")
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_settings_show_the_two_lines() -> None:
    settings = (EXAMPLE / "settings.py").read_text()
    assert (
        '\nINSTALLED_APPS += ["redis_infra"]\nCACHES = {"default": {"BACKEND": "redis_infra.cache.RedisCache"'
        in settings
    )


def test_debugging_off_wants_a_secret_key(manage: Manage) -> None:
    done = manage("check", RELAY_DEBUG="false")
    assert done.returncode == 1
    assert "RELAY_SECRET_KEY" in done.stderr


def test_content_is_the_same_every_time(tmp_path: Path) -> None:
    said = [
        run_python(
            "-c",
            SEED_TWICE,
            PYTHONHASHSEED=str(number),
            RELAY_DATABASE=str(tmp_path / f"{number}.sqlite3"),
            REDIS_ENABLED="false",
            DJANGO_SETTINGS_MODULE="example_project.settings",
        ).stdout
        for number in (1, 2)
    ]
    assert said[0] == said[1]
    assert said[0].split()[:4] == ["200", "20", "5000", "300"]
