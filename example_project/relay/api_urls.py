"""Addresses of Relay's API."""

from __future__ import annotations

from django.urls import path

from example_project.relay import api

urlpatterns = [
    path("rooms/", api.Rooms.as_view(), name="api-rooms"),
    path("rooms/<slug:slug>/messages/", api.Messages.as_view(), name="api-messages"),
    path("documents/", api.Documents.as_view(), name="api-documents"),
    path("documents/<int:pk>/", api.OneDocument.as_view(), name="api-document"),
    path("uploads/", api.Uploads.as_view(), name="api-uploads"),
    path("people/<str:username>/", api.OnePerson.as_view(), name="api-person"),
    path("me/", api.Me.as_view(), name="api-me"),
    path("stats/", api.statistics, name="api-stats"),
]
