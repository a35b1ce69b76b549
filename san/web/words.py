"""Vocabularies of strangers: limited, and written neither to disk nor to the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from san.vocabulary.vocabulary import Vocabulary
from san.web.limits import InputLimits

if TYPE_CHECKING:
    from san.clip.text_embedder import TextEmbeddings
    from san.inference.predictor import Predictor


@dataclass(frozen=True)
class Words:
    """The vocabulary that a stranger writes.

    Attributes:
        text: classes separated by commas, semicolons or line breaks, synonyms by |.
        label_set: a label set's name, "" for none.
        as_context: the label set's classes compete for pixels and are marked as context; otherwise they follow the
            words of `text`.
        none_of_these: pixels that fit no word get no class.
    """

    text: str
    label_set: str = ""
    as_context: bool = True
    none_of_these: bool = False

    def vocabulary(self, limits: InputLimits) -> Vocabulary:
        """Return the classes.

        Raises:
            ValueError: there are none, too many or repeated ones, or the label set does not exist. The message is for
                the sender.
        """
        if len(self.text) > limits.max_characters:
            raise ValueError(
                f"the words have {len(self.text)} characters, the limit here is {limits.max_characters}; shorten them"
            )
        blank = not self.text.strip(" \t\r\n,;")
        if blank and (not self.label_set or self.as_context):
            raise ValueError("there are no words; write at least one, such as: red star, plain ground")
        if not self.label_set:
            vocabulary = Vocabulary.parse(self.text)
        elif blank:
            vocabulary = Vocabulary.label_set(self.label_set)
        else:
            both = Vocabulary.parse(self.text).with_context(Vocabulary.label_set(self.label_set))
            vocabulary = both if self.as_context else Vocabulary(both.classes)
        if len(vocabulary.classes) > limits.max_classes:
            raise ValueError(
                f"the vocabulary has {len(vocabulary.classes)} classes, the limit here is {limits.max_classes}; "
                "leave some out"
            )
        return vocabulary

    def embed(self, predictor: Predictor, vocabulary: Vocabulary) -> tuple[TextEmbeddings, TextEmbeddings]:
        """Embed the classes of `vocabulary()`; only those of the label set may be cached on disk.

        Args:
            predictor: its CLIP embeds them.
            vocabulary: the classes.

        Returns:
            The embeddings of all classes, and those of the sender's own, whose remarks are for the sender.
        """
        classifier = predictor.model.text_classifier
        if self.label_set:
            classifier.embedder.embed(classifier, Vocabulary.label_set(self.label_set).classes)
        text = classifier.embedder.embed(classifier, vocabulary.classes, store=False)
        return text, classifier.embedder.embed(classifier, vocabulary.free, store=False)
