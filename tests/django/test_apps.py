"""What the app tells Django when it starts, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

from django.apps import apps
from django.core.cache import cache, caches
from django.core.checks import registry
from django.test import override_settings

from redis_infra.checks import TAG, check_deployment, check_settings


def test_the_app_is_called_redis_in_the_admin():
    assert apps.get_app_config("redis_infra").verbose_name == "Redis"


def test_checks_run_with_manage_py_check():
    assert check_settings in registry.registry.get_checks()
    assert TAG in registry.registry.tags_available()


def test_checks_of_a_public_site_run_with_deploy_only():
    assert check_deployment not in registry.registry.get_checks()
    assert check_deployment in registry.registry.get_checks(include_deployment_checks=True)


def test_overriding_our_settings_builds_the_caches_anew():
    """A cache holds the settings that it was built with."""
    cache.get("built")
    built = caches["default"]
    with override_settings(REDIS_INFRA={"COMMAND_TIMEOUT": "100ms"}):
        assert caches["default"] is not built


def test_overriding_another_setting_leaves_the_caches_as_they_are():
    cache.get("built")
    built = caches["default"]
    with override_settings(USE_TZ=False):
        assert caches["default"] is built


def test_overriding_our_settings_before_any_cache_is_built_is_fine():
    for alias in list(caches):
        caches[alias]
        del caches[alias]
    with override_settings(REDIS_INFRA={}):
        assert caches.all(initialized_only=True) == []


SETUP = """
import sys, threading, django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["redis_infra"],
    CACHES={"default": {"BACKEND": "redis_infra.cache.RedisCache", "LOCATION": "redis://192.0.2.1:6379/0"}},
)
django.setup()
from django.core.management import call_command
call_command("check")
print("redis" in sys.modules, threading.active_count())
"""


def test_starting_and_checking_a_site_imports_no_redis_and_starts_no_thread():
    done = subprocess.run(
        [sys.executable, "-c", SETUP], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False 1", done.stdout + done.stderr
