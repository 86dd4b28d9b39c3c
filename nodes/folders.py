"""Where files live: only inside ComfyUI's own models and output folders."""

import re
import unicodedata
from pathlib import Path

import folder_paths

FOLDER = "unhype"
# What a list without files shows: an empty one reads "undefined" in ComfyUI.
NO_HYPERNET = "empty: Train Erasure makes one"
NO_PUBLISHED = "empty: put a .pth in models/unhype"
_REFUSED = re.compile(r"[^\w .,+-]")
# Windows takes these for devices, whatever follows the first dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE)
# File names end at 255 bytes; what is added to this one is a number, a suffix and the mark of an unfinished file.
_MAX_BYTES = 180


def register_model_folder() -> None:
    """Register `models/unhype` with ComfyUI, beside the folders of extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    # A new model folder starts without extensions, which ComfyUI takes for "list every file".
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".sft"})


def hypernet_names() -> list[str]:
    """The hypernet files that Load UnHype Hypernet offers, or `NO_HYPERNET`."""
    return folder_paths.get_filename_list(FOLDER) or [NO_HYPERNET]


def hypernet_path(name: str) -> Path:
    """The path of a listed hypernet; raises FileNotFoundError for anything outside the folders, or for no file."""
    if name == NO_HYPERNET:
        raise FileNotFoundError(
            f"Load UnHype Hypernet, 'hypernet': there is no eraser in models/{FOLDER} yet. Train one with Train "
            "Erasure, or put a .safetensors file that somebody else trained there. Then press R and choose it."
        )
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def is_hypernet(name: str) -> bool:
    """Whether there is a file of this name in the folders of hypernets."""
    return folder_paths.get_full_path(FOLDER, name) is not None


def _published_files() -> dict[str, Path]:
    """Files of the paper's authors in the folders of hypernets: name in the list to path."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    files = [(path.relative_to(folder).as_posix(), path) for folder in folders for path in folder.rglob("*.pth")]
    return dict(reversed(files))  # of equal names the first folder's counts, as in ComfyUI's own lists


def published_names() -> list[str]:
    """The files that Import UnHype Weights offers, or `NO_PUBLISHED`."""
    return sorted(_published_files()) or [NO_PUBLISHED]


def published_path(name: str) -> Path:
    """The path of a listed file; raises FileNotFoundError for any other, and for none."""
    if name == NO_PUBLISHED:
        raise FileNotFoundError(
            f"Import UnHype Weights, 'weights': there is no .pth file in models/{FOLDER}. Put one there that "
            "the authors of the UnHype paper published, press R and choose it. Files that end in .safetensors need no "
            "import."
        )
    path = _published_files().get(name)
    if path is None:
        raise FileNotFoundError(f"There is no file '{name}' in models/{FOLDER}.")
    return path


def training_folder() -> Path:
    """Where Train Erasure writes hypernets."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def checkpoint_folder() -> Path:
    """Where a training run keeps its checkpoints."""
    return Path(folder_paths.get_output_directory()) / FOLDER / "checkpoints"


def encodings_folder() -> Path:
    """Where encoded prompts are kept for later trainings; ComfyUI empties its folder of temporary files at start."""
    return Path(folder_paths.get_output_directory()) / FOLDER / "encodings"


def written_note() -> Path:
    """The note of what nodes have written, see `written`."""
    return Path(folder_paths.get_temp_directory()) / FOLDER / "written.json"


def safe_name(name: str) -> str:
    """A file name from what the user typed: no folders, no characters that some system refuses."""
    # Composed first: an accent that is a character of its own is no letter.
    letters = _REFUSED.sub("_", unicodedata.normalize("NFC", name).strip().removesuffix(".safetensors"))
    short = letters.strip(" .").encode()[:_MAX_BYTES].decode(errors="ignore").strip(" .") or "erasure"
    return f"_{short}" if _DEVICE.match(short) else short
