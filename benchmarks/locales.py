"""The words of the nodes as ComfyUI's interface looks them up: locales/<language>/nodeDefs.json.

English is written from the nodes by `python3 dev.py locales`, so that it can't differ from them; the other
languages have the same keys. `python3 dev.py locales` also names the keys that a language lacks or has too many.
"""

import asyncio
import json
from pathlib import Path

from .environment import ROOT, say
from .pack import load_pack

FOLDER = ROOT / "locales"
SOURCE = "en"


def words_of(node) -> dict:
    """A node's entry: names and tooltips. Outputs go by their number, all else by its name with dots made lines."""
    info = node.GET_NODE_INFO_V1()
    parts = [info["input"].get(part, {}) for part in ("required", "optional")]
    inputs = {name: spec[1] for part in parts for name, spec in part.items()}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name.replace(".", "_"): {"name": name, "tooltip": options["tooltip"]} for name, options in inputs.items()
        },
        "outputs": {str(place): {"name": name, "tooltip": tooltip} for place, (name, tooltip) in enumerate(outputs)},
    }


def english() -> dict:
    """Every node of the pack, in the order in which ComfyUI gets them."""
    extension = asyncio.run(load_pack().comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    return {node.GET_SCHEMA().node_id: words_of(node) for node in nodes}


def flat(words: dict, path: str = "") -> dict[str, str]:
    """Dotted key to text."""
    found = {}
    for key, value in words.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def file_of(language: str) -> Path:
    return FOLDER / language / "nodeDefs.json"


def read(language: str) -> dict:
    return json.loads(file_of(language).read_text(encoding="utf-8"))


def write(language: str, words: dict) -> None:
    file_of(language).parent.mkdir(parents=True, exist_ok=True)
    file_of(language).write_text(json.dumps(words, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def languages() -> list[str]:
    """Those that have words, English among them."""
    return sorted(path.parent.name for path in FOLDER.glob("*/nodeDefs.json"))


def main() -> int:
    source = english()
    write(SOURCE, source)
    wrong = 0
    for language in languages():
        keys = flat(read(language)).keys()
        missing, left_over = flat(source).keys() - keys, keys - flat(source).keys()
        wrong += len(missing) + len(left_over)
        say(f"{language}: {len(keys)} texts, {len(missing)} missing, {len(left_over)} left over")
        for key in sorted(missing):
            say(f"  missing: {key}")
        for key in sorted(left_over):
            say(f"  left over: {key}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
