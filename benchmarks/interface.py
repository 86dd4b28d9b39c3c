"""ComfyUI's web interface in another version than the one that a ComfyUI brings.

Standard library only, like ``environment``: the interface is a package of its own on the index.
"""

from pathlib import Path

from .environment import SetupError, base_venv, build_once, cache_folder, pip, requirements_file, say, venv_python

INTERFACES = {
    "1.58.1": "comfyui-frontend-package==1.58.1 "
    "--hash=sha256:37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9",
}


def interface_folder(version: str) -> Path:
    """The folder of an interface, for ComfyUI's option --front-end-root; fetched once."""
    if version not in INTERFACES:
        raise SetupError(f"There is no interface {version}: --interface takes {', '.join(INTERFACES)}.")

    def build(folder: Path) -> None:
        say(f"Fetching interface {version}.")
        with requirements_file(INTERFACES[version]) as file:
            pip(
                venv_python(base_venv()),
                "install",
                "--no-deps",
                "--require-hashes",
                "--target",
                str(folder),
                "-r",
                file,
            )

    folder = build_once(cache_folder() / f"interface-{version}", build)
    return folder / "comfyui_frontend_package" / "static"
