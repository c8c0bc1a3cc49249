"""Relay's addresses: the site, its API under /api/, and Django's admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("example_project.relay.urls")),
    path("api/", include("example_project.relay.api_urls")),
    path("admin/", admin.site.urls),
]
