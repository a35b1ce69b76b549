"""Classes from examples: their vectors, the scale of images and words, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from san.evaluation import ConfusionMatrix, metrics
from san.inference.examples import (
    Background,
    BankOptions,
    ClassExample,
    class_biases,
    default_word_share,
    example_embedding,
    learn_classes,
)
from san.inference.predictor import Predictor
from san.model.build import build_san
from san.model.config import variant
from san.shapes.render import render
from san.shapes.world import NAMES, NOVEL, SceneStyle, scene_at
from san.vocabulary.classes import ClassText
from san.vocabulary.vocabulary import Vocabulary
from san.vocabulary.vocabulary_file import LearntClasses

CLASSES = Vocabulary.label_set("shapes_36").classes


@pytest.fixture(scope="module")
def shapes() -> Predictor:
    return Predictor.from_pretrained("shapes")


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures with novel things, and their label maps."""
    return render([scene_at(11, index, required=NOVEL) for index in range(24)])


@pytest.fixture(scope="module")
def examples(pictures) -> list[ClassExample]:
    """All novel things in the pictures."""
    return [
        ClassExample(NAMES[number], image, labels == number)
        for image, labels in zip(*pictures, strict=True)
        for number in np.unique(labels)
        if NAMES[number] in NOVEL and (labels == number).sum() > 100
    ]


@pytest.fixture(scope="module")
def learnt(shapes, examples) -> LearntClasses:
    return learn_classes(shapes, CLASSES, examples)


def miou_of_novel(shapes: Predictor, vocabulary: Vocabulary) -> float:
    """On 20 other pictures of novel things, without their grounds."""
    images, labels = render([scene_at(12, index, NOVEL) for index in range(20)])
    matrix = ConfusionMatrix(len(NAMES), 255)
    for image, truth in zip(images, labels, strict=True):
        found = shapes.segment(vocabulary, encoded=shapes.encode(image)).labels
        matrix.update(found, np.where(truth < 28, 255, truth))
    return metrics(matrix, NAMES)["mIoU"]


def test_examples_of_novel_things_improve_on_their_words(shapes, learnt, examples):
    words = miou_of_novel(shapes, Vocabulary(CLASSES))
    alone = learn_classes(shapes, CLASSES, examples, word_share=0.0)
    assert words > 85
    assert miou_of_novel(shapes, Vocabulary(learnt.classes)) > words + 0.8
    assert miou_of_novel(shapes, Vocabulary(alone.classes)) > words + 2


def test_only_classes_with_examples_change(shapes, learnt, pictures):
    counts = learnt.counts()
    assert {name for name, count in counts.items() if count} <= {*NOVEL}
    assert sum(counts.values()) == len(learnt.examples)
    text = shapes.model.text_classifier.embed(CLASSES)
    mixed = shapes.model.text_classifier.embed(learnt.classes)
    changed = (text != mixed).any(dim=1).tolist()
    assert changed == [counts[each.name] > 0 for each in CLASSES]
    assert learnt.word_share.tolist() == pytest.approx([default_word_share(counts[each.name]) for each in CLASSES])


def test_words_alone_are_the_text_embedding(shapes, examples):
    alone = learn_classes(shapes, CLASSES, examples[:3], word_share=1.0)
    both = [shapes.model.text_classifier.embed(each) for each in (alone.classes, CLASSES)]
    torch.testing.assert_close(*both)


def test_images_score_on_the_scale_of_words():
    """Without it, cosines between images are far larger than those between images and words."""
    torch.manual_seed(0)
    cone = torch.randn(40)
    queries = torch.nn.functional.normalize(torch.randn(500, 40) + 2 * cone, dim=1)
    words = torch.nn.functional.normalize(torch.randn(6, 40), dim=1)
    background = Background(40)
    background.add(queries[:200])
    background.add(queries[200:])
    assert (queries @ background.constant()).mean() == pytest.approx(1, abs=1e-4)
    vectors = background.on_scale_of(words, queries[:3])
    found, wanted = queries @ vectors.T, queries @ words.T
    assert found.mean(0) == pytest.approx(wanted.mean().expand(3), abs=1e-3)
    assert found.std(0) == pytest.approx(wanted.std(0).mean().expand(3), rel=0.1)
    assert found.argmax(0).tolist() == [0, 1, 2]  # each prototype fits itself best


def test_a_box_finds_the_mask_of_its_object(shapes, pictures):
    image, labels = pictures[0][0], pictures[1][0]
    encoded = shapes.encode(image)
    things = [number for number in np.unique(labels) if not NAMES[number].endswith("ground")]
    for number in things:
        mask = labels == number
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        by_mask = example_embedding(encoded, ClassExample("a", image, mask))
        by_box = example_embedding(encoded, ClassExample("a", image, box=tuple(map(float, box))))
        assert by_mask @ by_box > 0.95
        assert by_mask.norm() == pytest.approx(1, abs=1e-5)


def test_a_large_object_is_found_without_a_mask(shapes):
    """The ground covers more of a large box, and of the picture, than a star or a bar."""
    images, labels = render([scene_at(21, index, style=SceneStyle((1, 1), (84, 104), 0.5)) for index in range(12)])
    found = {"box": 0, "neither": 0}
    for image, truth in zip(images, labels, strict=True):
        mask = np.array([not name.endswith("ground") for name in NAMES])[truth]
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        left, top, right, bottom = columns[0] - 2, rows[0] - 2, columns[-1] + 3, rows[-1] + 3
        box = (float(max(left, 0)), float(max(top, 0)), float(min(right, 128)), float(min(bottom, 128)))
        encoded = shapes.encode(image)
        by_mask = example_embedding(encoded, ClassExample("a", image, mask))
        for kind, example in (("box", ClassExample("a", image, box=box)), ("neither", ClassExample("a", image))):
            found[kind] += bool(by_mask @ example_embedding(encoded, example) > 0.95)
    assert found["box"] >= 11 and found["neither"] >= 9


def test_without_mask_and_box_the_object_is_in_the_middle():
    target = ClassExample("a", "x.jpg").target(100, 200)
    assert target[50, 100] and target[50, 45] and not target[50, 35] and not target[25, 50]
    assert target.mean() == pytest.approx(np.pi / 4 * 0.6**2, abs=0.01)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (ClassExample("mug", "x", np.zeros((8, 8), bool)), "covers no pixel"),
        (ClassExample("mug", "x", np.ones((8, 9), bool)), "mask of shape"),
        (ClassExample("mug", "x", np.ones((8, 8), bool), (0, 0, 8, 8)), "a mask and a box"),
        (ClassExample("mug", "x", box=(4, 0, 2, 8)), "inside it"),
        (ClassExample("mug", "x", box=(0, 0, 9, 8)), "inside it"),
    ],
)
def test_a_mask_or_box_that_does_not_fit_is_refused(example, message):
    with pytest.raises(ValueError, match=message):
        example.target(8, 8)


def test_wrong_input_is_refused(shapes, examples):
    with pytest.raises(ValueError, match="no example; give"):
        learn_classes(shapes, CLASSES, [])
    with pytest.raises(ValueError, match="'cup', which is not among the classes"):
        learn_classes(shapes, CLASSES, [ClassExample("cup", examples[0].image)])
    with pytest.raises(ValueError, match="share of the words is 2"):
        learn_classes(shapes, CLASSES, examples, word_share=2)


def test_an_example_that_no_mask_covers_is_reported(shapes, pictures, caplog):
    corner = np.zeros((128, 128), bool)
    corner[0, 0] = True
    learn_classes(shapes, CLASSES[:2], [ClassExample(NAMES[0], pictures[0][0], corner)])
    assert "no mask proposal covers the example of class 'red ring'" in caplog.text


def test_another_clip_refuses_the_vectors(learnt):
    """Also the text embeddings of a CLIP of the same width would be meaningless beside them."""
    torch.manual_seed(0)
    other = Predictor(build_san(variant("shapes", pretrained=None)), short_side=64)
    with pytest.raises(ValueError, match=r"made with the CLIP 'shapes shapes', which is not the CLIP of this model"):
        other.predict(np.zeros((64, 64, 3), np.uint8), Vocabulary(learnt.classes))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_number_types_are_the_same_clip(learnt, pictures, dtype):
    image = pictures[0][0]
    predictor = Predictor.from_pretrained("shapes", dtype=dtype)
    assert predictor.predict(image, Vocabulary(learnt.classes)).labels.shape == image.shape[:2]


def test_vectors_cannot_be_trained_on(shapes, learnt):
    with pytest.raises(ValueError, match="words alone"):
        shapes.model.text_classifier.embedder.embed_with_gradient(shapes.model.text_classifier, learnt.classes)


def test_classes_with_vectors_mix_with_words_and_context(shapes, learnt, pictures, tmp_path: Path):
    own = next(each for each in learnt.classes if each.vector is not None)
    words = Vocabulary((own, ClassText("plain ground"))).with_context("striped ground, dotted ground")
    result = shapes.predict(pictures[0][0], words)
    assert result.names == (own.name, "plain ground", "striped ground", "dotted ground")
    with pytest.raises(ValueError, match="cannot be written in one line"):
        words.as_text()


def test_biases_name_the_examples_best():
    """At the minimum of a convex function: no other biases have a smaller penalised cross-entropy."""
    torch.manual_seed(0)
    owner = torch.randint(0, 5, (60,))
    logits = 3 * torch.randn(60, 5) + 4 * torch.nn.functional.one_hot(owner, 5) + torch.tensor([6.0, 0, 0, -6, 0])

    def cost(biases):
        return torch.nn.functional.cross_entropy(logits + biases, owner) + 0.1 * biases.square().mean()

    found = class_biases(logits, owner)
    assert found[0] < -1 and found[3] > 1
    biases = found.clone().requires_grad_()
    cost(biases).backward()
    assert biases.grad.abs().max() < 1e-5
    assert class_biases(1000 * logits, owner).isfinite().all()


def test_calibrated_words_are_the_text_with_a_bias(shapes, pictures):
    classes = [ClassText("plain ground"), ClassText("red star"), ClassText("blue bar")]
    examples = [ClassExample(each.name, pictures[0][index]) for index, each in enumerate(classes)]
    learnt = learn_classes(shapes, classes, examples, word_share=1.0, calibrated=True)
    classifier = shapes.model.text_classifier
    queries = torch.cat([shapes.encode(each.image).proposals.sls_embed[0] for each in examples])
    change = classifier.logits(queries, classifier.embed(learnt.classes))
    change = change - classifier.logits(queries, classifier.embed(classes))
    assert learnt.bias.std() > 0.1
    assert change[:, :3].mean(0).detach() == pytest.approx(torch.from_numpy(learnt.bias), abs=0.05)
    with pytest.raises(ValueError, match="1 of 3 have none, such as 'blue bar'"):
        learn_classes(shapes, classes, examples[:2], calibrated=True)
    with pytest.raises(ValueError, match="two classes or more"):
        learn_classes(shapes, classes[:1], examples[:1], calibrated=True)


@pytest.fixture(scope="module")
def banked(shapes, examples) -> LearntClasses:
    return learn_classes(shapes, CLASSES, examples, bank=BankOptions())


def test_whitened_embeddings_have_the_same_variance_in_all_directions():
    torch.manual_seed(0)
    embeds = torch.randn(400, 12) @ torch.randn(12, 12) + 3
    background = Background(12)
    background.add(embeds)
    found = torch.linalg.inv(background.whitening() @ background.whitening())
    ridge = background.covariance.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(found, background.covariance + ridge)


def test_a_bank_keeps_the_vectors_and_finds_each_example(shapes, learnt, banked):
    text = shapes.model.text_classifier.embed_with_bank(banked.classes)
    assert torch.equal(text.vectors, shapes.model.text_classifier.embed(learnt.classes))
    cosines, found = text.bank.nearest(torch.from_numpy(banked.examples.astype(np.float32)))
    assert text.bank.owner[found[:, 0]].tolist() == banked.example_class.tolist()
    assert cosines[:, 0] == pytest.approx(1, abs=1e-3)


def test_without_a_bank_scores_are_those_of_the_vectors_bit_for_bit(shapes, learnt, banked, pictures):
    encoded, classifier = shapes.encode(pictures[0][0]), shapes.model.text_classifier
    for classes in (CLASSES, learnt.classes):
        plain = shapes.model.scorer(encoded.proposals.sls_embed, classifier.embed(classes), classifier)
        assert torch.equal(shapes.evidence(encoded, classes).class_logits, plain[0])
    mixed = shapes.evidence(encoded, banked.classes).class_logits.softmax(-1)
    has = torch.tensor([*(count > 0 for count in banked.counts().values()), False])
    ratio = mixed / plain[0].softmax(-1)
    assert torch.equal((ratio - 1).abs().amax(0) > 1e-3, has)  # others and "no object" are the same
    torch.testing.assert_close(mixed.sum(1), torch.ones(len(mixed)))


def test_a_bank_works_at_several_scales_in_ensembles_and_batches(shapes, banked, pictures):
    words, images = Vocabulary(banked.classes), [*pictures[0][:2]]
    single = shapes.predict_batch(images, words)
    assert np.array_equal(single[1].labels, shapes.predict(images[1], words).labels)
    both = Predictor.ensemble([shapes, shapes]).predict(images[0], words)
    assert (both.labels == single[0].labels).mean() > 0.999
    scales = Predictor(shapes.model, short_sides=(128, 160), flip=True)
    encoded = scales.encode(images[0])
    views = scales.evidence(encoded, words.classes).views
    bank = shapes.model.text_classifier.embed_with_bank(banked.classes).bank
    for view, each in zip(views, (encoded, *encoded.others), strict=True):
        text = shapes.model.text_classifier.embed_with_bank(words.classes).vectors
        plain = shapes.model.classify(each.proposals, text).class_logits
        assert torch.equal(view.class_logits, bank.mix(plain, each.proposals.sls_embed)[0])
    assert len(views) == 4


def test_a_part_of_the_classes_has_a_part_of_the_bank(shapes, banked, pictures):
    own = [each for each in banked.classes if each.vector is not None][:2]
    words = Vocabulary((*own, ClassText("plain ground"))).with_context("striped ground")
    text = shapes.model.text_classifier.embed_with_bank(words.classes)
    assert len(text.bank) == sum(banked.counts()[each.name] for each in own)
    assert text.bank.has_examples.tolist() == [True, True, False, False]
    assert shapes.predict(pictures[0][0], words).labels.max() <= 3


def test_a_bank_is_refused_where_it_would_be_left_out(shapes, banked, pictures, tmp_path):
    torch.manual_seed(0)
    other = Predictor(build_san(variant("shapes", pretrained=None)), short_side=64)
    for predictor in (other, Predictor.ensemble([shapes, other])):
        with pytest.raises(ValueError, match="which is not the CLIP of this model"):
            predictor.predict(pictures[0][0], Vocabulary(banked.classes))
    with pytest.raises(ValueError, match="make the file without --bank"):
        shapes.model.text_classifier.embed(banked.classes)
    with pytest.raises(ValueError, match="tokens do not express"):
        shapes.model.text_classifier.embedder.tokenise(banked.classes)
    with pytest.raises(ValueError, match="cannot be written in one line"):  # the pages of demo and service
        Vocabulary(banked.classes).as_text()
