"""Django settings of the test suite: a small site on the app's defaults, with nothing configured for it."""

from __future__ import annotations

SECRET_KEY = "not a secret: it signs what the tests write"
USE_TZ = True
ROOT_URLCONF = "tests.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rest_framework",
    "redis_infra",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}

# No LOCATION: each test says where Redis is, or has none.
CACHES = {"default": {"BACKEND": "redis_infra.cache.RedisCache"}}

# Tests of statistics begin them by themselves: others count commands and keys.
REDIS_INFRA = {"STATS": {"ENABLED": False}}
