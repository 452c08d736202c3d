"""MUNIT and UNIT as models: load trained generators, translate tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from munit_fast.config import Config, make_config, smallest_generator_size
from munit_fast.io.checkpoints import CheckpointError, checked_pair, load_states, upgrade_state_dict
from munit_fast.io.foreign import Generators, find_generators, join_generators, read_content
from munit_fast.io.safetensors_file import SUFFIX, TensorFile
from munit_fast.models import hub, networks
from munit_fast.models.model_folder import write_folder
from munit_fast.models.pictures import PictureBatches
from munit_fast.models.portable import PortableModel, as_portable

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image
    from typing_extensions import Self

    from munit_fast.models.pictures import AnyPicture, AnyPictures

Scalar = TypeVar("Scalar", bound=np.generic)  # the dtype of an array: that of its translations
Direction = Literal["a2b", "b2a"]


def _check_direction(direction: str) -> None:
    if direction not in ("a2b", "b2a"):
        raise ValueError(f"direction must be 'a2b' or 'b2a'; got {direction!r}")


def _count(num_styles: object) -> int:
    """A number of styles, of Python or NumPy."""
    try:
        count = 0 if isinstance(num_styles, bool) else operator.index(num_styles)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"num_styles must be a whole number of at least 1; got {num_styles}")
    return count


class _Model(nn.Module):
    """Two generators, one for each domain, and what MUNIT and UNIT do alike with them."""

    gen_a: nn.Module
    gen_b: nn.Module
    loaded: Path | None = None
    notes: tuple[str, ...] = ()
    trainer: str  # the algorithm's name, as files and --trainer have it
    _generator: type[nn.Module]

    def __init__(self, config: Config | dict[str, Any], impl: str = "auto") -> None:
        super().__init__()
        self.config = config if isinstance(config, Config) else make_config(config)
        self.about: dict[str, str] = {}
        params = self.config.gen.model_dump() | {"weight_norm": "none"}  # files are loaded with the norm worked in
        self.gen_a = self._generator(self.config.input_dim_a, params, impl)
        self.gen_b = self._generator(self.config.input_dim_b, params, impl)
        networks.keep_steps(self.gen_a, self.gen_b, self.config.range_a, self.config.range_b)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        impl: str = "auto",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
    ) -> Self:
        """A pretrained model, ready to translate.

        Nothing is fetched unless `name` has exactly the form owner/name and is nothing on this machine. Of such a
        repository config.json and model.safetensors are read, at most 4 GiB, and nothing in them is run.

        Args:
            name: The bundled "openmoji-lines2color" (lines → colour and back; weights CC BY-SA 4.0, see the card beside
                the file), the path of a .safetensors file that `munit-fast export` wrote, a folder that
                `save_pretrained` wrote, or "owner/name", a repository of the Hugging Face Hub (extra "hub").
            impl: The backend, as in `munit_fast.functional`; "reference" takes the plain networks.
            revision: Branch, tag or commit of a repository on the Hub; None: main.
            cache_dir: Where downloads are kept; None: as huggingface_hub has it (HF_HOME).
            local_files_only: Take a repository from the cache, without a connection; so does HF_HUB_OFFLINE=1.
            token: For private and gated repositories; None: the one of `hf auth login`, if any.
            force_download: Fetch again what is in the cache.

        Returns:
            The model in evaluation mode, on the CPU, in torch's default dtype. `about` holds the notes of the file:
            licence, attribution, how it was trained.

        Raises:
            ValueError: There is no such model, or an argument is only for the Hub.
            CheckpointError: The file, folder or repository cannot be used.
            ImportError: huggingface_hub is needed and not installed.
        """
        return hub.load(
            name,
            lambda path, file: cls._from_file(path, file, impl),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            force_download=force_download,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: str = "fp32",
        about: Mapping[str, str] | None = None,
        metrics: str | Path | Mapping[str, Any] | None = None,
    ) -> None:
        """Write a folder for `from_pretrained`: config.json, model.safetensors and a model card, README.md.

        A new folder appears whole or not at all; in an existing one each file is replaced as a whole. A README.md that
        was edited or is not of munit-fast is kept, with a warning.

        Args:
            folder: The folder; it is made where there is none.
            dtype: "fp32", or "fp16" (half the size; weights are rounded to 11 bits).
            about: Notes beside those of the model's own `about`, such as {"licence": "CC BY 4.0"}.
            metrics: A file that `munit-fast evaluate --json` wrote, or its content, for the card.

        Raises:
            ValueError: An argument is none of the above, or a weight is not finite in `dtype`.
            FileWriteError: The folder cannot be written.
        """
        write_folder(folder, self, dtype=dtype, about={**self.about, **(about or {})}, metrics=metrics)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: str = "fp32",
        about: Mapping[str, str] | None = None,
        metrics: str | Path | Mapping[str, Any] | None = None,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        commit_message: str = "Upload a model of munit-fast",
        ignore_patterns: list[str] | str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub (extra "hub"), in one commit.

        The commit replaces the repository's README.md; leave that out by `ignore_patterns="README.md"`.

        Args:
            repo_id: "owner/name"; the repository is made where it does not exist.
            dtype: As in `save_pretrained`.
            about: As in `save_pretrained`.
            metrics: As in `save_pretrained`.
            private: Whether a new repository is private; None: as the owner's settings say.
            token: None: the one of `hf auth login`.
            branch: An existing branch; None: main.
            create_pr: Open a pull request instead of committing to the branch.
            commit_message: The commit's first line.
            ignore_patterns: Files not to upload.

        Returns:
            The address of the commit.

        Raises:
            ValueError: An argument is none of the above; nothing was sent.
            CheckpointError: The Hub cannot be reached, or refuses.
            ImportError: huggingface_hub is not installed.
        """
        return hub.push(
            self,
            repo_id,
            dtype=dtype,
            about={**self.about, **(about or {})},
            metrics=metrics,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            commit_message=commit_message,
            ignore_patterns=ignore_patterns,
        )

    @classmethod
    def _from_file(cls, path: Path, file: PortableModel, impl: str) -> Self:
        """The model of a file that was read. Raises CheckpointError where it is of another class or size."""
        if file.trainer != cls.trainer:
            raise CheckpointError(f"{path}: holds a {file.trainer} model; use {file.trainer}.from_pretrained")
        with torch.device("meta"):  # without memory: a third-party header may ask for networks of any size
            empty = cls(file.config, "reference")
        checked_pair(path, file.states, empty.gen_a, empty.gen_b)
        model = cls(file.config, impl)
        for network, state in ((model.gen_a, file.states["a"]), (model.gen_b, file.states["b"])):
            network.load_state_dict(upgrade_state_dict(state, network))
        model.loaded, model.about = path, dict(file.about)
        return model.eval()

    def load(self, path: str | Path | Sequence[str | Path], average: bool = True) -> Self:
        """Load both generators from a gen_########.pt, ema_########.pt or .safetensors file, or one of another program.

        Generators that are wrapped (DataParallel, torch.compile, AveragedModel), in containers (`state_dict`, `net_G`,
        Lightning's) or beside other networks are found, and `notes` says which were taken. A file that could mean more
        than one pair is refused.

        The weights that NVIDIA published with MUNIT are licensed CC BY-NC-SA 4.0: not for commercial use.

        Args:
            path: The file; or two files of one generator each, domain A's first. One written by PyTorch 0.3 is brought
                up to date.
            average: Take the moving average instead, where the ema_########.pt of the same iteration lies beside a
                gen_########.pt, or where the file has both. `loaded` holds the path of the file that was read, the
                first of two.

        Returns:
            The model itself.

        Raises:
            CheckpointError: The file is missing, damaged, of another configuration, or holds other networks; the model
                is left as it was.
            ValueError: `path` names no file, or more than two.
        """
        paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(file) for file in path]
        if len(paths) not in (1, 2):
            raise ValueError(f"path must be a file, or two: domain A's and domain B's; got {len(paths)}")
        averaged = paths[0].with_name(paths[0].name.replace("gen_", "ema_", 1))
        named = average and len(paths) == 1 and paths[0].name.startswith("gen_") and paths[0].suffix != SUFFIX
        if named and paths[0].is_file() and averaged.is_file():
            paths = [averaged]
        contents = [read_content(file) for file in paths]
        about = self.about
        if len(paths) == 2:
            found = join_generators(paths, contents, average=average)
        elif isinstance(contents[0], TensorFile) and contents[0].is_portable:
            file = as_portable(paths[0], contents[0])
            found, about = Generators(file.states), dict(file.about)
        else:
            found = find_generators(paths[0], contents[0], average=average)
        load_states(" and ".join(map(str, paths)), found.states, self.gen_a, self.gen_b)
        self.loaded, self.about, self.notes = paths[0], about, (found.note,) if found.note else ()
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def _pictures(self, name: str, given: object, domain: str) -> PictureBatches:
        return PictureBatches(name, given, self.config, domain)

    def _check_images(self, name: str, x: Tensor, domain: str) -> None:
        channels = getattr(self.config, f"input_dim_{domain}")
        if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape:
            raise ValueError(f"{name} must be images [N, {channels}, H, W] with N, H, W ≥ 1; got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point in [-1, 1]; got {x.dtype}")

    def _pad(self, x: Tensor, multiple: int) -> Tensor:
        """Enlarge to the right and below, by reflection, to sides that the networks take and that are multiples."""
        least = smallest_generator_size(self.config.gen)
        for axis in (-1, -2):
            size = x.shape[axis]
            extra = max(least, -(-size // multiple) * multiple)
            extra = -(-extra // multiple) * multiple - size
            if extra:
                mode = "reflect" if extra < size else "replicate"
                x = F.pad(x, (0, extra, 0, 0) if axis == -1 else (0, 0, 0, extra), mode=mode)
        return x


class MUNIT(_Model):
    """MUNIT's two generators: images of one domain to many images of the other (Huang et al., ECCV 2018).

    Under torch.autocast the convolutions take its dtype.

    Args:
        config: What `load_config` returns, or a mapping with the published keys.
        impl: The backend, as in `munit_fast.functional`; "reference" takes the plain networks.

    Attributes:
        config: The configuration of the networks.
        gen_a: The generator of domain A, with the published state_dict keys.
        gen_b: The same of domain B.
        loaded: The file that the weights are of; None before `load`.
        notes: What `load` recognised in a file of another program, a line each.
        about: The notes of a .safetensors file: licence, attribution, how it was trained.

    Raises:
        ConfigError: The mapping has an unknown key or an impossible value.
        ValueError: There is no such backend.
    """

    gen_a: networks.AdaINGen
    gen_b: networks.AdaINGen
    trainer = "MUNIT"
    _generator = networks.AdaINGen

    @overload
    def translate(
        self,
        x: Tensor,
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> Tensor: ...

    @overload
    def translate(
        self,
        x: Image.Image,
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> list[Image.Image]: ...

    @overload
    def translate(
        self,
        x: npt.NDArray[Scalar],
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> npt.NDArray[Scalar]: ...

    @overload
    def translate(
        self,
        x: Sequence[Tensor],
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> list[Tensor]: ...

    @overload
    def translate(
        self,
        x: Sequence[Image.Image],
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> list[list[Image.Image]]: ...

    @overload
    def translate(
        self,
        x: Sequence[npt.NDArray[Scalar]],
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> list[npt.NDArray[Scalar]]: ...

    @overload
    def translate(
        self,
        x: Sequence[AnyPicture],
        direction: Direction = ...,
        num_styles: int = ...,
        style: AnyPictures | None = ...,
        generator: torch.Generator | None = ...,
    ) -> list[Any]: ...

    @torch.no_grad()
    def translate(
        self,
        x: AnyPictures,
        direction: Direction = "a2b",
        num_styles: int = 1,
        style: AnyPictures | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Translate images in several styles.

        The content code of each image is decoded with style codes of the other domain (section 3 of the paper), which
        are random, N(0, I), unless given. Any height and width will do: images are padded by reflection, and the
        translations cropped back.

        Args:
            x: One of

                - a tensor [N, C, H, W], any float dtype and device, in [-1, 1];
                - a PIL image of any mode, converted as image files are: grey to colour and back, transparent areas are
                  laid over `config.background`. Modes "I" and "I;16" hold 0..65535 and mode "F" 0..1: convert 8 bits to
                  "L" or "RGB", not to "I". It is turned as its EXIF orientation says;
                - a NumPy array [H, W, C], [N, H, W, C], or [H, W] of one channel: float16, float32 or float64 in
                  [-1, 1], or whole numbers: uint8 in 0..255, uint16 in 0..65535, or any type in the values that the
                  configuration has as `range_a` and `range_b`;
                - a list or tuple of PIL images, arrays of one picture each and tensors [C, H, W], of any sizes. Those
                  of one size are translated together, at most 8 and about two million pixels at once.
            direction: "a2b" or "b2a".
            num_styles: How many random styles S for each image; ignored when `style` is given.
            style: Codes [S, style_dim] or [S, style_dim, 1, 1] for all images or [N, S, style_dim] for each image, as
                a tensor; codes [S, style_dim] or [N, S, style_dim] as a floating-point array; or S example pictures of
                the target domain whose style is to be taken, of any kind and size that x may have. A floating-point
                array of two axes is always codes, so write a grey picture as [H, W, 1]; one of three axes is codes
                where its last is style_dim and not the number of channels.
            generator: A CPU generator for the random styles. A list takes the numbers from it that its images in one
                tensor would.

        Returns:
            Images in [-1, 1] or 0..255 as x has them, without gradient:

            - of a tensor, [N, S, C', H, W] in its dtype, on its device, contiguous;
            - of a PIL image, a list of S PIL images, "RGB" or "L" as the target domain has 3 channels or 1;
            - of an array [H, W, C] or [H, W], an array [S, H, W, C'] of its dtype; of [N, H, W, C], [N, S, H, W, C'];
            - of a list, a list of what each item gives by itself; of a tensor in it, [S, C', H, W].

        Raises:
            ValueError: An argument has another shape, type or value than the above.
            ImageError: A PIL image cannot be read, or has more than `MUNIT_FAST_MAX_PIXELS`. A ValueError too.
        """
        _check_direction(direction)
        if not (style is None or isinstance(style, Tensor)):
            style = self._array_or_picture_codes(style, direction)
        if isinstance(x, Tensor):
            self._check_images("x", x, direction[0])
            like = next(self.parameters())
            codes = self._style_codes(x.shape[0], like, direction, num_styles, style, generator)
            return self._in_styles(x.to(like), direction, codes).to(x).contiguous()
        pictures = self._pictures("x", x, direction[0])
        like = next(self.parameters())
        codes = self._style_codes(len(pictures), like, direction, num_styles, style, generator)
        return pictures.apply(like, lambda batch, places: self._in_styles(batch, direction, codes[places]))

    @torch.no_grad()
    def encode_style(self, x: AnyPictures, domain: Literal["a", "b"]) -> Tensor:
        """The style codes of images.

        Args:
            x: Images [N, C, H, W] of the domain, in the dtype and on the device of the model, in [-1, 1]; or one or
                several pictures of the other kinds that `translate` takes.
            domain: "a" or "b".

        Returns:
            Codes [N, style_dim] in the dtype and on the device of the model, without gradient; N is 1 for a single
            picture.

        Raises:
            ValueError: An argument has another shape, type or value than the above.
        """
        if domain not in ("a", "b"):
            raise ValueError(f"domain must be 'a' or 'b'; got {domain!r}")
        if not isinstance(x, Tensor):
            return self._picture_codes(self._pictures("x", x, domain), domain)
        self._check_images("x", x, domain)
        return (self.gen_a if domain == "a" else self.gen_b).enc_style(self._pad(x, 1)).flatten(1)

    def _in_styles(self, x: Tensor, direction: Direction, codes: Tensor) -> Tensor:
        """Images [N, C, H, W] in styles [N, S, style_dim], in the model's dtype on its device → [N, S, C', H, W]."""
        source, target = (self.gen_a, self.gen_b) if direction == "a2b" else (self.gen_b, self.gen_a)
        padded = self._pad(x, self.config.size_multiple)
        return target.decode_styles(source.enc_content(padded), codes)[..., : x.shape[2], : x.shape[3]]

    def _picture_codes(self, pictures: PictureBatches, domain: Literal["a", "b"]) -> Tensor:
        """[N, style_dim] of pictures of any kind."""
        like = next(self.parameters())
        codes = like.new_empty(len(pictures), self.config.gen.style_dim)
        for places, batch in pictures.batches(like):
            codes[places] = self.encode_style(batch, domain)
        return codes

    def _array_or_picture_codes(self, style: object, direction: Direction) -> Tensor:
        """[S, style_dim] or [N, S, style_dim] of a style that is no tensor."""
        domain: Literal["a", "b"] = "b" if direction == "a2b" else "a"
        dim, channels = self.config.gen.style_dim, getattr(self.config, f"input_dim_{domain}")
        if (
            isinstance(style, np.ndarray)
            and style.dtype.kind == "f"
            and (style.ndim == 2 or (style.ndim == 3 and style.shape[2] == dim != channels))
        ):
            return torch.from_numpy(style.astype(np.float64))
        try:
            pictures = self._pictures("style", style, domain)
        except ValueError as error:
            codes = f"codes are a floating-point tensor or array [S, {dim}] or [N, S, {dim}]"
            raise ValueError(f"{error}; {codes}") from None
        return self._picture_codes(pictures, domain)

    def _style_codes(
        self,
        n: int,
        like: Tensor,
        direction: Direction,
        num_styles: int,
        style: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """[n, S, style_dim] on the device and in the dtype of `like`."""
        dim = self.config.gen.style_dim
        if style is None:
            return torch.randn(n, _count(num_styles), dim, generator=generator).to(like)
        # On a GPU the check would wait for it, and a compiler cannot look at values.
        if style.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.isfinite(style).all():
            raise ValueError("style must be finite; it holds NaN or infinite values")
        given, style = list(style.shape), style.to(like)
        if style.dim() == 4 and style.shape[2:] != (1, 1):
            self._check_images("style", style, direction[-1])
            style = self.encode_style(style, "b" if direction == "a2b" else "a")
        if style.dim() == 4:
            style = style.flatten(1)
        if style.dim() == 2:
            style = style.expand(n, -1, -1)
        if style.dim() != 3 or style.shape[0] != n or style.shape[2] != dim or not style.shape[1]:
            raise ValueError(
                f"style must be codes [S, {dim}], [S, {dim}, 1, 1] or [{n}, S, {dim}], or example images, as a tensor "
                f"[S, C, H, W] or an array [S, H, W, C]; got {given}"
            )
        return style


class UNIT(_Model):
    """UNIT's two generators, one output per image, as the MUNIT code base publishes them (Liu et al., NeurIPS 2017).

    Arguments, attributes and errors are those of `MUNIT`.
    """

    gen_a: networks.VAEGen
    gen_b: networks.VAEGen
    trainer = "UNIT"
    _generator = networks.VAEGen

    @overload
    def translate(self, x: Tensor, direction: Direction = ...) -> Tensor: ...

    @overload
    def translate(self, x: Image.Image, direction: Direction = ...) -> list[Image.Image]: ...

    @overload
    def translate(self, x: npt.NDArray[Scalar], direction: Direction = ...) -> npt.NDArray[Scalar]: ...

    @overload
    def translate(self, x: Sequence[Tensor], direction: Direction = ...) -> list[Tensor]: ...

    @overload
    def translate(self, x: Sequence[Image.Image], direction: Direction = ...) -> list[list[Image.Image]]: ...

    @overload
    def translate(self, x: Sequence[npt.NDArray[Scalar]], direction: Direction = ...) -> list[npt.NDArray[Scalar]]: ...

    @overload
    def translate(self, x: Sequence[AnyPicture], direction: Direction = ...) -> list[Any]: ...

    @torch.no_grad()
    def translate(self, x: AnyPictures, direction: Direction = "a2b") -> Any:
        """Translate images, from the mean of their code.

        Args:
            x: Images [N, C, H, W], any float dtype and device, in [-1, 1]; or a PIL image, a NumPy array, or a list of
                pictures, as `MUNIT.translate` takes them. Any height and width.
            direction: "a2b" or "b2a".

        Returns:
            Images [N, 1, C', H, W] in [-1, 1], in the dtype and on the device of x, without gradient; of the other
            kinds what `MUNIT.translate` gives in S = 1 style.

        Raises:
            ValueError: An argument has another shape, type or value than the above.
            ImageError: A PIL image cannot be read, or has more than `MUNIT_FAST_MAX_PIXELS`. A ValueError too.
        """
        _check_direction(direction)
        like = next(self.parameters())
        if isinstance(x, Tensor):
            self._check_images("x", x, direction[0])
            return self._translated(x.to(like), direction).contiguous().to(x)
        pictures = self._pictures("x", x, direction[0])
        return pictures.apply(like, lambda batch, places: self._translated(batch, direction))

    def _translated(self, x: Tensor, direction: Direction) -> Tensor:
        """Images [N, C, H, W] in the model's dtype on its device → [N, 1, C', H, W]."""
        source, target = (self.gen_a, self.gen_b) if direction == "a2b" else (self.gen_b, self.gen_a)
        return target.decode(source.enc(self._pad(x, self.config.size_multiple)))[
            :, None, :, : x.shape[2], : x.shape[3]
        ]


MODELS: dict[str, type[MUNIT] | type[UNIT]] = {"MUNIT": MUNIT, "UNIT": UNIT}


def from_pretrained(
    name: str | Path,
    impl: str = "auto",
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> MUNIT | UNIT:
    """A pretrained model of the class that its file names, ready to translate.

    Arguments, what is fetched and errors are those of `MUNIT.from_pretrained`.

    Args:
        name: The bundled "openmoji-lines2color", a .safetensors file, a folder of `save_pretrained`, or "owner/name", a
            repository of the Hugging Face Hub.
        impl: The backend, as in `munit_fast.functional`; "reference" takes the plain networks.
        revision: Branch, tag or commit of a repository on the Hub; None: main.
        cache_dir: Where downloads are kept; None: as huggingface_hub has it.
        local_files_only: Take a repository from the cache, without a connection.
        token: For private and gated repositories; None: the one of `hf auth login`, if any.
        force_download: Fetch again what is in the cache.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        ValueError: There is no such model, or an argument is only for the Hub.
        CheckpointError: The file, folder or repository cannot be used.
        ImportError: huggingface_hub is needed and not installed.
    """
    return hub.load(
        name,
        lambda path, file: MODELS[file.trainer]._from_file(path, file, impl),
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        force_download=force_download,
    )
