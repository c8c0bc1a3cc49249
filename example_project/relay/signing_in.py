"""Signing in: five attempts, a question rather than a lock, and nothing for those who know their password.

The policy ``auth`` has three limits, charged before the password is looked at and given back by Django's
signal that somebody logged in. Where only the one for the account alone denies, from whatever address,
locking would let anybody lock anybody out: there the form has one more field.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.decorators import method_decorator

from redis_infra.throttling.auth import needs_step_up
from redis_infra.throttling.decorators import ratelimit


class FormWithQuestion(AuthenticationForm):
    """The form, with a question that stands for a captcha or a second factor."""

    answer = forms.CharField(label="Somebody guesses at this account. How much is seven and five?")

    def clean_answer(self) -> str:
        """Return the answer, if it is right."""
        answer: str = self.cleaned_data["answer"]
        if answer.strip().lower() not in {"12", "twelve"}:
            raise forms.ValidationError("That is not what seven and five make.")
        return answer

    def clean(self) -> dict[str, Any]:
        """Look at the password only when the answer is right."""
        return self.cleaned_data if self.errors else super().clean()


@method_decorator(ratelimit("auth", methods=["POST"], step_up=True), name="dispatch")
class SignIn(LoginView):
    """Django's view, limited."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Show the form; who is signed in already goes on."""
        if request.user.is_authenticated:
            return HttpResponseRedirect(self.get_success_url())
        return super().get(request, *args, **kwargs)

    def get_form_class(self) -> type[AuthenticationForm]:
        """Ask for more where the password alone has been tried too often."""
        return FormWithQuestion if needs_step_up(self.request) else AuthenticationForm
