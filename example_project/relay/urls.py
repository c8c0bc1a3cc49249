"""Addresses of Relay's pages."""

from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from example_project.relay import hammer, playground, querypage, settingspage, signing_in, views

urlpatterns = [
    path("", views.home, name="home"),
    path("rooms/<slug:slug>/", views.room, name="room"),
    path("documents/", views.documents, name="documents"),
    path("documents/new/", views.new_document, name="new-document"),
    path("documents/<int:pk>/", views.document, name="document"),
    path("people/<str:username>/", views.person, name="person"),
    path("login/", signing_in.SignIn.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    # Browsers ask for it where a page names no icon of its own (the API's).
    path("favicon.ico", RedirectView.as_view(url=static("relay/mark.svg"))),
    path("playground/", playground.page, name="playground"),
    path("playground/state.json", playground.state, name="playground-state"),
    path("playground/redis/", playground.power, name="playground-power"),
    path("playground/board/", playground.board, name="playground-board"),
    path("queries/", querypage.page, name="queries"),
    path("queries/state.json", querypage.state, name="queries-state"),
    path("queries/act/", querypage.act, name="queries-act"),
    path("limits/", hammer.page, name="limits"),
    path("limits/state.json", hammer.state, name="limits-state"),
    path("limits/reset/", hammer.reset, name="limits-reset"),
    path("settings/", settingspage.page, name="settings"),
    path("settings/state.json", settingspage.state, name="settings-state"),
    path("settings/keep/", settingspage.keep, name="settings-keep"),
    path("settings/keys/", settingspage.keys, name="settings-keys"),
]
