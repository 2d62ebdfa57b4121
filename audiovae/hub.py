"""Models on the Hugging Face hub: a repository `owner/name` holds the files of a model folder.

The hub's library brings files and nothing more; `audiovae.saved` verifies what it brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiovae.errors import ModelError


def download(repository: str, revision: str | None, files: list[str]) -> Path:
    """A folder with these files of a repository, from the cache where they are there already.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; None is the newest.

    Raises:
        ModelError: no library of the hub, no such repository or revision, no right to it, or no network.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(repository, "no such folder; to load it from the hub: pip install 'audiovae[hub]'") from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except Exception as error:
        raise ModelError(repository, "no such folder, and " + _reason(error, revision)) from error


def push(folder: Path, repository: str, files: list[str], private: bool, revision: str | None) -> str:
    """Upload these files of a folder into a repository, which is made where there is none.

    Args:
        private: of a repository that is made.
        revision: the branch; None is "main".

    Returns:
        the address of the commit.

    Raises:
        ModelError: as `download`; or no token that may write.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ModelError(repository, "to share a model: pip install 'audiovae[hub]'") from error
    if repository.count("/") != 1:
        raise ModelError(repository, "is not written: a repository is named owner/name")
    try:
        hub = HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        commit: Any = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=files, revision=revision, commit_message="A model"
        )
    except Exception as error:
        raise ModelError(repository, "is not written: " + _reason(error, revision)) from error
    return str(commit.commit_url)


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub import errors

    cause: BaseException | None = error
    while cause is not None and not isinstance(
        cause, ConnectionError | errors.HfHubHTTPError | errors.HFValidationError
    ):
        cause = cause.__cause__ or cause.__context__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.HFValidationError):
        return "it is no name of a repository, which is owner/name, of letters, digits, - _ and ."
    if isinstance(cause, errors.GatedRepoError):
        return "the hub gives it to those alone who accepted its terms: accept them on its page, then `hf auth login`"
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"the hub has it without a revision {revision!r}"
    if status == 401 or status == 403:
        return "the hub asks for a token that may do this: `hf auth login`; or there is no such repository"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or a private one: `hf auth login`"
    is_transport = type(error).__name__ in ("ConnectError", "ConnectTimeout", "ReadTimeout")  # of httpx, old or new
    if is_transport or isinstance(
        error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError
    ):
        return "the hub cannot be reached, nor is it in the cache; check the network (HF_HUB_OFFLINE=1 forbids it)"
    return f"the hub does not give it ({type(error).__name__})"
