"""What type checkers make of decorated functions: parameters and results of their own, errors of callers."""

from __future__ import annotations

import re
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]
CODE = """
from redis_infra.querycache import cached, cached_many

@cached("user:{user_id}", ttl="user")
def get_user(user_id: int, deep: bool = False) -> dict[str, int]: return {}

@cached("page:{number}", ttl=30)
async def page(number: int) -> str: return ""

@cached_many("user:{user_id}", ttl="user")
def load(user_ids: list[int]) -> dict[int, str]: return {}

class Shop:
    @cached("shop:{self.pk}:{number}", ttl=3)
    def price(self, number: int) -> float: return 1.0

    @cached("kind:{number}", ttl=3)
    @classmethod
    def kind(cls, number: int) -> str: return ""

async def use() -> None:
    reveal_type(get_user(1))
    reveal_type(get_user.get(1))
    reveal_type(get_user.key(1, deep=True))
    reveal_type(await page(1))
    reveal_type(await page.aget(1))
    reveal_type(load([1]))
    reveal_type(Shop().price(1))
    reveal_type(Shop.kind(1))
    get_user("x")
    Shop().price("x")
"""


def test_signature_and_types_are_preserved(tmp_path):
    module = tmp_path / "use.py"
    module.write_text(CODE)
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    found, errors, _ = api.run([*settings, str(module)])
    assert not errors
    assert re.findall(r'Revealed type is "(.*)"', found) == [
        "dict[str, int]",
        "dict[str, int] | None",
        "str",
        "str",
        "str | None",
        "dict[int, str]",
        "float",
        "str",
    ]
    assert (
        re.findall(r"use\.py:\d+: error: (.*?) {2}\[", found)
        == ['Argument 1 to "__call__" of "Cached" has incompatible type "str"; expected "int"'] * 2
    )
