"""Builds the page with Gradio. Only this file imports Gradio, when a page is built."""

# No `from __future__ import annotations` here: Gradio reads the handlers' annotations, and gr is a local name.
import functools
import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from san.demo.guard import Check, Guard
from san.demo.service import DemoService, Session, explain, text_of
from san.demo.view import encoded_view, message_view, picker_view, picture_view, result_address, result_view
from san.io.errors import require_extra
from san.vocabulary.label_sets import LABEL_SETS
from san.web.words import Words

_ASSETS = Path(__file__).parent / "assets"
_NO_LABEL_SET = "none"
_CONTEXT, _WORDS = "context, marked as such", "words, like your own"
_FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


@dataclass(frozen=True)
class Texts:
    """Texts of the page.

    Attributes:
        title: heading, and the window's title.
        about: one sentence next to it.
        model: the model's name, in the footer.
        label_sets: label sets to choose from.
    """

    title: str = "Segment anything you can name"
    about: str = "Write words, get masks: every pixel is given one of them."
    model: str = "shapes"
    label_sets: tuple[str, ...] = LABEL_SETS


def build_app(
    service: DemoService, texts: Texts | None = None, *, root_path: str = "", frame_ancestors: Iterable[str] = ()
) -> Guard:
    """Build the page as an ASGI application.

    Args:
        service: runs the model.
        texts: texts of the page.
        root_path: see `san.demo.guard.Guard`.
        frame_ancestors: see `san.demo.guard.Guard`.

    Raises:
        MissingExtraError: Gradio is not installed.
        ValueError: see `Guard`.
    """
    require_extra("demo", "the demo", "gradio")
    import gradio as gr
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    functions: dict[int, Check] = {}
    first = _first_result(service)
    guard = Guard(app, service.limits, functions, first=first, root_path=root_path, frame_ancestors=frame_ancestors)
    blocks = _build_blocks(gr, service, texts or Texts(), guard)
    functions |= {number: _input_check(gr, function.inputs) for number, function in blocks.fns.items()}
    blocks.state_session_capacity = service.limits.max_visitors
    theme = gr.themes.Base(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", radius_size="lg", font=_FONT, font_mono=_MONO
    ).set(
        body_background_fill="*neutral_50",
        input_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
    )
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        root_path=root_path.rstrip("/"),
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=["/"],
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=_asset("page.css"),
    )
    return guard


def _input_check(gr: Any, inputs: list[Any]) -> Check:
    """Return a check that values fit the inputs of a function; Gradio would log them if not."""

    def check(values: list[Any]) -> None:
        try:
            for each, value in zip(inputs, values, strict=True):
                each.preprocess(value)
        except gr.Error as error:
            raise ValueError("not a value of this input") from error

    return check


def _first_result(service: DemoService) -> bytes:
    """Segment the first example with its words, for the page's initial view."""
    session = service.open_example(0)
    result, seconds, _ = service.segment(session, Words(service.examples[0].words))
    return picture_view(session, result, seconds).encode()


def _build_blocks(gr: Any, service: DemoService, texts: Texts, guard: Guard) -> Any:
    with gr.Blocks(title=texts.title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f'<div class="san-head"><h1>{html.escape(texts.title)}</h1><p>{html.escape(texts.about)}</p></div>')
        # None until the visitor chooses a picture: the first example, which all share
        state = gr.State(None, time_to_live=60 * service.limits.keep_minutes)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=290):
                picker = gr.HTML(
                    picker_view(service.examples, _hint(service), service.limits),
                    html_template=_asset("picker.html"),
                    js_on_load=_asset("requests.js") + _asset("picker.js"),
                    apply_default_css=False,
                    elem_id="san-picker",
                )
                asked = _words_inputs(gr, service, texts, Words(service.examples[0].words))
            with gr.Column(scale=7, min_width=290):
                viewer = gr.HTML(
                    result_address("first"),
                    html_template=_asset("viewer.html"),
                    js_on_load=_asset("requests.js") + _asset("viewer.js"),
                    apply_default_css=False,
                    elem_id="san-viewer",
                )
        gr.HTML(_footer(service, texts))
        _connect(gr, service, guard, picker, viewer, state, asked)
    blocks.queue(max_size=service.limits.max_waiting, default_concurrency_limit=1, api_open=False)
    return blocks


def _words_inputs(gr: Any, service: DemoService, texts: Texts, words: Words) -> dict[str, Any]:
    return {
        "text": gr.Textbox(
            words.text,
            label="Words",
            info="Separate classes by commas, synonyms of one class by |, as in: sofa|couch, cat",
            placeholder="red star, sofa|couch, sky",
            lines=1,  # Enter segments
            max_lines=8,
            max_length=service.limits.max_characters,
            elem_id="san-words",
        ),
        "button": gr.Button("Segment", variant="primary", elem_id="san-segment"),
        "label_set": gr.Dropdown(
            [_NO_LABEL_SET, *texts.label_sets],
            value=_NO_LABEL_SET,
            label="Label set",
            info="All classes of a data set, in addition to your words",
            elem_id="san-label-set",
        ),
        # shown once there is a label set
        "role": gr.Radio(
            [_CONTEXT, _WORDS], value=_CONTEXT, label="Use its classes as", visible=False, elem_id="san-role"
        ),
        "none": gr.Checkbox(
            words.none_of_these,
            label="None of these",
            info="Leave pixels that fit no word without one",
            elem_id="san-none",
        ),
    }


def _connect(
    gr: Any, service: DemoService, guard: Guard, picker: Any, viewer: Any, state: Any, asked: dict[str, Any]
) -> None:
    """Connect events: a new picture is encoded and segmented, new words only segment."""
    inputs = [asked["text"], asked["label_set"], asked["role"], asked["none"]]
    # one queue for all functions that run the model; they are not an API
    # Changes during a request are handled too: the last words once ("always_last"), and every picture in turn, because
    # Gradio would repeat the event of the first one.
    private = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    common = {**private, "show_progress": "minimal", "concurrency_limit": 1, "concurrency_id": "model"}

    def on_upload(text: Any, label_set: Any, role: Any, none: Any, event: gr.EventData) -> tuple[Any, str]:
        def opened() -> Session:
            pixels = guard.pictures.take(_field(event, "token"))
            if pixels is None:
                raise ValueError("the picture is no longer there; choose it again")
            return service.open_picture(pixels, _field(event, "title"))

        return show_picture(opened, _to_words(text, label_set, role, none))

    def words_of(event: gr.EventData) -> str:
        index = _field(event, "index")
        return service.examples[index].words if isinstance(index, int) and 0 <= index < len(service.examples) else ""

    def on_pick(label_set: Any, role: Any, none: Any, event: gr.EventData) -> tuple[Any, str]:
        words = _to_words(words_of(event), label_set, role, none)
        return show_picture(lambda: service.open_example(_field(event, "index")), words)

    def on_words(session: Session | None, text: Any, label_set: Any, role: Any, none: Any) -> str:
        try:
            current = session or service.open_example(0)
            words = _to_words(text, label_set, role, none)
            result, seconds, notes = service.segment(current, words)
            return kept(result_view(current, result, seconds, notes=notes))
        except Exception as error:
            return message_view(explain(error))

    def show_picture(opened: Callable[[], Session], words: Words) -> tuple[Any, str]:
        try:
            session = opened()
        except Exception as error:
            return gr.skip(), message_view(explain(error))
        try:
            result, seconds, notes = service.segment(session, words)
        except Exception as error:
            return session, kept(encoded_view(session, explain(error)))
        return session, kept(picture_view(session, result, seconds, notes=notes))

    def kept(view: str) -> str:
        """Store a result for the page, and return its address, as Gradio would keep the whole answer."""
        return result_address(guard.results.put(view.encode()))

    picker.upload(on_upload, inputs, [state, viewer], **common)
    picker.pick(words_of, None, asked["text"], **private)  # immediately, or it would undo what the visitor types
    picker.pick(on_pick, inputs[1:], [state, viewer], **common)
    triggers = [asked["button"].click, asked["text"].submit]
    triggers += [asked[name].input for name in ("label_set", "role", "none")]
    gr.on(triggers, on_words, [state, *inputs], viewer, **(common | {"trigger_mode": "always_last"}))
    asked["label_set"].change(
        lambda name: gr.update(visible=name != _NO_LABEL_SET), asked["label_set"], asked["role"], **private
    )


def _to_words(text: Any, label_set: Any, role: Any, none: Any) -> Words:
    name = text_of(label_set)
    return Words(text_of(text), "" if name == _NO_LABEL_SET else name, role != _WORDS, none is True)


def _field(event: Any, name: str) -> Any:
    """Return a field of an event's data; None if there is none."""
    data = getattr(event, "_data", None)
    return data.get(name) if isinstance(data, dict) else None


def _hint(service: DemoService) -> str:
    megabytes, megapixels = service.limits.max_bytes / 1e6, service.limits.max_pixels / 1e6
    return f"PNG, JPEG, WebP, BMP, GIF, TIFF · shrunk if above {megabytes:g} MB or {megapixels:g} megapixels"


def _footer(service: DemoService, texts: Texts) -> str:
    return (
        f'<div class="san-foot">Model: {html.escape(texts.model)}. Pictures and words are kept in memory only, are '
        f"seen by no other visitor, and are forgotten after {service.limits.keep_minutes:g} idle minutes.</div>"
    )


@functools.cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
