"""URLs of the test suite's site: none of its own; tests that need a view bring a URLconf."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver

urlpatterns: list[URLPattern | URLResolver] = []
