"""Configuration files: the published YAML keys, checked before anything starts.

`load_config` turns a file into a `Config`; whatever is wrong with it (a key that does not exist, a value of the wrong
type, a size that the networks cannot take) becomes one `ConfigError` that lists every problem, one per line, each
with the key and with what would work.
"""

from __future__ import annotations

import difflib
import math
import re
from bisect import bisect_left
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from munit_fast.utils.text import printable, read_bounded

Activation = Literal["relu", "lrelu", "prelu", "selu", "tanh", "none"]
Padding = Literal["reflect", "replicate", "zero"]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Channels = Annotated[int, Field(ge=1, le=1024)]
Bands = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=1024)]
ShownChannels = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=3, max_length=3)]

# "W400 L40", "C40 W400", "WL: 40 WW: 400": width and level (centre) in either order.
_WINDOW = re.compile(r"(?P<name>WW|WL|WC|W|L|C)\s*[:=]?\s*(?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?)", re.IGNORECASE)
_WIDTHS, _LEVELS = ("w", "ww", "width", "window"), ("l", "c", "wl", "wc", "level", "center", "centre")


def _window(value: Any) -> Any:
    """(level, width) of a window, whatever it calls them; None where it is none."""
    if isinstance(value, str):
        parts = _WINDOW.findall(value)
        if _WINDOW.sub("", value).strip(" ,;/") or len(parts) != 2:
            return None
        value = dict(parts)
    if not isinstance(value, dict) or len(value) != 2:
        return None
    named = {str(name).lower(): number for name, number in value.items()}
    width = next((named[name] for name in _WIDTHS if name in named), None)
    level = next((named[name] for name in _LEVELS if name in named), None)
    return None if width is None or level is None else (level, width)


def _value_range(value: Any) -> str | list[float]:
    """ "dtype", "auto" or [low, high]; from a window too, as users of CT write it."""
    if value in ("dtype", "auto"):
        return str(value)
    given = value
    try:
        if (window := _window(value)) is not None:
            level, width = map(float, window)
            value = [level - width / 2, level + width / 2]
        low, high = (float(number) for number in value) if isinstance(value, (list, tuple)) else (0.0, 0.0)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            "use dtype, auto, [low, high] with low < high, or a window: {level: 40, width: 400}, or W400 L40; got "
            f"{_value(given)}"
        )
    return [low, high]


def _size(value: Any) -> int | str:
    """The length of a side, or "none"."""
    if isinstance(value, str) and value.lower() == "none":
        return "none"
    try:
        size = int(value) if float(value) == int(value) else 0
    except (TypeError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"use a number of pixels, at least 1, or none for no rescaling; got {_value(value)}")
    return size


def _class_names(value: Any) -> list[str]:
    """Names of classes, of one alone or of a list; labels may be numbers."""
    given = value if isinstance(value, list) else [value]
    if any(isinstance(name, bool) for name in given):
        raise ValueError(
            f'quote the name, as "no": YAML reads yes, no, on and off as truth values; got {_value(value)}'
        )
    names = [str(name) for name in given if isinstance(name, (str, int))]
    if not names or len(names) != len(given) or not all(names):
        raise ValueError(f"use the name of a class, or a list of names; got {_value(value)}")
    return names


Size = Annotated[int | str, BeforeValidator(_size)]
ClassNames = Annotated[list[str], BeforeValidator(_class_names)]
ValueRange = Annotated[str | list[float], BeforeValidator(_value_range)]


# A published file has 60 lines, 2 kB and 60 values.
MAX_BYTES, MAX_VALUES, MAX_PROBLEMS = 2**16, 2000, 20


class ConfigError(ValueError):
    """The configuration cannot be used.

    The message has one line for each problem: the file, the key, the value found and what would work.
    """


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        # YAML reads yes, no, on and off as booleans, which would pass for 1 and 0.
        if isinstance(values, dict):
            named = ("data_class_a", "data_class_b")  # `_class_names` says what to do
            return {k: str(v).lower() if isinstance(v, bool) and k not in named else v for k, v in values.items()}
        return values


class GeneratorConfig(_Section):
    """`gen:`, the generator (auto-encoder) of each domain.

    Attributes:
        dim: Channels of the first convolution; doubled by each downsampling.
        mlp_dim: Width of the MLP that gives the AdaIN parameters.
        style_dim: Length of a style code.
        activ: Activation.
        n_downsample: Convolutions of stride 2 in the content encoder; sides must be multiples of 2^n_downsample.
        n_res: Residual blocks of the content encoder, and as many of the decoder.
        pad_type: Padding of the convolutions.
    """

    dim: Count = 64
    mlp_dim: Count = 256
    style_dim: Count = 8
    activ: Activation = "relu"
    n_downsample: Annotated[int, Field(ge=0, le=8)] = 2
    n_res: Annotated[int, Field(ge=0)] = 4
    pad_type: Padding = "reflect"


class DiscriminatorConfig(_Section):
    """`dis:`, the multi-scale discriminator of each domain.

    Attributes:
        dim: Channels of the first convolution; doubled by each layer.
        norm: Normalization after the convolutions, all but the first; "sn" is spectral normalization.
        activ: Activation.
        n_layer: Convolutions of stride 2 at each scale.
        gan_type: "lsgan" (least squares) or "nsgan" (non-saturating, cross-entropy).
        num_scales: Scales; each sees the image at half the size of the one before.
        pad_type: Padding of the convolutions.
    """

    dim: Count = 64
    norm: Literal["none", "bn", "in", "ln", "sn"] = "none"
    activ: Activation = "lrelu"
    n_layer: Annotated[int, Field(ge=1, le=10)] = 4
    gan_type: Literal["lsgan", "nsgan"] = "lsgan"
    num_scales: Annotated[int, Field(ge=1, le=10)] = 3
    pad_type: Padding = "reflect"


class Config(_Section):
    """A whole configuration: the published keys, with the published edges2handbags values as defaults.

    Attributes:
        trainer: "MUNIT" or "UNIT": the algorithm that the configuration is for. Not published.
        image_save_iter: Iterations between pictures that are kept.
        image_display_iter: Iterations between updates of the current picture.
        display_size: Images of each domain that the pictures show.
        snapshot_save_iter: Iterations between checkpoints.
        log_iter: Iterations between lines of the loss history.
        max_iter: Iterations of the whole training.
        batch_size: Images of each domain in a batch, in each process.
        accumulation: Batches whose mean gradient makes one step. Not published.
        ema_half_life: Half-life of the generators' moving average, in images; 0 keeps none. Not published.
        weight_decay: Of Adam, added to the gradient.
        beta1: Of Adam.
        beta2: Of Adam.
        init: Initialization of the weights; the discriminators' is always "gaussian".
        lr: Learning rate.
        lr_policy: "constant", or "step": multiplied by `gamma` every `step_size` iterations.
        step_size: See `lr_policy`.
        gamma: See `lr_policy`.
        gan_w: Weight of the adversarial losses.
        recon_x_w: Weight of the image reconstruction losses.
        recon_s_w: Weight of the style reconstruction losses (MUNIT).
        recon_c_w: Weight of the content reconstruction losses (MUNIT).
        recon_x_cyc_w: Weight of the cycle losses.
        recon_kl_w: Weight of the KL losses (UNIT).
        recon_kl_cyc_w: Weight of the KL losses of the cycles (UNIT).
        recon_h_w: In published UNIT files; nothing reads it there either.
        vgg_w: Weight of the perceptual losses, which need models/vgg16.weight.
        gen: The generators.
        dis: The discriminators.
        input_dim_a: Channels of the images of domain A.
        input_dim_b: Channels of the images of domain B.
        range_a: The values that become -1 and 1 in domain A: "dtype", those of each file's type (0..255, 0..65535 or
            0..1); [low, high]; a CT window, {level: 40, width: 400} or "W400 L40"; or "auto", percentiles of the
            training set, which are kept with the run. Not published.
        range_b: The same for domain B.
        background: Grey level 0..255, between the two values, that transparent areas are laid over. Not published.
        pages: Of files with several images, "all" or the "first" of them. Not published.
        bands_a: Of images of domain A whose bands are files of their own: the words for them in file names, in the
            order of the channels, such as [B02, B03, B04, B08]. Not published.
        bands_b: The same for domain B.
        slice_axis: Axis of volumes along which they are cut into images. Not published.
        show_channels_a: Three channels of domain A that grids show as red, green and blue; without it the first three,
            or the first as grey. Not published.
        show_channels_b: The same for domain B.
        num_workers: Processes that read images.
        new_size: What the short side of every image is resized to; "none": images keep their size.
        new_size_a: The same for domain A, where `new_size` is not given.
        new_size_b: The same for domain B.
        crop_image_height: Height of the random crops that are trained on.
        crop_image_width: Their width.
        data_root: A folder with trainA, trainB, testA and testB, or archives of these names; or give folders, or
            folders and lists, one by one.
        data_class_a: The classes that are domain A, where `data_root` has one folder for each class, or is a labelled
            data set of the Hugging Face Hub. Not published.
        data_class_b: The same for domain B.
        data_folder_train_a: Folder of the training images of domain A, or what else names images: an archive, shards,
            a data set of the Hugging Face Hub.
        data_folder_train_b: Folder of the training images of domain B.
        data_folder_test_a: Folder of the test images of domain A.
        data_folder_test_b: Folder of the test images of domain B.
        data_list_train_a: Text file of the training images of domain A, a name in that folder on each line.
        data_list_train_b: Text file of the training images of domain B, a name in that folder on each line.
        data_list_test_a: Text file of the test images of domain A, a name in that folder on each line.
        data_list_test_b: Text file of the test images of domain B, a name in that folder on each line.
    """

    trainer: Literal["MUNIT", "UNIT"] | None = None

    # Logging and files, in iterations.
    image_save_iter: Count = 10000
    image_display_iter: Count = 500
    display_size: Count = 16
    snapshot_save_iter: Count = 10000
    log_iter: Count = 10

    # Optimisation.
    max_iter: Count = 1_000_000
    batch_size: Count = 1
    accumulation: Count = 1
    ema_half_life: Weight = 10000
    weight_decay: Weight = 0.0001
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    init: Literal["gaussian", "kaiming", "xavier", "orthogonal", "default"] = "kaiming"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.0001
    lr_policy: Literal["constant", "step"] = "step"
    step_size: Count = 100000
    gamma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.5
    gan_w: Weight = 1
    recon_x_w: Weight = 10
    recon_s_w: Weight = 1
    recon_c_w: Weight = 1
    recon_x_cyc_w: Weight = 0
    recon_kl_w: Weight = 0
    recon_kl_cyc_w: Weight = 0
    recon_h_w: Weight = 0
    vgg_w: Weight = 0

    gen: GeneratorConfig = GeneratorConfig()
    dis: DiscriminatorConfig = DiscriminatorConfig()

    # Data.
    input_dim_a: Channels = 3
    input_dim_b: Channels = 3
    range_a: ValueRange = "dtype"
    range_b: ValueRange = "dtype"
    background: Annotated[int, Field(ge=0, le=255)] = 255
    pages: Literal["all", "first"] = "all"
    bands_a: Bands | None = None
    bands_b: Bands | None = None
    slice_axis: Annotated[int, Field(ge=0, le=2)] = 2
    show_channels_a: ShownChannels | None = None
    show_channels_b: ShownChannels | None = None
    num_workers: Annotated[int, Field(ge=0)] = 8
    new_size: Size | None = None
    new_size_a: Size | None = None
    new_size_b: Size | None = None
    crop_image_height: Count = 256
    crop_image_width: Count = 256
    data_root: str | None = None
    data_class_a: ClassNames | None = None
    data_class_b: ClassNames | None = None
    data_folder_train_a: str | None = None
    data_folder_train_b: str | None = None
    data_folder_test_a: str | None = None
    data_folder_test_b: str | None = None
    data_list_train_a: str | None = None
    data_list_train_b: str | None = None
    data_list_test_a: str | None = None
    data_list_test_b: str | None = None

    @model_validator(mode="after")
    def _sizes(self) -> Config:
        problems = _size_problems(self) + _class_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def short_side(self, domain: str) -> int | None:
        """What the short side of an image of domain "a" or "b" is resized to: new_size, else new_size_a or _b.

        None: images keep their size.
        """
        size = self.new_size or (self.new_size_a if domain == "a" else self.new_size_b)
        if size is None:
            return max(self.crop_image_height, self.crop_image_width)
        return int(size) if size != "none" else None

    def data_classes(self, domain: str) -> tuple[str, ...]:
        """The classes that are domain "a" or "b"; none where the images are not told apart by classes."""
        return tuple((self.data_class_a if domain == "a" else self.data_class_b) or ())

    def limits(self, domain: str) -> tuple[float, float] | None:
        """The values that become -1 and 1 in domain "a" or "b"; None: those of each file's type.

        Raises:
            ConfigError: They are to be measured ("auto") and have not been.
        """
        stated = self.range_a if domain == "a" else self.range_b
        if stated == "auto":
            raise ConfigError(
                f"range_{domain}: auto is measured when a training starts; give the config.yaml that the run wrote "
                "beside its checkpoints, or [low, high]"
            )
        return None if isinstance(stated, str) else (stated[0], stated[1])

    def hyperparameters(self) -> dict[str, Any]:
        """The configuration as the mapping that trainers and networks take; `gen` and `dis` are mappings in it."""
        return self.model_dump()

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this for the decoder to give back the encoder's size."""
        return 2**self.gen.n_downsample


def _size_problems(cfg: Config) -> list[str]:
    problems = []
    for key in ("crop_image_height", "crop_image_width"):
        size, multiple = getattr(cfg, key), cfg.size_multiple
        if size % multiple:
            nearest = max(multiple, round(size / multiple) * multiple)
            problems.append(
                f"{key}: {size} is not a multiple of 2^gen.n_downsample = {multiple}, so reconstructions would come "
                f"out smaller than the images; use {nearest}"
            )
        smallest = max(smallest_generator_size(cfg.gen), smallest_discriminator_size(cfg.dis, cfg.batch_size))
        if cfg.vgg_w > 0:
            smallest = max(smallest, 32)  # VGG16 halves the side four times, and its features are normed
        if size < smallest:
            problems.append(
                f"{key}: {size} is too small for gen.n_downsample = {cfg.gen.n_downsample}, dis.n_layer = "
                f"{cfg.dis.n_layer} and dis.num_scales = {cfg.dis.num_scales}; use at least {smallest}, or fewer "
                "layers or scales"
            )
    for domain in ("a", "b"):
        shown, channels = getattr(cfg, f"show_channels_{domain}"), getattr(cfg, f"input_dim_{domain}")
        if shown is not None and max(shown) >= channels:
            problems.append(
                f"show_channels_{domain}: {shown} names a channel beyond input_dim_{domain}: {channels}; the first is 0"
            )
        bands = getattr(cfg, f"bands_{domain}")
        if bands is not None and (len(set(bands)) < len(bands) or len(bands) != channels):
            problems.append(
                f"bands_{domain}: {len(set(bands))} different bands, but input_dim_{domain}: {channels} channels"
            )
        short = cfg.short_side(domain)
        # The long side may still be short of the other crop size: only the images can tell.
        if short is not None and short < min(cfg.crop_image_height, cfg.crop_image_width):
            problems.append(
                f"new_size{'' if cfg.new_size else '_' + domain}: {short} is smaller than the crop "
                f"{cfg.crop_image_height}×{cfg.crop_image_width} (crop_image_height × crop_image_width)"
            )
    return problems


def _class_problems(cfg: Config) -> list[str]:
    a, b = cfg.data_classes("a"), cfg.data_classes("b")
    problems = []
    if bool(a) != bool(b):
        given, other = ("a", "b") if a else ("b", "a")
        problems.append(f"data_class_{given}: without data_class_{other} there is no other domain; give both")
    if (a or b) and cfg.data_root is None:
        problems.append("data_class_a: set data_root, the folder or data set that has the classes")
    if both := sorted(set(a) & set(b)):
        problems.append(f"data_class_b: {_shortened(', '.join(both))} is in data_class_a too; a class is in one domain")
    return problems


def smallest_generator_size(gen: GeneratorConfig) -> int:
    """The smallest image side that the generator takes.

    The style encoder halves the side four times, and the norms need code planes larger than 1×1.
    """
    return max(16, 2 * 2**gen.n_downsample)


def smallest_discriminator_size(dis: DiscriminatorConfig, batch_size: int = 1) -> int:
    """The smallest image side that every scale of the discriminator takes."""
    # What takes a side takes every larger one, and the largest smallest side is 2^20 (ten layers, ten scales): one by
    # one that took half a minute.
    return bisect_left(range(2**21), True, lo=1, key=lambda side: _discriminator_takes(side, dis, batch_size))


def _discriminator_takes(side: int, dis: DiscriminatorConfig, batch_size: int) -> bool:
    needs_planes = dis.norm == "in" or (dis.norm == "bn" and batch_size == 1)
    for _ in range(dis.num_scales):
        s = side
        for layer in range(dis.n_layer):
            if s < 2:
                return False
            s //= 2
            if layer > 0 and needs_planes and s < 2:  # the variance of a 1×1 plane is zero
                return False
        side = (side + 1) // 2  # the average pool between scales
    return True


def load_config(path: str | Path) -> Config:
    """Read and check a configuration file.

    Args:
        path: A YAML file with the published keys; what is left out has its default.

    Returns:
        The configuration.

    Raises:
        ConfigError: The file is missing or no YAML, has an unknown key or an impossible value; one line per problem.
    """
    return parse_config(read_config(path), source=str(path))


def read_config(path: str | Path) -> str:
    """The text of a configuration file. Raises ConfigError."""
    path = Path(path)
    try:
        return read_bounded(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file: {error}") from None


def parse_config(text: str, source: str = "configuration") -> Config:
    """Check the text of a YAML configuration.

    Only plain values are read, and few of them: a text of some lines could ask for objects, for millions of values
    through aliases of aliases, or for more brackets than the parser survives.

    Args:
        text: The YAML text.
        source: Where it is from, for error messages.

    Raises:
        ConfigError: As `load_config`.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: more than {MAX_BYTES} characters; a configuration has some dozens of lines")
    try:
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader))
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError) as error:
        # The last three come from values that look like dates and numbers but are none.
        raise ConfigError(f"{source}: not valid YAML: {_shortened(' '.join(str(error).split()))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: a configuration is a list of `key: value` lines; found {type(values).__name__}")
    return make_config(values, source=source)


def _check_size(root: yaml.Node | None) -> None:
    """Count the values as they would be with every alias written out. Raises ValueError when there are too many."""
    sizes: dict[int, int] = {}
    parts: dict[int, list[yaml.Node]] = {}
    stack = [] if root is None else [(root, False)]
    while stack:
        node, seen = stack.pop()
        key = id(node)
        if seen:
            sizes[key] = 1 + sum(sizes[id(part)] for part in parts[key])
            if sizes[key] > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values, aliases included")
        elif key in parts and key not in sizes:
            raise ValueError("an alias that contains itself")
        elif key not in sizes:
            pairs = node.value if isinstance(node, yaml.CollectionNode) else []
            parts[key] = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
            stack.append((node, True))
            stack += [(part, False) for part in parts[key]]


def make_config(values: dict[str, Any], source: str = "configuration") -> Config:
    """Check a mapping of the published keys.

    Args:
        values: The keys and plain values; what is left out has its default.
        source: Where they are from, for error messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: A key is unknown or a value impossible; one line per problem, each with the key, the value and what
            would work.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        lines = [f"{source}: {_explain(problem)}" for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"{source}: and {len(problems) - MAX_PROBLEMS} more problems")
        raise ConfigError("\n".join(lines)) from None


def _explain(problem: Any) -> str:
    location = [_printable(str(part)) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(location)}"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{key}: {reason}" if key else reason  # without a key: from _sizes, which names the keys itself
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key}: {message}; got {_value(problem['input'])}"


def _value(found: Any) -> str:
    """A value for an error message: one short line, whatever it is."""
    try:
        return _shortened(repr(found))
    except ValueError:  # a whole number of more digits than Python prints
        return "a very large number"


def _printable(text: str) -> str:
    return _shortened(printable(text))


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _nearest(location: list[str]) -> str:
    sections: dict[str, type[BaseModel]] = {"gen": GeneratorConfig, "dis": DiscriminatorConfig}
    names = list(sections[location[0]].model_fields if len(location) > 1 else Config.model_fields)
    everywhere = {field: name for name, section in sections.items() for field in section.model_fields}
    if len(location) == 1 and location[0] in everywhere:
        return f"; it belongs inside {everywhere[location[0]]}:"
    close = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*location[:-1], close[0]])}?"
    return f"; known keys: {', '.join(names)}"
