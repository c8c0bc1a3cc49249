"""Settings of Relay, the example site.

What redis_infra needs is two lines, marked below. Where Redis is, comes from the
environment (``REDIS_URL``); with nothing there, the site runs in memory.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent

DEBUG = os.environ.get("RELAY_DEBUG", "true").lower() in {"1", "true", "yes"}
SECRET_KEY = os.environ.get("RELAY_SECRET_KEY", "only-for-a-try-on-your-own-machine" if DEBUG else "")
if not SECRET_KEY:
    raise ImproperlyConfigured("RELAY_SECRET_KEY must be set when RELAY_DEBUG is off")
ALLOWED_HOSTS = os.environ.get("RELAY_HOSTS", "localhost,127.0.0.1,[::1],testserver").split(",")
CSRF_TRUSTED_ORIGINS = [origin for origin in os.environ.get("RELAY_ORIGINS", "").split(",") if origin]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.humanize",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "rest_framework",
    "example_project.relay",
]

# The two lines. KEY_PREFIX is Django's own option: it keeps Relay's keys apart
# from whatever else lives on a server that several sites share.
INSTALLED_APPS += ["redis_infra"]
CACHES = {"default": {"BACKEND": "redis_infra.cache.RedisCache", "KEY_PREFIX": "relay"}}

# The limits of chat, auth, upload and search are there without a setting, and views name
# them. The admin's login is not a view of Relay's, so it is named here.
REDIS_INFRA = {"KEY_PREFIX": "relay", "THROTTLE": {"ROUTES": {"POST view:admin:login": "auth"}}}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    *(["whitenoise.middleware.WhiteNoiseMiddleware"] if find_spec("whitenoise") else []),
    "example_project.relay.middleware.ContentSecurityPolicy",
    "example_project.relay.middleware.TellsDecision",
    "redis_infra.throttling.middleware.ThrottleMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "example_project.relay.middleware.ServedFrom",
]

ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
ASGI_APPLICATION = "example_project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "example_project.relay.context.served_from",
                "example_project.relay.context.appearance",
            ],
        },
    },
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("RELAY_DATABASE", str(BASE_DIR / "relay.sqlite3")),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "example_project.relay.api_keys.ApiKeyAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticatedOrReadOnly"],
}

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = os.environ.get("RELAY_STATIC_ROOT", str(BASE_DIR / "static-collected"))

SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG and bool(CSRF_TRUSTED_ORIGINS)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"events": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "events"}},
    "loggers": {"redis_infra": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}
