"""Models by name: bundled, a file, a folder, or a repository of the Hugging Face Hub, which needs the extra "hub".

A name is looked up on the Hub only if it has exactly the form owner/name and there is nothing of that name on this
machine. What a repository holds is data: config.json and model.safetensors are read and nothing is run.

Pushing goes through `huggingface_hub.ModelHubMixin`. Loading has its cache, revisions, offline mode and errors, but not
the mixin's own `from_pretrained`, which would read a config.json of any size before it could be refused.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from munit_fast.io.checkpoints import CheckpointError
from munit_fast.io.safetensors_file import SUFFIX
from munit_fast.models import pretrained
from munit_fast.models.model_card import LIBRARY, TASK
from munit_fast.models.model_folder import (
    CONFIG,
    MAX_CONFIG_BYTES,
    WEIGHTS,
    read_config,
    read_folder,
    read_weights,
    write_folder,
)
from munit_fast.models.portable import Exportable, PortableModel, read_portable
from munit_fast.utils.optional import require
from munit_fast.utils.text import one_line, printable
from munit_fast.utils.version import __version__

T = TypeVar("T")

MAX_WEIGHTS_BYTES = 4 * 2**30  # the published networks have 0.1 GB
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.+@/-]{0,199}", re.ASCII)  # a name of git that is a path inside the cache too
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[A-Za-z0-9][\w.:+=-]{0,127}", re.ASCII)  # becomes a file's name in the cache
_RUN = "--config and --checkpoint, or mf.MUNIT(mf.load_config(…)).load(…)"
# Names of files that people have: as owner/name they are mistyped paths.
_OTHER_FILES = (
    dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), f"is a checkpoint, which goes with its configuration: {_RUN}")
    | dict.fromkeys((".yaml", ".yml"), f"is a configuration, which goes with a checkpoint: {_RUN}")
    | dict.fromkeys((".onnx", ".pt2"), f"is for other programs; what is loaded here is exported as {SUFFIX}")
)
_SLACK_BYTES = 2**24  # of a download that was resumed


def load(
    name: str | Path,
    build: Callable[[Path, PortableModel], T],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
) -> T:
    """Find and read a model.

    Args:
        name: A bundled model, a .safetensors file, a folder of `write_folder`, or owner/name on the Hub.
        build: Makes the model of the path of the weights and what they hold.
        revision: Branch, tag or commit on the Hub; None: main.
        cache_dir: Where downloads are kept; None: as huggingface_hub has it.
        local_files_only: Take what is in the cache, without a connection.
        token: For private and gated repositories; None: the one of `hf auth login`, if any.
        force_download: Fetch again what is in the cache.

    Returns:
        What `build` returns.

    Raises:
        ValueError: There is no such model, or an argument does not fit the name.
        CheckpointError: It cannot be fetched or used. The message is one line and names the repository.
        ImportError: huggingface_hub is needed and missing.
    """
    if not isinstance(name, (str, Path)):
        raise ValueError(f"name must be a str or a pathlib.Path; got {type(name).__name__}")
    repository = _repository(name)
    if repository is None:
        given = {"revision": revision, "cache_dir": cache_dir, "token": token, "force_download": force_download or None}
        if unfit := [key for key, value in given.items() if value is not None]:
            raise ValueError(
                f"{unfit[0]} is for owner/name on the Hugging Face Hub; {printable(str(name))[:200]!r} is on this "
                "machine, or has another form"
            )
        return build(*_read_local(name))
    _check_revision(f"{repository}: revision", revision)
    owner = repository.split("/")[0]
    if revision is None and os.path.isdir(owner):  # a mistyped path rather than a repository
        raise ValueError(
            f"pretrained: there is a folder {owner} here, and no {repository} in it; give a revision such as 'main' "
            "where the Hugging Face Hub is meant, or use another current folder"
        )
    folder = ""
    try:
        require("huggingface_hub", "hub")
        from huggingface_hub import constants

        _check_repository("name", repository)
        if force_download and (local_files_only or constants.HF_HUB_OFFLINE):
            raise ValueError(
                f"{repository}: force_download needs a connection; leave out local_files_only and offline mode"
            )
        options: dict[str, Any] = {
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
            "force_download": force_download,
        }
        with _contained():
            config_path = _fetch(repository, CONFIG, MAX_CONFIG_BYTES, revision, **options)
            folder = f"{config_path.parent}{os.sep}"
            config = read_config(config_path)
            # The commit that config.json is of: the branch may have moved on meanwhile.
            path = _fetch(repository, WEIGHTS, MAX_WEIGHTS_BYTES, config_path.parent.name, **options)
        return build(path, read_weights(path, config))
    except CheckpointError as error:
        message = str(error).replace(folder, "") if folder else str(error)
        raise CheckpointError(f"{repository}: {message}") from error


def push(
    model: Exportable,
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
    """Upload a model to the Hub, as `huggingface_hub.ModelHubMixin.push_to_hub` does.

    Args:
        model: The model.
        repo_id: owner/name; it is made where it does not exist.
        dtype: As in `write_folder`.
        about: As in `write_folder`.
        metrics: As in `write_folder`.
        private: Whether a new repository is private; None: as the owner's settings say.
        token: None: the one of `hf auth login`.
        branch: An existing branch; None: main.
        create_pr: Open a pull request instead of committing to the branch.
        commit_message: The commit's first line.
        ignore_patterns: Files to leave as they are, such as "README.md".

    Returns:
        The address of the commit.

    Raises:
        ValueError: An argument is none of the above; nothing was sent.
        CheckpointError: The Hub cannot be reached or refuses.
        ImportError: huggingface_hub is missing.
    """
    require("huggingface_hub", "hub")
    from huggingface_hub import ModelHubMixin

    _check_repository("repo_id", repo_id)
    _check_revision("branch", branch)

    class Upload(ModelHubMixin, library_name=LIBRARY, pipeline_tag=TASK):
        def _save_pretrained(self, save_directory: Path) -> None:
            for path in files.iterdir():
                shutil.move(path, save_directory / path.name)

    with tempfile.TemporaryDirectory(prefix="munit-fast-") as temporary:
        files = Path(
            temporary, "files"
        )  # before the mixin makes a repository: what cannot be written leaves none behind
        write_folder(files, model, dtype=dtype, about=about, metrics=metrics, title=repo_id)
        try:
            with _contained():
                return Upload().push_to_hub(
                    repo_id,
                    commit_message=commit_message,
                    private=private,
                    token=token,
                    branch=branch,
                    create_pr=create_pr,
                    ignore_patterns=ignore_patterns,
                )
        except Exception as error:  # of several libraries; a server's answer may lack any part
            raise CheckpointError(f"{repo_id}: {_reason(error, repo_id, '', branch)}") from error


def _check_repository(argument: str, repository: object) -> None:
    """Raise ValueError unless the Hub could have a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    reason = ""
    if isinstance(repository, str) and _REPOSITORY.fullmatch(repository):
        try:
            validate_repo_id(repository)
            return
        except HFValidationError as error:
            reason = f" ({one_line(str(error))})"
    raise ValueError(f"{argument} must be owner/name, as the Hub has it; got {one_line(repr(repository), 200)}{reason}")


def _check_revision(argument: str, revision: object) -> None:
    """Raise ValueError unless this is None or could be a name of git."""
    if revision is None or (isinstance(revision, str) and _REVISION.fullmatch(revision) and ".." not in revision):
        return
    raise ValueError(f"{argument} must be a branch, tag or commit; got {one_line(repr(revision), 200)}")


def _repository(name: str | Path) -> str | None:
    """The name, if it has the form of a repository's and is nothing on this machine."""
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name) or os.path.lexists(name):
        return None
    return None if name.endswith((SUFFIX, *_OTHER_FILES)) else name


def _read_local(name: str | Path) -> tuple[Path, PortableModel]:
    bundled = pretrained.names()
    path = Path(name)
    if str(name) in bundled or path.suffix == SUFFIX:
        path = pretrained.locate(name)
        return path, read_portable(path)
    if os.path.isdir(name):
        return read_folder(path)
    if path.suffix in _OTHER_FILES:
        raise ValueError(f"pretrained: {one_line(str(name), 200)} {_OTHER_FILES[path.suffix]}")
    if os.path.lexists(name):
        raise ValueError(
            f"pretrained: {path} is neither a {SUFFIX} file nor a folder that holds {CONFIG} and {WEIGHTS}"
        )
    raise ValueError(
        f"pretrained: there is no {printable(str(name))[:200]!r}; use {', '.join(bundled)}, a {SUFFIX} file, "
        "a folder of save_pretrained, or owner/name on the Hugging Face Hub"
    )


def _fetch(
    repository: str,
    name: str,
    most_bytes: int,
    revision: str | None,
    *,
    cache_dir: str | Path | None,
    local_files_only: bool,
    token: str | bool | None,
    force_download: bool,
) -> Path:
    """The path of a file of a repository in the cache, fetched if need be. Raises CheckpointError."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    if _COMMIT.fullmatch(revision or "") and not force_download:  # what a commit holds does not change
        cached = hub.try_to_load_from_cache(repository, name, cache_dir=cache_dir, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    unreachable: Exception | None = None
    offline = local_files_only or constants.HF_HUB_OFFLINE
    most_received = most_bytes
    if not offline:
        library: dict[str, Any] = {"library_name": LIBRARY, "library_version": __version__}
        try:
            found = hub.get_hf_file_metadata(
                hub.hf_hub_url(repository, name, revision=revision), token=token, **library
            )
        except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
            raise CheckpointError(_reason(error, repository, name, revision)) from error
        except Exception as error:  # no connection, no access, an odd answer: what is in the cache can still be used
            unreachable = error
            if force_download:
                raise CheckpointError(_reason(error, repository, name, revision)) from error
        else:
            if not _COMMIT.fullmatch(found.commit_hash or "") or not _ETAG.fullmatch(found.etag or ""):
                raise CheckpointError(f"{printable(constants.ENDPOINT)} does not answer as a Hugging Face Hub does")
            if found.size is not None:
                _check_size(name, found.size, most_bytes)
                most_received = min(most_bytes, 2 * found.size) + _SLACK_BYTES
    bar = _bounded_bar(name, most_bytes, most_received)
    try:
        return Path(
            hub.hf_hub_download(
                repository,
                name,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                force_download=force_download,
                local_files_only=offline or unreachable is not None,
                library_name=LIBRARY,
                library_version=__version__,
                tqdm_class=bar,
            )
        )
    except CheckpointError:
        raise
    except Exception as error:  # of several libraries
        if unreachable is None and isinstance(error, errors.HfHubHTTPError):  # the Hub has it, and its storage has not
            status = error.response.status_code
            raise CheckpointError(f"{name} cannot be fetched: its storage answers {status}; try again later") from error
        raise CheckpointError(_reason(unreachable or error, repository, name, revision)) from error


def _check_size(name: str, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise CheckpointError(f"{name} has {size} bytes; at most {most_bytes} are read")


def _bounded_bar(name: str, most_bytes: int, most_received: int) -> type[Any]:
    """A progress bar that ends a download which is longer than it may be, whatever the server said before."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._received = 0
            if (total := kwargs.get("total")) is not None:
                _check_size(name, int(total), most_bytes)
            super().__init__(*args, **kwargs | {"desc": name})  # the server could name it otherwise

        def update(self, n: float | None = 1) -> bool | None:
            self._received += max(0, int(n or 0))
            if self._received > most_received:
                raise CheckpointError(f"{name} does not end where it should; the download was stopped")
            return super().update(n)

    return Bar


def _reason(error: Exception, repository: str, name: str, revision: str | None) -> str:
    """Why a repository could not be used, and what would work, in one line."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        text = f"access must be asked for at {page}; then log in (hf auth login) or give a token"
    elif isinstance(error, errors.DisabledRepoError):
        text = "the Hub has disabled this repository"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"there is no revision {revision or 'main'!r}; see {page}/commits"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        text = f"there is no {name}; munit-fast reads repositories that hold {CONFIG} and {WEIGHTS}, and no pickles"
    elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        text = f"no such repository at {constants.ENDPOINT}, or a private one: log in (hf auth login) or give a token"
    elif isinstance(error, errors.HfHubHTTPError):
        message = f": {error.server_message}" if error.server_message else ""
        text = f"{constants.ENDPOINT} answers {status}{message}"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        text = f"{name} of {revision or 'main'!r} is not in the cache; leave out local_files_only or HF_HUB_OFFLINE"
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        done = f"{name} cannot be fetched from" if name else "cannot be pushed to"
        text = f"{done} {constants.ENDPOINT} ({type(cause).__name__}: {cause})"
    return one_line(text)


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = one_line(record.getMessage()), None
        return True


@contextmanager
def _contained() -> Iterator[None]:
    """What huggingface_hub logs and warns of repeats what servers say: nothing in it may speak to the terminal."""
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.get_logger()  # gives the library's logger its handler
    handlers = list(logging.getLogger("huggingface_hub").handlers)
    keep = _OneLine()
    for handler in handlers:
        handler.addFilter(keep)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(keep)
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning):
            warnings.warn(one_line(str(warning.message)), warning.category, stacklevel=4)
