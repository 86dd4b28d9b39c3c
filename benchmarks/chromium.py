"""The browser that the tests of the web interface drive."""

import os
import shutil
import subprocess
from pathlib import Path

from .environment import SetupError, cache_folder, locked, say


def chromium() -> Path:
    """The Chromium of this machine, which the browser tests drive; from Debian's packages when it is missing."""
    if found := _find_chromium():
        return found
    if not shutil.which("apt-get") or os.geteuid():
        raise SetupError(
            "The browser tests need Chromium, and there is none. Install it (Debian and Ubuntu: sudo apt install "
            "chromium) and run again, or run the other tiers: dev.py test --core --host --project"
        )
    with locked(cache_folder()):
        say("Installing Chromium for the browser tests.")
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
            words = ["apt-get", "-qq", *command]
            environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                raise SetupError(f"`{' '.join(words)}` failed:\n{(done.stdout + done.stderr).strip()}")
    if found := _find_chromium():
        return found
    raise SetupError("apt-get has installed Chromium, yet there is no program of that name.")


def _find_chromium() -> Path | None:
    # Ubuntu's chromium-browser only asks for a snap, so it is no candidate.
    found = filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome")))
    return next(map(Path, found), None)
