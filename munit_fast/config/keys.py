"""`Config`: all keys of a configuration with their meanings and defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from munit_fast.config.errors import ConfigError
from munit_fast.config.networks import (
    DiscriminatorConfig,
    GeneratorConfig,
    smallest_discriminator_size,
    smallest_generator_size,
)
from munit_fast.config.presets import Preset
from munit_fast.config.values import (
    Bands,
    Channels,
    ClassNames,
    Count,
    Flip,
    Fraction,
    MetricName,
    Rate,
    Section,
    Share,
    ShownChannels,
    Size,
    Transformations,
    ValueRange,
    Weight,
    shortened,
)


class Config(Section):
    """A whole configuration: the published keys, with the published edges2handbags values as defaults.

    Attributes:
        preset: "published", "improved" or "small_data": a set of values for keys that are not given. Not published.
        preset_keys: Of a complete configuration, the keys that its preset gave; where it is there, the preset gives
            nothing more. Not published.
        trainer: "MUNIT" or "UNIT": the algorithm that the configuration is for. Not published.
        image_save_iter: Iterations between pictures that are kept.
        image_display_iter: Iterations between updates of the current picture.
        display_size: Images of each domain that the pictures show.
        snapshot_save_iter: Iterations between checkpoints.
        log_iter: Iterations between lines of the loss history.
        eval_iter: Iterations between evaluations on test images; 0: there are none. Not published.
        eval_images: Test images of each domain that they take, evenly spread, and as many training images to compare
            with. Not published.
        eval_styles: Random styles in which they translate each image (MUNIT). Not published.
        eval_metric: The metric whose best checkpoint is kept: one that `munit-fast evaluate` measures, as the mean of
            the directions ("kid") or of one of them ("kid_a2b"). Not published.
        eval_share: Of a run's time on a GPU the largest share for evaluations; those beyond it are left out. Not
            published.
        max_iter: Iterations of the whole training.
        batch_size: Images of each domain in a batch, in each process.
        accumulation: Batches whose mean gradient makes one step. Not published.
        ema_half_life: Half-life of the generators' moving average, in images; 0 keeps none. Not published.
        weight_decay: Of Adam, added to the gradient.
        beta1: Of Adam.
        beta2: Of Adam.
        init: Initialization of the weights; the discriminators' is always "gaussian".
        lr: Learning rate.
        lr_gen: Learning rate of the generators; `lr` where it is not given. Not published.
        lr_dis: The same for the discriminators. Not published.
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
        r1_w: Weight of the discriminators' R1 gradient penalty. Not published.
        r1_iter: Iterations from one gradient penalty to the next, whose weight is as many times as large. Not
            published.
        mode_seeking_w: Weight of the mode seeking loss (MUNIT). Not published.
        diversity_w: Weight of the diversity of two styles' translations (MUNIT). Not published.
        feature_matching_w: Weight of the difference between discriminator features of translations and of real images.
            Not published.
        diffaugment: What the discriminators see, real images and translations, is augmented by these transformations:
            [color, translation, cutout] or some of them; [] is off, and so is null. Not published.
        ada_target: Each of these transformations (of all, without `diffaugment`) is applied with a probability that
            rises while the mean sign of a discriminator's outputs for real images is above this, and falls below;
            0.6 in the paper; 0 is off. Not published.
        ada_images: Images of a domain in which that probability can go from 0 to 1. Not published.
        ada_iter: Iterations from one change of that probability to the next. Not published.
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
        flip_a: Directions in which training images of domain A are mirrored at random: "none", "horizontal", as
            published, "vertical" or "both". Not published.
        flip_b: The same for domain B.
        shift_a: Largest random shift of the crops of domain A, as a fraction of their sides. Not published.
        shift_b: The same for domain B.
        scale_a: Training images of domain A are enlarged or reduced by a random factor of at most 1 + scale_a. Not
            published.
        scale_b: The same for domain B.
        color_jitter_a: Largest random change of brightness, contrast and saturation in domain A, relative. Not
            published.
        color_jitter_b: The same for domain B.
        data_root: A folder with trainA, trainB, testA and testB, or archives of these names; or give folders, or
            folders and lists, one by one. A folder that is given goes before what is in `data_root`.
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

    preset: Preset | None = None
    preset_keys: list[str] | None = None
    trainer: Literal["MUNIT", "UNIT"] | None = None

    # Logging and files, in iterations.
    image_save_iter: Count = 10000
    image_display_iter: Count = 500
    display_size: Count = 16
    snapshot_save_iter: Count = 10000
    log_iter: Count = 10
    eval_iter: Annotated[int, Field(ge=0)] = 0
    eval_images: Annotated[int, Field(ge=2)] = 200
    eval_styles: Count = 4
    eval_metric: MetricName = "kid"
    eval_share: Share = 0.1

    # Optimisation.
    max_iter: Count = 1_000_000
    batch_size: Count = 1
    accumulation: Count = 1
    ema_half_life: Weight = 10000
    weight_decay: Weight = 0.0001
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    init: Literal["gaussian", "kaiming", "xavier", "orthogonal", "default"] = "kaiming"
    lr: Rate = 0.0001
    lr_gen: Rate | None = None
    lr_dis: Rate | None = None
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
    r1_w: Weight = 0
    r1_iter: Count = 16
    mode_seeking_w: Weight = 0
    diversity_w: Weight = 0
    feature_matching_w: Weight = 0

    # What the discriminators see.
    diffaugment: Transformations = Field(default_factory=list)
    ada_target: Annotated[float, Field(ge=0, lt=1)] = 0
    ada_images: Count = 500_000
    ada_iter: Count = 4

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
    flip_a: Flip = "horizontal"
    flip_b: Flip = "horizontal"
    shift_a: Fraction = 0
    shift_b: Fraction = 0
    scale_a: Fraction = 0
    scale_b: Fraction = 0
    color_jitter_a: Fraction = 0
    color_jitter_b: Fraction = 0
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
            sizes, fewer = f"gen.n_downsample = {cfg.gen.n_downsample}", "layers or scales"
            if cfg.dis.arch == "residual":  # which has one scale
                sizes, fewer = f"{sizes} and dis.n_layer = {cfg.dis.n_layer}", "layers"
            else:
                sizes += f", dis.n_layer = {cfg.dis.n_layer} and dis.num_scales = {cfg.dis.num_scales}"
            problems.append(f"{key}: {size} is too small for {sizes}; use at least {smallest}, or fewer {fewer}")
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
        problems.append(f"data_class_b: {shortened(', '.join(both))} is in data_class_a too; a class is in one domain")
    return problems
