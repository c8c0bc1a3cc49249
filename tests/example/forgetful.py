"""A Relay whose query cache is told of no write: ``invalidate_on`` was forgotten.

The tour must find it out. A settings module, and the app's configuration for it.
"""

from __future__ import annotations

from example_project.relay.apps import RelayConfig
from example_project.settings import *  # noqa: F403
from example_project.settings import INSTALLED_APPS as APPS

INSTALLED_APPS = [
    "tests.example.forgetful.ForgetfulConfig" if app == "example_project.relay" else app for app in APPS
]


class ForgetfulConfig(RelayConfig):
    """Relay, without its rules."""

    def ready(self) -> None:
        from example_project.relay import queries

        queries.connect = lambda: None
        super().ready()
