"""Errors while a pipeline is fetched or loaded, as a ValueError or OSError of one line."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ..console.notes import message

INDEX = "model_index.json"
"""The file that makes a folder a pipeline."""

ADAPTER = "pytorch_lora_weights.safetensors"
"""The file that makes a folder an adapter, by diffusers' name."""


@contextlib.contextmanager
def one_line_errors(repo: str, what: str = "a saved pipeline", file: str = INDEX) -> Iterator[None]:
    """Turn errors of the Hub's client into a ValueError if the request is wrong, an OSError if the Hub is out of
    reach. `what` is asked for, and `file` is what makes a repository that."""
    from huggingface_hub import errors

    log_in = "if it is private, log in with `hf auth login` or give token=..."
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{repo} is neither a folder with {what} nor a name of a repository.") from error
    except errors.GatedRepoError as error:
        raise ValueError(f"{repo} is gated: ask for access on its page, and give a token that has it.") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"There is no folder or repository {repo}; check the name, and {log_in}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no such revision: {_first(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code in (401, 403):
            raise ValueError(f"The Hub refused {repo}: {_first(cause)}. Check the token; {log_in}") from error
        raise OSError(
            f"There is no folder {repo}, and as a repository it can't be loaded: this revision is not in the cache, "
            "and the Hub is out of reach."
        ) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{repo} is not {what}: there is no {file} in it.") from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ValueError(f"The Hub refused {repo}: {_first(error)}. Check the token; {log_in}") from error
        raise OSError(f"{repo} can't be loaded: {_first(error)}.") from error
    except errors.HfHubHTTPError.__bases__[0] as error:  # of whatever HTTP library the client is built on
        raise OSError(f"{repo} can't be loaded, the Hub is out of reach: {_first(error)}.") from error


def _first(error: Any) -> str:
    """Return the first line of the reason, without the full stop."""
    reason = getattr(error, "server_message", None) or str(error)
    return (reason.strip().splitlines() or ["no reason given"])[0].rstrip(".")


@contextlib.contextmanager
def value_errors(source: str) -> Iterator[None]:
    """Turn any error that a damaged folder causes in diffusers, transformers or torch into a ValueError that names the
    folder, in words that move no cursor of a terminal and are short."""
    try:
        yield
    except MemoryError:
        raise
    except (ValueError, OSError) as error:
        if source in str(error) and type(error) in (ValueError, OSError) and message(error) == str(error):
            raise
        kind = ValueError if isinstance(error, ValueError) else OSError
        raise kind(message(error if source in str(error) else f"{source} can't be loaded: {error}")) from error
    except Exception as error:
        raise ValueError(message(f"{source} can't be loaded: {_kind_and_reason(error)}")) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the tokenizers library, which is written in Rust
            raise
        raise ValueError(message(f"{source} can't be loaded: {_kind_and_reason(error)}")) from error


def _kind_and_reason(error: BaseException) -> str:
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {reason}"
