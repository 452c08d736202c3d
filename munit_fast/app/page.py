"""The page, in Gradio: components, and what happens when one is used. Nothing is computed here."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from torch import Tensor

from munit_fast.app import translation
from munit_fast.app.folder import Folder
from munit_fast.app.translation import SLIDER_RANGE, SLIDER_STEP, Style, Translator, UserError
from munit_fast.models.munit import Direction
from munit_fast.utils.text import printable

_LOG = logging.getLogger(__name__)
CANVAS = 512  # pixels of the paper's side
MAX_SLIDERS = 64
SESSIONS = 64  # whose pictures are kept; the oldest go first
DELETE_AFTER = 3600  # seconds after which a file of the page goes
MINUTE = 60
_ASSETS = Path(__file__).parent / "assets"
CSS = (_ASSETS / "page.css").read_text(encoding="utf-8")
PENS = (("Black", "#000000"), ("Red", "#e03131"), ("Yellow", "#f2b705"), ("Green", "#2f9e44"), ("Blue", "#1c7ed6"))


@dataclass(frozen=True, eq=False)
class Work:
    """What one user is working on.

    Attributes:
        path: The file of the picture.
        drawn: Whether it was drawn here.
        image: The picture as the model takes it.
        direction: The direction that `styles` and `chosen` are for.
        styles: The random styles of the grid.
        chosen: The style of the large picture and of the sliders.
        options: Direction, size, number of styles and first seed that the grid was made with.
    """

    path: str | None = None
    drawn: bool = False
    image: Tensor | None = field(default=None, repr=False)
    direction: Direction = "a2b"
    styles: tuple[Style, ...] = ()
    chosen: Style | None = None
    options: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: Any) -> Work:
        return self  # nothing in it is changed


def make_theme() -> gr.themes.Base:
    """Gradio's own look with the fonts of the visitor's machine: no font is fetched."""
    return gr.themes.Default(
        primary_hue="indigo",
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def make_page(translator: Translator, folder: Folder | None = None) -> gr.Blocks:
    """The blocks of the page.

    Args:
        translator: The model.
        folder: Where the files of the page lie; once it is full, nothing is computed. None: there is no bound.
    """
    limits = translator.limits
    with gr.Blocks(
        title=f"munit-fast · {translator.name}", analytics_enabled=False, delete_cache=(MINUTE, DELETE_AFTER)
    ) as blocks:
        blocks.state_session_capacity = SESSIONS
        _Page(translator, folder).connect()
    blocks.queue(max_size=limits.queue, default_concurrency_limit=1, api_open=False)
    blocks.process_api = _without_tracebacks(blocks.process_api)
    return blocks


def _without_tracebacks(process: Callable[..., Any]) -> Callable[..., Any]:
    """Gradio's own refusals, of values that no component of the page gives, as messages instead of tracebacks."""

    @functools.wraps(process)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        try:
            return await process(*args, **kwargs)
        except gr.Error as error:
            message = html.escape(str(error.message))
        except Exception as error:
            message = _logged(error)
        raise gr.Error(message, print_exception=False, title="")

    return answer


def _logged(error: Exception) -> str:
    """A message for the page, in which nothing of this machine is named; the log has the error in one line."""
    _LOG.error("%s: %s", type(error).__name__, printable(" ".join(str(error).split())))
    return "This did not work; the log of the server says why."


class _Page:
    """The components and the functions that they call."""

    def __init__(self, translator: Translator, folder: Folder | None) -> None:
        self.translator, self.limits, self.folder = translator, translator.limits, folder
        self.has_styles = bool(translator.style_dim)
        self.work = gr.State(Work(), time_to_live=DELETE_AFTER)
        source, target = translator.domains
        gr.Markdown(_heading(translator), elem_id="title", padding=False)
        with gr.Row(equal_height=False, elem_id="parts"):
            with gr.Column(scale=5, min_width=280, elem_id="given"):
                self._add_input(source, target)
            with gr.Column(scale=6, min_width=280, elem_id="made"):
                self._add_output()
        gr.Markdown(_about(translator), elem_id="about", padding=False)

    def _add_input(self, source: str, target: str) -> None:
        config = self.translator.model.config
        short = config.short_side("a") or max(config.crop_image_height, config.crop_image_width)
        with gr.Tabs(elem_id="picture-from"):
            with gr.Tab("Draw", id="draw"):
                self.drawing = _paper(short or CANVAS)  # without a size, drawings keep theirs
            with gr.Tab("Upload or camera", id="upload", render_children=True):
                self.picture = _picture(
                    label="Picture", sources=["upload", "webcam", "clipboard"], height=360, elem_id="picture"
                )
        self.direction = gr.Radio(
            [(f"{source} → {target}", "a2b"), (f"{target} → {source}", "b2a")],
            value="a2b",
            label="Direction",
            elem_id="direction",
        )
        self.shuffle = gr.Button("New random styles", variant="primary", elem_id="shuffle", visible=self.has_styles)
        with gr.Accordion("Options", open=False, elem_id="options"):
            self.native = gr.Radio(
                [(f"the model's, short side {short}" if short else "the model's", False), ("the picture's own", True)],
                value=False,
                label="Size",
                elem_id="size",
            )
            with gr.Row(visible=self.has_styles):
                self.count = gr.Slider(
                    1,
                    self.limits.styles,
                    value=min(6, self.limits.styles),
                    step=1,
                    label="Random styles",
                    buttons=[],
                    min_width=140,
                    elem_id="count",
                )
                self.seed = gr.Number(10, label="First seed", precision=0, min_width=120, elem_id="seed")

    def _add_output(self) -> None:
        if self.has_styles:
            gr.Markdown("**Random styles:** choose one.", padding=False, elem_id="choose")
        self.gallery = gr.Gallery(
            show_label=False,
            columns=3,
            format="png",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            height="auto",
            buttons=[],
            elem_id="styles",
            visible=self.has_styles,
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=200):
                self.result = gr.Image(
                    label="Chosen style" if self.has_styles else "Translation",
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="result",
                )
            self.sliders: list[gr.Slider] = []
            if self.has_styles:
                with gr.Column(scale=1, min_width=240, elem_id="code"):
                    self._add_sliders()
        with gr.Row(elem_id="downloads"):
            self.save_picture = _download("Picture")
            self.save_grid = _download("Grid", visible=self.has_styles)
            self.save_style = _download("Style", visible=self.has_styles)
        if self.has_styles:
            self._add_more()

    def _add_sliders(self) -> None:
        dim = self.translator.style_dim
        shown = min(dim, MAX_SLIDERS)
        gr.Markdown("**Style code**" if shown == dim else f"**Style code**, {shown} of {dim} numbers", padding=False)
        for first in range(0, shown, 2):
            with gr.Row():
                for i in range(first, min(first + 2, shown)):
                    slider = gr.Slider(
                        -SLIDER_RANGE,
                        SLIDER_RANGE,
                        value=0,
                        step=SLIDER_STEP,
                        label=f"Number {i + 1}",
                        min_width=120,
                        buttons=[],
                        elem_id=f"code-{i + 1}",
                    )
                    self.sliders.append(slider)

    def _add_more(self) -> None:
        with gr.Accordion("Style from a picture or a file", open=False, elem_id="from-picture"):
            self.example = _picture(
                label="Take the style of this picture", sources=["upload", "clipboard"], height=200, elem_id="example"
            )
            self.load_style = _local(
                gr.UploadButton("Load a saved style", file_types=[".json"], size="sm", elem_id="load-style")
            )
        with gr.Accordion("Animation between two styles", open=False, elem_id="animation"):
            with gr.Row():
                self.first = gr.Dropdown([], label="From", min_width=120, elem_id="from")
                self.last = gr.Dropdown([], label="To", min_width=120, elem_id="to")
            self.animate = gr.Button("Animate", elem_id="animate")
            self.animation = gr.Image(label="Animation", interactive=False, buttons=["fullscreen"], elem_id="moving")
            self.save_animation = _download("Animation")

    def connect(self) -> None:
        """Say what happens when a component is used."""
        options = [self.direction, self.native, self.count, self.seed]
        shown = [self.work, self.gallery, *self._ends(), *self._chosen(), self.save_grid, *self._moving(), self.seed]
        self._on(self.drawing.input, self.draw, [self.work, self.drawing, *options], shown, trigger="always_last")
        taken = [*shown, self.picture]
        self._on(self.picture.input, self.take, [self.work, self.picture, *options], taken, trigger="always_last")
        changes = [self.direction.input, self.native.input, self.count.release, self.seed.submit, self.seed.blur]
        self._on(changes, self.again, [self.work, *options], shown, trigger="always_last")
        self._on(self.picture.clear, self.remove, [self.work], shown)
        if not self.has_styles:
            return
        self._on(self.shuffle.click, self.other, [self.work, *options], shown, trigger="once")
        chosen = [self.work, self.gallery, *self._ends(), *self._chosen()]
        self._on(self.gallery.select, self.choose, [self.work], chosen)
        moved = [slider.input for slider in self.sliders]
        outputs = chosen[: -len(self.sliders)]
        self._on(moved, self.move, [self.work, *self.sliders], outputs, trigger="always_last")
        self._on(self.example.input, self.imitate, [self.work, self.example], chosen, trigger="always_last")
        self._on(self.load_style.upload, self.load, [self.load_style, self.work, *options], [*shown, self.direction])
        self._on(
            self.animate.click,
            self.interpolate,
            [self.work, self.first, self.last],
            [self.animation, self.save_animation],
            trigger="once",
        )

    def _on(
        self,
        events: Any,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        trigger: str = "multiple",
    ) -> None:
        gr.on(
            events,
            _answering(function, len(outputs)),
            list(inputs),
            list(outputs),
            show_progress="hidden",
            trigger_mode=trigger,
            concurrency_id="model",  # one at a time, whichever function it is
            concurrency_limit=1,
            api_visibility="private",
        )

    def _chosen(self) -> list[Any]:
        """What shows the chosen style."""
        return [self.result, self.save_picture, self.save_style, *self.sliders]

    def _ends(self) -> list[Any]:
        return [self.first, self.last] if self.has_styles else []

    def _moving(self) -> list[Any]:
        return [self.animation, self.save_animation] if self.has_styles else []

    # -- what happens; each gives the values of the outputs in `connect`

    def draw(self, work: Work, path: str | None, *options: Any) -> list[Any]:
        """A line was drawn. Without a path, the paper is white again."""
        if path is None:
            return self._blank(work) if work.drawn else self._skip()
        return self._show(work, path, True, *options)

    def take(self, work: Work, path: str | None, *options: Any) -> list[Any]:
        """A picture was uploaded or taken. One that cannot be used is put away, and with it the one of before."""
        if path is None:
            return [*self._skip(), gr.skip()]
        try:
            return [*self._show(work, path, False, *options), gr.skip()]
        except UserError as error:
            _warn(error)
            return [*self._blank(work), None]

    def remove(self, work: Work) -> list[Any]:
        """The picture was taken away."""
        return self._skip() if work.drawn else self._blank(work)

    def again(self, work: Work, *options: Any) -> list[Any]:
        """An option was changed, or its field was left."""
        seed = self._seed(*options[2:])
        if work.path is None or work.options == (*options[:3], seed):
            return [*self._skip()[:-1], _corrected(options[3], seed)]
        return self._show(work, work.path, work.drawn, *options)

    def other(self, work: Work, direction: Direction, native: bool, count: float, _seed: float) -> list[Any]:
        """New random styles."""
        seed = translation.new_seed()
        if work.path is None:
            return [*self._skip()[:-1], seed]
        return [*self._show(work, work.path, work.drawn, direction, native, count, seed)[:-1], seed]

    def choose(self, work: Work, event: gr.SelectData) -> list[Any]:
        """A cell of the grid was chosen."""
        if work.image is None or not 0 <= event.index < len(work.styles):
            raise UserError("draw or upload something first")
        return self._choose(_with(work, chosen=work.styles[event.index]))

    def move(self, work: Work, *values: float) -> list[Any]:
        """A slider was moved."""
        if work.image is None or work.chosen is None:
            raise UserError("draw or upload something first")
        hidden = translation.to_sliders(work.chosen.code)[len(values) :]
        work = _with(work, chosen=translation.from_sliders([*values, *hidden], work.chosen))
        return self._choose(work)[: -len(self.sliders)]

    def imitate(self, work: Work, path: str | None) -> list[Any]:
        """An example of a style was given."""
        if path is None:
            return [gr.skip()] * (2 + len(self._ends()) + len(self._chosen()))
        if work.image is None:
            raise UserError("draw or upload something first")
        return self._choose(_with(work, chosen=self.translator.style_of(path, work.direction)))

    def load(self, path: str | None, work: Work, _direction: str, *options: Any) -> list[Any]:
        """A saved style was loaded."""
        if path is None:
            return [*self._skip(), gr.skip()]
        file = self.translator.load_style(path)
        if file.model != self.translator.name:
            gr.Warning(html.escape(f"the style is of {file.model}; in {self.translator.name} it looks different"))
        if (picture := work.path) is None:
            raise UserError("draw or upload something first")
        work = _with(work, direction=file.direction, chosen=file.style)
        return [*self._show(work, picture, work.drawn, file.direction, *options), file.direction]

    def interpolate(self, work: Work, first: int | None, last: int | None) -> list[Any]:
        """The animation between two styles."""
        styles = dict(_named(work))
        if work.image is None or first not in styles or last not in styles:
            raise UserError("draw or upload something first, then choose two styles")
        self._check_room()
        frames = self.translator.animate(work.image, work.direction, [styles[first], styles[last]])
        path = self._file(translation.animation_bytes(frames), "animation.webp")
        return [path, _file_update(path)]

    # -- parts of the above

    def _show(
        self, work: Work, path: str, drawn: bool, direction: Direction, native: bool, count: float, seed: float | None
    ) -> list[Any]:
        """Translate a picture into the random styles and into the chosen one."""
        if direction not in translation.DIRECTIONS:
            raise UserError("choose a direction")
        self._check_room()
        read = self.translator.read_drawing if drawn else self.translator.read
        image = read(path, "a" if direction == "a2b" else "b", native=bool(native))
        given, seed = seed, self._seed(count, seed)
        options = direction, native, count, seed
        field = _corrected(given, seed)
        work = _with(work, path=path, drawn=drawn, image=image, options=options)
        if not self.has_styles:
            found = self.translator.translate(image, direction)
            picture = self._png(translation.to_picture(found[0]), "translation.png")
            work = _with(work, direction=direction)
            return [work, gr.skip(), picture, _file_update(picture), gr.skip(), gr.skip(), field]
        styles = tuple(self.translator.random_styles(seed, int(count)))
        chosen = _kept(work, direction, styles)
        work = _with(work, direction=direction, styles=styles, chosen=chosen)
        found = self.translator.translate(image, direction, styles)
        cells = [
            (self._png(translation.to_picture(x), f"seed-{style.seed}.png"), style.title)
            for x, style in zip(found, styles)
        ]
        grid = self._png(translation.grid_picture(image, found), "grid.png")
        work, _, *after = self._choose(work)
        gallery = gr.update(value=cells, **_marked(work))
        moving = [gr.skip() for _ in self._moving()]
        return [work, gallery, *after, _file_update(grid), *moving, field]

    def _choose(self, work: Work) -> list[Any]:
        """Translate into the chosen style."""
        assert work.image is not None and work.chosen is not None
        self._check_room()
        found = self.translator.translate(work.image, work.direction, [work.chosen])[0]
        name = "translation.png" if work.chosen.seed is None else f"seed-{work.chosen.seed}.png"
        picture = self._png(translation.to_picture(found), name)
        text = translation.style_json(work.chosen, work.direction, self.translator.name)
        style = self._file(text.encode(), "style.json")
        named = _named(work)
        choices = [(style.title, key) for key, style in named]
        ends = [gr.update(choices=choices, value=key) for key in (named[0][0], named[-1][0])]
        values = translation.to_sliders(work.chosen.code)[: len(self.sliders)]
        gallery = gr.update(**_marked(work))
        return [work, gallery, *ends, picture, _file_update(picture), _file_update(style), *values]

    def _blank(self, work: Work) -> list[Any]:
        """Forget the picture and all that was made of it; its styles stay."""
        work = _with(work, path=None, drawn=False, image=None, options=())
        no_file = gr.update(value=None, interactive=False)
        ends = [gr.update(choices=[], value=None) for _ in self._ends()]
        sliders = [gr.skip() for _ in self.sliders]
        moving = [None, no_file] if self.has_styles else []
        gallery = gr.update(value=[])
        return [work, gallery, *ends, None, no_file, no_file, *sliders, no_file, *moving, gr.skip()]

    def _skip(self) -> list[Any]:
        return [gr.skip()] * (4 + len(self._ends()) + len(self._chosen()) + len(self._moving()))

    def _seed(self, count: float, seed: float | None) -> int:
        """The first seed that is possible with `count` styles; it is the one of the field wherever that can be used."""
        wanted = int(seed or 0)
        used = min(max(wanted, 0), max(0, translation.SEEDS - int(count)))
        if used != wanted:
            gr.Warning(f"Seed {wanted} cannot be used; the first seed is now {used}.", title="")
        return used

    def _check_room(self) -> None:
        if self.folder is not None and self.folder.is_full():
            raise UserError("there is no more room for files; try again later")

    def _png(self, picture: Any, name: str) -> str:
        return self._file(translation.png_bytes(picture), name)

    def _file(self, data: bytes, name: str) -> str:
        if self.folder is not None:
            self.folder.add(len(data))
        return _cache_file(self.result, data, name)


def _with(work: Work, **changes: Any) -> Work:
    return Work(**{**work.__dict__, **changes})


def _corrected(given: float | None, used: int) -> Any:
    """What the field of the seed is to show; a number that can be used stays, since another may be typed meanwhile."""
    return gr.skip() if given == used else used


def _kept(work: Work, direction: Direction, styles: Sequence[Style]) -> Style:
    """The style to show beside new random ones: that of before, unless it was one of the grid's and is gone."""
    chosen = work.chosen
    if chosen is None or work.direction != direction:
        return styles[0]
    for style in styles:
        if style.seed == chosen.seed:
            return style
    return styles[0] if any(chosen is style for style in work.styles) else chosen


def _marked(work: Work) -> dict[str, Any]:
    """Which cell of the grid is marked: the one with the chosen style. Gradio's own mark cannot be taken away."""
    index = next((i for i, style in enumerate(work.styles) if style is work.chosen), None)
    return {"selected_index": index or 0, "elem_classes": ["unmarked"] if index is None else []}


def _named(work: Work) -> list[tuple[int, Style]]:
    """The styles that an animation may start and end with: those of the grid, and the chosen one unless it is there."""
    styles = list(enumerate(work.styles))
    if work.chosen is not None and all(work.chosen is not style for _, style in styles):
        styles.append((-1, work.chosen))
    return styles


def _answering(function: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """The function with its errors as messages of the page."""

    @functools.wraps(function)
    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            _warn(error)
        return [gr.skip()] * outputs

    return answer


def _warn(error: Exception) -> None:
    """Show an error on the page."""
    if isinstance(error, UserError):
        message = printable(str(error))
        if "." not in message.split()[0]:  # a file's name stays as it is
            message = message[0].upper() + message[1:]
    else:
        message = _logged(error)
    gr.Warning(html.escape(message), title="")


def _paper(short: int) -> gr.HTML:
    """White paper to draw on; its events give the path of the drawing as a file."""
    paper = gr.HTML(
        html_template=(_ASSETS / "drawing.html").read_text(encoding="utf-8"),
        css_template=(_ASSETS / "drawing.css").read_text(encoding="utf-8"),
        js_on_load=(_ASSETS / "drawing.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="drawing",
        pens=PENS,
        # Lines of the published drawings are about two pixels wide where the short side is 64.
        pen_width=max(4, min(20, round(2 * CANVAS / short))),
    )
    paper.preprocess = lambda payload: _inside(paper, payload) if payload else None  # type: ignore[method-assign]
    return paper


def _picture(**options: Any) -> gr.Image:
    """A picture that is uploaded; its events give the path of the file, which nobody has opened yet."""
    image = gr.Image(
        type="filepath", image_mode=None, buttons=[], webcam_options=gr.WebcamOptions(mirror=False), **options
    )

    def preprocess(payload: Any) -> str | None:
        return None if payload is None or payload.path is None else _inside(image, payload.path)

    image.preprocess = preprocess  # type: ignore[method-assign]
    return _local(image)


def _local(component: Any) -> Any:
    """The component, which then takes uploaded files only: Gradio would fetch addresses of other machines."""
    move = component.async_move_resource_to_block_cache

    async def move_local(path: str | Path | None) -> str | None:
        return None if path is None else await move(_inside(component, path))

    component.async_move_resource_to_block_cache = move_local
    return component


def _inside(component: Any, path: str | Path) -> str:
    """The path of an uploaded file. Raises UserError where it is not in the page's folder."""
    if not isinstance(path, (str, Path)) or "\0" in str(path):
        raise UserError("not a path")
    if not Path(path).resolve().is_relative_to(Path(component.GRADIO_CACHE).resolve()):
        raise UserError("only uploaded files can be used")
    return str(path)


def _cache_file(component: Any, data: bytes, name: str) -> str:
    """A file that the page may show, and that goes after a while."""
    path = processing_utils.save_bytes_to_cache(data, name, component.GRADIO_CACHE)
    component.temp_files.add(path)
    return path


def _download(label: str, visible: bool = True) -> gr.DownloadButton:
    return gr.DownloadButton(
        f"↓ {label}", size="sm", interactive=False, visible=visible, min_width=90, elem_id=f"save-{label.lower()}"
    )


def _file_update(path: str) -> Any:
    return gr.update(value=path, interactive=True)


def _heading(translator: Translator) -> str:
    source, target = map(_plain, translator.domains)
    known = (source, target) != ("A", "B")
    trainer = translator.model.trainer
    title = f"{source.capitalize()} ↔ {target}" if known else _plain(translator.name)
    if title == trainer:  # a model without a file
        title = f"A {trainer} model"
    what = f"Draw {source} or give a picture, and see it in {target}." if known else "Draw or give a picture."
    if translator.style_dim:
        what += " Choose one of the styles, and change it with the sliders."
    return f"# {title}\n{what}"


def _about(translator: Translator) -> str:
    about = translator.model.about
    name, trainer = translator.name, translator.model.trainer
    parts = [f"Model: {_plain(name)} ({trainer})" if name != trainer else f"Model: {trainer}"]
    parts += [f"{key.capitalize()}: {_plain(about[key])}" for key in ("licence", "attribution") if about.get(key)]
    parts.append("Pictures stay on the machine that serves this page, for an hour at most. Made with munit-fast.")
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Third-party text for Markdown."""
    shown = html.escape(" ".join(text[:500].split()))
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~$" else c for c in shown)
