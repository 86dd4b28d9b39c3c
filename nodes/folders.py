"""Where files live: only inside ComfyUI's own models and output folders."""

import re
from pathlib import Path

import folder_paths

FOLDER = "unhype"
_ALLOWED = re.compile(r"[^\w .,+-]")


def register_model_folder():
    """Tell ComfyUI about `models/unhype`, beside any that extra_model_paths.yaml names."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    # A new model folder starts without extensions, which ComfyUI takes for "list every file".
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".sft"})


def hypernet_names():
    """The hypernet files that Load UnHype Hypernet offers."""
    return folder_paths.get_filename_list(FOLDER)


def hypernet_path(name):
    """The path of a listed hypernet; raises FileNotFoundError for anything outside the folders."""
    return Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def training_folder():
    """Where Train Erasure writes hypernets."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def checkpoint_folder():
    """Where a training run keeps its checkpoints."""
    return Path(folder_paths.get_output_directory()) / FOLDER / "checkpoints"


def safe_name(name):
    """A file name from what the user typed: no folders, no characters that some system refuses."""
    return _ALLOWED.sub("_", name.removesuffix(".safetensors")).strip(" .")[:100] or "erasure"
