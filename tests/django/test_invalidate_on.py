"""``invalidate_on`` and transactions: what changes with a model, at commit, and not at all on rollback."""

from __future__ import annotations

import contextlib
import uuid

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core import serializers
from django.db import models, transaction
from django.test import TestCase
from django.test.utils import isolate_apps

from redis_infra.exceptions import SettingsError
from redis_infra.querycache import (
    InvalidatingQuerySet,
    cached,
    cached_many,
    invalidate,
    invalidate_for,
    invalidate_on,
    transactions,
)
from redis_infra.querycache import models as rules

CACHES = {
    "default": {
        "BACKEND": "redis_infra.cache.RedisCache",
        "KEY_PREFIX": "site",
        "OPTIONS": {"COMMAND_TIMEOUT": "5s"},
    }
}


@pytest.fixture(autouse=True)
def _no_rules_left(monkeypatch):
    """Disconnect what a test connects."""
    signals = rules.signals
    heard = (
        signals.pre_save,
        signals.post_save,
        signals.pre_delete,
        signals.post_delete,
        signals.m2m_changed,
    )
    made = [(signal, list(signal.receivers)) for signal in heard]
    monkeypatch.setattr(rules, "_rules", [])
    monkeypatch.setattr(rules, "_connected", set())
    yield
    for signal, receivers in made:
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


@pytest.fixture
def site(redis_server, settings, tmp_path):
    settings.CACHES = {
        "default": {
            **CACHES["default"],
            "LOCATION": redis_server.url,
            "OPTIONS": {"STATE_DIR": str(tmp_path), "COMMAND_TIMEOUT": "5s"},
        }
    }


@pytest.fixture
def name_of(site):
    """A cached function of a user, and of all who share an address."""
    calls = []

    @cached("user:{pk}:name", ttl=60)
    def name(pk):
        calls.append(pk)
        return User.objects.get(pk=pk).username

    name.calls = calls
    return name


@contextlib.contextmanager
def undone():
    """A transaction that is rolled back."""
    with contextlib.suppress(LookupError), transaction.atomic():
        yield
        raise LookupError


@cached("mail:{email}:count", ttl=60)
def count_of(email):
    return User.objects.filter(email=email).count()


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_saving_and_deleting_a_row_forget_what_depends_on_it(name_of):
    invalidate_on(User, "user:{instance.pk}:*")
    ann, bob = User.objects.create(username="ann"), User.objects.create(username="bob")
    assert (name_of(ann.pk), name_of(bob.pk)) == ("ann", "bob")
    ann.username = "anna"
    ann.save()
    assert name_of(ann.pk) == "anna"
    assert name_of.calls == [ann.pk, bob.pk, ann.pk]
    pk = bob.pk
    bob.delete()
    assert name_of.get(pk) is None


@pytest.mark.django_db(transaction=True)
def test_a_row_that_moves_is_forgotten_where_it_was_and_where_it_is(site):
    invalidate_on(User, "mail:{instance.email}:*")
    ann = User.objects.create(username="ann", email="old@x.org")
    assert (count_of("old@x.org"), count_of("new@x.org")) == (1, 0)
    ann.email = "new@x.org"
    ann.save()
    assert (count_of("old@x.org"), count_of("new@x.org")) == (0, 1)


@pytest.mark.django_db(transaction=True)
def test_tags_go_with_a_model_too(site):
    names = cached("names", ttl=60, tags=["users"])(lambda: sorted(u.username for u in User.objects.all()))
    invalidate_on(User, tags=["users"])
    assert names() == []
    User.objects.create(username="ann")
    assert names() == ["ann"]


@pytest.mark.django_db(transaction=True)
def test_many_to_many_relations_count_on_both_sides(site):
    invalidate_on(User, "user:{instance.pk}:*")
    groups = cached("user:{user.pk}:groups", ttl=60)(lambda user: sorted(g.name for g in user.groups.all()))
    ann, staff = User.objects.create(username="ann"), Group.objects.create(name="staff")
    assert groups(ann) == []
    ann.groups.add(staff)
    assert groups(ann) == ["staff"]
    staff.user_set.remove(ann)
    assert groups(ann) == []
    staff.user_set.add(ann)
    assert groups(ann) == ["staff"]
    staff.user_set.clear()
    assert groups(ann) == []
    ann.groups.set([staff])
    assert groups(ann) == ["staff"]
    ann.groups.clear()
    assert groups(ann) == []


@pytest.mark.django_db(transaction=True)
def test_a_proxy_of_a_model_counts_as_the_model(name_of):
    class Person(User):
        class Meta:
            proxy = True
            app_label = "tests"

    invalidate_on(User, "user:{instance.pk}:*")
    ann = Person.objects.create(username="ann")
    name_of(ann.pk)
    ann.username = "anna"
    ann.save()
    assert name_of(ann.pk) == "anna"


@pytest.mark.django_db(transaction=True)
def test_bulk_operations_through_the_queryset_or_an_explicit_call(name_of):
    class Users(models.Manager.from_queryset(InvalidatingQuerySet)):
        pass

    users = Users()
    users.model = User
    invalidate_on(User, "user:{instance.pk}:*", "mail:{instance.email}:*")
    ann = User.objects.create(username="ann", email="a@x.org")
    assert (name_of(ann.pk), count_of("a@x.org"), count_of("b@x.org")) == ("ann", 1, 0)
    assert users.filter(username="ann").update(username="anna", email="b@x.org") == 1
    assert (name_of(ann.pk), count_of("a@x.org"), count_of("b@x.org")) == ("anna", 0, 1)
    users.bulk_create([User(username="eve", email="b@x.org")])
    assert count_of("b@x.org") == 2
    ann.username = "ann"
    users.bulk_update([ann], ["username"])
    assert name_of(ann.pk) == "ann"
    User.objects.filter(pk=ann.pk).update(username="nobody heard")
    assert name_of(ann.pk) == "ann"
    ann.email = "b@x.org"
    assert invalidate_for([ann]) == 1
    assert name_of(ann.pk) == "nobody heard"


@pytest.mark.django_db(transaction=True)
def test_other_models_keep_their_fast_deletes(site):
    invalidate_on(User, "user:{instance.pk}:*")
    assert not rules.signals.post_delete.has_listeners(Permission)
    assert rules.signals.post_delete.has_listeners(User)


@pytest.mark.parametrize(
    ("patterns", "tags", "said"),
    [
        ((), (), "no pattern and no tag"),
        (("user:{pk}:*",), (), "there is no 'pk'"),
        ((), ("{user.pk}",), "there is no 'user'"),
        (("user:{instance.pk",), (), "not a key template"),
        (("user:{instance.usrname}:*",), (), "a User has no 'usrname'; did you mean 'username'"),
        ((), ("mail:{instance.xyz.domain}",), "a User has no 'xyz'; there are .*email.*pk"),
        (("*",), (), r"'\*'\) would forget everything"),
        (("user:*", "?*"), (), r"'\?\*'\) would forget everything"),
        ((["user:*", "mail:*"],), (), r"\['user:\*', 'mail:\*'\] is several patterns in one; give each"),
        ((5,), (), "5 is not a key template"),
        (("user:*",), 5, r"tags 5 is no list of tags; write such as tags=\['room:42'\]"),
        (("user:*",), None, "tags None is no list of tags"),
    ],
)
def test_a_wrong_rule_says_so(patterns, tags, said):
    with pytest.raises(SettingsError, match=said):
        invalidate_on(User, *patterns, tags=tags)


def test_a_rule_for_a_cache_that_there_is_not_says_so():
    with pytest.raises(SettingsError, match=r"cache 'defalt': .*did you mean 'default'"):
        invalidate_on(User, "user:{instance.pk}", cache="defalt")


def test_a_refused_rule_leaves_no_trace():
    for wrong in ("user:{instance.usrname}", "*"):
        with pytest.raises(SettingsError):
            invalidate_on(User, wrong)
    assert not rules._rules
    assert not rules.signals.post_save.has_listeners(Permission)


@pytest.mark.parametrize(
    "name", ["pk", "email", "get_full_name", "is_authenticated", "groups", "_password", "_state.db"]
)
def test_a_rule_may_read_what_rows_have_besides_their_columns(name):
    invalidate_on(User, f"user:{{instance.{name}}}:*")
    invalidate_on(Group, "group:{instance.user_set}:*")
    invalidate_on(Permission, "type:{instance.content_type_id}:{instance.content_type.model}:*")


@isolate_apps("django.contrib.auth")
def test_a_rule_may_read_what_a_row_may_give_itself():
    class Counted(models.Model):  # noqa: DJ008  # has no rows
        total: int

        class Meta:
            app_label = "auth"

    class Made(models.Model):  # noqa: DJ008
        class Meta:
            app_label = "auth"

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.total = 0

    class Dynamic(models.Model):  # noqa: DJ008
        class Meta:
            app_label = "auth"

        def __getattr__(self, name):
            raise AttributeError(name)

    class Child(Group):
        total = models.IntegerField()

        class Meta:
            app_label = "auth"

    class Base(models.Model):
        class Meta:
            abstract = True
            app_label = "auth"

    for model in (Counted, Made, Dynamic, Child, Base):
        invalidate_on(model, "sum:{instance.total}")
    with pytest.raises(SettingsError, match="a Counted has no 'other'"):
        invalidate_on(Counted, "sum:{instance.other}")


def test_while_models_are_being_loaded_relations_may_come(monkeypatch):
    monkeypatch.setattr(rules.apps, "models_ready", False)
    invalidate_on(User, "user:{instance.of_an_app_to_come}:*")


def test_a_rule_is_for_models():
    with pytest.raises(SettingsError, match="is for models"):
        invalidate_on(dict, "user:{instance.pk}")


# --- transactions -----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_commit_forgets_once_and_a_rollback_nothing(name_of):
    invalidate_on(User, "user:{instance.pk}:*")
    ann = User.objects.create(username="ann")
    name_of(ann.pk)
    with undone():
        ann.username = "never"
        ann.save()
        assert name_of(ann.pk) == "never"  # what this transaction has written it also reads
    assert name_of(ann.pk) == "ann"
    assert name_of.get(ann.pk) == "ann"
    ann.username = "anna"
    with transaction.atomic():
        ann.save()
        assert name_of.get(ann.pk) == "ann"  # others read this until the commit
    assert name_of.get(ann.pk) is None
    assert name_of(ann.pk) == "anna"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["a row made by hand", "loaddata"])
def test_a_row_that_is_overwritten_is_forgotten_where_it_was(how, site):
    invalidate_on(User, "mail:{instance.email}:*")
    ann = User.objects.create(username="ann", email="old@x.org")
    assert (count_of("old@x.org"), count_of("new@x.org")) == (1, 0)
    new = User(pk=ann.pk, username="ann", email="new@x.org")
    if how == "loaddata":
        [read] = serializers.deserialize("json", serializers.serialize("json", [new]))
        read.save()
    else:
        new.save()
    assert (count_of("old@x.org"), count_of("new@x.org")) == (0, 1)


@pytest.mark.django_db(transaction=True)
def test_a_new_row_is_not_looked_for(site, django_assert_num_queries):
    invalidate_on(User, "mail:{instance.email}:*")
    with django_assert_num_queries(1):
        User.objects.create(username="ann", email="ann@x.org")


@isolate_apps("django.contrib.auth")
def test_a_key_that_is_made_by_default_is_that_of_a_new_row():
    class WithDefault(models.Model):  # noqa: DJ008  # has no rows
        id = models.UUIDField(primary_key=True, default=uuid.uuid4)

        class Meta:
            app_label = "auth"

    assert rules._may_exist(User(pk=7), is_raw=False)
    assert not rules._may_exist(User(), is_raw=True)
    made = WithDefault()
    assert not rules._may_exist(made, is_raw=False)
    assert rules._may_exist(made, is_raw=True)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["values", "values_list", "only"])
def test_an_update_reads_rows_whatever_its_queryset_yields(how, site):
    invalidate_on(User, "mail:{instance.email}:*")
    User.objects.create(username="ann", email="old@x.org")
    assert (count_of("old@x.org"), count_of("new@x.org")) == (1, 0)
    found = InvalidatingQuerySet(User)
    chosen = {
        "values": lambda: found.values("username"),
        "values_list": lambda: found.values_list("username", flat=True),
        "only": lambda: found.only("pk"),
    }[how]()
    assert chosen.update(email="new@x.org") == 1
    assert (count_of("old@x.org"), count_of("new@x.org")) == (0, 1)


@pytest.mark.django_db(transaction=True)
def test_deleting_the_other_side_of_a_relation_forgets_a_row(site):
    invalidate_on(User, "user:{instance.pk}:*")
    invalidate_on(Group, "group:{instance.pk}:*")
    groups = cached("user:{pk}:groups", ttl=60)(lambda pk: Group.objects.filter(user=pk).count())
    users = cached("group:{pk}:users", ttl=60)(lambda pk: User.objects.filter(groups=pk).count())
    ann, bob = User.objects.create(username="ann"), User.objects.create(username="bob")
    staff = Group.objects.create(name="staff")
    staff.user_set.add(ann, bob)
    assert (groups(ann.pk), users(staff.pk)) == (1, 2)
    bob.delete()
    assert users(staff.pk) == 1
    Group.objects.all().delete()
    assert groups(ann.pk) == 0


@pytest.mark.django_db(transaction=True)
@isolate_apps("django.contrib.auth")
def test_a_rule_of_a_proxy_is_of_its_rows_however_they_are_saved(name_of):
    class Member(User):
        class Meta:
            app_label = "auth"
            proxy = True

        @property
        def number(self):
            return self.pk

    invalidate_on(Member, "user:{instance.number}:*")
    ann = User.objects.create(username="ann")
    assert name_of(ann.pk) == "ann"
    ann.username = "anna"
    ann.save()
    assert name_of(ann.pk) == "anna"
    assert type(ann) is User
    InvalidatingQuerySet(User).update(username="anne")
    assert name_of(ann.pk) == "anne"


@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_begun_by_hand_nothing_is_kept(name_of):
    @cached_many("user:{pk}:mail", ttl=60)
    def mails(pks):
        return {user.pk: user.email for user in User.objects.filter(pk__in=pks)}

    ann = User.objects.create(username="ann", email="ann@x.org")
    transaction.set_autocommit(False)
    try:
        User.objects.filter(pk=ann.pk).update(username="never", email="never@x.org")
        assert (name_of(ann.pk), mails([ann.pk])) == ("never", {ann.pk: "never@x.org"})
        assert (name_of.get(ann.pk), mails.get([ann.pk])) == (None, {})
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert (name_of(ann.pk), mails([ann.pk])) == ("ann", {ann.pk: "ann@x.org"})
    assert (name_of.get(ann.pk), mails.get([ann.pk])) == ("ann", {ann.pk: "ann@x.org"})


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_that_is_rolled_back_takes_its_own_invalidations_along(name_of):
    ann = User.objects.create(username="ann")
    bob = User.objects.create(username="bob")
    name_of(ann.pk), name_of(bob.pk)
    with transaction.atomic():
        assert invalidate(f"user:{ann.pk}:*") == 0
        with undone():
            invalidate(f"user:{bob.pk}:*")
    assert name_of.get(ann.pk) is None
    assert name_of.get(bob.pk) == "bob"


@pytest.mark.django_db(transaction=True)
def test_what_is_computed_in_a_transaction_is_kept_at_commit_and_not_on_rollback(name_of):
    ann = User.objects.create(username="ann")
    with undone():
        User.objects.filter(pk=ann.pk).update(username="never")
        assert name_of(ann.pk) == "never"
    assert name_of.get(ann.pk) is None
    with transaction.atomic():
        User.objects.filter(pk=ann.pk).update(username="anna")
        assert name_of(ann.pk) == "anna"
        assert name_of.get(ann.pk) is None
    assert name_of.get(ann.pk) == "anna"


@pytest.mark.django_db(transaction=True)
def test_what_somebody_else_invalidates_before_the_commit_is_not_kept_by_it(name_of):
    ann = User.objects.create(username="ann")
    with transaction.atomic():
        name_of(ann.pk)
        carried_out = transactions.Invalidation("default", (f"user:{ann.pk}:*",), (), rules.carry_out)
        carried_out()  # as another process does, which is not in our transaction
    assert name_of.get(ann.pk) is None


@pytest.mark.django_db(transaction=True)
def test_a_transaction_does_not_keep_others_from_computing(name_of):
    ann = User.objects.create(username="ann")
    with transaction.atomic():
        assert name_of(ann.pk) == "ann"
        assert name_of(ann.pk) == "ann"
    assert name_of.calls == [ann.pk] * 2


@pytest.mark.django_db(transaction=True)
def test_nothing_waits_when_all_transactions_are_over(name_of):
    with undone():
        invalidate("user:1:*")
        assert len(transactions.pending) == 1
    with transaction.atomic():
        invalidate("user:1:*")
    assert not len(transactions.pending)


@pytest.mark.usefixtures("site")
class TestInsideDjangosTestCase(TestCase):
    """Which wraps each test in a transaction of its own that never commits."""

    def setUp(self):
        invalidate_on(User, "user:{instance.pk}:*")
        self.calls = []

        @cached("user:{pk}:name", ttl=60)
        def name(pk):
            self.calls.append(pk)
            return User.objects.get(pk=pk).username

        self.name = name
        self.ann = User.objects.create(username="ann")
        transactions.pending.clear()

    def test_results_are_kept_at_once(self):
        self.name(self.ann.pk)
        self.name(self.ann.pk)
        assert self.calls == [self.ann.pk]

    def test_invalidating_by_hand_happens_at_once(self):
        self.name(self.ann.pk)
        assert invalidate(f"user:{self.ann.pk}:*") == 1

    def test_saving_forgets_when_callbacks_are_run(self):
        self.name(self.ann.pk)
        self.ann.username = "anna"
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            self.ann.save()
        assert len(callbacks) == 1
        assert self.name.get(self.ann.pk) is None
        assert self.name(self.ann.pk) == self.name(self.ann.pk) == "anna"
        assert len(self.calls) == 2

    def test_a_test_that_runs_no_callbacks_reads_what_it_wrote(self):
        self.name(self.ann.pk)
        self.ann.username = "anna"
        self.ann.save()
        assert self.name(self.ann.pk) == self.name(self.ann.pk) == "anna"
        assert len(self.calls) == 2

    def test_an_atomic_block_of_the_code_under_test_is_a_transaction(self):
        with transaction.atomic():
            assert invalidate(f"user:{self.ann.pk}:*") == 0


def test_a_rule_may_use_a_template_with_a_name(settings):
    settings.CACHES = CACHES
    settings.REDIS_INFRA = {"KEYS": {"of-user": "user:{instance.pk}:*"}}
    rule = rules.Rule(User, (rules._template_of("of-user"),), (), "default")
    assert rule.patterns[0].text == "user:{instance.pk}:*"
