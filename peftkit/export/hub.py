"""An export to the Hugging Face Hub, by the user's own login, and only when asked to."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from peftkit.errors import UserError
from peftkit.system.logging import logger

HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError)


def check_login(name: str) -> None:
    """Raise UserError when nobody is logged in, so that nothing is made that can't be sent."""
    try:
        HfApi().whoami()
    except HUB_ERRORS as error:
        raise UserError(
            f"--push_to_hub {name}: no login that the hub accepts ({_shorten(error)}); hf auth login"
        ) from error


def push_folder(folder: Path, name: str, *, private: bool = False) -> None:
    """Send a folder as the model `name`, which is made if it is not there. Raises UserError when it can't be sent."""
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True, private=private)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of peftkit")
    except HUB_ERRORS as error:
        raise UserError(
            f"--push_to_hub {name}: not sent ({_shorten(error)}); the export is whole in {folder}"
        ) from error
    logger.info("sent to %s", name)


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
