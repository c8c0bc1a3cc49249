"""What visitors type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django import forms

from example_project.relay.models import Document, Message

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
