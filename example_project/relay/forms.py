"""What visitors type."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from django import forms

from example_project.relay.models import Document, Message
from example_project.relay.records import DENSITIES, THEMES, Settings

if TYPE_CHECKING:
    MessageBase = forms.ModelForm[Message]
    DocumentBase = forms.ModelForm[Document]
else:
    MessageBase = DocumentBase = forms.ModelForm


class MessageForm(MessageBase):
    """Something to say in a room."""

    class Meta:
        model = Message
        fields = ["body"]
        widgets = {"body": forms.Textarea(attrs={"rows": 2, "placeholder": "Write a message"})}
        labels = {"body": "Message"}


class DocumentForm(DocumentBase):
    """A new document."""

    class Meta:
        model = Document
        fields = ["title", "kind", "body"]
        widgets = {"body": forms.Textarea(attrs={"rows": 10})}
        labels = {"body": "Text"}


class SearchForm(forms.Form):
    """Words that a document must contain."""

    q = forms.CharField(required=False, max_length=100, strip=True)
    page = forms.IntegerField(required=False, min_value=1, max_value=10_000)

    def wanted(self) -> tuple[str, int]:
        """Return the words and the page; what makes no sense is taken as the first page of everything."""
        self.is_valid()
        return self.cleaned_data.get("q") or "", self.cleaned_data.get("page") or 1


class SettingsForm(forms.Form):
    """How somebody likes to see the site."""

    theme = forms.ChoiceField(
        choices=[(name, name.capitalize()) for name in THEMES], widget=forms.RadioSelect, label="Theme"
    )
    density = forms.ChoiceField(
        choices=[(name, name.capitalize()) for name in DENSITIES], widget=forms.RadioSelect, label="Density"
    )
    name = forms.CharField(
        required=False,
        max_length=40,
        label="Name",
        help_text="What the head of the page and the API call you. Others see the name of your account.",
    )

    def settings(self) -> Settings:
        """Return what was chosen, once the form is valid."""
        return Settings(**self.cleaned_data)


LIFETIMES = {
    "10 minutes": timedelta(minutes=10),
    "1 day": timedelta(days=1),
    "30 days": timedelta(days=30),
}


class KeyForm(forms.Form):
    """A new API key."""

    name = forms.CharField(max_length=40, label="What for")
    lifetime = forms.ChoiceField(choices=[(text, text) for text in LIFETIMES], label="Expires after")

    def lifetime_wanted(self) -> timedelta:
        """Return how long it lasts, once the form is valid."""
        return LIFETIMES[self.cleaned_data["lifetime"]]
