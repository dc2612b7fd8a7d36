"""Upload an export to the Hugging Face Hub with the user's login."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from peftkit.errors import UserError
from peftkit.system.logging import logger

HUB_ERRORS = (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError)


def check_login(name: str) -> None:
    """Raise UserError without a login, before the export."""
    try:
        HfApi().whoami()
    except HUB_ERRORS as error:
        raise UserError(
            f"--push_to_hub {name}: not logged in to the Hub ({_shorten(error)}); run hf auth login"
        ) from error


def push_folder(folder: Path, name: str, *, private: bool = False) -> None:
    """Upload a folder as the model `name`, which is created if needed. Raises UserError."""
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True, private=private)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of peftkit")
    except HUB_ERRORS as error:
        raise UserError(
            f"--push_to_hub {name}: upload failed ({_shorten(error)}); retry, the export is complete in {folder}"
        ) from error
    logger.info("uploaded to %s", name)


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
