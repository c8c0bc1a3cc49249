"""Names in Redis: key templates, glob patterns, the names that a cache alias can make, digests.

Pure functions; knows nothing of Redis connections or of Django.
"""

from __future__ import annotations

from redis_infra.keys.digests import digest
from redis_infra.keys.globs import escape, glob_to_regex, is_literal, literal_start
from redis_infra.keys.namespaces import (
    KeyFunction,
    Namespace,
    namespace,
    namespace_pattern,
    namespace_regex,
)
from redis_infra.keys.templates import Field, Template, template, value

__all__ = [
    "Field",
    "KeyFunction",
    "Namespace",
    "Template",
    "digest",
    "escape",
    "glob_to_regex",
    "is_literal",
    "literal_start",
    "namespace",
    "namespace_pattern",
    "namespace_regex",
    "template",
    "value",
]
