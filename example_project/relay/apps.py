"""Registers the app with Django and connects what a write forgets and what an outage shows."""

from __future__ import annotations

from django.apps import AppConfig


class RelayConfig(AppConfig):
    """Relay, the example site."""

    name = "example_project.relay"
    verbose_name = "Relay"

    def ready(self) -> None:
        """Listen to the models' signals and to what happens to Redis."""
        from example_project.relay import invalidation, live
        from redis_infra import instrumentation

        invalidation.connect()
        instrumentation.subscribe(live.on_transition)
