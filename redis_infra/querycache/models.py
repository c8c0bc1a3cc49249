"""``invalidate_on``: what is kept is forgotten when a model's row is saved, deleted, or related anew.

By Django's signals, after commit. Bulk operations send none: give the model a manager of
:class:`InvalidatingQuerySet`, or call :func:`invalidate_for`.

It does not know of rows that change without one: by ``SET_NULL`` and ``SET_DEFAULT``, a child's by saving its
parent, and where the rows were that ``bulk_create(update_conflicts=True)`` has overwritten.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, ObjectDoesNotExist
from django.db import models
from django.db.models import NOT_PROVIDED, signals
from django.db.models.signals import class_prepared

from redis_infra.conf import did_you_mean, get_settings
from redis_infra.exceptions import SettingsError
from redis_infra.keys import Template, escape, template, value
from redis_infra.querycache import transactions
from redis_infra.querycache.invalidation import carry_out, is_everything, listed
from redis_infra.querycache.space import check_alias
from redis_infra.querycache.transactions import Invalidation

__all__ = ["InvalidatingQuerySet", "invalidate_for", "invalidate_on"]

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=models.Model)

MOST_ROWS: Final = 1000
"""Rows whose keys are read in one query."""


def invalidate_on(
    model: type[models.Model],
    *patterns: str | Template,
    tags: Sequence[str | Template] = (),
    cache: str = "default",
) -> None:
    """Forget what matches ``patterns`` or has ``tags`` whenever a row of ``model`` changes, after commit.

    Both are templates over ``instance``: ``"chat:{instance.room_id}:*"``, where ``*`` is a wildcard; or the
    name of a template in ``REDIS_INFRA["KEYS"]``. Saving, deleting and changes of many-to-many relations
    count, on either side, also of models that inherit; a proxy's rule is of all its rows. Where a row moves
    (another ``room_id``) both its old and its new keys are forgotten, which takes a query before it is saved.
    Rolled back, nothing is.

    Call it once for each, in ``AppConfig.ready`` or beside the cached functions.

    Raises:
        SettingsError: a pattern has a field that is not of ``instance``, or one that no row has, or means
            everything; there is no pattern and no tag, or no such cache.
    """
    if not isinstance(model, type) or not issubclass(model, models.Model):
        raise SettingsError(f"invalidate_on({model!r}) is for models")
    rule = Rule(
        model,
        tuple(_template_of(each) for each in patterns),
        tuple(_template_of(each) for each in listed(tags, SettingsError)),
        cache,
    )
    rule.check()
    _rules.append(rule)
    for each in _family(rule.rows_of):
        _connect(each, rule)
    class_prepared.connect(_prepared, dispatch_uid="redis_infra.querycache")


def invalidate_for(instances: Iterable[models.Model], *, using: str | None = None) -> int:
    """Forget what depends on these rows, as if each had been saved; for bulk operations.

    Returns how many entries there were; in ``atomic()`` it happens at commit, and 0 is returned.
    """
    instances = list(instances)
    return sum(
        rule.forget([each for each in instances if isinstance(each, rule.rows_of)], using) for rule in _rules
    )


def _template_of(text: str | Template) -> Template:
    if isinstance(text, list | tuple | set):
        raise SettingsError(f"{text!r} is several patterns in one; give each by itself: 'chat:*', 'room:*'")
    named = get_settings().keys
    return template(named.get(text, text) if isinstance(text, str) else text)


@dataclass(frozen=True, eq=False)
class Rule:
    """What a change of a model means."""

    model: type[models.Model]
    patterns: tuple[Template, ...]
    tags: tuple[Template, ...]
    cache: str

    @property
    def rows_of(self) -> type[models.Model]:
        """The model whose rows they are: a proxy has none of its own."""
        return self.model._meta.concrete_model or self.model

    def _seen(self, instance: models.Model) -> models.Model:
        """Return a row as one of the rule's model, which may be a proxy with properties of its own."""
        if isinstance(instance, self.model):
            return instance
        seen = copy(instance)
        seen.__class__ = self.model
        return seen

    def check(self) -> None:
        """Raise if it means nothing, or everything, or would fail whenever a row is saved."""
        check_alias(self.cache)
        if not self.patterns and not self.tags:
            raise SettingsError(f"invalidate_on({self.model.__name__}) names no pattern and no tag")
        for each in self.patterns:
            if is_everything(each.text):
                raise SettingsError(
                    f"invalidate_on({self.model.__name__}, {each.text!r}) would forget everything whenever a "
                    f"row changes; write what it is about, such as 'chat:{{instance.pk}}:*'"
                )
        for each in (*self.patterns, *self.tags):
            strange = each.names - {"instance"}
            if strange:
                raise SettingsError(
                    f"invalidate_on({self.model.__name__}, {each.text!r}): there is no {min(strange)!r}; "
                    f"write a field of the row, such as {{instance.pk}}"
                )
            for field in each.fields:
                self._check_field(each, field.path.split(".")[1:])

    def _check_field(self, made: Template, path: Sequence[str]) -> None:
        if path and _surely_lacks(self.model, path[0]):
            near = did_you_mean(path[0], _columns(self.model))
            raise SettingsError(
                f"invalidate_on({self.model.__name__}, {made.text!r}): a {self.model.__name__} has no "
                f"{path[0]!r}{near}"
            )

    def forget(self, instances: Iterable[models.Model], using: str | None) -> int:
        """Forget what depends on these rows; at commit, if a transaction is open."""
        patterns: dict[str, None] = {}
        tags: dict[str, None] = {}
        for instance in map(self._seen, instances):
            try:
                patterns.update(dict.fromkeys([_written(each, instance, escape) for each in self.patterns]))
                tags.update(dict.fromkeys([_written(each, instance, str) for each in self.tags]))
            except ObjectDoesNotExist:  # the row that a field leads to is gone, and nobody knows its keys
                logger.warning("redis_infra.not_invalidated model=%s", self.model.__name__, exc_info=True)
        return self.carry_out(tuple(patterns), tuple(tags), using)

    def carry_out(self, patterns: tuple[str, ...], tags: tuple[str, ...], using: str | None) -> int:
        if not patterns and not tags:
            return 0
        action = Invalidation(self.cache, patterns, tags, carry_out)
        waits_for = transactions.open_transactions(using, tests_count=True)
        if not waits_for:
            return action()
        transactions.invalidate_at_commit(action, waits_for)
        return 0

    @property
    def lookups(self) -> tuple[str, ...]:
        """What the patterns read of a row besides its key, as the ORM names it; where it can be queried."""
        paths = {field.path for each in (*self.patterns, *self.tags) for field in each.fields}
        names = [path.split(".")[1:] for path in sorted(paths)]
        return tuple(
            "__".join(each) for each in names if each and each != ["pk"] and _is_stored(self.model, each)
        )


def _written(made: Template, instance: models.Model, escaped: Callable[[str], str]) -> str:
    """Return a pattern, or a tag, for one row. What is not saved has no key, and nothing depends on it."""
    return "".join(
        part if isinstance(part, str) else escaped(value(part.of({"instance": instance})))
        for part in made.parts
    )


def _surely_lacks(model: type[models.Model], name: str) -> bool:
    """Whether no row of a model has an attribute: what cannot be told it may have.

    While models are being loaded relations may come to it. An abstract one is what its heirs are, and of a
    row of the model may be meant those of its heirs alone.
    """
    if model._meta.abstract or not apps.models_ready:
        return False
    return not any(_may_have(each, name) for each in _family(model))


def _may_have(model: type[models.Model], name: str) -> bool:
    # What lies in a class may not want to be asked of the class.
    if name == "_state" or any(name in vars(each) for each in model.__mro__):
        return True
    if signals.post_init.has_listeners(model):
        return True
    # What a row is given by itself: each of these may do it, and a bare annotation says that something does.
    makers = ("__init__", "__new__", "__getattr__", "__getattribute__", "from_db")
    own = model.__mro__[: model.__mro__.index(models.Model)]
    return any(maker in vars(each) for each in own for maker in makers) or any(
        _is_annotated(each, name) for each in own
    )


def _is_annotated(model: type, name: str) -> bool:
    try:
        return name in inspect.get_annotations(model)
    except NameError:  # since Python 3.14 it is code, which may use what is imported for types only
        return True


def _columns(model: type[models.Model]) -> set[str]:
    return {"pk", *(name for field in model._meta.concrete_fields for name in (field.name, field.attname))}


def _is_stored(model: type[models.Model], path: Sequence[str]) -> bool:
    """Whether a path is of columns, so that a query can tell what it was before."""
    for name in path:
        try:
            field = model._meta.get_field(name)
        except FieldDoesNotExist:
            return any(field.attname == name for field in model._meta.concrete_fields) and name == path[-1]
        if not field.concrete:
            return False
        related = field.related_model
        model = related if isinstance(related, type) else model
    return True


# --- signals --------------------------------------------------------------------------------------------

_rules: list[Rule] = []
_connected: set[tuple[type[models.Model], int]] = set()


def _family(model: type[models.Model]) -> Iterator[type[models.Model]]:
    yield model
    for each in model.__subclasses__():
        yield from _family(each)


def _prepared(sender: type[models.Model], **_: Any) -> None:
    for rule in _rules:
        if issubclass(sender, rule.rows_of):
            _connect(sender, rule)


def _connect(model: type[models.Model], rule: Rule) -> None:
    """Listen to one class: a listener to all of them would cost every model its fast deletes."""
    if model._meta.abstract or (model, id(rule)) in _connected:
        return
    _connected.add((model, id(rule)))
    receiver = _Receiver(rule)
    if rule.lookups:
        signals.pre_save.connect(receiver.before_save, sender=model, weak=False)
    signals.post_save.connect(receiver.saved, sender=model, weak=False)
    signals.post_delete.connect(receiver.deleted, sender=model, weak=False)
    for other, way in _others(model, rule.rows_of):
        related_deleted = partial(receiver.related_deleted, model, way)
        for each in _family(other):
            signals.pre_delete.connect(related_deleted, sender=each, weak=False)
    for through in _relations(model):
        signals.m2m_changed.connect(receiver.related, sender=through, weak=False)


def _relations(model: type[models.Model]) -> Iterable[Any]:
    """Return the senders of changes of a model's many-to-many relations, forward and back.

    While models are still being loaded nobody can tell; then it is None, all there are.
    """
    if not apps.models_ready:
        return [None]
    forward = [field.remote_field for field in model._meta.many_to_many]
    back: list[Any] = [relation for relation in model._meta.related_objects if relation.many_to_many]
    return {relation.through for relation in (*forward, *back)}


def _others(model: type[models.Model], top: type[models.Model]) -> Iterator[tuple[type[models.Model], str]]:
    """Return the other sides of a model's many-to-many relations, and how queries for it name them.

    Without those that it inherits from ``top``, which is asked itself. While models are still being loaded
    nobody can tell.
    """
    if not apps.models_ready:
        return
    relations: list[Any] = [*model._meta.many_to_many, *model._meta.related_objects]
    for each in relations:
        is_inherited = each.model is not model and issubclass(each.model, top)
        if not each.many_to_many or is_inherited:
            continue
        is_back = each.auto_created
        yield each.related_model, str(each.field.related_query_name()) if is_back else each.name


def _way_back(model: type[models.Model], through: Any) -> str:
    """Return the name, in queries for ``model``, of the relation that ``through`` keeps."""
    for field in model._meta.many_to_many:
        if field.remote_field.through is through:
            return field.name
    back: list[Any] = [each for each in model._meta.related_objects if each.many_to_many]
    return next(str(each.field.related_query_name()) for each in back if each.through is through)


def _may_exist(instance: models.Model, *, is_raw: bool) -> bool:
    """Whether saving a row may change one that there is already; as Django decides to try an UPDATE.

    It does so for a key that was given by hand as well (``Model(pk=7).save()``, ``loaddata``), and not for a
    new row whose key is made by default.
    """
    meta = instance._meta
    keys = getattr(meta, "pk_fields", None) or [meta.pk]
    if any(getattr(instance, key.attname) is None for key in keys):
        return False
    return is_raw or not instance._state.adding or not all(_has_default(key) for key in keys)


def _has_default(field: Any) -> bool:
    return field.has_default() or getattr(field, "db_default", NOT_PROVIDED) is not NOT_PROVIDED


class _Receiver:
    """Django's signals, as one rule hears them."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._name = f"_redis_infra_before_{id(rule)}"

    def before_save(
        self,
        sender: type[models.Model],
        instance: models.Model,
        using: str,
        raw: bool = False,
        **_: Any,
    ) -> None:
        """Remember where a row was, since it may be moved."""
        if not _may_exist(instance, is_raw=raw):
            return
        rows = sender._base_manager.using(using).filter(pk=instance.pk)
        vars(instance)[self._name] = rows.first()

    def saved(self, instance: models.Model, using: str, **_: Any) -> None:
        before = vars(instance).pop(self._name, None)
        self._rule.forget([instance] if before is None else [before, instance], using)

    def deleted(self, instance: models.Model, using: str, **_: Any) -> None:
        self._rule.forget([instance], using)

    def related_deleted(
        self, model: type[models.Model], way: str, instance: models.Model, using: str, **_: Any
    ) -> None:
        """Forget the rows that were related to one that is to be deleted: of that no relation tells."""
        self._rule.forget(model._base_manager.using(using).filter(**{way: instance}), using)

    def related(
        self,
        sender: Any,
        instance: models.Model,
        action: str,
        reverse: bool,
        model: type[models.Model],
        pk_set: set[Any] | None,
        using: str,
        **_: Any,
    ) -> None:
        """Forget both sides, if they are ours: ``instance``, and those that it was related to."""
        if action not in ("post_add", "post_remove", "pre_clear", "post_clear"):
            return
        rule = self._rule
        if isinstance(instance, rule.rows_of) and action != "pre_clear":
            rule.forget([instance], using)
        if not issubclass(model, rule.rows_of):
            return
        rows = model._base_manager.using(using)
        if action == "pre_clear":  # afterwards nobody knows which they were
            rule.forget(rows.filter(**{_way_back(model, sender): instance}), using)
        elif pk_set:
            rule.forget(rows.filter(pk__in=pk_set), using)


# --- bulk operations ------------------------------------------------------------------------------------


class InvalidatingQuerySet(models.QuerySet[M]):
    """A queryset whose bulk operations forget what depends on the rows, as saving each would.

    ::

        class Message(models.Model):
            objects = InvalidatingQuerySet.as_manager()

    ``update()`` reads the rows before and after, which is what it costs; of models without a rule it does
    not. ``QuerySet.delete`` sends signals by itself. What raw SQL and other programs do nobody sees.
    """

    def bulk_create(self, objs: Iterable[M], *args: Any, **kwargs: Any) -> list[M]:
        made = super().bulk_create(objs, *args, **kwargs)
        invalidate_for(made, using=self.db)
        return made

    def update(self, **kwargs: Any) -> int:
        # bulk_update() comes here as well.
        if not any(issubclass(self.model, rule.rows_of) for rule in _rules):
            return super().update(**kwargs)
        self._for_write = True  # the rows are read where they are changed
        rows = self.model._base_manager.using(self.db)
        # Whole rows, whatever this yields: values(), or rows whose other fields would be read afterwards.
        keys = list(self.values_list("pk", flat=True))
        parts = [keys[start : start + MOST_ROWS] for start in range(0, len(keys), MOST_ROWS)]
        before = [list(rows.filter(pk__in=part)) for part in parts]
        changed = super().update(**kwargs)
        for part, were in zip(parts, before, strict=True):
            invalidate_for((*were, *rows.filter(pk__in=part)), using=self.db)
        return changed

    update.alters_data = True  # type: ignore[attr-defined]  # templates must not call it
    bulk_create.alters_data = True  # type: ignore[attr-defined]
